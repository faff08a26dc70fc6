"""robustlab: the attacks, defenses and verifiers of *Holistic Adversarial Robustness*, in PyTorch."""

__version__ = "0.1.0"
