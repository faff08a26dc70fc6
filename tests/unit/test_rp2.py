"""Stickers on a linear model, where the vulnerable colors and the best stickers are known."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacks import rp2
from robustlab.attacks.physical.camera import PLAIN
from robustlab.attacks.physical.rp2 import strongest
from robustlab.attacks.physical.scenes import Worn
from tests.suite.models import mlp

D = torch.float64
FIXED = Worn(camera=PLAIN)


def problem(seen: Tensor | None = None) -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
    """A linear model, its weights toward class 1 (3, 6, 6), images, and arguments; it looks at ``seen`` alone."""
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(108, 2).to(D)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 108, generator=generator, dtype=D))
        if seen is not None:
            layer.weight.mul_(seen.expand(3, 6, 6).flatten())
        layer.bias.copy_(torch.tensor([40.0, 0.0]))
    x, judges = (0.3 + 0.4 * torch.rand(4, 3, 6, 6, generator=generator, dtype=D) for _ in range(2))
    w = (layer.weight[1] - layer.weight[0]).detach().reshape(3, 6, 6)
    return nn.Sequential(nn.Flatten(), layer), w, x, {"scenes": FIXED, "held_out": (judges, FIXED.views(1)), "draws": 4}


def square(top: int, left: int, side: int) -> Tensor:
    where = torch.zeros(1, 6, 6, dtype=torch.bool)
    where[:, top : top + side, left : left + side] = True
    return where


def test_the_first_attack_moves_what_is_steep() -> None:
    """A color of slope w leaves its place where |w| is above a share of the largest, and by that much a step."""
    model, w, x, args = problem()
    result = rp2(model, x, target=1, area=0.4, sticker=1, sparsity=0.5, mask_steps=2, lr=0.01, steps=1, **args)
    delta = 0.02 * (w.abs() / w.abs().max() - 0.5).clamp_min(0)
    strength = delta.sum(dim=0)
    best = strength.flatten().argsort(descending=True)[: round(0.4 * 36)]
    best = best[strength.flatten()[best] > 0]
    assert len(best) > 5 and set(best.tolist()) == set(result.mask.flatten().nonzero().flatten().tolist())


def test_a_loss_at_its_end_is_told() -> None:
    """A model so sure that probabilities round to 1 and 0 in every picture; its margin falls all the same."""
    model, _, x, args = problem()
    sure = nn.Sequential(model, nn.Linear(2, 2, bias=False).to(D))
    with torch.no_grad():
        sure[1].weight.copy_(3 * torch.eye(2))
    how = {"mask": square(0, 0, 6), "penalty": "l2", "lam": 0.0, "steps": 30, **args}
    with pytest.warns(UserWarning, match=r"^loss: 'ce' is at its end on all 4 pictures.*loss=\"margin\"") as told:
        stuck = rp2(sure, x, **how)
    assert len(told) == 1, "once, not in every step"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in ({"loss": "margin"}, {"target": 1}):
            led = rp2(sure, x, **how, **other)
            assert float(led.success.double().mean()) > float(stuck.success.double().mean())
        corner = square(0, 0, 3)
        lead = -model(torch.where(corner, x.mean(dim=0), x)).diff(dim=1)[:, 0]  # the label's lead in the four pictures
        with torch.no_grad():
            sure[1].weight.copy_(37 / lead.sort().values[1:3].mean() * torch.eye(2))
        ends = (
            F.cross_entropy(sure(torch.where(corner, x.mean(dim=0), x)), torch.zeros(4).long(), reduction="none") == 0
        )
        assert ends.sum() == 2, "half of them are at the end, and the others have a slope"
        rp2(sure, x, **how | {"mask": corner})


def test_stickers_lie_where_the_model_looks() -> None:
    looked = square(1, 2, 3)
    model, _, x, args = problem(looked)
    result = rp2(model, x, target=1, area=0.25, sticker=1, sparsity=0.0, mask_steps=4, steps=2, **args)
    assert torch.equal(result.mask, looked)
    region = square(0, 3, 3)  # the model looks at four of its pixels
    result = rp2(model, x, target=1, area=0.45, sticker=1, sparsity=0.0, mask_steps=4, steps=2, region=region, **args)
    assert torch.equal(result.mask, looked & region)


def test_no_sticker_where_nothing_moved() -> None:
    looked = square(1, 2, 2)
    model, _, x, args = problem(looked)
    result = rp2(model, x, target=1, area=0.5, sticker=1, sparsity=0.0, mask_steps=2, steps=1, **args)
    assert torch.equal(result.mask, looked)


def test_strongest_is_the_mean_over_a_window() -> None:
    delta = torch.zeros(3, 6, 6, dtype=D)
    delta[:, 0, 5] = -1.0  # one strong pixel beside a broad weak region
    delta[0, 2:5, 1:4] = 0.6
    everywhere = torch.ones(1, 6, 6, dtype=torch.bool)
    assert bool(strongest(delta, everywhere, area=1 / 36, sticker=1)[0, 0, 5])
    assert torch.equal(strongest(delta, everywhere, area=1 / 36, sticker=3), square(3, 2, 1))


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_penalty_holds_the_sticker_to_the_object(penalty: Any) -> None:
    """Without it each color goes to the end that its weight says; a heavy one leaves the object as it was."""
    model, w, x, args = problem()
    where, clean = square(1, 1, 4), x[0]
    free = rp2(model, x, target=1, mask=where, clean=clean, lam=0.0, steps=30, lr=0.1, penalty=penalty, **args)
    torch.testing.assert_close(free.texture, (w > 0).to(D) * where)
    held = rp2(model, x, target=1, mask=where, clean=clean, lam=1e4, steps=30, lr=0.01, penalty=penalty, **args)
    assert float(((held.texture - clean) * where).abs().max()) < 0.05
    lengths = []
    for c in (0.0, 1e-6):
        made = rp2(
            model, x, target=1, mask=where, clean=clean, lam=c, steps=2, lr=0.01, penalty=penalty, trace=True, **args
        )
        assert made.trace is not None
        lengths.append(float(made.trace["loss"][1]))
    moved = 0.01 * (3 * 16 if penalty == "l1" else (3 * 16) ** 0.5)
    assert lengths[1] - lengths[0] == pytest.approx(1e-6 * moved, rel=1e-3)


def test_mean_image_is_the_object_and_bad_input() -> None:
    model, (_, _, x, args) = mlp((3, 6, 6)), problem()
    held = rp2(model, x, mask=square(1, 1, 4), lam=1e4, steps=1, lr=1e-9, **args)
    torch.testing.assert_close(held.texture, x.mean(dim=0) * held.mask, rtol=0, atol=1e-6)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("area", {"area": 0.0}), ("area", {"area": 1.5}), ("sticker", {"sticker": 2}), ("sparsity", {"sparsity": 1.0}),
        ("lam", {"lam": -1.0}), ("penalty", {"penalty": "l0"}), ("clean", {"clean": torch.zeros(3, 5, 6)}),
        ("region", {"region": square(0, 0, 2), "mask": square(0, 0, 2)}), ("mask", {"region": square(0, 0, 0)}),
        ("mask_steps", {"mask_steps": 0}),
    ]  # fmt: skip
    for name, changes in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            rp2(model, x, **{**args, **changes})
