"""All verifiers, importable by name: ``from robustlab.verification import crown``; loaded when asked for."""

from robustlab._lazy import from_stub

__all__, __getattr__, __dir__ = from_stub(__file__)
