"""All attacks, importable by name: ``from robustlab.attacks import pgd``. Each is loaded when it is first asked for."""

from robustlab._lazy import from_stub

__all__, __getattr__, __dir__ = from_stub(__file__)
