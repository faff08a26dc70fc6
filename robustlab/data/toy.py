"""Two-dimensional toy data, scaled into the box [0, 1] x [0, 1], to look at decision regions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.dataset import Dataset


def two_moons(n_train: int = 400, n_test: int = 200, *, noise: float = 0.05, seed: int = 0) -> Dataset:
    """Two interleaved half circles, one per class.

    Class 0 lies on (cos t, sin t) and class 1 on (1 - cos t, 1/2 - sin t), t uniform in [0, pi]; Gaussian
    noise is added, the plane is scaled by 1/4 about the middle of the two and moved into the unit square.

    Args:
        n_train, n_test: numbers of samples; classes alternate, so any even prefix is balanced.
        noise: standard deviation in units of the half circles' radius (radius 1 is 0.25 in the square).
        seed: of the draws; the global random state is not touched.

    Raises:
        ValueError, TypeError: if a number is less than 2 or `noise` is negative.
    """
    _check(n_train, n_test, 2)
    checks.at_least("noise", noise, 0.0)
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(n) % 2
        t = math.pi * torch.rand(n, generator=generator)
        sign = 1.0 - 2.0 * y
        x = torch.stack([y + sign * t.cos(), 0.5 * y + sign * t.sin()], dim=1)
        x = x + noise * torch.randn(n, 2, generator=generator)
        return ((x - torch.tensor([0.5, 0.25])) / 4 + 0.5).clamp(0, 1), y

    return _pack("two_moons", draw, n_train, n_test, 2)


def gaussians(
    n_train: int = 400, n_test: int = 200, *, classes: int = 3, sigma: float = 0.07, radius: float = 0.28, seed: int = 0
) -> Dataset:
    """Round Gaussian clouds with centers evenly spaced on a circle about the middle of the unit square.

    Two of them have the line midway between their centers as the best decision boundary, so that the
    smallest adversarial distortion is known in closed form.

    Args:
        n_train, n_test: numbers of samples; classes take turns, so any prefix is as balanced as it can be.
        classes: number of clouds, at least 2.
        sigma: standard deviation of each cloud, in units of the square's side.
        radius: of the circle that holds the centers, in (0, 0.5].
        seed: of the draws; the global random state is not touched.

    Raises:
        ValueError, TypeError: if an argument is out of its range.
    """
    checks.at_least("classes", classes, 2, integer=True)
    _check(n_train, n_test, classes)
    checks.at_least("sigma", sigma, 0.0)
    if not 0 < radius <= 0.5:
        raise ValueError(f"radius: want a number in (0, 0.5], got {radius}")
    generator = torch.Generator().manual_seed(seed)
    angles = 2 * math.pi * torch.arange(classes) / classes
    centers = 0.5 + radius * torch.stack([angles.cos(), angles.sin()], dim=1)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(n) % classes
        return (centers[y] + sigma * torch.randn(n, 2, generator=generator)).clamp(0, 1), y

    return _pack("gaussians", draw, n_train, n_test, classes)


def _check(n_train: int, n_test: int, least: int) -> None:
    for argument, n in (("n_train", n_train), ("n_test", n_test)):
        checks.at_least(argument, n, least, integer=True)


def _pack(name: str, draw: Callable[[int], tuple[Tensor, Tensor]], n_train: int, n_test: int, classes: int) -> Dataset:
    (x_train, y_train), (x_test, y_test) = draw(n_train), draw(n_test)
    return Dataset(name, x_train, y_train, x_test, y_test, tuple(f"class {c}" for c in range(classes)))
