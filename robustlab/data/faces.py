"""Faces with identities, rendered from a few numbers, and a loader of photographs of faces for those with a network.

No person is shown. An identity is a row of numbers: the tone of the skin, the width of the face, where eyes, brows,
nose and mouth lie, how long the hair is and of which color. A picture varies what is no part of an identity: pose,
smile, light, background (:mod:`robustlab.data.photographs`) and, in every fourth, a pair of plain glasses, so that a
network learns to recognize people who wear some. Faces are aligned by their eyes, as recognizers align them.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.dataset import Dataset
from robustlab.data.pairs import Part
from robustlab.data.photographs import backgrounds
from robustlab.data.rendered import photographed, rendered
from robustlab.geometry.keyed import Noise, derive_seed

PERSONS = tuple(f"person {letter}" for letter in "ABCDEFGHIJ")
"""Who is rendered, in the order of the labels."""
_EYES, _APART, _LENS, _RIM = -0.16, 0.34, 0.28, 0.12  # in halves of the picture: the eyes' line, an eye, its glass


def rendered_faces(n_train: int = 2400, n_test: int = 500, *, side: int = 48, seed: int = 0) -> Dataset:
    """Rendered pictures of ten persons who do not exist, before photographs.

    Args:
        n_train, n_test: numbers of pictures; persons take turns, so that any ten in a row have each once.
        side: of a picture in pixels, at least 16.
        seed: of all draws but the ten identities; picture i depends on the seed and i alone.

    Returns:
        Dataset of images (N, 3, side, side) in [0, 1] with the classes ``PERSONS``.

    Raises:
        ValueError, TypeError: for a number out of its range.
    """
    return rendered("rendered_faces", _pictures, PERSONS, n_train, n_test, side, seed)


def faces_in_the_wild(root: str | Path, *, download: bool = False, least: int = 70, side: int = 48) -> Dataset:
    """Labeled Faces in the Wild (Huang and others, 2007), read by scikit-learn: photographs of people in the news.

    Args:
        root: the folder that holds the files, or will.
        download: whether they are downloaded into it.
        least: persons with at least so many photographs are classes.
        side: of an image in pixels, at least 16.

    Returns:
        Dataset of images (N, 3, side, side) in [0, 1]; of each person every fourth photograph is for testing.

    Raises:
        ValueError, TypeError: for a number out of its range.
        FileNotFoundError: if the files are not in ``root`` and ``download`` is False.
    """
    checks.at_least("least", least, 4, integer=True)
    checks.at_least("side", side, 16, integer=True)
    from sklearn.datasets import fetch_lfw_people

    try:
        found = fetch_lfw_people(
            data_home=str(root), min_faces_per_person=least, color=True, resize=None, download_if_missing=download
        )
    except OSError as error:
        if download:
            raise
        raise FileNotFoundError(
            f"root: want the folder that holds the faces, or download=True, got {str(root)!r}"
        ) from error
    x = torch.as_tensor(found.images).float().permute(0, 3, 1, 2)
    x = torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)
    y = torch.as_tensor(found.target).long()
    before = (y[:, None] == y[None, :]).tril(-1).sum(dim=1)  # photographs of the same person that come earlier
    test = before % 4 == 3
    return Dataset("faces_in_the_wild", x[~test], y[~test], x[test], y[test], tuple(map(str, found.target_names)))


def _identities() -> dict[str, Tensor]:
    """What tells ten persons apart, each (10, ·)."""
    noise, count = Noise(13, torch.arange(len(PERSONS))), len(PERSONS)
    limits = {
        "width": (0.5, 0.68), "height": (0.72, 0.9), "brow": (0.03, 0.075), "lift": (0.14, 0.2), "eye": (0.07, 0.11),
        "nose": (0.2, 0.34), "wing": (0.05, 0.1), "mouth": (0.16, 0.32), "lips": (0.035, 0.07), "hair": (0.12, 0.34),
    }  # fmt: skip
    drawn = {
        name: noise.uniform((0, k), (), torch.float32, low, high)
        for k, (name, (low, high)) in enumerate(limits.items())
    }
    tone = ((torch.arange(count) * 7 % count) + 0.5)[:, None] / count  # evenly over skins, in no order
    skin = (1 - tone) * torch.tensor([0.95, 0.80, 0.70]) + tone * torch.tensor([0.40, 0.26, 0.19])
    hairs = torch.tensor(
        [[0.10, 0.08, 0.07], [0.36, 0.20, 0.10], [0.80, 0.64, 0.32], [0.55, 0.55, 0.56], [0.60, 0.24, 0.10]]
    )
    irises = torch.tensor([[0.20, 0.12, 0.06], [0.20, 0.40, 0.65], [0.25, 0.45, 0.25]])
    return {
        **drawn,
        "skin": skin,
        "color": hairs[torch.arange(count) * 3 % len(hairs)],
        "iris": irises[torch.arange(count) % len(irises)],
        "long": (torch.arange(count) % 2 == 0).float(),
        "lip": skin * 0.55 + 0.45 * torch.tensor([0.72, 0.25, 0.28]),
    }


def _pictures(ids: Tensor, side: int, part: Part, seed: int) -> Tensor:
    own, n, f32 = derive_seed(seed, 2 if part == "train" else 3), len(ids), torch.float32
    noise, y = Noise(own, ids), ids % len(PERSONS)
    who = {name: value[y] for name, value in _identities().items()}
    axis = (torch.arange(side) + 0.5) * (2 / side) - 1
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    angle = noise.uniform((0,), (1, 1), f32, -5.0, 5.0) * (math.pi / 180)
    scale = noise.uniform((1,), (1, 1), f32, 0.95, 1.05)
    shift = noise.uniform((2,), (2, 1, 1), f32, -0.04, 0.04)
    u = (angle.cos() * right + angle.sin() * (down - _EYES)) / scale + shift[:, 0]
    v = (angle.cos() * (down - _EYES) - angle.sin() * right) / scale + shift[:, 1]  # 0 on the line of the eyes
    smile = noise.uniform((3,), (1, 1), f32, -0.15, 0.25)
    picture = _Canvas(backgrounds(ids, side=side, part=part, seed=own), side)
    face_x, face_y = u, v - 0.2
    size = {name: value[:, None, None] for name, value in who.items() if value.dim() == 1}
    hair, skin, one = who["color"], who["skin"], torch.ones(n, 1, 1)
    picture.ellipse(
        face_x, face_y + size["hair"] * 0.6, size["width"] + 0.12, size["height"] + size["hair"] * 0.4, hair
    )
    picture.paint(size["long"] * _soft((face_x.abs() - size["width"] - 0.1), side) * _soft(-v, side), hair)
    picture.ellipse(face_x, v - 1.15, 0.24 * one, 0.4 * one, 0.85 * skin)
    picture.ellipse(face_x, face_y, size["width"], size["height"], skin)
    picture.paint(
        _soft(v + size["height"] - 0.2 - size["hair"], side)
        * _ellipse(face_x, face_y, size["width"], size["height"], side),
        hair,
    )
    for sense in (-1.0, 1.0):
        at = u - sense * _APART
        picture.ellipse(at, v, 1.7 * size["eye"], size["eye"], torch.full((n, 3), 0.95))
        picture.ellipse(at, v, 0.85 * size["eye"], 0.85 * size["eye"], who["iris"])
        picture.paint(
            _soft(at.abs() - 0.17, side) * _soft((v + size["lift"]).abs() - size["brow"] / 2, side), hair * 0.8
        )
    picture.ellipse(u, v - 0.6 * size["nose"], 0.035 * one, 0.6 * size["nose"], 0.9 * skin)
    picture.ellipse(u, v - size["nose"] - 0.05, size["wing"], 0.5 * size["wing"], 0.72 * skin)
    bend = v - 0.62 + smile * u.square() / size["mouth"]
    picture.ellipse(u, bend, size["mouth"], size["lips"], who["lip"])
    glasses = noise.uniform((4,), (1, 1)) < 0.25
    picture.paint(glasses * _plain_glasses(u, v, side), noise.uniform((5,), (3,), f32, 0.05, 0.95))
    slope = 1 + noise.uniform((6,), (1, 1, 1), f32, -0.25, 0.25) * right
    return photographed(picture.image * slope, noise)


class _Canvas:
    """Images (n, 3, H, W) onto which shapes are painted, each in one color (n, 3) per image."""

    def __init__(self, image: Tensor, side: int) -> None:
        self.image, self.side = image, side

    def paint(self, cover: Tensor, color: Tensor) -> None:
        self.image = self.image + cover[:, None] * (color[:, :, None, None] - self.image)

    def ellipse(self, u: Tensor, v: Tensor, half_width: Tensor, half_height: Tensor, color: Tensor) -> None:
        self.paint(_ellipse(u, v, half_width, half_height, self.side), color)


def _ellipse(u: Tensor, v: Tensor, half_width: Tensor, half_height: Tensor, side: int) -> Tensor:
    away = ((u / half_width).square() + (v / half_height).square()).sqrt() - 1
    return _soft(away * torch.minimum(half_width, half_height), side)


def _soft(distance: Tensor, side: int) -> Tensor:
    """1 where a signed distance is negative, 0 where it is positive, and between within half a pixel."""
    return (0.5 - distance * (side / 2)).clamp(0, 1)


def _plain_glasses(u: Tensor, v: Tensor, side: int) -> Tensor:
    """Two rims, a bridge and temples, (n, H, W)."""
    away = ((u.abs() - _APART).square() + v.square()).sqrt()
    rims = _soft((away - _LENS - _RIM / 2).abs() - _RIM / 2, side)
    bars = _soft(v.abs() - _RIM / 2, side) * (
        _soft(u.abs() - _APART + _LENS, side) + _soft(_APART + _LENS - u.abs(), side)
    )
    return torch.maximum(rims, bars.clamp(0, 1))
