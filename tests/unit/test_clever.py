"""CLEVER and the reverse Weibull fit, against SciPy, closed forms and functions whose Lipschitz constant is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustlab.attacker.results import Certificate, Estimate
from robustlab.attacker.victim import Victim
from robustlab.geometry.norms import get_norm, linear_distance
from robustlab.models import build
from robustlab.verification import clever
from robustlab.verification.estimates.weibull import fit_reverse_weibull

WIDE = (-100.0, 100.0)


def weibull_rows(shape: float, n: int, rows: int = 8, seed: int = 0) -> Tensor:
    """Draws of the reverse Weibull law with location 3 and scale 2."""
    return torch.tensor(3.0 - stats.weibull_min.rvs(shape, scale=2.0, size=(rows, n), random_state=seed))


def log_likelihood(values: Tensor, location: float, scale: float, shape: float) -> float:
    return float(stats.weibull_min.logpdf(-values.numpy(), shape, -location, scale).sum())


class Affine(nn.Module):
    """W·x + b on flat inputs."""

    def __init__(self, d: int = 5, classes: int = 4) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.linear = nn.Linear(d, classes).double()
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(classes, d, generator=random))
            self.linear.bias.copy_(torch.randn(classes, generator=random))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Bowl(nn.Module):
    """z_0 − z_1 = lead − ½·curvature·‖x‖²: the gradient's length is curvature·‖x‖₂."""

    def __init__(self, lead: float = 1.0, curvature: float = 2.0) -> None:
        super().__init__()
        self.lead, self.curvature = lead, curvature

    def forward(self, x: Tensor) -> Tensor:
        margin = self.lead - self.curvature / 2 * x.square().sum(dim=1)
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)


class Wave(nn.Module):
    """z_0 − z_1 = 2 + Σ sin(x_i): the gradient is cos(x_i), at most 1 in each coordinate, and 1 at x = 0."""

    def forward(self, x: Tensor) -> Tensor:
        margin = 2 + x.sin().sum(dim=1)
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)


# The fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "n"), [(2.5, 400), (4.0, 200), (6.0, 500)])
def test_the_fit_is_as_likely_as_scipys(shape: float, n: int) -> None:
    values = weibull_rows(shape, n, rows=3)
    fit = fit_reverse_weibull(values, penalty=0.0)
    for i, row in enumerate(values):
        c, location, scale = stats.weibull_min.fit(-row.numpy(), shape)
        ours = log_likelihood(row, float(fit.location[i]), float(fit.scale[i]), float(fit.shape[i]))
        theirs = log_likelihood(row, -location, scale, c)
        assert ours >= theirs - 1e-4
        if abs(ours - theirs) < 1e-3:  # SciPy's search may end elsewhere
            assert float(fit.location[i]) == pytest.approx(-location, abs=2e-2)


def test_the_fit_is_a_stationary_point_of_the_penalized_likelihood() -> None:
    values = weibull_rows(5.0, 100, rows=1)
    a, b, c = (float(part[0]) for part in fit_reverse_weibull(values)[:3])

    def objective(location: float, scale: float, shape: float) -> float:
        return log_likelihood(values[0], location, scale, shape) - 0.01 * shape**2

    best = objective(a, b, c)
    for i in range(3):
        for step in (-1e-3, 1e-3):
            moved = [a, b, c]
            moved[i] *= 1 + step
            assert objective(*moved) < best


def test_the_location_is_found_and_lies_above_all_values() -> None:
    fit = fit_reverse_weibull(weibull_rows(2.5, 500, rows=30))
    assert fit.exists.all()
    assert (fit.location > weibull_rows(2.5, 500, rows=30).amax(dim=1)).all()
    assert float(fit.location.mean()) == pytest.approx(3.0, abs=0.05)
    assert float(fit.shape.mean()) == pytest.approx(2.5, abs=0.15)


def test_the_test_of_the_fit_agrees_with_scipys() -> None:
    good, bad = weibull_rows(4.0, 300, rows=2), torch.rand(2, 300, dtype=torch.float64) ** 4
    for row in (*good, *bad):
        fit = fit_reverse_weibull(row)
        law = stats.weibull_min(float(fit.shape), -float(fit.location), float(fit.scale))
        theirs = stats.kstest(-row.numpy(), law.cdf).pvalue
        assert float(fit.p_value) == pytest.approx(theirs, abs=0.015)
    assert (fit_reverse_weibull(good).p_value > 0.05).all()
    heavy = torch.tensor(stats.pareto.rvs(2.0, size=(4, 300), random_state=0))
    assert (fit_reverse_weibull(heavy).p_value < 1e-4).all()


def test_the_fit_moves_with_its_values() -> None:
    values = weibull_rows(4.0, 200)
    fit, moved = fit_reverse_weibull(values), fit_reverse_weibull(50 * values + 7)
    torch.testing.assert_close(moved.location, 50 * fit.location + 7, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(moved.scale, 50 * fit.scale, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(moved.shape, fit.shape, rtol=1e-4, atol=0.0)
    shuffled = fit_reverse_weibull(values[:, torch.randperm(200, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(shuffled.location, fit.location)


def test_equal_values_have_no_fit() -> None:
    values = torch.tensor([[2.0] * 9, [1.0] * 8 + [1.0 + 1e-6]])
    fit = fit_reverse_weibull(values)
    assert not fit.exists.any() and (fit.p_value == 0).all()
    torch.testing.assert_close(fit.location, values.amax(dim=1).double())
    assert fit_reverse_weibull(values.double()).exists.tolist() == [False, True]  # 1e-6 is not rounding in float64


@pytest.mark.parametrize(
    ("values", "error"), [(torch.ones(3, 1), "at least 2"), (torch.tensor([1.0, math.inf]), "finite")]
)
def test_the_fit_names_bad_values(values: Tensor, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        fit_reverse_weibull(values)


# The score -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_exact_on_affine_models(norm: str) -> None:
    model = Affine()
    x = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimate = clever(model, x, norm=norm, radius=1e3, batches=4, samples=8)
    logits = model(x).detach()
    y = logits.argmax(dim=1)
    weight = model.linear.weight.detach()
    top = logits.amax(dim=1)
    distances = torch.stack([linear_distance(top - logits[:, j], weight[y] - weight[j], norm) for j in range(4)], dim=1)
    distances[torch.arange(6), y] = torch.inf
    torch.testing.assert_close(estimate.value, distances.amin(dim=1))
    torch.testing.assert_close(estimate.details["scores"], distances.gather(1, estimate.details["classes"]))
    assert not estimate.details["fitted"].any()  # all maxima are equal
    for target in range(4):
        rows = y != target
        one = clever(model, x[rows], norm=norm, radius=1e3, target=target, batches=4, samples=8)
        torch.testing.assert_close(one.value, distances[rows, target])


def test_gradient_norms_of_a_bowl_have_the_law_that_theory_gives() -> None:
    """Uniform in a ball of R^d, ‖δ‖/R has the distribution function r^d; the largest of n has r^(dn)."""
    d, samples, batches, radius = 4, 25, 400, 0.5
    model = Victim(Bowl(), bounds=WIDE)
    x = torch.zeros(1, d, dtype=torch.float64)
    estimate = clever(model, x, norm="l2", radius=radius, batches=batches, samples=samples)
    maxima = estimate.details["maxima"][0, 0] / (2.0 * radius)
    assert stats.kstest(maxima.numpy(), lambda r: r ** (d * samples)).pvalue > 0.01
    # A reverse Weibull law of shape 1 with its end at the Lipschitz constant 2·radius.
    assert estimate.details["fitted"].all()
    assert float(estimate.details["lipschitz"]) == pytest.approx(2.0 * radius, rel=1e-3)
    assert float(estimate.details["shape"]) == pytest.approx(1.0, abs=0.15)
    assert float(estimate.value) == radius  # g/L = 1 is cut at R


def test_the_fit_sees_beyond_the_largest_sample() -> None:
    """A genuine tail: ‖∇‖ ≈ √d − ‖δ‖²/(2√d) near its supremum, so Pr(‖∇‖ > √d − s) falls like s^(d/2): shape d/2."""
    d, errors = 6, []
    model, x = Victim(Wave(), bounds=WIDE), torch.zeros(1, 6, dtype=torch.float64)
    for seed in range(4):
        found = clever(model, x, norm="l2", radius=1.0, batches=300, samples=20, seed=seed).details
        assert found["fitted"].all() and float(found["shape"]) == pytest.approx(d / 2, rel=0.25)
        errors.append([abs(float(a) - math.sqrt(d)) for a in (found["lipschitz"], found["maxima"].amax())])
    fitted, largest = torch.tensor(errors).mean(dim=0)
    assert fitted < 0.5 * largest < 0.02


def test_the_score_is_below_the_exact_distance_where_the_constant_is_found() -> None:
    """Bowl at an off-center point: the exact distance is known, and score = g/L lies below it (theorem 3.2)."""
    lead, curvature = 1.0, 2.0
    x = torch.tensor([[0.2, 0.0, 0.0], [0.0, 0.5, 0.1]], dtype=torch.float64)
    exact = math.sqrt(2 * lead / curvature) - x.norm(dim=1)
    estimate = clever(Victim(Bowl(), bounds=WIDE), x, norm="l2", radius=exact, batches=100, samples=50)
    margin = lead - curvature / 2 * x.square().sum(dim=1)
    best = margin / (curvature * (x.norm(dim=1) + exact))  # the true constant of the ball
    torch.testing.assert_close(estimate.value, best, rtol=0.02, atol=0.0)
    assert (estimate.value < exact).all()


def test_points_stay_in_the_ball_and_the_box() -> None:
    seen = []

    class Spy(Affine):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    x = torch.tensor([[0.0, 1.0, 0.5, 0.5, 0.02]], dtype=torch.float64)
    for norm, radius in (("l1", 0.7), ("l2", 0.4), ("linf", 0.3)):
        seen.clear()
        clever(Spy(), x, norm=norm, radius=radius, batches=2, samples=100, batch_size=64)
        points = torch.cat(seen[1:])
        assert len(points) == 200 and points.min() >= 0 and points.max() <= 1
        lengths = get_norm(norm).length(points - x)
        assert lengths.max() <= radius * (1 + 1e-12) and lengths.max() > 0.3 * radius
        assert points.unique(dim=0).shape[0] == 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_does_not_depend_on_its_batch_or_on_chunks(dtype: torch.dtype) -> None:
    model = build("mlp", in_shape=(1, 4, 4), hidden=(8,), classes=3, seed=0).to(dtype)
    x = torch.rand(5, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    options = {"norm": "l2", "radius": torch.linspace(0.2, 1.0, 5, dtype=dtype), "batches": 6, "samples": 7}
    whole = clever(model, x, **options, batch_size=1000)
    chunked = clever(model, x, **options, batch_size=11)
    alone = clever(model, x[3:4], **{**options, "radius": options["radius"][3:4]}, ids=torch.tensor([3]))
    tolerance = {"rtol": 1e-6, "atol": 0.0} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 0.0}
    for key in ("maxima", "lipschitz"):
        torch.testing.assert_close(whole.details[key], chunked.details[key], **tolerance)
        torch.testing.assert_close(whole.details[key][3:4], alone.details[key], **tolerance)
    torch.testing.assert_close(whole.value[3:4], alone.value, **tolerance)
    assert whole.value.dtype == dtype
    other = clever(model, x, **options, seed=1)
    assert not torch.equal(other.details["maxima"], whole.details["maxima"])


def test_targets() -> None:
    model = Affine()
    x = torch.rand(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = model(x).detach()
    y = logits.argmax(dim=1)
    options = {"norm": "l2", "radius": 9.0, "batches": 2, "samples": 2}
    order = logits.argsort(dim=1, descending=True)
    assert torch.equal(clever(model, x, target="top2", **options).details["classes"][:, 0], order[:, 1])
    assert torch.equal(clever(model, x, target="least", **options).details["classes"][:, 0], order[:, -1])
    random = clever(model, x, target="random", **options).details["classes"][:, 0]
    assert (random != y).all() and random.unique().numel() > 1
    all_classes = clever(model, x, **options)
    assert torch.equal(all_classes.details["classes"].sort(dim=1).values[:, 0], (y == 0).long())
    assert all_classes.details["classes"].shape == (8, 3)
    torch.testing.assert_close(all_classes.value, all_classes.details["scores"].amin(dim=1))


def test_the_score_is_zero_where_the_model_is_wrong_and_r_where_gradients_vanish() -> None:
    model = Affine()
    x = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wrong = (model(x).argmax(dim=1) + 1) % 4
    assert (clever(model, x, wrong, norm="l2", radius=1.0, batches=2, samples=2).value == 0).all()
    last = model(x).argmin(dim=1)
    rows = last != wrong  # z_wrong − z_last > 0, and yet x is not classified as `wrong`
    one = clever(model, x[rows], wrong[rows], target=last[rows], norm="l2", radius=1.0, batches=2, samples=2)
    assert rows.any() and (one.value == 0).all()

    class Flat(Affine):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x * 4).round() / 4)  # round() has derivative 0

    flat = clever(Flat(), x, norm="l2", radius=0.7, batches=2, samples=2)
    assert (flat.value == 0.7).all()  # masked gradients: the largest score there is
    assert (clever(Flat(), x, wrong, norm="l2", radius=0.7, batches=2, samples=2).value == 0).all()


def test_it_is_an_estimate_and_changes_nothing() -> None:
    model = build("mlp", in_shape=(6,), hidden=(8,), classes=3, seed=0).train()
    x = torch.rand(3, 6)
    before, state = x.clone(), torch.get_rng_state()
    weights = {name: part.clone() for name, part in model.state_dict().items()}
    first = clever(model, x, norm="linf", radius=0.1, batches=5, samples=5)
    second = clever(model, x, norm="linf", radius=0.1, batches=5, samples=5)
    assert isinstance(first, Estimate) and not isinstance(first, Certificate)
    assert (first.norm, first.method) == ("linf", "clever")
    assert torch.equal(first.value, second.value)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(part, weights[name]) for name, part in model.state_dict().items())
    assert first.to("cpu").details["maxima"].shape == (3, 2, 5)


def test_an_empty_batch_does_not_call_the_model() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("called")

    assert clever(Silent(), torch.rand(0, 4), norm="l2", radius=1.0).value.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"radius": 0.0}, "radius"),
        ({"radius": torch.ones(3)}, "radius"),
        ({"norm": "l0"}, "norm"),
        ({"batches": 1}, "batches"),
        ({"samples": 0}, "samples"),
        ({"level": -0.1}, "level"),
        ({"batch_size": 0}, "batch_size"),
        ({"target": "worst"}, "target"),
        ({"target": 9}, "target"),
        ({"target": 0}, "target"),
        ({"y": torch.tensor([0, 7])}, "y"),
        ({"victim": Victim(Affine(), budget=10)}, "budget"),
        ({"victim": Victim(Affine(), access="soft")}, "access"),
        ({"x": torch.rand(2, 5)}, "x"),
        ({"x": torch.full((2, 5), torch.nan, dtype=torch.float64)}, "x"),
    ],
)
def test_bad_input(change: dict[str, object], error: str) -> None:
    x = torch.tensor([[0.1] * 5, [0.9] * 5], dtype=torch.float64)
    call = {"victim": Affine(), "x": x, "y": None, "norm": "l2", "radius": 1.0, "batches": 4, "samples": 4}
    if change == {"target": 0}:
        change = {"target": int(Affine()(x).argmax(dim=1)[0])}
    call |= change
    with pytest.raises((ValueError, TypeError), match=f"^{error}"):
        clever(call.pop("victim"), call.pop("x"), call.pop("y"), **call)
