"""Small reference architectures, built by name, each with its normalization as its first layer."""

from robustlab.models.architectures import ResidualBlock, mlp, resnet_tiny, small_cnn
from robustlab.models.normalize import Normalize
from robustlab.models.registry import build, builders, register

__all__ = ["Normalize", "ResidualBlock", "build", "builders", "mlp", "register", "resnet_tiny", "small_cnn"]
