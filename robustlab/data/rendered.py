"""What data sets that are rendered share: pictures by their numbers, and what a camera adds to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.data.dataset import Dataset
from robustlab.data.pairs import Part
from robustlab.geometry.keyed import Noise

_AT_ONCE = 200  # pictures rendered together, so that they stay in the processor's cache


def rendered(
    name: str, pictures: Callable[[Tensor, int, Part, int], Tensor], classes: tuple[str, ...], n_train: int,
    n_test: int, side: int, seed: int,
) -> Dataset:  # fmt: skip
    """A data set of pictures whose classes take turns.

    Args:
        name: of the data set.
        pictures: (numbers (n,), side, part, seed) → (n, 3, side, side); each depends on its own number alone.
        classes: picture i is of class i modulo their number.
        n_train, n_test: how many, at least 1.
        side: in pixels, at least 16.
        seed: of all draws.

    Raises:
        ValueError, TypeError: for a number out of its range.
    """
    checks.at_least("n_train", n_train, 1, integer=True)
    checks.at_least("n_test", n_test, 1, integer=True)
    checks.at_least("side", side, 16, integer=True)

    def part_of(n: int, part: Part) -> tuple[Tensor, Tensor]:
        ids = torch.arange(n)
        return torch.cat([pictures(some, side, part, seed) for some in ids.split(_AT_ONCE)]), ids % len(classes)

    return Dataset(name, *part_of(n_train, "train"), *part_of(n_test, "test"), classes)


def photographed(scene: Tensor, noise: Noise) -> Tensor:
    """Light, blur and noise of each picture's own."""
    gain = noise.uniform((10,), (1, 1, 1), scene.dtype, 0.6, 1.2)
    offset = noise.uniform((11,), (1, 1, 1), scene.dtype, -0.1, 0.1)
    soft = noise.uniform((12,), (1, 1, 1), scene.dtype, 0.0, 0.8)
    near = F.avg_pool2d(F.pad(scene, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    grain = 0.02 * noise.quick_normal((13,), scene.shape[1:]).to(scene)
    return (gain * (scene + soft * (near - scene)) + offset + grain).clamp_(0, 1)
