from robustlab.defenses.training.adversarial_training import adversarial_training as adversarial_training

__all__ = ["adversarial_training"]
