"""A few scenes of a family, the same for all images: what an attack sees that does not draw anew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacks.physical.camera import Rendered
from robustlab.attacks.physical.scenes import Scenes, View
from robustlab.geometry.keyed import Noise, derive_seed

_FEW = 0x666577


@dataclass(frozen=True, eq=False)
class Few(Scenes):
    """``count`` scenes of a family, the same for all images.

    Attributes:
        family: whose scenes they are.
        count: at least 1.
        seed: of the scenes.

    Raises:
        ValueError, TypeError: for a count below 1.
    """

    family: Scenes
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        checks.at_least("count", self.count, 1, integer=True)

    def texture_size(self, images: Tensor) -> tuple[int, int] | None:
        """That of the family."""
        return self.family.texture_size(images)

    def before(self, images: Tensor, mask: Tensor, noise: Noise, number: int) -> Rendered:
        """Each picture of a batch takes one of the scenes."""
        return self._shown(images, mask, noise.integers((number, 10), (), self.count))

    def each(self) -> list[View]:
        """All of the scenes, one by one."""
        return [partial(self._alone, which) for which in range(self.count)]

    def _shown(self, images: Tensor, mask: Tensor, which: Tensor) -> Rendered:
        return self.family.before(images, mask, Noise(derive_seed(self.seed, _FEW), which), 0)

    def _alone(self, which: int, images: Tensor, texture: Tensor, mask: Tensor) -> Tensor:
        ids = torch.full((len(images),), which, device=images.device)
        return self._shown(images, mask, ids)(texture)
