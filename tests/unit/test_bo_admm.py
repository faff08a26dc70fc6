"""BO-ADMM beyond the shared suite: its process by scikit-learn, proposals by brute force, rounds by the Lagrangian."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.optimize import approx_fprime
from scipy.stats import norm as normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from torch import Tensor

from robustlab.attacker.victim import Victim
from robustlab.attacks import bo_admm
from robustlab.attacks.softlabel.improvement import Improvement, Process, _log_gain
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import mlp
from tests.suite.oracles import affine_problem, free_optimum
from tests.suite.test_success import Recording
from tests.unit.test_zo_admm import minimum
from tests.unit.test_zoo_attack import walled

CPU, D = torch.device("cpu"), 6


def bowl(points: np.ndarray) -> np.ndarray:
    """A quadratic of two variables whose smallest value is off the center and off the axes."""
    a, b = points[:, 0] - 0.31, points[:, 1] + 0.17
    return 3.0 * a * a + 2.0 * a * b + 1.5 * b * b + 1.0


def heard(seed: int, m: int = 9) -> tuple[np.ndarray, np.ndarray]:
    points = np.random.default_rng(seed).uniform(-1, 1, (m, 2))
    return points, bowl(points)


def judged(process: Process, points: np.ndarray, values: np.ndarray) -> GaussianProcessRegressor:
    """scikit-learn's process with these c and ℓ, on values of mean 0 and deviation 1."""
    kernel = ConstantKernel(process.weight) * Matern(process.scale, nu=2.5)
    fitted = GaussianProcessRegressor(kernel, alpha=1e-6, optimizer=None)
    return fitted.fit(points, (values - values.mean()) / values.std())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mean_and_deviation_are_those_of_scikit_learn(seed: int) -> None:
    points, values = heard(seed)
    process, at = Process(points, values), np.random.default_rng(seed + 9).uniform(-2, 2, (40, 2))
    mean, deviation = judged(process, points, values).predict(at, return_std=True)
    ours = process.at(at)
    np.testing.assert_allclose(ours[0], values.mean() + values.std() * mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours[1], values.std() * np.maximum(deviation, 1e-3 * process.weight**0.5), rtol=1e-3)
    for one in at[:5]:  # both ways to the same numbers
        alone = process.slopes(one)[:2]
        np.testing.assert_allclose(alone, [float(part[0]) for part in process.at(one[None])], rtol=1e-6)


@pytest.mark.parametrize("v", [-40.0, -9.0, -1.5, 0.0, 0.7, 4.9, 5.1, 30.0])
def test_gain_is_the_expectation_of_what_is_gained(v: float) -> None:
    """E max{v − ξ, 0} for ξ ~ N(0, 1), by its integral over the tail, with weights that cannot underflow."""
    t = np.linspace(0, 60 if v > 5 else 12, 2_000_001)
    # ∫ t φ(v − t) dt = φ(v) ∫ t e^{vt − t²/2} dt
    exponent = v * t - t * t / 2
    top = exponent.max()
    want = normal.logpdf(v) + top + math.log(trapezoid(t * np.exp(exponent - top), t))
    gain, slope = (float(part) for part in _log_gain(np.array(v)))
    assert gain == pytest.approx(want, abs=2e-7, rel=1e-7)
    h = 1e-5 * max(1.0, abs(v))
    rise = (float(_log_gain(np.array(v + h))[0]) - float(_log_gain(np.array(v - h))[0])) / (2 * h)
    assert slope == pytest.approx(rise, rel=1e-5)


@pytest.mark.parametrize("v", [-290.0, -310.0, -1e6, -1e100])
def test_gain_where_it_is_tiny(v: float) -> None:
    """log φ(v) − 2 log|v| − 3/v², up to 15/v⁴: finite, and falling, where EI itself is 0 in any float."""
    gain, slope = (float(part) for part in _log_gain(np.array(v)))
    v = max(v, -1e75)
    want = -v * v / 2 - math.log(2 * math.pi) / 2 - 2 * math.log(-v) - 3 / v**2
    assert gain == pytest.approx(want, rel=1e-13, abs=1e-6)
    assert slope == pytest.approx(-v, rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_proposal_is_the_largest_of_all_improvements(seed: int) -> None:
    """On a quadratic of two variables: no point of a grid, judged by scikit-learn, promises more than the proposal."""
    points, values = heard(seed)
    rho, center = 0.8, np.array([0.4, -0.5])
    process = Process(points, values)
    search = Improvement(process, center, rho, values)
    starts = np.random.default_rng(seed).uniform(-1, 1, (64, 2))
    found = search.largest(starts, -np.ones(2), np.ones(2))
    assert bool((np.abs(found) <= 1).all())

    def quadratic(at: np.ndarray) -> np.ndarray:
        return rho / 2 * np.square(at - center).sum(axis=1)

    def improvement(at: np.ndarray) -> np.ndarray:
        mean, deviation = judged(process, points, values).predict(at, return_std=True)
        mean, deviation = values.mean() + values.std() * mean + quadratic(at), values.std() * deviation
        gained = (values + quadratic(points)).min() - mean
        return gained * normal.cdf(gained / deviation) + deviation * normal.pdf(gained / deviation)

    line = np.linspace(-1, 1, 161)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    promised = improvement(grid)
    mine = float(improvement(found[None])[0])
    assert mine >= 0.999 * promised.max()
    assert mine > 2 * np.median(promised)  # else any point would do
    for corner in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):  # the higher one of two tops
        again = search.largest(np.array([corner, found]), -np.ones(2), np.ones(2))
        assert float(search.log(again[None])[0]) >= float(search.log(found[None])[0]) - 1e-9
    np.testing.assert_allclose(
        search(found)[1], approx_fprime(found, lambda p: search(p)[0], 1e-7), rtol=1e-3, atol=1e-3
    )


def test_rounds_go_down_the_augmented_lagrangian() -> None:
    """From what it asked alone: δ is the best heard of h, u adds up, a solver finds z, and the counts are right."""
    model, x, y = walled((D,))
    gamma, rho, first, steps, scale = 30.0, 90.0, 4, 5, 19.0
    seen = Recording(model)
    wide = Victim(seen, bounds=(-9.0, 10.0), access="soft")
    result = bo_admm(wide, x, y, steps=steps, first=first, gamma=gamma, rho=rho, reach=0.01)
    assert result.queries.tolist() == [1 + first + 2 * steps] and not bool(result.success.any())
    assert sum(map(len, seen.points)) == 1 + first + 2 * steps
    assert torch.equal(result.x_adv, x)  # the last δ is no result
    asked = torch.cat(seen.points)
    deltas = (asked - x) / scale
    assert bool((deltas[1 : 1 + first].abs() <= 0.01 + 1e-9).all())
    with torch.no_grad():
        f = model(asked)[:, int(y)] - model(asked).index_fill(1, y, -torch.inf).amax(1)
    dual = z = torch.zeros(D, dtype=x.dtype)
    anywhere = np.random.default_rng(0).uniform(-0.05, 0.05, (3000, D))
    for k in range(steps):
        known = 1 + first + 2 * k + 1  # this round's proposal is known, too
        before, center = (deltas[: known - 1].numpy(), f[: known - 1].numpy()), (z - dual).numpy()
        search = Improvement(Process(*before), center, rho, before[1])
        promised = float(search.log(deltas[known - 1 : known].numpy())[0])  # the log of EI
        assert promised >= search.log(np.vstack([anywhere, center, center + 0.1 * anywhere])).max() - 1e-6
        h = f[:known] + rho / 2 * (deltas[:known] - (z - dual)).square().sum(dim=1)
        delta = deltas[int(h.argmin())]
        dual = dual + delta - z
        z = minimum(lambda v, t=delta + dual: gamma * v.square().sum() + rho / 2 * (v - t).square().sum(), z)
        torch.testing.assert_close(asked[known], x[0] + scale * z, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_what_is_returned_is_feasible_and_fools(norm: str) -> None:
    net, x = mlp((D,), 3), noise_box(6, (D,), torch.float64)
    y = net(x).argmax(dim=1)
    seen = Recording(net)
    result = bo_admm(Victim(seen, access="soft"), x, y, norm=norm, steps=8, gamma=1e-3, rho=0.05)
    points = torch.cat(seen.points)
    assert bool(((points >= 0) & (points <= 1)).all())
    assert int(result.success.sum()) >= 3
    assert torch.equal(net(result.x_adv).argmax(dim=1) != y, result.success)
    assert torch.equal(result.x_adv[~result.success], x[~result.success])


@pytest.mark.slow
def test_near_the_optimum_of_an_affine_model() -> None:
    """Never below it; in four dimensions near it after 30 rounds, and nearer than the best of as many random points."""
    model, x, y = affine_problem(2, 8, 4, CPU, spread=1.0)
    best, victim = free_optimum(model, x, y, "l2"), Victim(model, bounds=(-3.0, 3.0), access="soft")
    ratio = bo_admm(victim, x, y, steps=30, gamma=10.0, rho=300.0).radius("l2") / best
    assert bool((ratio >= 1 - 1e-6).all()) and float(ratio.median()) <= 1.3, ratio
    random = x[:, None] + 1.2 * (
        2 * torch.rand(8, 70, 4, dtype=x.dtype, generator=torch.Generator().manual_seed(0)) - 1
    )
    fooled = (model(random.flatten(0, 1)).argmax(dim=1) != y.repeat_interleave(70)).reshape(8, 70)
    length = get_norm("l2").length((random - x[:, None]).flatten(0, 1)).reshape(8, 70)
    rival = length.masked_fill(~fooled, torch.inf).amin(dim=1) / best
    assert float(ratio.median()) < float(rival.median())


@pytest.mark.slow
def test_proposals_are_worth_more_than_chance() -> None:
    """The first success on a net comes in fewer queries than from as many random points of the same cube."""
    net, x = mlp((D,), 3), 0.3 + 0.4 * noise_box(12, (D,), torch.float64)
    y = net(x).argmax(dim=1)
    found = bo_admm(Victim(net, access="soft"), x, y, steps=12, first=4, reach=0.3, gamma=1e-3, rho=0.05)
    blind = bo_admm(Victim(net, access="soft"), x, y, steps=1, first=26, reach=0.3, gamma=1e-3, rho=0.05)

    def spent(result: object) -> Tensor:
        first: Tensor = result.first_success  # type: ignore[attr-defined]
        return torch.where(first < 0, 29, first).double()

    assert float(spent(found).mean()) < float(spent(blind).mean())


def test_without_scikit_learn_one_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else real(name, *a))
    with pytest.raises(
        ImportError, match=r'^bo_admm: scikit-learn is not installed: pip install "robustlab\[bayes\]"$'
    ):
        bo_admm(mlp((D,), 3), torch.rand(2, D, dtype=torch.float64))


def test_bad_input() -> None:
    net, x = mlp((D,), 3), torch.rand(2, D, dtype=torch.float64)
    for wrong, name in (
        ({"norm": "l0"}, "norm"), ({"steps": 0}, "steps"), ({"first": 0}, "first"), ({"reach": 0.0}, "reach"),
        ({"rho": 0.0}, "rho"), ({"gamma": -1.0}, "gamma"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name}: want"):
            bo_admm(net, x, **wrong)
    with pytest.raises(ValueError, match=r"^budget: want at least 14,"):
        bo_admm(Victim(net, access="soft", budget=13), x, first=10)
