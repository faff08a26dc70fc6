"""Auto-PGD beyond the shared suite: against a transcript of its papers' algorithms for one sample, and its options."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustlab import data, zoo
from robustlab.attacker.losses import dlr
from robustlab.attacker.victim import Victim
from robustlab.attacks import apgd, pgd
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import IMAGE, Then, mlp
from tests.suite.test_success import Recording

STEPS = 60


def problem(classes: int = 4, n: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    """A net, points of the box, and its predictions, which a wall in the logits keeps from being fooled."""
    model, x = mlp(IMAGE, classes), noise_box(n, IMAGE, torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def walled(model: nn.Module, label: int, height: float = 12.0) -> nn.Module:
    wall = torch.zeros(4, dtype=torch.float64)
    wall[label] = height
    return Then(model, lambda z: z + wall)


def paper_checkpoints(steps: int) -> list[int]:
    """w_j = ⌈p_j·N⌉ with p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j − p_(j−1) − 0.03, 0.06)."""
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return [math.ceil(round(q * steps, 6)) for q in p if q < 1]


def transcript(
    f: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float, norm: str, steps: int, rho: float
) -> tuple[list[float], Tensor]:
    """Algorithm 1 of the 2020 paper (ℓ∞, ℓ2) for one sample: maximizes f; returns f at every point, and the best."""
    ball = get_norm(norm)

    def project(points: Tensor) -> Tensor:
        return x + ball.project_box(points - x, eps, 0 - x, 1 - x)

    def with_gradient(points: Tensor) -> tuple[float, Tensor]:
        points = points.detach().requires_grad_(True)
        value = f(points)
        (grad,) = torch.autograd.grad(value, points)
        return float(value.detach()), grad

    at = project(start)
    before, eta = at, 2 * eps
    value, grad = with_gradient(at)
    values, best, best_value, best_grad = [value], at, value, grad
    checkpoints, last, halved, best_then, successes = paper_checkpoints(steps), 0, True, value, 0
    current = value
    for k in range(steps):
        z = project(at + eta * ball.steepest(grad))
        new = z if k == 0 else project(at + 0.75 * (z - at) + 0.25 * (at - before))
        before, at = at, new
        value, grad = with_gradient(at)
        values.append(value)
        successes += value > current
        current = value
        if value > best_value:
            best, best_value, best_grad = at, value, grad
        if k + 1 in checkpoints:
            first = successes <= rho * (k + 1 - last)
            second = not halved and best_value == best_then
            halved = first or second
            if halved:
                eta, at, grad, current = eta / 2, best, best_grad, best_value
            last, best_then, successes = k + 1, best_value, 0
    return values, best


def l1_transcript(f: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float, steps: int) -> list[float]:
    """ℓ1-APGD for one sample from a start of its own, elements at the box left out of the step."""
    at, eta = x + get_norm("l1").project_box(start - x, eps, 0 - x, 1 - x), eps
    support = int(((at - x).abs() > 1e-6 * eps).sum())
    k, values, best, best_value, best_grad = support / 1.5, [], at, -math.inf, at
    for i in range(steps + 1):
        points = at.detach().requires_grad_(True)
        value = f(points)
        (grad,) = torch.autograd.grad(value, points)
        values.append(float(value.detach()))
        if float(value.detach()) > best_value:
            best, best_value, best_grad = at, values[-1], grad
        if i and i % max(int(0.04 * steps), 1) == 0:
            now = int(((best - x).abs() > 1e-6 * eps).sum())
            k = now / 1.5
            if now < 0.95 * support:
                eta, at, grad = eps, best, best_grad
            else:
                eta = max(eta / 1.5, eps / 10)
            support = now
        can_move = torch.where(grad > 0, at < 1 - 1e-12, at > 1e-12) & (grad != 0)
        top = grad.abs().where(can_move, 0).flatten().topk(max(int(k), 1)).indices
        step = torch.zeros(x.numel(), dtype=x.dtype).index_copy(0, top, grad.flatten()[top].sign())
        at = at + (eta / step.abs().sum() * step).reshape(x.shape)
        at = x + get_norm("l1").project_box(at - x, eps, 0 - x, 1 - x)
    return values


def label_loss(model: nn.Module, y: Tensor, name: str) -> Callable[[Tensor], Tensor]:
    if name == "ce":
        return lambda points: nn.functional.cross_entropy(model(points), y)
    return lambda points: -dlr(model(points), y).sum()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("loss", "rho"), [("ce", 0.75), ("dlr", 0.75), ("ce", 0.5)])
def test_equals_the_papers_algorithm(norm: str, loss: str, rho: float) -> None:
    base, x, y = problem()
    eps = {"linf": 0.15, "l2": 0.7}[norm]
    start = 0.1 * noise_box(5, IMAGE, torch.float64, seed=3)
    halvings = 0
    for i in range(5):
        model, one = walled(base, int(y[i])), slice(i, i + 1)
        result = apgd(
            model, x[one], y[one], norm=norm, eps=eps, steps=STEPS, loss=loss, rho=rho, init=start[one], trace=True
        )
        assert not bool(result.success) and result.trace is not None
        values, best = transcript(label_loss(model, y[one], loss), x[one], x[one] + start[one], eps, norm, STEPS, rho)
        torch.testing.assert_close(
            -result.trace["loss"][:, 0], torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=1e-9
        )
        torch.testing.assert_close(result.x_adv, best, rtol=0, atol=1e-6)
        halvings += int((result.trace["step_size"].diff(dim=0) < 0).sum())
        assert result.queries.tolist() == [STEPS + 2] and result.gradients.tolist() == [STEPS]
    assert halvings >= 5, "a problem in which checkpoints matter"


@pytest.mark.slow
def test_l1_equals_the_papers_algorithm() -> None:
    base, x, y = problem()
    start = 0.05 * noise_box(5, IMAGE, torch.float64, seed=3)
    for i in range(5):
        model, one = walled(base, int(y[i])), slice(i, i + 1)
        result = apgd(model, x[one], y[one], norm="l1", eps=1.5, steps=STEPS, init=start[one], trace=True)
        assert result.trace is not None
        values = l1_transcript(label_loss(model, y[one], "ce"), x[one], x[one] + start[one], 1.5, STEPS)
        # Later the iterates circle, and rounding decides which of two equal points is the best.
        first = torch.tensor(values[:30], dtype=torch.float64)
        torch.testing.assert_close(-result.trace["loss"][:30, 0], first, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_starts_at_distance_eps(norm: str) -> None:
    base, x, y = problem()
    seen = Recording(walled(base, int(y[0])))
    apgd(Victim(seen, bounds=(-9.0, 9.0)), x[:1], y[:1], norm=norm, eps=0.3, steps=1, restarts=2)
    first, second = seen.points[1], seen.points[3]
    for point in (first, second):
        assert float(get_norm(norm).length(point - x[:1])) == pytest.approx(0.3)
        if norm == "linf":  # scaled to the length, not cut to it
            assert int(((point - x[:1]).abs() > 0.3 - 1e-9).sum()) == 1
    assert not torch.allclose(first, second)


@pytest.mark.slow
def test_is_no_weaker_than_pgd_on_a_real_net() -> None:
    model, held = zoo.load("mnist_cnn"), data.load("mnist5k")
    x, y = held.x_test[:60], held.y_test[:60]
    for norm, eps in (("linf", 0.08), ("l2", 1.2)):
        ours = apgd(model, x, y, norm=norm, eps=eps, steps=40)
        theirs = pgd(model, x, y, norm=norm, eps=eps, steps=40)
        assert int(ours.success.sum()) >= int(theirs.success.sum()) - 1


def test_dlr_does_not_see_the_scale_of_the_logits() -> None:
    """In float32 a factor of 10⁴ leaves nothing of the cross-entropy's gradient."""
    model, x, y = problem(n=30)
    model, x = model.float(), x.float()
    scaled = Then(model, lambda z: 1e4 * z)
    run = {"norm": "linf", "eps": 0.12, "steps": 30}
    plain, blown = (apgd(m, x, y, loss="dlr", **run).success for m in (model, scaled))
    blind = apgd(scaled, x, y, loss="ce", **run).success
    assert torch.equal(plain, blown)
    assert int(blind.sum()) < int(plain.sum())


def test_toward_aims_at_a_label_but_takes_any() -> None:
    model, x, y = problem(n=40)
    label = (y + 1) % 4
    run = {"norm": "linf", "eps": 0.12, "steps": 40, "loss": "dlr"}
    aimed, targeted = apgd(model, x, y, toward=label, **run), apgd(model, x, y, target=label, **run)
    with torch.no_grad():
        reached = model(aimed.x_adv).argmax(1)
    assert torch.equal(aimed.success, reached != y)
    assert bool((aimed.success | ~targeted.success).all()), "what reaches the target has left y"
    assert int(aimed.success.sum()) > int(targeted.success.sum()) > 0
    assert float((reached == label)[aimed.success].double().mean()) > 0.5, "the aim matters"
    one = torch.full_like(y, 3)
    rows = y != 3
    same = apgd(model, x[rows], y[rows], toward=3, **run)
    torch.testing.assert_close(same.x_adv, apgd(model, x[rows], y[rows], toward=one[rows], **run).x_adv)


@pytest.mark.parametrize("budget", [8, 12, 18])
def test_a_budget_may_end_in_any_ball(budget: int) -> None:
    """20 steps are 6, 6 and 8 in balls of 3ε, 2ε and ε; without a point in the last one x is returned."""
    model, x, y = problem()
    result = apgd(
        Victim(walled(model, 0, 100.0), budget=budget), x, y * 0, norm="l1", eps=0.8, steps=20, multi_eps=True
    )
    assert result.queries.tolist() == [budget - 1] * len(x) and not bool(result.success.any())
    assert torch.equal(result.x_adv, x) == (budget < 16)


def test_multi_eps_ends_in_the_ball_and_counts_no_success_outside() -> None:
    model, x, y = problem(n=30)
    result = apgd(model, x, y, norm="l1", eps=0.8, steps=20, multi_eps=True)
    assert bool((result.distances["l1"] <= 0.8 + 1e-9).all())
    won = result.success
    assert 0 < int(won.sum()) < 30
    assert bool((result.first_success[won] > 14).all()), "12 steps and 2 starts in larger balls come first"
    assert bool((result.first_success[~won] == -1).all())
    assert bool((result.queries[~won] == 1 + 3 + 20).all()) and bool((result.gradients[~won] == 20).all())
    with torch.no_grad():
        assert torch.equal(model(result.x_adv).argmax(1) != y, won)


def test_rho_moves_the_checkpoints() -> None:
    base, x, y = problem(n=3)
    model = walled(base, int(y[0]))
    sizes = []
    for rho in (0.05, 0.75, 1.0):
        result = apgd(model, x[:1], y[:1], eps=0.1, steps=STEPS, rho=rho, trace=True)
        assert result.trace is not None
        sizes.append(float(result.trace["step_size"][-1, 0]))
    assert sizes[0] > sizes[2] == 0.2 / 2 ** len([w for w in paper_checkpoints(STEPS) if 0 < w < STEPS])
    assert sizes[0] >= sizes[1] >= sizes[2]


def test_bad_input() -> None:
    model, x, y = problem(n=3)

    def refused(match: str, **changes: object) -> None:
        with pytest.raises(ValueError, match=match):
            apgd(model, x, y, **{"eps": 0.1} | changes)  # type: ignore[arg-type]

    for rho in (0, 1.5, float("nan")):
        refused("^rho: want", rho=rho)
    refused("^multi_eps: want", multi_eps=True)
    refused("^toward: want a label other than y", toward=y)
    refused("^toward: want labels in", toward=7)
    refused("^toward: want None beside a target", toward=(y + 1) % 4, target=(y + 2) % 4)
    refused("^toward: want shape", toward=y[:2])
    with pytest.raises(ValueError, match="at least 4 classes, got 3"):
        apgd(mlp(IMAGE, 3), x, torch.zeros(3, dtype=torch.int64), eps=0.1, loss="dlr", toward=1)
