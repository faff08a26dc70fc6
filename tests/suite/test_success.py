"""Success is what the caller's model says of the returned point, and nothing is spent where it was there already."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.suite.cases import CASES, TARGETED, Case, batch, over
from tests.suite.models import Then, mlp


def check_success_is_true(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """On the whole batch, in the returned dtype; minimum-norm attacks with a margin that survives rounding."""
    model, x, y = batch(case, device, n=12, dtype=dtype, seed=4)
    result = case.run(model, x, y)
    with torch.no_grad():
        logits = model(result.x_adv)
    won = result.success
    assert bool(won.any()), "the suite's problem is so easy that every attack wins somewhere"
    top = logits.topk(2, dim=1).values
    gap, size = top[:, 0] - top[:, 1], top.abs().amax(dim=1)
    clear = gap > 1e-5 * size.clamp_min(1)  # nearer to a tie another batch may round it the other way
    assert torch.equal(won[clear], case.goal(logits, y)[clear])
    if case.row.min_norm:
        if case.row.access != "hard":  # labels do not tell a margin
            assert bool((gap[won] >= 0.98e-4 * size[won]).all()), "the winning margin is too thin"
        assert bool(case.goal(logits, y)[won].all())
    assert torch.equal(result.first_success > 0, won | (result.first_success > 0))
    assert bool((result.first_success[won] >= 1).all())
    assert bool((result.first_success <= result.queries).all())
    if case.norm:
        radius = result.radius(case.norm)
        assert bool(radius[~won].isinf().all()) and bool(radius[won].isfinite().all())


def check_untouched_where_goal_is_met(case: Case, device: torch.device, every: bool = False) -> None:
    """Samples that meet the goal at x: returned unchanged, one query, no gradient. The others as if alone."""
    model, x, y = batch(case, device, n=6)
    there = torch.ones(6, dtype=torch.bool, device=device)
    if not every:
        there[::2] = False
    labels, changes = y.clone(), {}
    if case.targeted:
        labels[there] = (y[there] + 1) % case.classes
        changes["target"] = torch.where(there, y, case.target(y))
    else:
        labels[there] = (y[there] + 1) % case.classes
    result = case.run(model, x, labels, **changes)
    assert torch.equal(result.x_adv[there], x[there])
    assert bool(result.success[there].all())
    assert result.queries[there].tolist() == [1] * int(there.sum()), "queries wasted on samples that are done"
    assert result.gradients[there].tolist() == [0] * int(there.sum())
    assert result.first_success[there].tolist() == [1] * int(there.sum())
    assert bool((result.queries[~there] > 1).all())


def check_targeted_means_targeted(case: Case, device: torch.device) -> None:
    """Other classes are easy to reach, the target is out of reach: nothing may be called a success."""
    model, x, y = batch(case, device, n=8)
    never = int((y.bincount(minlength=case.classes)).argmin())
    rows = y != never
    x, y = x[rows], y[rows]
    wall = torch.zeros(case.classes, dtype=x.dtype, device=device)
    wall[never] = -1e4
    result = case.run(Then(model, lambda z: z + wall), x, y, target=never)
    assert not bool(result.success.any()), "another class than the target was counted as success"
    assert result.first_success.tolist() == [-1] * len(y)


def check_failure(case: Case, device: torch.device) -> None:
    """Where it fails, a minimum-norm attack returns x, and a budget attack its point of highest loss."""
    model, x, y = batch(case, device, n=3, seed=1)
    height = 1e3 if case.row.min_norm else 12.0  # out of reach; for a budget attack with a slope that can be compared
    goal = case.target(y) if case.targeted else y
    for i in range(len(y)):
        wall = torch.zeros(case.classes, dtype=x.dtype, device=device)
        wall[goal[i]] = -height if case.targeted else height
        blocked = Then(model, lambda z, wall=wall: z + wall)
        seen = Recording(blocked)
        one = slice(i, i + 1)
        result = case.run(seen, x[one], y[one])
        assert not bool(result.success.any()) and not bool(result.distances["linf"].isnan().any())
        if case.row.min_norm:
            assert torch.equal(result.x_adv, x[one])
        elif case.takes("loss") and case.row.access != "hard":  # labels tell no loss of the model's
            with torch.no_grad():
                points = [p for p in seen.points[1:-1] if len(p) == 1]  # probes, asked together, may leave the budget
                tried = torch.stack([attacked(case, blocked(p), goal[one]) for p in points])
                ours = attacked(case, blocked(result.x_adv), goal[one])
            away = torch.stack([(p != x[one]).any() for p in points])
            if bool(away.any()):
                assert float(ours) >= float(tried[away].max()) - 1e-12, "not the best point it has seen"


def attacked(case: Case, logits: Tensor, label: Tensor) -> Tensor:
    """What the default loss wants large."""
    default = inspect.signature(case.attack).parameters["loss"].default
    # Log-probabilities differ as logits do; None is Square's.
    if default in ("margin", "logprob") or (default is None and not case.targeted):
        others = logits.scatter(1, label[:, None], -torch.inf).amax(dim=1)
        loss = (others - logits.gather(1, label[:, None]).squeeze(1)).squeeze()
    else:
        loss = F.cross_entropy(logits, label, reduction="none").squeeze()
    return -loss if case.targeted else loss


class Recording(nn.Module):
    """Keeps every point that it is asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.points = model, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        return self.model(x)


def check_own_prediction_by_default(case: Case, device: torch.device) -> None:
    model, x, y = batch(case, device, n=4)
    target = {"target": case.target(y)} if case.targeted else {}
    given, default = case.run(model, x, y, **target), case.run(model, x, None, **target)
    assert torch.equal(given.x_adv, default.x_adv) and torch.equal(given.success, default.success)


def check_two_classes(case: Case, device: torch.device) -> None:
    """Two classes work, or are refused where the attack needs more."""
    model = mlp(case.shape, 2).to(device)
    x = torch.rand(4, *case.shape, dtype=torch.float64).to(device)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    changes = {"target": 1 - y} if case.targeted else {}
    if case.row.min_classes > 2:
        with pytest.raises(ValueError, match="classes"):
            case.run(model, x, y, **changes)
        return
    result = case.run(model, x, y, **changes)
    with torch.no_grad():
        assert torch.equal(model(result.x_adv).argmax(1) != y, result.success)


@pytest.mark.slow
@over(dtype=(torch.float32, torch.float64))
def test_success_is_true(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    check_success_is_true(case, device, dtype)


@over(every=(False, True))
def test_untouched_where_goal_is_met(case: Case, device: torch.device, every: bool) -> None:
    check_untouched_where_goal_is_met(case, device, every)


@pytest.mark.slow
@over()
def test_failure(case: Case, device: torch.device) -> None:
    check_failure(case, device)


@pytest.mark.slow
@over(*TARGETED)
def test_targeted_means_targeted(case: Case, device: torch.device) -> None:
    check_targeted_means_targeted(case, device)


def test_a_target_is_refused_where_the_row_has_none() -> None:
    for case in CASES:
        if not case.row.targeted:
            model, x, y = batch(case, torch.device("cpu"))
            with pytest.raises(TypeError, match="target"):
                case.attack(model, x, y, **case.arguments(target=0))


@pytest.mark.slow
@over()
def test_own_prediction_by_default(case: Case, device: torch.device) -> None:
    check_own_prediction_by_default(case, device)


@pytest.mark.slow
@over()
def test_two_classes(case: Case, device: torch.device) -> None:
    check_two_classes(case, device)
