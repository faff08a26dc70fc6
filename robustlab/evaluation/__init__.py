"""Measuring robustness: ``from robustlab.evaluation import evaluate``. Each part is loaded on first use."""

from robustlab._lazy import from_stub

__all__, __getattr__, __dir__ = from_stub(__file__)
