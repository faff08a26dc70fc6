"""Query reduction beyond the shared suite: its estimates by autograd, its groups and components, its queries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustlab.attacker.losses import attacker_loss
from robustlab.attacker.victim import Victim
from robustlab.attacks import query_reduction
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import mlp
from tests.suite.oracles import affine_problem, free_optimum
from tests.suite.test_success import Recording
from tests.unit.test_zoo_attack import walled

CPU, SHAPE = torch.device("cpu"), (2, 4, 3)
DATA = noise_box(40, SHAPE, torch.float64, seed=5)


def slope(model: torch.nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Autograd's gradient of the attacker's loss."""
    x = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(attacker_loss(loss)(model(x), y).sum(), x)  # type: ignore[arg-type]
    return grad.flatten(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("loss", ["logprob", "ce"])
@pytest.mark.parametrize("reduction", ["none", "groups", "pca"])
def test_a_step_follows_autograds_gradient_as_far_as_it_is_asked(reduction: str, norm: str, loss: str) -> None:
    """All of it; its means over the groups that the probes show; its projection onto NumPy's components."""
    _, x, y = walled(SHAPE)
    model = mlp(SHAPE, 3, gain=1.0)  # small weights: probabilities are no zeros and ones
    y = model(x).argmax(dim=1)
    seen = Recording(model)
    eps = 1e-4
    run = {"data": DATA, "components": 5} if reduction == "pca" else {"size": 7}
    result = query_reduction(
        Victim(seen, access="soft"), x, y, norm=norm, eps=eps, steps=1, reduction=reduction, loss=loss, **run
    )
    probes = seen.points[1]
    count = {"none": 24, "groups": 4, "pca": 5}[reduction]
    assert len(probes) == 2 * count and result.queries.tolist() == [1 + 2 * count + 1]
    grad = slope(model, x, y, loss)
    if reduction == "groups":
        member = (probes[:count] != x).flatten(1).double()  # (groups, d)
        assert member.sum(dim=0).tolist() == [1.0] * 24 and sorted(member.sum(dim=1).tolist()) == [3, 7, 7, 7]
        grad = (grad @ member.T / member.sum(dim=1)) @ member
    elif reduction == "pca":
        basis = torch.linalg.eigh(torch.cov(DATA.flatten(1).T)).eigenvectors[:, -5:]
        grad = grad @ basis @ basis.T
    want = -eps * get_norm(norm).steepest(grad)
    torch.testing.assert_close((result.x_adv - x).flatten(1), want, rtol=0, atol=1e-9)


def test_groups_are_drawn_anew_at_each_step() -> None:
    model, x, y = walled(SHAPE)
    seen = Recording(model)
    query_reduction(Victim(seen, access="soft"), x, y, eps=1e-3, steps=4, size=6)
    probes = [part for part in seen.points if len(part) == 8]
    partitions = {frozenset(tuple(row.nonzero().flatten().tolist()) for row in moved(part)) for part in probes}
    assert len(probes) == len(partitions) == 4


def moved(probes: Tensor) -> Tensor:
    """Which elements the two probes of each group differ in, (groups, d)."""
    up, down = probes.flatten(1).chunk(2)
    return up - down > 1e-6


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_optimum_of_an_affine_model(norm: str) -> None:
    """With all features it wins just above the optimum, and never below, whatever the groups."""
    model, x, y = affine_problem(2, 8, 8, CPU, spread=1.0)
    best = free_optimum(model, x, y, norm)
    victim = Victim(model, bounds=(-9.0, 9.0), access="soft")
    run = {"norm": norm, "steps": 20}
    assert bool(query_reduction(victim, x, y, eps=1.001 * best, reduction="none", **run).success.all())
    for size in (1, 3):
        assert not bool(query_reduction(victim, x, y, eps=0.999 * best, size=size, **run).success.any())


def test_no_probe_leaves_the_box_and_corners_have_slopes() -> None:
    model, x = mlp(SHAPE, 3), noise_box(6, SHAPE, torch.float64).round()
    y = model(x).argmax(dim=1)
    seen = Recording(model)
    result = query_reduction(Victim(seen, access="soft"), x, y, eps=0.4, steps=5, size=2)
    points = torch.cat(seen.points)
    assert bool(((points >= 0) & (points <= 1)).all()) and int(result.success.sum()) >= 3


def test_bad_input() -> None:
    net, x = mlp(SHAPE, 3), torch.rand(2, *SHAPE, dtype=torch.float64)
    for wrong, name in (
        ({"reduction": "pca"}, "data"), ({"reduction": "pca", "data": DATA[:, :1]}, "data"),
        ({"reduction": "pca", "data": DATA[:5], "components": 5}, "r"), ({"reduction": "all"}, "reduction"),
        ({"size": 0}, "size"), ({"h": -1.0}, "h"), ({"steps": 0}, "steps"), ({"norm": "l1"}, "norm"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name}: want"):
            query_reduction(net, x, eps=0.1, **wrong)
    with pytest.raises(ValueError, match=r"^budget: want at least 27,"):
        query_reduction(Victim(net, access="soft", budget=26), x, eps=0.1, size=2)
