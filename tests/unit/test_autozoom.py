"""AutoZOOM beyond the shared suite: where it asks and how often, and the optimum of its space on affine models."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import autozoom
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp
from tests.suite.test_success import Recording
from tests.unit.test_zoo_attack import walled

SHAPE = (2, 8, 6)


def bilinear(height: int, width: int) -> Tensor:
    """The matrix from small images (2, height, width) to those of SHAPE, (96, d′), by PyTorch."""
    unit = torch.eye(2 * height * width, dtype=torch.float64).reshape(-1, 2, height, width)
    return F.interpolate(unit, SHAPE[1:], mode="bilinear", align_corners=False).flatten(1).T


def test_one_sided_differences_along_the_unit_sphere_of_a_small_image() -> None:
    """q + 1 evaluations per step; each probe is β away from the point, in the space."""
    model, x, y = walled(SHAPE)
    seen = Recording(model)
    result = autozoom(Victim(seen, access="soft"), x, y, size=4, steps=5, q=3, tanh=False, lr=1e-3)
    assert result.queries.tolist() == [sum(map(len, seen.points))] == [1 + 5 * (3 + 1) + 1]
    points, basis = seen.points[1:], bilinear(4, 3)
    assert [len(part) for part in points] == [1, 3] * 5 + [1]
    for here, probes in zip(points[:-1:2], points[1::2], strict=True):
        step = (probes - here).flatten(1).T
        code = torch.linalg.lstsq(basis, step).solution
        torch.testing.assert_close(basis @ code, step, rtol=0, atol=1e-10)
        torch.testing.assert_close(code.norm(dim=0), torch.full((3,), 1 / 24, dtype=torch.float64))
        assert float((code.T @ code / code.norm(dim=0)[0] ** 2 - torch.eye(3)).abs().max()) < 0.9, "alike directions"


def test_more_directions_after_the_first_success() -> None:
    """Each sample by its own: 2 rows per step before, 6 after."""
    net, x = mlp(SHAPE, 3), noise_box(6, SHAPE, torch.float64)
    y = net(x).argmax(dim=1)
    run = {"steps": 40, "q": 1, "refine": 5, "lr": 0.3, "c": 10.0}
    whole = autozoom(net, x, y, **run)
    assert int(whole.success.sum()) >= 3 and len(whole.first_success.unique()) >= 3
    for queries, first in zip(whole.queries.tolist(), whole.first_success.tolist(), strict=True):
        before = (
            (first - 2) // 2 if first > 0 else 40
        )  # steps without a success; the clean check and a point come first
        assert first < 0 or (first - 2) % 2 == 0
        assert queries == 1 + 2 * before + 6 * (40 - before) + 1 + (first > 0)


def test_all_samples_ask_at_once() -> None:
    """Two questions of the model per step, though some samples have one direction in it and others five."""
    net, x = mlp(SHAPE, 3), noise_box(6, SHAPE, torch.float64)
    seen = Recording(net)
    whole = autozoom(Victim(seen, access="soft"), x, net(x).argmax(dim=1), steps=40, q=1, refine=5, lr=0.3, c=10.0)
    rows = [len(part) for part in seen.points]
    assert len(rows) == 1 + 2 * 40 + 1 + 1 and sum(rows) == int(whole.queries.sum())
    assert any(6 < probes < 30 for probes in rows[2:-2:2]), "some with one, some with five"


def affine(n: int = 5) -> tuple[Affine, Tensor, Tensor, Tensor]:
    """An affine model on SHAPE with two classes, points, labels, and the step in logits to the boundary."""
    generator = torch.Generator().manual_seed(0)
    smooth = bilinear(4, 3) @ torch.randn(24, generator=generator, dtype=torch.float64)
    slope = smooth + 0.3 * torch.randn(96, generator=generator, dtype=torch.float64)
    model = Affine(torch.stack([slope, -slope]), torch.zeros(2, dtype=torch.float64))
    x = torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64) / 20
    return model, x, model(x).argmax(dim=1), slope


@pytest.mark.slow
def test_optimum_of_the_space_on_an_affine_model() -> None:
    """|w·x| / ‖P w‖, P the projection onto the bilinear images: no point of the space is nearer."""
    model, x, y, slope = affine()
    basis = torch.linalg.qr(bilinear(4, 3)).Q
    best = (x.flatten(1) @ slope).abs() / (basis.T @ slope).norm()
    victim = Victim(model, bounds=(-3.0, 3.0), access="soft")
    result = autozoom(victim, x, y, size=4, tanh=False, steps=300, c=1e-3, lr=3e-4, refine=8, beta=1e-5, switch=30)
    ratio = result.radius("l2") / best
    assert bool((ratio >= 1 - 1e-6).all()) and float(ratio.median()) <= 1.05, ratio


def test_a_decoder() -> None:
    """What it makes of codes is the perturbation; it is held in evaluation mode, and put back."""
    model, x, y, slope = affine()
    decoder = nn.Sequential(nn.Linear(1, 96, bias=False), nn.Dropout(0.5), nn.Unflatten(1, SHAPE)).double()
    decoder[0].weight.data = slope[:, None].clone()
    best = (x.flatten(1) @ slope).abs() / slope.norm()
    victim = Victim(model, bounds=(-3.0, 3.0), access="soft")
    result = autozoom(victim, x, y, decoder=decoder, code=(1,), tanh=False, steps=200, lr=3e-5, switch=20)
    ratio = result.radius("l2") / best
    assert bool((ratio >= 1 - 1e-6).all()) and float(ratio.median()) <= 1.05, ratio
    delta = (result.x_adv - x).flatten(1)
    assert float((delta - (delta @ slope)[:, None] * slope / slope.square().sum()).abs().max()) < 1e-9
    assert decoder.training and decoder[0].weight.requires_grad


def test_bad_input() -> None:
    net, x = mlp(SHAPE, 3), torch.rand(2, *SHAPE, dtype=torch.float64)
    for wrong, name in (
        ({"size": 9}, "size"), ({"q": 0}, "q"), ({"beta": 0.0}, "beta"), ({"decoder": nn.Identity()}, "decoder, code"),
        ({"decoder": nn.Identity(), "code": (3,), "size": 2}, "decoder, code"), ({"lr": math.nan}, "lr"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name}: want"):
            autozoom(net, x, **wrong)
    with pytest.raises(ValueError, match=r"^x: want images"):
        autozoom(mlp((6,), 3), torch.rand(2, 6, dtype=torch.float64))
