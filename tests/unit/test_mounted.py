"""A board before the images, against compositing by hand, the pinhole formula, and finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustlab.attacks.physical.camera import PLAIN, Camera
from robustlab.attacks.physical.few_scenes import Few
from robustlab.attacks.physical.mounted import Mounted, _appears
from robustlab.attacks.physical.optics import corners, places
from robustlab.attacks.physical.scenes import Listed
from robustlab.geometry.keyed import Noise

D = torch.float64
STILL: dict[str, Any] = {"shift": 0.0, "yaw": 0.0, "turn": 0.0, "camera": PLAIN}


def board(size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    face, outline = torch.rand(3, size, size, generator=generator, dtype=D), torch.ones(1, size, size, dtype=D)
    outline[:, :2, :2], outline[:, 2, 2] = 0.0, 0.25
    return face, outline, torch.rand(2, 3, size, size, generator=generator, dtype=D)


def test_facing_and_filling_the_picture_it_is_a_composition_by_hand() -> None:
    face, outline, images = board()
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:6, 4:7] = True
    texture = 1 - face
    seen = Mounted(face, outline, scale=(1.0, 1.0), **STILL).views(1)[0](images, texture, mask)
    by_hand = outline * (texture * mask + face * ~mask) + (1 - outline) * images
    torch.testing.assert_close(seen, by_hand, rtol=0, atol=1e-12)


def test_the_board_appears_where_a_pinhole_camera_sees_it() -> None:
    """The point (u·cos ψ, v, u·sin ψ), three units before the camera, turned in the image."""
    yaw, angle = torch.tensor([0.5, -0.3], dtype=D), torch.tensor([0.2, -0.1], dtype=D)
    square = corners(yaw)
    for row, (a, b) in enumerate(zip(yaw.tolist(), angle.tolist(), strict=True)):
        turned = np.array([[math.cos(b), -math.sin(b)], [math.sin(b), math.cos(b)]])
        for k, (u, v) in enumerate(square.tolist()):
            point = np.array([u * math.cos(a), v]) * 3 / (3 + u * math.sin(a))
            np.testing.assert_allclose(_appears(square, yaw, angle)[row, k].numpy(), turned @ point, atol=1e-12)


def test_places_of_the_board_are_seen_where_they_lie() -> None:
    """A board whose colors are its own places, as wide as half of the picture, seen straight and moved."""
    face = (places(64, 64, torch.zeros(1, dtype=D)).permute(2, 0, 1) + 1) / 2
    family = Mounted(face, torch.ones(1, 64, 64, dtype=D), scale=(0.5, 0.5), **{**STILL, "shift": 1.0})
    noise = Noise(5, torch.arange(4))
    seen = family.before(torch.zeros(4, 2, 32, 48, dtype=D), torch.zeros(1, 64, 64, dtype=torch.bool), noise, 2)(face)
    center = noise.uniform((2, 8), (2,), D, -1.0, 1.0) * 0.5
    for row in range(4):
        pixel = places(32, 48, face)
        on_board = (pixel - center[row]) / (0.5 * torch.tensor([32 / 48, 1.0], dtype=D))
        inside = (on_board.abs() < 0.95).all(dim=-1)
        assert 100 < int(inside.sum()) < 300
        torch.testing.assert_close(seen[row].permute(1, 2, 0)[inside], (on_board[inside] + 1) / 2, rtol=0, atol=1e-9)


def test_slopes_in_the_texture_are_those_of_finite_differences() -> None:
    face, outline, images = board(5)
    family = Mounted(
        face, outline, scale=(0.5, 0.9), camera=Camera(tilt=0.0, noise=0.0, gain=(0.8, 0.9), offset=(0.01, 0.02))
    )
    mask = torch.ones(1, 5, 5, dtype=torch.bool)
    render = family.before(images, mask, Noise(0, torch.arange(2)), 1)
    assert torch.autograd.gradcheck(render, (0.2 + 0.6 * face).requires_grad_(True))


def test_few_scenes_are_the_same_for_all_images() -> None:
    """Two equal images are seen alike in each scene; a batch shows no other scenes than these, and takes their size."""
    face, outline, images = board()
    few, mask = Few(Mounted(face, outline), 3, seed=1), torch.zeros(1, 8, 8, dtype=torch.bool)
    same = images[:1].expand(12, -1, -1, -1)
    each = torch.stack([view(same, face, mask) for view in few.each()])
    assert torch.equal(each, each[:, :1].expand_as(each)) and len(each[:, 0].unique(dim=0)) == 3
    shown = few.before(same, mask, Noise(2, torch.arange(12)), 4)(face)
    apart = (shown[:, None] - each[:, 0]).flatten(2).abs().amax(dim=2)
    assert bool((apart.amin(dim=1) < 1e-12).all()) and len(apart.argmin(dim=1).unique()) == 3
    wide = torch.zeros(2, 3, 24, 24, dtype=D)
    assert few.texture_size(wide) == (8, 8) and Listed(Mounted(face, outline).views(2)).texture_size(wide) == (8, 8)
    with pytest.raises(ValueError, match=r"^count: "):
        Few(Mounted(face, outline), 0)


def test_bad_input() -> None:
    face, outline, _ = board()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("face", {"face": face + 1}), ("face", {"face": face[None]}), ("outline", {"outline": outline[:, :4]}),
        ("scale", {"scale": (0.5, 1.2)}), ("scale", {"scale": (0.9, 0.5)}), ("yaw", {"yaw": 80.0}),
        ("turn", {"turn": -1.0}), ("shift", {"shift": 1.5}),
    ]  # fmt: skip
    for name, changes in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            Mounted(**{"face": face, "outline": outline, **changes})
