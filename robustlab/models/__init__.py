"""Small reference architectures, built by name, each with its normalization as its first layer."""

from robustlab.models.architectures import ResidualBlock, mlp, resnet_tiny, small_cnn
from robustlab.models.normalize import Normalize
from robustlab.models.registry import build, builders, register
from robustlab.models.vae import ClassVAE, class_vae

__all__ = [
    "ClassVAE",
    "Normalize",
    "ResidualBlock",
    "build",
    "builders",
    "class_vae",
    "mlp",
    "register",
    "resnet_tiny",
    "small_cnn",
]
