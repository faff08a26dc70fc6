"""The Lagrangian dual: by hand on the 2-2-1 network, against linear programs, and each inner minimum on a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Clamp, Elementwise, Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph
from robustlab.graph.operators import Operator, Rule
from robustlab.graph.pool import MaxPool
from robustlab.graph.product import Product
from robustlab.graph.smooth import CURVES, Smooth
from robustlab.verification import Ball, Box, lagrangian_dual, trace
from robustlab.verification.duals.lagrangian_dual import Multipliers, dual_bound, lagrangian_dual_bound
from robustlab.verification.propagation.backward import backward, concretize
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import Layers, layer_bounds
from robustlab.verification.propagation.lower_bound import lower_bound
from tests.unit.multiplications import multiplications
from tests.unit.test_propagation import NETS, dense, exact_minimum, image_and_rows, least_of_program, lp_minimum

OPTIONS = BoundOptions(intersect=False)


def at(graph: Graph, region: Box | Ball, C: Tensor, layers: Layers, nu: Sequence[Tensor]) -> Tensor:
    """The dual's value where one hidden layer has these ν, one row of C each."""
    multipliers, forms = Multipliers(graph, layers), Forms(C, torch.zeros(len(C), dtype=torch.int64))
    for _ in range(2):  # the first pass makes room for them
        at_input, constant = backward(graph, {}, forms, len(graph.nodes) - 1, nonlinear=multipliers)
        value = concretize(region, at_input, constant).detach()
        for i in multipliers.free:
            multipliers.free[i] = (torch.stack(list(nu)),)
    return value


def two_two_one() -> tuple[nn.Module, Box]:
    """z = (x₁ + x₂, x₁ − x₂), output 1.5 + relu(z₁) − 2·relu(z₂) on [−1, 1]²; its least value is −2.5 at (1, −1)."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double().requires_grad_(False)
    model[0].weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    model[2].weight.data = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    model[0].bias.data.zero_()
    model[2].bias.data.fill_(1.5)
    one = torch.ones(1, 2, dtype=torch.float64)
    return model, Box(-one, one)


def by_hand(mu: Tensor) -> float:
    """Both neurons lie in [−2, 2]: ends and bend of relu(z₁) − μ₁z₁ and −2relu(z₂) − μ₂z₂, then the box."""
    first = min(2 * float(mu[0]), 0.0, 2 - 2 * float(mu[0]))
    second = min(2 * float(mu[1]), 0.0, -4 - 2 * float(mu[1]))
    return 1.5 + first + second - abs(float(mu[0] + mu[1])) - abs(float(mu[0] - mu[1]))


def test_weak_duality_by_hand() -> None:
    model, box = two_two_one()
    graph, one = trace(model, box.lower), torch.ones(1, 1, dtype=torch.float64)
    layers = layer_bounds(graph, box, OPTIONS)
    exact = exact_minimum(model, box.hull, np.ones(1))
    assert exact == pytest.approx(-2.5)
    # CROWN's start: a = (1, −2), slopes 1 below the first and 1/2 above the second; σ = 2.
    start, side = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.linspace(-2, 2, 33, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    ours = at(graph, box, one.expand(len(grid), 1), layers, [(mu - start) / 2 for mu in grid])
    torch.testing.assert_close(ours.tolist(), [by_hand(mu) for mu in grid], rtol=0, atol=1e-12)
    assert float(ours.max()) <= exact + 1e-12
    lp = lp_minimum(model, box.hull, [layers.bounds[1]], np.ones(1))
    assert float(ours.max()) == pytest.approx(lp, abs=1e-9)  # the best multipliers are on the grid: strong duality


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3, 4, 3, 2), (4, 6, 5, 5, 2)])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_limit_is_the_program_over_triangles(sizes: tuple[int, ...], seed: int) -> None:
    model, x = dense(sizes, seed), torch.rand(1, sizes[0], dtype=torch.float64)
    region, C = Ball(x, 0.8, box=None), torch.tensor([[1.0, -1.0], [0.3, 1.0]], dtype=torch.float64)
    graph = trace(model, x)
    layers = layer_bounds(graph, region, OPTIONS)
    pre = [layers.bounds[i] for i in graph.pre_activations]
    lp = torch.tensor([lp_minimum(model, region.hull, pre, c.numpy()) for c in C], dtype=torch.float64)
    exact = [exact_minimum(model, region.hull, c.numpy()) if seed == 1 and len(sizes) == 4 else np.inf for c in C]
    exact = torch.tensor(exact, dtype=torch.float64)
    crown = lower_bound(graph, region, C, OPTIONS, layers=layers)[0]
    for steps in (0, 1, 10, 400):
        ours = dual_bound(graph, region, C, layers, steps=steps)[0]
        assert bool((ours <= lp + 1e-9).all() and (lp <= exact + 1e-9).all()) and bool((ours >= crown - 1e-12).all())
    assert bool((lp - ours <= 0.01 * (lp - crown) + 1e-4).all()), (lp - ours, lp - crown)
    assert float((lp - crown).sum()) > 1e-3, "nothing to find: another seed"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["residual", "shortcuts"])
def test_the_limit_on_graphs(kind: str) -> None:
    model, (x, C) = NETS[kind](1), image_and_rows(1)
    graph, region = trace(model, x), Ball(x, 0.2)
    layers = layer_bounds(graph, region, BoundOptions())
    lp = torch.tensor([least_of_program(graph, region.hull, layers, c, triangles=True) for c in C], dtype=torch.float64)
    crown = lower_bound(graph, region, C, OPTIONS, layers=layers)[0]
    ours = dual_bound(graph, region, C, layers, steps=150)[0]
    assert bool((ours <= lp + 1e-9).all() and (lp - ours <= 0.05 * (lp - crown)).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "activation"),
    [
        ("linf", nn.Tanh),
        ("l2", nn.Sigmoid),
        ("l2", nn.Softplus),
        ("linf", nn.GELU),
        ("linf", nn.SiLU),
        ("l2", nn.ReLU6),
    ],
)
def test_no_sampled_point_is_below(norm: str, activation: type[nn.Module]) -> None:
    """And what the ascent gains over CROWN is real: with these nets, more than rounding."""
    model, x = dense((2, 6, 5, 3), 3, activation), torch.rand(1, 2, dtype=torch.float64)
    C, side = torch.randn(4, 3, dtype=torch.float64), torch.linspace(-0.9, 0.9, 201, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    points = points[torch.linalg.vector_norm(points, 2, dim=1) <= 0.9] if norm == "l2" else points
    least = (model(x + points) @ C.T).amin(dim=0)
    graph, region = trace(model, x), Ball(x, 0.9, norm, box=None)
    layers = layer_bounds(graph, region, OPTIONS)
    ours = dual_bound(graph, region, C, layers, steps=20)[0]
    crown = lower_bound(graph, region, C, OPTIONS, layers=layers)[0]
    assert bool((ours <= least + 1e-9).all() and (ours >= crown - 1e-9).all())
    assert float((ours - crown).sum()) > 1e-3


OPERATORS = {
    "relu": Hinge(0.0, 1.0), "leaky": Hinge(0.1, 1.0), "absolute": Hinge(-1.0, 1.0), "clamp": Clamp(0.0, 0.7),
    "product": Product(), "pool": MaxPool((2, 2), (2, 2)), "overlapping": MaxPool((2, 2), (1, 1)),
    "padded": MaxPool((2, 2), (2, 2), (1, 1)), **{name: Smooth(name) for name in CURVES},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_each_inner_minimum_on_a_grid(name: str) -> None:
    """⟨a, f(z)⟩ ≥ ⟨μ, z⟩ + least for all z of the box, and some z attains it."""
    op: Operator = OPERATORS[name]
    generator, shape = torch.Generator().manual_seed(0), (1, 2, 2) if isinstance(op, MaxPool) else (1,)
    count, boxes, every = 2 if isinstance(op, Product) else 1, [], []
    for _ in range(count):
        spread = torch.linspace(0.1, 3, 40, dtype=torch.float64).reshape(-1, *[1] * len(shape))
        low = spread * (torch.rand(40, *shape, generator=generator, dtype=torch.float64) - 0.7)
        boxes.append(Bounds(low, low + 2 * torch.rand(40, *shape, generator=generator, dtype=torch.float64)))
    numbers = count * int(np.prod(shape))
    side = torch.linspace(0, 1, {1: 2001, 2: 41, 4: 13}[numbers], dtype=torch.float64)
    for part in torch.stack(torch.meshgrid(*[side] * numbers, indexing="ij"), -1).reshape(-1, numbers).chunk(count, 1):
        every.append(part.reshape(-1, *shape))
    output = op.forward(*every).shape[1:]
    a = 2 * torch.randn(40, *output, generator=generator, dtype=torch.float64)
    forms = Forms(a, torch.arange(40))
    secants = op.secants(forms, op.relax(Rule(), *boxes))
    extra = [torch.randn(s.shape, generator=generator, dtype=torch.float64) - 0.6 for s in secants]
    found = op.priced(forms, [shape] * count, secants, extra, boxes)
    plain = op.backward(forms, [shape] * count, op.relax(Rule(), *boxes))
    unpriced = op.priced(forms, [shape] * count, secants, [torch.zeros_like(s) for s in secants], boxes)
    for mine, engine in zip(unpriced.forms, plain[0], strict=True):
        torch.testing.assert_close(mine.coef, engine.coef)
    assert bool((unpriced.least >= plain[1] - 1e-9).all()), "never below what the lines leave"
    for i in range(40):
        z = [b.lower[i] + part * b.width[i] for b, part in zip(boxes, every, strict=True)]
        value = (a[i] * op.forward(*z)).flatten(1).sum(1)
        for form, point in zip(found.forms, z, strict=True):
            value = value - (form.coef[i] * point).flatten(1).sum(1)
        assert float(found.least[i]) <= float(value.min()) + 1e-9
        if name != "overlapping":  # windows that share a number have each their own multiplier and their own minimum
            near = {1: 2e-3, 2: 1e-9, 4: 0.5}[numbers]  # a product is least at a corner, which the grid has
            assert float(value.min()) - float(found.least[i]) <= near


def test_a_step_costs_one_pass_back_and_one_forward() -> None:
    """In products: at most twice a pass of as many rows through the network and back to its input."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(54, 3)).double().requires_grad_(False)
    x, C = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    graph, region = trace(model, x), Ball(x, 0.1)
    known = layer_bounds(graph, region, BoundOptions())
    three, four = (multiplications(lambda n=n: dual_bound(graph, region, C, known, steps=n)) for n in (3, 4))
    rows = torch.rand(8, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert 0 < four - three <= 2 * multiplications(lambda: torch.autograd.grad(model(rows).sum(), rows))


def test_multiplications_are_counted() -> None:
    """A product and a convolution, forward, and to a weight or an input."""
    a, b = torch.rand(3, 5, requires_grad=True), torch.rand(5, 7)
    assert multiplications(lambda: a @ b) == 3 * 5 * 7
    assert multiplications(lambda: (a @ b).sum().backward()) == 2 * 3 * 5 * 7
    x, conv = torch.rand(2, 3, 9, 9), nn.Conv2d(3, 4, 3, stride=2)
    once = 2 * 4 * 16 * 3 * 9
    assert multiplications(lambda: conv(x)) == once and multiplications(lambda: conv(x).sum().backward()) == 2 * once
    back = torch.rand(2, 4, 4, 4)
    assert multiplications(lambda: torch.conv_transpose2d(back, conv.weight, stride=2)) == once


def test_memory_is_bounded_and_rows_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = NETS["max_pool"](0), torch.rand(5, 1, 4, 4, dtype=torch.float64)
    graph, region, C = trace(model, x), Ball(x, 0.1), torch.eye(3, dtype=torch.float64)
    whole = lagrangian_dual_bound(graph, region, C, steps=8)
    monkeypatch.setattr("robustlab.verification.propagation.ascent.BUDGET", 2 * 3 * graph.widest)
    torch.testing.assert_close(lagrangian_dual_bound(graph, region, C, steps=8), whole, rtol=1e-9, atol=1e-9)


def test_rounding_of_large_multipliers_is_taken_off() -> None:
    """Where one nonlinear operator follows the next, no affine layer's margin covers their products."""
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(1, 64), nn.Hardtanh(), nn.ReLU(), nn.Linear(64, 1)).requires_grad_(False)
        model[0].weight.data.fill_(0.1)
        model[0].bias.data.fill_(5.0)  # every value is exactly 1 after it
        box, one = Box(torch.zeros(1, 1), torch.ones(1, 1)), torch.ones(1, 1)
        graph = trace(model, box.lower)
        multipliers = Multipliers(graph, layer_bounds(graph, box, OPTIONS))
        for _ in range(2):
            forms = Forms(one, torch.zeros(1, dtype=torch.int64))
            at_input, constant = backward(graph, {}, forms, len(graph.nodes) - 1, nonlinear=multipliers)
            relu = max(multipliers.free)
            multipliers.free[relu] = (1e5 * torch.randn(1, 64),)
        exact = model[3].weight.double().sum() + model[3].bias.double().sum()
        assert float(concretize(box, at_input, constant).detach()) <= float(exact)


def test_wrong_arguments_are_named() -> None:
    model, x = dense((3, 4, 2), 0), torch.rand(2, 3, dtype=torch.float64)
    for change, match in (({"steps": -1}, "steps"), ({"lr": 0.0}, "lr"), ({"steps": 1.5}, "steps")):
        with pytest.raises((TypeError, ValueError), match=f"^{match}"):
            lagrangian_dual(model, x, eps=0.1, **change)


def test_what_was_read_with_changing_weights_is_refused() -> None:
    """Uncertain weights have no multipliers: the operator is named."""
    from robustlab.graph.uncertain import perturbed

    model, x = dense((3, 4, 2), 0), torch.rand(1, 3, dtype=torch.float64)
    graph = perturbed(trace(model, x), model, {"2.weight": 0.1})
    with pytest.raises(ValueError, match=r"^model: no multipliers are known for Uncertain"):
        lagrangian_dual_bound(graph, Ball(x, 0.1), torch.eye(2, dtype=torch.float64))


def test_the_dual_is_concave_in_what_is_free() -> None:
    """Along segments between random multipliers of both hidden layers."""
    model, x = dense((3, 5, 4, 2), 1), torch.rand(1, 3, dtype=torch.float64)
    graph, region, C = trace(model, x), Ball(x, 0.4, box=None), torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    multipliers = Multipliers(graph, layer_bounds(graph, region, OPTIONS))
    forms = Forms(C, torch.zeros(1, dtype=torch.int64))

    def value(nu: dict[int, tuple[Tensor, ...]]) -> float:
        multipliers.free = nu
        at_input, constant = backward(graph, {}, forms, len(graph.nodes) - 1, nonlinear=multipliers)
        return float(concretize(region, at_input, constant).detach())

    value({})
    ends = [{i: tuple(torch.randn_like(v) for v in vs) for i, vs in multipliers.free.items()} for _ in range(8)]
    for p, q in itertools.combinations(ends, 2):
        middle = {i: tuple((a + b) / 2 for a, b in zip(p[i], q[i], strict=True)) for i in p}
        assert value(middle) >= (value(p) + value(q)) / 2 - 1e-9


@pytest.mark.parametrize("op", [Hinge(0.0, 1.0), Hinge(-1.0, 1.0), Hinge(0.2, 1.0), Clamp(-0.5, 0.25)])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_inner_minimum_and_its_slopes(op: Elementwise, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a dense grid; slopes are means over all points that attain it; however the elements are cut in parts."""
    torch.manual_seed(0)
    n, each, shape = 3, 4, (5, 2)
    l = -torch.rand(n, *shape, dtype=torch.float64)
    u = torch.rand(n, *shape, dtype=torch.float64)
    l[:, 0], u[:, 1] = 0.1 * u[:, 0], 0.5 * l[:, 1]
    sample = torch.arange(n).repeat_interleave(each)
    a, mu = (torch.randn(n * each, *shape, dtype=torch.float64) for _ in range(2))
    a[:, 2], mu[:, 2] = 0.0, 0.0  # every point attains it
    forms = Forms(a.requires_grad_(), sample, group=(0, each) if grouped else None)
    one, nu = torch.ones_like(a), (mu - a.detach()).requires_grad_()
    z = (l + torch.linspace(0, 1, 2001).double().reshape(-1, *(1,) * l.dim()) * (u - l))[:, sample]
    ends = torch.stack([l, u, *(torch.full_like(l, bend).clamp(l, u) for bend in op.bends or ())])[:, sample]
    z = torch.cat([z, ends])
    gain, cost, weight = a * op.forward(z), mu * z, torch.arange(1.0, 13.0).double()
    worth = a * op.forward(ends) - mu * ends
    share = (worth - worth.amin(0) <= 1e-13).double()
    mean_z, mean_f = ((share * v).sum(0) / share.sum(0) for v in (ends, op.forward(ends)))
    for size in (1, 30, 2**16):
        monkeypatch.setattr("robustlab.geometry.portions.IN_CACHE", size)
        found = op.priced(forms, [shape], [one], [nu], [Bounds(l, u)])
        torch.testing.assert_close(found.least, (gain - cost).amin(0).flatten(1).sum(1), rtol=0, atol=1e-12)
        torch.testing.assert_close(found.forms[0].coef, mu, rtol=0, atol=1e-12)
        assert bool((found.terms + 1e-12 >= (gain.abs() + cost.abs()).amax(0).flatten(1).sum(1)).all())
        by_nu, by_a = torch.autograd.grad((found.least * weight).sum(), [nu, a])
        torch.testing.assert_close(by_nu, -weight.reshape(-1, 1, 1) * mean_z)
        torch.testing.assert_close(by_a, weight.reshape(-1, 1, 1) * (mean_f - mean_z))
