"""robustlab: the attacks, defenses and verifiers of *Holistic Adversarial Robustness*, in PyTorch."""

from robustlab._lazy import from_stub

__version__ = "0.1.0"
__all__, __getattr__, __dir__ = from_stub(__file__)
