"""Gradient estimators and solvers: unbiased on quadratics, down to the minimum, and every value counted.

Three forms, told apart by their arguments:

* an estimator (values, x, *, seed, …) → gradient of f at x (d,), from ``values``, which maps points (k, d) to f (k,);
* a solver (values, x, *, steps, seed, …) → an object with ``x`` (d,), where f is small, and the ``queries`` it spent;
* a wrapper (a map, …) → a module that is attacked in the map's place, with a gradient of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor, nn

from tests.suite.kinds.cases import affine_net, check_manners, of_kind, over, refused
from tests.suite.kinds.specimens import coordinate_descent, sphere_gradient
from tests.suite.training.cases import Case

D, DRAWS = 5, 300
CASES = of_kind("solver", sphere_gradient, coordinate_descent)
SOLVERS = [case for case in CASES if case.takes("values") and case.takes("steps")]
ESTIMATORS = [case for case in CASES if case.takes("values") and not case.takes("steps")]
WRAPPERS = [case for case in CASES if not case.takes("values")]


class Quadratic:
    """f(x) = ½ (x − c)ᵀA(x − c) + bᵀx, which counts the points that it is asked for."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(D, D, generator=generator, dtype=torch.float64) / D**0.5
        self.A = (root @ root.T + 0.3 * torch.eye(D, dtype=torch.float64)).to(device)
        self.b = torch.randn(D, generator=generator, dtype=torch.float64).to(device)
        self.asked = 0

    def __call__(self, points: Tensor) -> Tensor:
        self.asked += len(points)
        return 0.5 * ((points @ self.A) * points).sum(dim=1) + points @ self.b

    def gradient(self, x: Tensor) -> Tensor:
        return self.A @ x + self.b

    def least(self) -> float:
        return float(-0.5 * self.b @ torch.linalg.solve(self.A, self.b))


def start(device: torch.device) -> Tensor:
    return torch.linspace(-1, 1, D, dtype=torch.float64, device=device)


def check_unbiased(case: Case, device: torch.device) -> None:
    """The mean of many draws is the gradient: Hotelling's test at a false-alarm rate of 1e-6."""
    f, x = Quadratic(device), start(device)
    draws = torch.stack([case.run(**case.arguments(values=f, x=x, seed=seed)) for seed in range(DRAWS)])
    assert draws.shape == (DRAWS, D) and draws.dtype == x.dtype and draws.device == x.device
    error = (draws.mean(dim=0) - f.gradient(x)).cpu()
    spread = draws.cpu().T.cov() / DRAWS + 1e-18 * torch.eye(D, dtype=torch.float64)
    statistic = float(error @ torch.linalg.solve(spread, error))
    assert statistic <= chi2.isf(1e-6, D), f"biased by {error.norm():.3g} of {f.gradient(x).norm():.3g}"
    assert bool((draws[0] != draws[1]).any()) or float(spread.diag().max()) < 1e-12, "the seed does not matter"


def check_descends(case: Case, device: torch.device) -> None:
    """At least nine tenths of the way down, and no farther than the minimum."""
    f, x = Quadratic(device), start(device)
    first, least = float(f(x[None])), f.least()
    found = case.run(**case.arguments(values=f, x=x))
    assert found.x.shape == x.shape and found.x.dtype == x.dtype and found.x.device == x.device
    last = float(f(found.x[None]))
    assert last >= least - 1e-9
    assert (last - least) <= 0.1 * (first - least), f"from {first - least:.3g} above the minimum to {last - least:.3g}"


def check_values_are_counted(case: Case, device: torch.device) -> None:
    """Queries are what f counts; an estimator's number does not depend on f or on the draw."""
    f, x = Quadratic(device), start(device)
    spent = []
    for seed in (0, 1):
        f.asked = 0
        found = case.run(**case.arguments(values=f, x=x, **({"seed": seed} if case.takes("seed") else {})))
        spent.append(f.asked)
        if hasattr(found, "queries"):
            assert int(found.queries) == f.asked, f"{found.queries} queries said, {f.asked} made"
    assert spent[0] > 0 and (case in SOLVERS or spent[0] == spent[1])


def check_solver_manners(case: Case, device: torch.device) -> None:
    f, x = Quadratic(device), start(device).requires_grad_(True)
    check_manners(lambda: case.run(**case.arguments(values=f, x=x)), [], [x, f.A, f.b])


def check_solver_bad_input(case: Case, device: torch.device) -> None:
    x = start(device)
    for name, value in (("mu", 0.0), ("mu", -1.0), ("q", 0), ("steps", 0), ("lr", 0.0), ("step_size", -1.0)):
        if case.takes(name):
            with refused(name, value):
                case.run(**case.arguments(values=Quadratic(device), x=x, **{name: value}))


def jitter(x: Tensor) -> Tensor:
    """Symmetric noise: on an affine map its average is the map."""
    return x + 0.2 * torch.randn_like(x)


def wrapped(case: Case, function: nn.Module, seed: int = 0, **changes: Any) -> nn.Module:
    """The wrapper on a differentiable map, in all its parts, with noise on its input where it takes transformations."""
    known: dict[str, Any] = {
        "model": function, "transform": function, "backward": function, "transforms": jitter, "samples": 4,
        "seed": seed, "average": "logits",
    }  # fmt: skip
    given = {name: value for name, value in known.items() if case.takes(name)}
    return case.run(**{**case.row.quick, **given, **changes})


def check_wrapped_gradient(case: Case, device: torch.device) -> None:
    """On an affine map the mean gradient is the map's own; a gradient reaches x alone."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, D, generator=generator, dtype=torch.float64)
    model = affine_net(weight, torch.zeros(3, dtype=torch.float64)).to(device)
    x = torch.stack([start(device), start(device).flip(0) / 2])
    values, gradients = [], []
    for seed in range(40):
        module = wrapped(case, model, seed)
        assert isinstance(module, nn.Module)
        point = x.clone().requires_grad_(True)
        out = module(point)
        assert out.shape == (2, 3) and out.dtype == x.dtype and out.device == x.device
        (gradient,) = torch.autograd.grad((out[:, 0] - out[:, 1]).sum(), point)
        values.append(out.detach())
        gradients.append(gradient)
        with torch.no_grad():
            torch.testing.assert_close(module(x), out.detach(), rtol=1e-9, atol=1e-9)
    own = (weight[0] - weight[1]).to(device).expand(2, D)
    torch.testing.assert_close(torch.stack(gradients).mean(dim=0), own, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        error = torch.stack(values).mean(dim=0) - model(x)
    assert float(error.abs().max()) < 0.25


def check_wrapper_manners(case: Case, device: torch.device) -> None:
    model = affine_net(torch.eye(3, D, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)).to(device)
    x = start(device)[None].expand(4, D).clone()

    def run() -> Tensor:
        module, point = wrapped(case, model), x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(module(point)[:, 0].sum(), point)
        return torch.cat([module(x).detach().flatten(), gradient.flatten()])

    check_manners(run, [model], [x])


def check_wrapper_bad_input(case: Case, device: torch.device) -> None:
    for name in ("model", "transform", "transforms", "backward"):
        if case.takes(name):
            with refused(name, 3):
                wrapped(case, nn.Identity(), **{name: 3})


@over(ESTIMATORS)
def test_unbiased(case: Case, device: torch.device) -> None:
    check_unbiased(case, device)


@over(SOLVERS)
def test_descends(case: Case, device: torch.device) -> None:
    check_descends(case, device)


@over(ESTIMATORS + SOLVERS)
def test_values_are_counted(case: Case, device: torch.device) -> None:
    check_values_are_counted(case, device)


@over(ESTIMATORS + SOLVERS)
def test_solver_manners(case: Case, device: torch.device) -> None:
    check_solver_manners(case, device)


@over(ESTIMATORS + SOLVERS)
def test_solver_bad_input(case: Case, device: torch.device) -> None:
    check_solver_bad_input(case, device)


@over(WRAPPERS)
def test_wrapped_gradient(case: Case, device: torch.device) -> None:
    check_wrapped_gradient(case, device)


@over(WRAPPERS)
def test_wrapper_manners(case: Case, device: torch.device) -> None:
    check_wrapper_manners(case, device)


@over(WRAPPERS)
def test_wrapper_bad_input(case: Case, device: torch.device) -> None:
    check_wrapper_bad_input(case, device)
