"""Textures over poses: LAB by its published values, the objective by autograd, and more poses against one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacks import eot_3d
from robustlab.attacks.physical import mesh
from robustlab.attacks.physical.camera import PLAIN
from robustlab.attacks.physical.eot_3d import lab
from robustlab.attacks.physical.scenes import Turned, Worn
from robustlab.data import load
from tests.suite.models import mlp

D = torch.float64
FIXED = Worn(camera=PLAIN)


def problem() -> tuple[nn.Module, Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    x, judges = (torch.rand(5, 3, 6, 6, generator=generator, dtype=D) for _ in range(2))
    return mlp((3, 6, 6)), x, {"scenes": FIXED, "held_out": (judges, FIXED.views(1)), "draws": 5}


# Of sRGB's corners and of half gray, as color tables for D65 give them.
COLORS = {
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0), (1.0, 1.0, 1.0): (100.0, 0.0, 0.0), (1.0, 0.0, 0.0): (53.24, 80.09, 67.20),
    (0.0, 1.0, 0.0): (87.73, -86.18, 83.18), (0.0, 0.0, 1.0): (32.30, 79.19, -107.86),
    (0.5, 0.5, 0.5): (53.39, 0.0, 0.0),
}  # fmt: skip


def test_lab() -> None:
    given = torch.tensor(list(COLORS), dtype=D)[:, :, None, None]
    torch.testing.assert_close(lab(given)[:, :, 0, 0], torch.tensor(list(COLORS.values()), dtype=D), rtol=0, atol=0.02)
    some = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=D).requires_grad_(True)
    assert torch.autograd.gradcheck(lab, (some,))
    dark = torch.tensor([[0.02, 0.01, 0.03]], dtype=D)[:, :, None, None].requires_grad_(True)
    assert torch.autograd.gradcheck(lab, (dark,))


def test_objective_and_step() -> None:
    """Two steps of torch's own Adam on the mean of the loss and λ times the distance of each picture."""
    model, x, args = problem()
    start, y = 0.2 + 0.6 * x[4].flip(-1), torch.tensor([0, 1, 0, 1, 0])
    leaf = start.clone().requires_grad_(True)
    adam, values = torch.optim.Adam([leaf], lr=0.05), []
    everywhere = torch.ones(1, 6, 6, dtype=torch.bool)
    for _ in range(3):
        pictures, before = (torch.where(everywhere, part, x) for part in (leaf, start))
        distance = torch.linalg.vector_norm((lab(pictures) - lab(before)).flatten(1), dim=1)
        whole = (-F.cross_entropy(model(pictures), y, reduction="none") + 0.01 * distance).mean()
        values.append(float(whole.detach()))
        adam.zero_grad()
        whole.backward()
        adam.step()
        leaf.data.clamp_(0, 1)
    result = eot_3d(model, x, y, clean=start, lam=0.01, steps=3, trace=True, **args)
    assert result.trace is not None
    torch.testing.assert_close(result.trace["loss"], torch.tensor(values, dtype=D))
    torch.testing.assert_close(result.texture, leaf.detach(), rtol=0, atol=1e-5)


def test_what_is_not_in_the_mask_is_left() -> None:
    model, x, args = problem()
    where = torch.zeros(1, 8, 10, dtype=torch.bool)
    where[:, 2:6] = True
    poses = Turned(mesh.box(), camera=PLAIN)
    result = eot_3d(model, x, mask=where, steps=2, **{**args, "scenes": poses, "held_out": (x, poses.views(2))})
    assert result.texture.shape == (3, 8, 10) and not bool((result.texture * ~where).any())


@pytest.mark.slow
def test_poses_need_an_expectation() -> None:
    """Of a box that a net of hand signs sees: a texture for one pose fails in others, one for all does not."""
    net, data = zoo.load("sign_cnn"), load("sign_digits32")
    over = Turned(mesh.box(), shift=0.0)
    one = Turned(mesh.box(), yaw=(0.0, 0.0), pitch=(0.0, 0.0), roll=(0.0, 0.0), shift=0.0)
    judges = data.x_test[:20]
    args: dict[str, Any] = {
        "target": 8,
        "lr": 0.1,
        "held_out": (judges, over.views(4)),
        "steps": 25,
        "draws": 8,
        "lam": 0.0,
    }
    rates = [float(eot_3d(net, data.x_train[:32], scenes=s, **args).success.double().mean()) for s in (one, over)]
    assert rates[1] > rates[0] + 0.1 and rates[1] > 0.5, rates


def test_bad_input_of_its_own() -> None:
    model, x, args = problem()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("lam", {"lam": -1.0}), ("clean", {"clean": torch.zeros(3, 5, 6)}), ("x", {"x": x[:, :1]}),
        ("clean", {"clean": torch.full((3, 6, 6), 2.0)}), ("lr", {"lr": 0.0}), ("steps", {"steps": 0}),
    ]  # fmt: skip
    for name, changes in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            eot_3d(model, **{"x": x, **args, **changes})
