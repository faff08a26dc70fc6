"""All defenses, importable by name: ``from robustlab.defenses import adversarial_training``; loaded when asked for."""

from robustlab._lazy import from_stub

__all__, __getattr__, __dir__ = from_stub(__file__)
