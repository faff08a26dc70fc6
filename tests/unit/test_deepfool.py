"""DeepFool beyond the shared suite: its formula, its candidates, its overshoot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import deepfool
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp
from tests.suite.oracles import affine_problem

CPU = torch.device("cpu")
WIDE = (-50.0, 50.0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_binary_affine_step_is_the_closed_form(norm: str) -> None:
    """δ = (1 + η)·(f + spare)/‖w‖_q · v(w), in one step; spare = 1.01e-4·(largest |logit|) is aimed beyond."""
    model, x, y = affine_problem(2, 10, 5, CPU, spread=1.0)
    result = deepfool(Victim(model, bounds=WIDE), x, y, norm=norm, overshoot=0.02)
    ball = get_norm(norm)
    with torch.no_grad():
        z = model(x)
        w = model.weight[1 - y] - model.weight[y]
        gap = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1)
        gap = gap + 1.01e-4 * z.abs().amax(1)
        delta = 1.02 * (gap / ball.dual.length(w))[:, None] * ball.steepest(w)
    torch.testing.assert_close(result.x_adv, x + delta, rtol=1e-9, atol=1e-12)
    assert result.queries.tolist() == [4] * 10


@pytest.mark.parametrize("overshoot", [0.0, 0.02, 0.5])
def test_overshoot_scales_the_result(overshoot: float) -> None:
    model, x, y = affine_problem(2, 10, 5, CPU, spread=1.0)
    victim = Victim(model, bounds=WIDE)
    plain = deepfool(victim, x, y, overshoot=0.0)
    longer = deepfool(victim, x, y, overshoot=overshoot)
    assert bool(plain.success.all())
    torch.testing.assert_close(longer.distances["l2"], (1 + overshoot) * plain.distances["l2"], rtol=1e-3, atol=0)


def test_candidates_are_the_largest_logits() -> None:
    """12 classes, 4 candidates: 3 gradients per iteration, and only those classes are considered."""
    model, x, y = affine_problem(12, 20, 6, CPU, spread=1.0)
    victim = Victim(model, bounds=WIDE)
    few, all_of_them = deepfool(victim, x, y, candidates=4), deepfool(victim, x, y, candidates=12)
    iterations = few.queries - 2
    assert torch.equal(few.gradients, 3 * iterations)
    assert torch.equal(all_of_them.gradients, 11 * (all_of_them.queries - 2))
    assert torch.equal(deepfool(victim, x, y, candidates=99).x_adv, all_of_them.x_adv)
    assert bool((few.distances["l2"] >= all_of_them.distances["l2"] - 1e-9).all())
    with torch.no_grad():
        allowed = model(x).topk(4, dim=1).indices
        reached = model(few.x_adv).argmax(1)
    assert bool((allowed == reached[:, None]).any(1).float().mean() > 0.9)
    two = deepfool(victim, x, y, candidates=2)
    with torch.no_grad():
        second = model(x).topk(2, dim=1).indices[:, 1]
        assert bool((model(two.x_adv).topk(2, dim=1).indices == second[:, None]).any(1).float().mean() > 0.5)


def test_a_pixel_at_the_bound_does_not_swallow_the_step() -> None:
    """The steepest element cannot move; the others must do it."""
    # z_0 − z_1 = 0.5 + 10·(1 − x_0) ... falls with x_0, which is at its bound, and with x_1, slowly.
    model = Affine(torch.tensor([[-10.0, -1.0], [0.0, 0.0]]), torch.tensor([10.5, 0.0]))
    x = torch.tensor([[1.0, 0.3]])
    assert int(model(x).argmax()) == 0
    for norm in ("l2", "linf"):
        result = deepfool(model, x, torch.tensor([0]), norm=norm, overshoot=1e-3)
        assert bool(result.success)
        assert result.x_adv[0].tolist() == pytest.approx([1.0, 0.5], abs=2e-3)


def test_delta_stays_in_the_box() -> None:
    """The lead falls steeply with x_0, which is at its bound, but only while x_1 is small.

    Were the steps on x_0 added up beyond the box, the search would have to undo them before the point could leave
    that face, and most of its steps would be spent there.
    """

    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = 2 - 2 * x[:, 1] + 10 * x[:, 0] * (0.5 - x[:, 1])
            return torch.stack([lead, torch.zeros_like(lead)], dim=1)

    result = deepfool(Bent(), torch.tensor([[0.0, 0.2]]), torch.tensor([0]), steps=30)
    assert bool(result.success) and int(result.gradients) <= 12


def test_linf_is_smaller_in_linf() -> None:
    model: nn.Module = mlp((6,), 4)
    x = noise_box(20, (6,), torch.float64) * 0.6 + 0.2
    y = model(x).argmax(1)
    l2, linf = deepfool(model, x, y, norm="l2"), deepfool(model, x, y, norm="linf")
    assert bool(l2.success.all() and linf.success.all())
    assert float(linf.distances["linf"].median()) < float(l2.distances["linf"].median())
