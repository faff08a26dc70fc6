"""Rotations and translations against SciPy's, exhaustive search against brute force, gradients against differences."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

import tests.suite.test_batch as in_batch
import tests.suite.test_box_and_budget as box
import tests.suite.test_counts as counts
import tests.suite.test_no_side_effects as side_effects
import tests.suite.test_pathological as pathological
import tests.suite.test_success as success
from robustlab.attacker.victim import Victim
from robustlab.attacks import spatial
from robustlab.attacks.semantic.spatial import transform
from robustlab.teaching.catalogue import get
from tests.suite.cases import Case, noise_box
from tests.suite.models import Counting, convnet

CPU = torch.device("cpu")
FIRST_ORDER = Case(
    replace(get("spatial"), access="white", quick={"search": "first_order", "steps": 15}), spatial, None, False
)
RANDOM = Case(replace(get("spatial"), quick={"search": "random", "k": 15}), spatial, None, False)


def by_scipy(image: np.ndarray, degrees: float, down: float, right: float, fill: float) -> np.ndarray:
    """One channel, turned counterclockwise and moved, by SciPy's affine_transform (output → input coordinates)."""
    height, width = image.shape
    angle = np.deg2rad(degrees)
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # acts on (down, right)
    center = np.array([height - 1, width - 1]) / 2
    shift = np.array([height * down, width * right])
    offset = center - inverse @ (center + shift)
    return ndimage.affine_transform(image, inverse, offset, order=1, mode="grid-constant", cval=fill)


def images(n: int = 6, shape: tuple[int, ...] = (2, 4, 4), seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = convnet(4, shape[0], seed=seed), noise_box(n, shape, torch.float64, seed)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("shape", [(7, 7), (8, 5), (1, 6)])
def test_transform_is_scipys(shape: tuple[int, int]) -> None:
    n = 12
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, *shape, generator=generator, dtype=torch.float64)
    degrees = 60 * torch.rand(n, generator=generator, dtype=torch.float64) - 30
    down, right = 0.6 * torch.rand(2, n, generator=generator, dtype=torch.float64) - 0.3
    ours = transform(x, degrees, down, right, fill=-1.0)
    for i in range(n):
        theirs = by_scipy(x[i, 0].numpy(), float(degrees[i]), float(down[i]), float(right[i]), -1.0)
        np.testing.assert_allclose(ours[i, 0].numpy(), theirs, rtol=0, atol=1e-9)


def test_transform_turns_counterclockwise_and_moves_by_whole_pixels() -> None:
    x = torch.rand(1, 3, 5, 5, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(transform(x, zero + 90, zero, zero), torch.rot90(x, 1, (2, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(transform(x, zero, zero, zero), x, rtol=0, atol=1e-12)
    moved = transform(x, zero, zero + 0.2, zero - 0.4)
    torch.testing.assert_close(moved, F.pad(x[:, :, :-1, 2:], (0, 2, 1, 0)), rtol=0, atol=1e-12)


def test_transform_has_the_right_gradient() -> None:
    x = torch.rand(2, 1, 5, 4, dtype=torch.float64)
    parameters = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([7.3, -21.0], [0.07, 0.03], [-0.06, 0.02])
    ]
    assert torch.autograd.gradcheck(lambda a, b, c: transform(x, a, b, c), parameters, eps=1e-7, atol=1e-5)


def brute_force(model: nn.Module, x: Tensor, y: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """(N,): whether any transformation fools, and the largest cross-entropy of all, the identity included."""
    axes = [np.linspace(-limit, limit, n) for limit, n in zip((30.0, 0.25, 0.25), grid, strict=True)]
    fooled, worst = torch.zeros_like(y, dtype=torch.bool), F.cross_entropy(model(x), y, reduction="none").detach()
    for degrees, down, right in itertools.product(*axes):
        turned = np.stack([[by_scipy(c, degrees, down, right, 0.0) for c in image] for image in x.numpy()])
        with torch.no_grad():
            logits = model(torch.from_numpy(turned))
        fooled |= logits.argmax(1) != y
        worst = torch.maximum(worst, F.cross_entropy(logits, y, reduction="none"))
    return fooled, worst


def test_grid_is_brute_force() -> None:
    model, x, y = images(n=16, seed=3)
    result = spatial(model, x, y, grid=(5, 3, 3), translation=0.25)
    fooled, worst = brute_force(model, x, y, (5, 3, 3))
    assert torch.equal(result.success, fooled)
    assert 2 <= int(fooled.sum()) <= 14
    with torch.no_grad():
        ours = F.cross_entropy(model(result.x_adv), y, reduction="none")
    torch.testing.assert_close(ours[~fooled], worst[~fooled], rtol=0, atol=1e-8)
    assert result.queries[~fooled].tolist() == [45] * int((~fooled).sum())  # 44 without the identity, and x


@pytest.mark.slow
def test_the_worst_of_many_is_the_grid() -> None:
    """With enough draws, random search finds whatever a fine grid finds, and its losses come as high."""
    model, x, y = images(n=16, seed=3)
    grid = spatial(model, x, y, grid=(31, 9, 9), translation=0.25)
    many = spatial(model, x, y, search="random", k=1500, translation=0.25)
    assert torch.equal(grid.success, many.success)
    few = [int(spatial(model, x, y, search="random", k=k, translation=0.25).success.sum()) for k in (1, 10)]
    assert few[0] <= few[1] <= int(many.success.sum())


def test_the_mildest_success_of_the_grid_is_found() -> None:
    """A model that errs beyond an angle: the answer is the first angle of the grid beyond it, and no shift."""

    class Angle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # a bright pixel right of the center, which goes up when turned
            up = x[:, 0, :4].sum(dim=(1, 2)) - 0.5
            return torch.stack([torch.zeros_like(up), up], dim=1)

    x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    x[0, 0, 4, 8] = 1
    result = spatial(Angle(), x, grid=(61, 3, 3), trace=True)
    assert result.success.tolist() == [True] and result.trace is not None
    found = {name: float(value) for name, value in result.trace.items()}
    above = [a for a in range(31) if by_scipy(x[0, 0].numpy(), a, 0, 0, 0)[:4].sum() > 0.5]
    assert found == pytest.approx({"rotation": above[0], "down": 0, "right": 0}, abs=1e-9)


def test_random_transformations_stay_within_the_limits_and_fill_them() -> None:
    model, x, y = images(n=300, seed=1)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(32, 3, bias=False)).double()
    nn.init.ones_(constant[1].weight)
    result = spatial(constant, x, torch.zeros_like(y), search="random", k=3, translation=0.2, trace=True)
    assert not bool(result.success.any())  # a tie is no success, so every draw is looked at
    assert result.trace is not None
    for name, limit in {"rotation": 30.0, "down": 0.2, "right": 0.2}.items():
        size = result.trace[name].abs()
        assert size.max() <= limit
    seen = Counting(model)
    free = spatial(seen, x, y, search="random", k=3)
    assert free.queries.sum() == seen.forwards and free.queries.max() <= 5


def test_first_order_steps_climb() -> None:
    """The loss after the steps is no lower than at their start, and on average much higher."""
    model, x, y = images(n=40, seed=5)
    wall = nn.Sequential(model, Shift(y))  # out of reach, so that all steps are taken
    start = spatial(wall, x, y, search="random", k=1, translation=0.25)  # the same first draw
    end = spatial(wall, x, y, search="first_order", steps=30, translation=0.25)
    assert not bool(end.success.any()) and end.gradients.tolist() == [30] * 40 and end.queries.tolist() == [32] * 40
    with torch.no_grad():
        before, after = (F.cross_entropy(wall(r.x_adv), y, reduction="none") for r in (start, end))
    assert bool((after >= before - 1e-12).all()) and float((after / before).median()) > 1.2


class Shift(nn.Module):
    """Adds 5 to the label's logit, for a batch whose labels are known."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.wall = 5.0 * F.one_hot(y, 4).double()

    def forward(self, z: Tensor) -> Tensor:
        return z + self.wall


@pytest.mark.slow
def test_kappa_asks_for_a_margin() -> None:
    model, x, y = images(n=16, seed=3)
    result = spatial(model, x, y, grid=(31, 5, 5), translation=0.25, kappa=0.5)
    with torch.no_grad():
        logits = model(result.x_adv)
    top = logits.topk(2, dim=1).values
    assert bool((top[:, 0] - top[:, 1] >= 0.5)[result.success].all())
    assert 0 < int(result.success.sum()) <= int(spatial(model, x, y, grid=(31, 5, 5), translation=0.25).success.sum())


def test_what_comes_in_has_the_lower_end_of_the_box() -> None:
    model, x, y = images()
    wide = nn.Sequential(Half(), model)
    here = spatial(model, x, y, grid=(5, 3, 3))
    there = spatial(Victim(wide, bounds=(-1.0, 1.0)), 2 * x - 1, y, grid=(5, 3, 3))
    torch.testing.assert_close((there.x_adv + 1) / 2, here.x_adv, rtol=0, atol=1e-12)


class Half(nn.Module):
    """From [−1, 1] to [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1) / 2


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"search": "all"}, "search: want"),
        ({"rotation": -1.0}, "rotation: want"),
        ({"translation": float("nan")}, "translation: want"),
        ({"grid": (3, 0, 3)}, "grid: want"),
        ({"grid": (3, 3)}, "grid: want"),
        ({"x": torch.rand(2, 6, dtype=torch.float64), "y": None}, "x: want images"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], error: str) -> None:
    model, x, y = images()
    with pytest.raises(ValueError, match=f"^{error}"):
        spatial(model, **{"x": x, "y": y, **wrong})
    with pytest.raises(ValueError, match=r"^access: .*'white'.*'soft'"):
        spatial(Victim(model, access="soft"), x, y, search="first_order")


@pytest.mark.slow
@pytest.mark.parametrize("case", [FIRST_ORDER, RANDOM], ids=["first_order", "random"])
def test_the_other_searches_pass_the_shared_suite(case: Case) -> None:
    in_batch.check_batch_independence(case, CPU)
    in_batch.check_ids_permute(case, CPU)
    in_batch.check_determinism(case, CPU)
    counts.check_counts(case, CPU)
    for budget in (2, 3, 7):
        counts.check_budget_of_queries(case, CPU, budget)
    side_effects.check_no_side_effects(case, CPU, "eval")
    success.check_success_is_true(case, CPU, torch.float32)
    success.check_failure(case, CPU)
    success.check_untouched_where_goal_is_met(case, CPU, every=False)
    for kind in pathological.BROKEN:
        pathological.check_broken_model(case, CPU, kind)
    pathological.check_nan_away_from_x(case, CPU)
    box.check_box_and_budget(
        case, box.Problem((2, 3, 2), 3, 3, torch.float32, "mixed", (0.0, 255.0), 1.0, 1, True), CPU
    )
