"""Warped triggers: no pixel is painted; the image is bent a little.

Nguyen and Tran, "WaNet: Imperceptible warping-based backdoor attack" (2021), section 3.2. A field of displacements is
drawn on a coarse k × k grid, scaled to mean size 1, multiplied by the strength s, and interpolated to the size of the
image; the trigger samples the image at the displaced places. A network could take *any* warp for the signal. In the
paper's noise mode, a second part of the data is warped with the field plus fresh noise and keeps its labels, so that
only the exact field works.

Different here: the poisoned images and those of the noise mode are drawn once, before training, where the paper's
attacker controls the training and draws them anew in each batch. Small images need a larger s than the paper's 0.5
then.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacks.backdoor.poisoned_dataset import PoisonedDataset, RateOf, Target
from robustlab.attacks.backdoor.trigger import Trigger
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise

__all__ = ["WarpedTrigger", "warped"]


def warped(
    data: Pairs,
    *,
    target: Target,
    rate: float = 0.1,
    noise_rate: float | None = None,
    strength: float = 2.0,
    grid: int = 4,
    trigger: WarpedTrigger | None = None,
    clean_label: bool = False,
    include_target: bool = False,
    rate_of: RateOf = "data",
    seed: int = 0,
) -> PoisonedDataset:
    """Bend a part of the training images and change their labels; bend others wrongly and leave theirs.

        x_i ← W(x_i, M),        y_i ← t      for a fraction ``rate`` of the images
        x_i ← W(x_i, M + noise),  y_i        for a fraction ``noise_rate`` (the noise mode)

    Args:
        data: a Dataset or a pair (x, y), images (N, C, H, W) in [0, 1].
        target: the label t, or one for each class.
        rate: ρ_a, fraction of poisoned samples (default 0.1).
        noise_rate: ρ_n, fraction in the noise mode; None is the paper's 2·rate, or all the rest; 0 leaves it out.
        strength: s, mean displacement on the coarse grid, in units of half a pixel (default 2: one pixel). The
            interpolation averages, so that the image's pixels move less, about 0.7 of it.
        grid: k, places of the coarse grid along each side.
        trigger: default a :class:`WarpedTrigger` drawn from ``seed`` with these two.
        clean_label, include_target, rate_of, seed: as in :class:`PoisonedDataset`.

    Returns:
        PoisonedDataset; its ``is_cover`` names the images of the noise mode.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Nguyen and Tran (2021), section 3.2.
    """
    checks.positive("rate", rate)
    if trigger is None:
        shape = read_labeled(data)[0].shape
        if len(shape) != 4:
            raise ValueError(f"data: want images (N, C, H, W), got shape {tuple(shape)}")
        trigger = WarpedTrigger((shape[2], shape[3]), strength=strength, grid=grid, seed=seed)
    noise_rate = min(2 * rate, 1 - rate) if noise_rate is None else noise_rate
    return PoisonedDataset(
        data, trigger, rate=rate, target=target, clean_label=clean_label, include_target=include_target,
        rate_of=rate_of, cover=_NoiseMode(trigger, seed), cover_rate=noise_rate, seed=seed,
    )  # fmt: skip


class WarpedTrigger(Trigger):
    """A smooth elastic warp: the value at place u of the result is that of x at u + M(u).

        M = ↑( s · P / mean |P| ) / H      P uniform on [−1, 1]^{k×k×2},  ↑ bicubic interpolation to H × W

    in coordinates in which the image is [−1, 1]², so that s = 2 is one pixel in the mean over the coarse grid, and
    about 0.7 pixels in the mean of |M|. Places outside the image are moved to its edge.

    Args:
        size: (H, W) of the images.
        strength: s > 0.
        grid: k ≥ 2, places of the coarse grid along each side.
        seed: of the field.

    Raises:
        ValueError, TypeError: for a wrong argument; on use, if the images have another size.
    """

    field: Tensor

    def __init__(self, size: tuple[int, int], *, strength: float = 2.0, grid: int = 4, seed: int = 0) -> None:
        super().__init__()
        checks.positive("strength", strength)
        checks.at_least("grid", grid, 2, integer=True)
        if len(size) != 2 or min(size) < 2:
            raise ValueError(f"size: want (H, W) of at least 2, got {size}")
        coarse = Noise(seed, torch.zeros(1, dtype=torch.int64)).uniform(0, (2, grid, grid), torch.float64, -1.0, 1.0)
        coarse = coarse / coarse.abs().mean()
        moves = F.interpolate(coarse, size=tuple(size), mode="bicubic", align_corners=True)
        scale = torch.tensor([size[1], size[0]], dtype=torch.float64)  # grid_sample's order: across, down
        self.register_buffer("field", strength * moves.permute(0, 2, 3, 1) / scale)

    def stamp(self, x: Tensor) -> Tensor:
        return self._sample(x, torch.zeros((), dtype=torch.float64, device=x.device))

    def cross(self, x: Tensor, *, seed: int = 0) -> Tensor:
        """The noise mode: the field plus noise, uniform up to one unit of s per pixel, fresh for each image."""
        self.check(x)
        ids = torch.arange(len(x), device=x.device)
        height, width = self.field.shape[1:3]
        noise = Noise(seed, ids).uniform(1, (height, width, 2), torch.float64, -1.0, 1.0)
        return self._sample(x, noise / torch.tensor([width, height], dtype=torch.float64, device=x.device))

    def _sample(self, x: Tensor, noise: Tensor) -> Tensor:
        if self.field.shape[1:3] != x.shape[2:]:
            raise ValueError(f"x: want images of {tuple(self.field.shape[1:3])} pixels, got {tuple(x.shape[2:])}")
        down, across = (torch.linspace(-1, 1, n, dtype=torch.float64, device=x.device) for n in x.shape[2:])
        still = torch.stack(torch.meshgrid(down, across, indexing="ij")[::-1], dim=-1)
        places = (still + self.field.to(still) + noise).clamp(-1, 1).to(x.dtype).expand(len(x), -1, -1, -1)
        return F.grid_sample(x, places, mode="bilinear", align_corners=True).clamp(0, 1)

    def extra_repr(self) -> str:
        return f"{tuple(self.field.shape[1:3])}"


class _NoiseMode(nn.Module):
    """:meth:`WarpedTrigger.cross` as a module, keyed by the images' places in the batch."""

    def __init__(self, trigger: WarpedTrigger, seed: int) -> None:
        super().__init__()
        self.trigger, self.seed = trigger, seed

    def forward(self, x: Tensor) -> Tensor:
        return self.trigger.cross(x, seed=self.seed)
