"""Eyeglasses: the descent of the paper written again with NumPy's gradients, the frame, and what the penalties do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacks import eyeglasses
from robustlab.attacks.physical.camera import PLAIN
from robustlab.attacks.physical.eyeglasses import frames
from robustlab.attacks.physical.printing import non_printability, printable_colors, total_variation
from robustlab.attacks.physical.scenes import Worn
from tests.suite.models import mlp

D = torch.float64
FIXED = Worn(camera=PLAIN)


def problem() -> tuple[nn.Module, Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    x, judges = (torch.rand(5, 3, 16, 16, generator=generator, dtype=D) for _ in range(2))
    return mlp((3, 16, 16)), x, {"scenes": FIXED, "held_out": (judges, FIXED.views(1)), "draws": 5}


@pytest.mark.parametrize("target", [None, 2])
def test_the_descent_is_that_of_the_paper(target: int | None) -> None:
    """Momentum 0.4 on softmax loss, total variation and printability, toward another or away from oneself."""
    model, x, args = problem()
    palette, where = printable_colors(2).double(), frames(x)
    y = torch.tensor([0, 1, 0, 1, 0])
    r, v = torch.full((3, 16, 16), 0.5, dtype=D), torch.zeros(3, 16, 16, dtype=D)
    for _ in range(6):
        leaf = r.clone().requires_grad_(True)
        logits = model(torch.where(where, leaf, x))
        first = F.cross_entropy(logits, torch.full_like(y, 2)) if target else -F.cross_entropy(logits, y)
        whole = first + 0.02 * total_variation(leaf, where) + 0.03 * non_printability(leaf, where, palette)
        (grad,) = torch.autograd.grad(whole, leaf)
        v = 0.4 * v - 0.07 * grad * where / (grad * where).abs().max()
        r = (r + v).clamp(0, 1)
    printed = palette[torch.cdist(r.flatten(1).T, palette).argmin(dim=1)].T.reshape(r.shape) * where
    common: dict[str, Any] = {"target": target, "smoothness": 0.02, "steps": 6, "lr": 0.07, **args}
    glasses = eyeglasses(model, x, y, colors=palette, printability=0.03, **common)
    assert torch.equal(glasses.mask, where) and torch.equal(glasses.texture, printed)


def test_the_descent_to_the_last_digit_without_a_palette() -> None:
    model, x, args = problem()
    y, where = torch.tensor([0, 1, 0, 1, 0]), frames(x)
    r, v = torch.full((3, 16, 16), 0.5, dtype=D), torch.zeros(3, 16, 16, dtype=D)
    for _ in range(4):
        leaf = r.clone().requires_grad_(True)
        whole = -F.cross_entropy(model(torch.where(where, leaf, x)), y) + 0.02 * total_variation(leaf, where)
        (grad,) = torch.autograd.grad(whole, leaf)
        v = 0.4 * v - 0.07 * grad * where / (grad * where).abs().max()
        r = (r + v).clamp(0, 1)
    glasses = eyeglasses(model, x, y, smoothness=0.02, steps=4, lr=0.07, **args)
    torch.testing.assert_close(glasses.texture, r * where)


def test_smoothness() -> None:
    model, x, args = problem()
    rough, smooth = (eyeglasses(model, x, smoothness=weight, steps=30, lr=0.03, **args) for weight in (0.0, 0.3))
    assert float(total_variation(smooth.texture, smooth.mask)) < float(total_variation(rough.texture, rough.mask)) / 2


def test_frames() -> None:
    """Symmetric, two holes for the eyes, less than a third of the picture, and at their places in any size."""
    for side in (16, 32, 64):
        where = frames(torch.zeros(1, 3, side, side))
        assert torch.equal(where, where.flip(-1)) and 0.03 < float(where.double().mean()) < 0.33
        eye = round(0.42 * side), round((0.5 - 0.17) * side)
        assert not bool(where[0, eye[0], eye[1]])


def test_bad_input_of_its_own() -> None:
    model, x, args = problem()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("color", {"color": 1.5}), ("smoothness", {"smoothness": -1.0}), ("momentum", {"momentum": 1.0}),
        ("momentum", {"momentum": -0.1}), ("lr", {"lr": 0.0}), ("steps", {"steps": 0}),
        ("target", {"target": 1, "y": torch.ones(5, dtype=torch.int64)}),
    ]  # fmt: skip
    for name, changes in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            eyeglasses(model, x, **{**args, **changes})
