"""Thirty photographs in color without labels: the backgrounds before which signs, faces and solids are rendered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.data.embedded import Source, decoded, read_source
from robustlab.data.pairs import Part
from robustlab.geometry.keyed import Noise

PHOTOS = Source(
    title="30 photographs in color, 128x128",
    file="photos128.npz",
    sha256="de45daa4c0a129a94ca90d96be14e98132b9534d00f33fd59db222e5b498f510",
    classes=(),
    provenance="Photographs of scikit-image, of scikit-learn and of Debian's package lomiri-wallpapers-16.04, cut to "
    "squares and scaled to 128x128; photos128.json beside the file has the details.",
    license="One per photograph, public domain, CC0, CC BY 2.0 or CC BY 4.0: photos().credits, and photos128_*.txt "
    "beside the file.",
    citation="van der Walt and others, scikit-image: image processing in Python, PeerJ 2:e453, 2014; Pedregosa and "
    "others, Scikit-learn, JMLR 12, 2011; the photographers in photos().credits.",
)
_TRAIN = 20  # the first so many; no photograph of the rest is a part of one of these


@dataclass(frozen=True, eq=False, repr=False)
class Photos:
    """Photographs (30, 3, 128, 128) in [0, 1], and of each its title, license, and whom to credit."""

    images: Tensor
    titles: tuple[str, ...]
    licenses: tuple[str, ...]
    credits: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Photos({len(self.images)} photographs {tuple(self.images.shape[1:])})"


def photos() -> Photos:
    """The embedded photographs, float32 in [0, 1].

    Raises:
        ValueError: if the shipped file was changed.
    """
    arrays = read_source(PHOTOS)
    titles, licenses, who = zip(
        *(line.split("\t") for line in bytes(arrays["credits"]).decode().splitlines()), strict=True
    )
    return Photos(torch.from_numpy(decoded(arrays["diff"])).float().div_(255), titles, licenses, who)


def backgrounds(ids: int | Tensor, *, side: int = 48, part: Part = "train", seed: int = 0) -> Tensor:
    """Squares cut from the photographs, at a random place and of a random size: (n, 3, side, side) in [0, 1].

    Args:
        ids: how many, at least 1, or the numbers (n,) of the squares.
        side: in pixels, at least 8.
        part: of the photographs that they are cut from: twenty for ``"train"``, ten others for ``"test"``.
        seed: of the draws; a square depends on the seed and its number alone.

    Raises:
        ValueError, TypeError: for a number out of its range, or another part.
    """
    if not isinstance(ids, Tensor):
        checks.at_least("ids", ids, 1, integer=True)
        ids = torch.arange(ids)
    checks.at_least("side", side, 8, integer=True)
    checks.one_of("part", part, get_args(Part))
    images, noise, n = _images()[:_TRAIN] if part == "train" else _images()[_TRAIN:], Noise(seed, ids), len(ids)
    which = noise.integers((30,), (), len(images))
    half = noise.uniform((31,), (), torch.float32, side / 128, 1.0)  # half the square, in halves of the photograph
    center = noise.uniform((32,), (2,), torch.float32, -1.0, 1.0) * (1 - half[:, None])
    turn = torch.zeros(n, 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = half
    turn[:, :, 2] = center
    cut = torch.empty(n, 3, side, side)
    for k in which.unique().tolist():
        rows = (which == k).nonzero().flatten()
        grid = F.affine_grid(turn[rows], [len(rows), 3, side, side], align_corners=False)
        photo = images[k].expand(len(rows), -1, -1, -1)
        cut[rows] = F.grid_sample(photo, grid, padding_mode="border", align_corners=False)
    return cut.clamp_(0, 1)


@cache
def _images() -> Tensor:
    return photos().images
