"""The reference architectures: an MLP, a small convolutional net and a small residual net."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustlab.models.normalize import Normalize
from robustlab.models.registry import register

Floats = float | Sequence[float]


@register
def mlp(
    *,
    in_shape: Sequence[int] = (1, 28, 28),
    hidden: Sequence[int] = (20, 20),
    classes: int = 10,
    mean: Floats = 0.0,
    std: Floats = 1.0,
    seed: int = 0,
) -> nn.Module:
    """Fully connected ReLU layers, few enough units by default for exact verification.

    Args:
        in_shape: shape of one input, without the batch; it is flattened.
        hidden: numbers of units of the hidden layers; empty gives an affine model.
        classes: number of outputs, at least 2.
        mean, std: of the leading :class:`Normalize`.
        seed: of the initial weights (default 0).

    Raises:
        ValueError: if a size is not a positive integer or there are fewer than 2 classes.
    """
    _check(in_shape=in_shape, hidden=hidden, classes=[classes - 1])
    layers: list[tuple[str, nn.Module]] = [("normalize", Normalize(mean, std)), ("flatten", nn.Flatten())]
    width = math.prod(in_shape)
    for i, units in enumerate(hidden, start=1):
        layers += [(f"fc{i}", nn.Linear(width, units)), (f"relu{i}", nn.ReLU())]
        width = units
    layers.append(("out", nn.Linear(width, classes)))
    return nn.Sequential(OrderedDict(layers))


@register
def small_cnn(
    *,
    in_shape: Sequence[int] = (1, 28, 28),
    channels: Sequence[int] = (16, 32),
    hidden: int = 100,
    classes: int = 10,
    mean: Floats = 0.0,
    std: Floats = 1.0,
    seed: int = 0,
) -> nn.Module:
    """Strided 4x4 convolutions and one hidden layer: the small net of the verification literature.

    With the defaults it is 16 and 32 channels, 4x4, stride 2, no padding, then 100 units (about 90,000
    weights on 28x28 images).

    Args:
        in_shape: (C, H, W) of one input.
        channels: numbers of channels of the convolutions.
        hidden: units of the fully connected layer.
        classes: number of outputs, at least 2.
        mean, std: of the leading :class:`Normalize`.
        seed: of the initial weights (default 0).

    Raises:
        ValueError: if a size is not a positive integer, there are fewer than 2 classes, or the image is too
            small for the convolutions.
    """
    _check(in_shape=in_shape, channels=channels, hidden=[hidden], classes=[classes - 1])
    if len(in_shape) != 3:
        raise ValueError(f"in_shape: want (C, H, W), got {tuple(in_shape)}")
    width, height, breadth = in_shape
    layers: list[tuple[str, nn.Module]] = [("normalize", Normalize(mean, std))]
    for i, out in enumerate(channels, start=1):
        if min(height, breadth) < 4:
            raise ValueError(
                f"in_shape: want images that leave 4 rows and columns to each of {len(channels)} convolutions, "
                f"got {tuple(in_shape)}"
            )
        layers += [(f"conv{i}", nn.Conv2d(width, out, 4, stride=2)), (f"relu{i}", nn.ReLU())]
        width, height, breadth = out, (height - 4) // 2 + 1, (breadth - 4) // 2 + 1
    last = len(channels) + 1
    layers += [
        ("flatten", nn.Flatten()),
        (f"fc{last}", nn.Linear(width * height * breadth, hidden)),
        (f"relu{last}", nn.ReLU()),
        ("out", nn.Linear(hidden, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


class ResidualBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3x3 convolutions (He and others, 2016).

    Args:
        width: channels of the input.
        out: channels of the output.
        stride: of the first convolution; where it is not 1, or the channels change, the shortcut is a 1x1
            convolution of that stride with batch norm, else the identity.
    """

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))


@register
def resnet_tiny(
    *,
    in_shape: Sequence[int] = (1, 28, 28),
    channels: Sequence[int] = (16, 32, 48),
    classes: int = 10,
    mean: Floats = 0.0,
    std: Floats = 1.0,
    seed: int = 0,
) -> nn.Module:
    """A residual net with batch norm: a strided stem, one block a stage, mean pooling, one linear layer.

    Every stage after the first halves the image. With the defaults it has about 55,000 weights.

    Args:
        in_shape: (C, H, W) of one input.
        channels: numbers of channels of the stages; the stem has the first of them.
        classes: number of outputs, at least 2.
        mean, std: of the leading :class:`Normalize`.
        seed: of the initial weights (default 0).

    Raises:
        ValueError: if a size is not a positive integer, `channels` is empty, or there are fewer than 2 classes.
    """
    _check(in_shape=in_shape, channels=channels, classes=[classes - 1])
    if len(in_shape) != 3:
        raise ValueError(f"in_shape: want (C, H, W), got {tuple(in_shape)}")
    if not channels:
        raise ValueError("channels: want at least one stage, got none")
    stem = nn.Sequential(
        nn.Conv2d(in_shape[0], channels[0], 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels[0]),
        nn.ReLU(),
    )
    layers: list[tuple[str, nn.Module]] = [("normalize", Normalize(mean, std)), ("stem", stem)]
    width = channels[0]
    for i, out in enumerate(channels, start=1):
        layers.append((f"block{i}", ResidualBlock(width, out, stride=1 if i == 1 else 2)))
        width = out
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("out", nn.Linear(width, classes))]
    return nn.Sequential(OrderedDict(layers))


def _check(**sizes: Sequence[int]) -> None:
    for argument, values in sizes.items():
        for value in values:
            if not isinstance(value, int) or value < 1:
                shown, least = (value + 1, 2) if argument == "classes" else (value, 1)
                raise ValueError(f"{argument}: want integers of at least {least}, got {shown}")


def parameter_count(model: torch.nn.Module) -> int:
    """How many trainable numbers a model has."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
