"""The bound on sanitized training against convex programs: its inner maximum, its minimum over θ, and the attack."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from robustlab.data import mapped, sms_spam, text_map
from robustlab.defenses.certified.feasible import Feasible
from robustlab.defenses.certified.sanitization_bound import SanitizationBound, sanitization_bound, sanitizer
from robustlab.geometry.keyed import Noise
from robustlab.teaching.check.farthest_point import Walk, largest

D, MAX_NORM = 4, 5.0


def two_classes(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of at least 0, a third of them of class 1, which overlap."""
    y = (torch.arange(n) % 3 == 0).long()
    x = Noise(seed, torch.arange(n)).normal(0, (D,), torch.float64)
    return (x + torch.tensor([1.5, 0.0, -1.0, 0.3]) * y[:, None]).clamp_min(0), y


def program(v: np.ndarray, sets: Feasible, c: int) -> float:
    """max ⟨v, x⟩ over the set of class c."""
    x = cp.Variable(D)
    away = x - sets.center[c].numpy()
    limits = [cp.norm(away) <= float(sets.radius[c])]
    if sets.width[c].isfinite():
        limits.append(cp.abs(away @ sets.direction.numpy()) <= float(sets.width[c]))
    if sets.nonnegative:
        limits.append(x >= 0)
    return float(cp.Problem(cp.Maximize(v @ x), limits).solve())


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("slab", [False, True])
def test_the_farthest_point_is_the_convex_program_s(nonnegative: bool, slab: bool) -> None:
    data = two_classes()
    for seed in range(4):
        sets = sanitizer(data, slab=slab, quantile=(0.5, 0.9)[seed % 2], nonnegative=nonnegative)
        v = Noise(seed, torch.arange(2)).normal(1, (D,), torch.float64)
        if seed == 3:  # along the slab, and against it: the plane is a line
            v = sets.direction * torch.tensor([[1.0], [-2.0]])
        points, reach = sets.farthest(v)
        assert bool(sets.keeps(points, torch.tensor([0, 1])).all())
        torch.testing.assert_close((v * points).sum(dim=1), reach, rtol=1e-9, atol=1e-9)
        for c in (0, 1):
            assert float(reach[c]) == pytest.approx(program(v[c].numpy(), sets, c), rel=1e-5, abs=1e-6)


def test_no_point_passes_the_value_where_v_is_nearly_along_the_slab() -> None:
    """What is left across is as small as rounding, and its part along e would lengthen or shorten the walk."""
    generator = torch.Generator().manual_seed(0)
    radius = torch.tensor(2.0, dtype=torch.float64)
    for away in torch.logspace(-12, -4, 40).tolist():
        noise = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        e, v = noise[0] / noise[0].norm(), (torch.tensor([[3.0], [-3.0]]) * noise[0] + away * noise[1:3])
        sets = Feasible(noise[2:], e, radius.expand(2), radius.expand(2) / 2)
        points, reach = sets.farthest(v)
        assert bool(sets.keeps(points, torch.tensor([0, 1])).all())
        for c in (0, 1):
            most = largest(Walk(v[c], sets.center[c], e, radius, radius / 2)) + float(v[c] @ sets.center[c])
            assert float(reach[c]) == pytest.approx(most, abs=1e-9 * float(v[c].norm()))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_nothing_to_aim_at_gives_the_mean_and_always_the_same(nonnegative: bool) -> None:
    sets = sanitizer(two_classes(), nonnegative=nonnegative)
    points, reach = sets.farthest(torch.zeros(2, D, dtype=torch.float64))
    assert torch.equal(reach, torch.zeros(2).double()) and bool(sets.keeps(points, torch.tensor([0, 1])).all())
    if not nonnegative:
        assert torch.equal(points, sets.center)


def test_all_that_shrinks_goes_to_zero_inside_the_sphere() -> None:
    """v below 0 in a sphere that holds the origin: the maximum is 0, at the origin, and the sphere is not reached."""
    center = torch.full((2, D), 0.1, dtype=torch.float64)
    wide = torch.full((2,), 3.0, dtype=torch.float64)
    sets = Feasible(center, torch.eye(D, dtype=torch.float64)[0], wide, wide, nonnegative=True)
    points, reach = sets.farthest(-torch.ones(2, D, dtype=torch.float64))
    assert torch.equal(points, torch.zeros(2, D).double()) and reach.abs().max() < 1e-12


def least(data: tuple[Tensor, Tensor], rate: float, sets: Feasible) -> float:
    """min over θ of U(θ), as a second-order cone program: the maximum over F is written by its dual."""
    x, y = (part.numpy() for part in data)
    sign = 2.0 * y - 1
    w, b, poison = cp.Variable(D), cp.Variable(), cp.Variable()
    limits = [cp.norm(cp.hstack([w, b])) <= MAX_NORM, poison >= 0]
    for c, s in ((0, -1.0), (1, 1.0)):
        lam, nu = cp.Variable(), cp.Variable(D, nonneg=True)
        if not sets.nonnegative:
            limits.append(nu == 0)
        slab = float(sets.width[c]) * cp.abs(lam) if sets.width[c].isfinite() else 0.0
        if not sets.width[c].isfinite():
            limits.append(lam == 0)
        tilted = -s * w + nu - lam * sets.direction.numpy()
        reach = float(sets.radius[c]) * cp.norm(tilted) + slab + (nu - s * w) @ sets.center[c].numpy()
        limits.append(poison >= 1 + reach - s * b)
    clean = cp.sum(cp.pos(1 - cp.multiply(sign, x @ w + b))) / len(x)
    return float(cp.Problem(cp.Minimize(clean + rate * poison), limits).solve())


def trained(x: Tensor, y: Tensor, n: int) -> float:
    """The least summed hinge loss over n, by a convex program."""
    w, b = cp.Variable(D), cp.Variable()
    sign = 2.0 * y.numpy() - 1
    loss = cp.sum(cp.pos(1 - cp.multiply(sign, x.numpy() @ w + b))) / n
    return float(cp.Problem(cp.Minimize(loss), [cp.norm(cp.hstack([w, b])) <= MAX_NORM]).solve())


def run(data: tuple[Tensor, Tensor], **options: object) -> SanitizationBound:
    given = {"rate": 0.1, "max_norm": MAX_NORM, "steps": 200, "quantile": 0.8} | options
    return sanitization_bound(data, **given)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("oracle", ["fixed", "data"])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_bound_is_near_the_least_and_above_it_and_its_attack_below(oracle: str, nonnegative: bool) -> None:
    data = two_classes(seed=1)
    found = run(data, oracle=oracle, nonnegative=nonnegative)
    exact = least(data, 0.1, found.feasible)
    assert exact * (1 - 1e-6) <= found.bound <= exact * 1.03
    assert found.bound == float(found.history.min()) and float(found.history[0]) == pytest.approx(1.1)
    assert found.bound == pytest.approx(found.clean_loss + 0.1 * found.poison_loss)
    points, labels = found.attack
    assert len(points) == 6 and bool(found.feasible.keeps(points, labels).all())
    x = torch.cat([data[0], points[found.survives]])
    y = torch.cat([data[1], labels[found.survives]])
    assert found.attack_least - 1e-6 <= trained(x, y, 60) <= found.attack_loss + 1e-6 <= found.bound + 2e-6
    if oracle == "fixed":
        assert bool(found.survives.all()) and trained(x, y, 60) >= 0.9 * found.bound, "the attack nearly reaches it"


def test_other_attacks_of_the_set_are_below_the_bound_too() -> None:
    data = two_classes(seed=2)
    found = run(data)
    for seed in range(4):
        v = Noise(seed, torch.arange(2)).normal(5, (D,), torch.float64)
        points, _ = found.feasible.farthest(v)
        for c in (0, 1):
            x = torch.cat([data[0], points[c].expand(6, D)])
            assert trained(x, torch.cat([data[1], torch.full((6,), c)]), 60) <= found.bound + 1e-6


@pytest.mark.parametrize("c", [0, 1])
def test_poisons_that_move_their_own_sphere_are_inside_the_widened_one_and_touch_it(c: int) -> None:
    """All k at one point: they pass around the moved mean up to R(1 + k/n_c) from the clean one, and no farther."""
    data = two_classes(seed=3)
    kept = sanitizer(data, slab=False, quantile=0.8)
    wide = run(data, oracle="data", slab=False, steps=2).feasible
    along = torch.nn.functional.normalize(Noise(0, torch.arange(1)).normal(2, (D,), torch.float64))[0]
    for share, passes in ((0.9999, True), (1.0001, False)):
        point = kept.center[c] + along * wide.radius[c] * share
        rows = torch.cat([data[0][data[1] == c], point.expand(6, D)])
        assert bool((point - rows.mean(dim=0)).norm() <= kept.radius[c]) == passes
        assert not bool(kept.keeps(point[None], torch.tensor([c]))), "beyond the sphere that nothing moved"


def test_the_semidefinite_program_of_a_split_is_below_the_widened_sets() -> None:
    """The paper's relaxation for moved centroids, at two θ and splits of the poisons, against ours for every split."""
    data, rate = two_classes(seed=4), 0.05
    kept = sanitizer(data, quantile=0.8)
    wide = run(data, rate=rate, oracle="data", steps=2).feasible
    share = [float((data[1] == c).double().mean()) for c in (0, 1)]
    for seed, split in ((0, (0.0, 1.0)), (1, (0.5, 0.5))):
        w = Noise(seed, torch.arange(1)).normal(3, (D,), torch.float64)[0]
        ours = 1 + wide.farthest(torch.stack([w, -w]))[1]  # b = 0
        theirs = semidefinite(w.numpy(), kept, share, rate, split)
        assert 0 < theirs <= sum(rate * part * float(loss) for part, loss in zip(split, ours, strict=True)) + 1e-6


def semidefinite(w: np.ndarray, kept: Feasible, share: list[float], rate: float, split: tuple[float, float]) -> float:
    """max Σ_c γ_c(1 − s_c⟨w, x_c⟩) over the Gram matrix of x₀, x₁, μ₀, μ₁, w, means moved by γ_c poisons at x_c."""
    known = np.stack([kept.center[0].numpy(), kept.center[1].numpy(), w])
    gram = cp.Variable((5, 5), PSD=True)
    unit = np.eye(5)
    moved = [(share[c] * unit[2 + c] + rate * split[c] * unit[c]) / (share[c] + rate * split[c]) for c in (0, 1)]
    apart = moved[1] - moved[0]
    limits = [gram[2:, 2:] == known @ known.T]
    length = apart @ gram @ apart
    for c in (0, 1):
        away = unit[c] - moved[c]
        limits.append(away @ gram @ away <= float(kept.radius[c]) ** 2)
        limits.append(cp.square(away @ gram @ apart) <= float(kept.width[c]) ** 2 * length)
    loss = [1 - s * (unit[c] @ gram @ unit[4]) for c, s in ((0, -1.0), (1, 1.0))]
    total = sum(rate * split[c] * loss[c] for c in (0, 1))
    return float(cp.Problem(cp.Maximize(total), limits).solve())


def test_what_is_known_to_be_nonnegative_has_the_smaller_bound() -> None:
    data = two_classes(seed=5)
    assert run(data, nonnegative=True, steps=60).bound < run(data, steps=60).bound


def test_the_bound_grows_with_the_rate_and_is_the_training_loss_at_rate_zero() -> None:
    data = two_classes(seed=6)
    bounds = [run(data, rate=rate).bound for rate in (0.0, 0.05, 0.2)]
    assert bounds == sorted(bounds)
    assert trained(*data, 60) - 1e-6 <= bounds[0] <= 1.02 * trained(*data, 60)


def test_no_bound_is_above_that_of_the_first_iterate() -> None:
    """θ = 0 loses 1 on every row and poison, also where all later iterates of wide rows are far above 10,000."""
    x, y = two_classes()
    for steps in (1, 4):
        found = run((1e6 * x, y), rate=0.2, steps=steps)
        assert found.bound <= found.history[0] == 1.2
        assert steps == 1 or float(found.history[1:].max()) > 1e4


def test_float32_rows_give_the_same_bound_in_float64() -> None:
    x, y = two_classes()
    assert run((x.float().double(), y), steps=20).bound == run((x.float(), y), steps=20).bound


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rate", {"rate": -0.1}), ("oracle", {"oracle": "clean"}), ("quantile", {"quantile": 0.0}),
        ("max_norm", {"max_norm": 0.0}), ("steps", {"steps": 0}), ("lr", {"lr": 0.0}),
        ("data", {"data": (torch.rand(6, 2, 2), torch.tensor([0, 1] * 3))}),
        ("data", {"data": (torch.rand(6, 2), torch.zeros(6).long())}),
        ("data", {"data": (torch.rand(6, 2), torch.arange(6) % 3)}),
        ("data", {"data": (torch.full((6, 2), torch.nan), torch.arange(6) % 2)}),
        ("nonnegative", {"nonnegative": True, "data": (torch.rand(6, 2) - 2, torch.arange(6) % 2)}),
        ("slab", {"data": (torch.ones(6, 2), torch.arange(6) % 2)}),
    ],
)  # fmt: skip
def test_bad_input(name: str, changes: dict[str, object]) -> None:
    given = {"data": two_classes(), "rate": 0.1} | changes
    with pytest.raises(ValueError, match=f"^{name}: "):
        sanitization_bound(given.pop("data"), **given)  # type: ignore[arg-type]


def test_a_sanitizer_wants_a_sphere_or_a_slab() -> None:
    with pytest.raises(ValueError, match=r"^sphere, slab: want at least one"):
        sanitizer(two_classes(), sphere=False, slab=False)


def test_the_second_iterate_is_exact_in_float64_for_a_rate_that_float32_would_round() -> None:
    x, y = two_classes(30, seed=3)
    rate, sign = 0.03, 2.0 * y.double() - 1
    found = sanitization_bound((x, y), rate=rate, steps=2)
    # At θ = 0 all margins are 0, and the worst point is class 0's mean, of sign −1.
    rows = torch.cat([x, torch.ones(len(x), 1).double()], dim=1)
    mean = rows[y == 0].mean(dim=0)
    down = sign @ rows / len(rows) - rate * mean
    theta = 5 * down / down.norm()  # the first step has the length lr = max_norm/2
    value = (1 - sign * (rows @ theta)).clamp_min(0).mean() + rate * (
        1 + found.feasible.farthest(torch.stack([theta[:-1], -theta[:-1]]))[1] - torch.tensor([-1, 1]) * theta[-1]
    ).max()
    assert float(found.history[1]) == pytest.approx(float(value), rel=1e-13)


@pytest.mark.slow
def test_worst_points_that_alternate_are_all_in_the_attack() -> None:
    messages = sms_spam()
    task = mapped(messages, text_map(messages))
    rows = torch.randperm(len(task.x_train), generator=torch.Generator().manual_seed(1))[:2000]
    # 100 poisons from the last 200 steps: every second one would reach 0.71 of the bound.
    found = sanitization_bound((task.x_train[rows], task.y_train[rows]), rate=0.05, steps=400)
    assert 0.99 * found.bound <= found.attack_loss <= found.bound
