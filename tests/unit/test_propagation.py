"""Orders between the methods, and each method against something written without the engine.

From the same bounds of the hidden layers, CROWN ≤ α-CROWN ≤ LP over triangles ≤ exact, and Fast-Lin is the LP between
its parallel lines; every method ≤ exact; Wong–Kolter = Fast-Lin; CNN-Cert = CROWN on the unrolled net. What does not
hold is shown by counterexamples. Memory is bounded by doing the work in parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.attacks import fmn
from robustlab.geometry.norms import linear_distance
from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Elementwise, Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph
from robustlab.models import resnet_tiny
from robustlab.verification import Ball, Box, bounds, certified_radius, certify, lirpa, trace
from robustlab.verification.complete import milp as programs
from robustlab.verification.complete.encode import encode
from robustlab.verification.complete.query import Case
from robustlab.verification.duals.lagrangian_dual import lagrangian_dual
from robustlab.verification.propagation import layers as layers_file
from robustlab.verification.propagation.alpha_crown import alpha_crown, optimized_bound
from robustlab.verification.propagation.backward import backward
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.certify import METHODS
from robustlab.verification.propagation.layers import Layers, layer_bounds
from robustlab.verification.propagation.lower_bound import lower_bound

BOUND_METHODS = ("ibp", "fast_lin", "crown", "crown_ibp", "alpha_crown", "wong_kolter", "cnn_cert", "lirpa")


def dense(sizes: tuple[int, ...], seed: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    model = nn.Sequential(*layers[:-1]).double()
    for p in model.parameters():
        p.data *= 1.5
    return model.requires_grad_(False)


def linears(model: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(m.weight.numpy(), m.bias.numpy()) for m in model if isinstance(m, nn.Linear)]  # type: ignore[attr-defined]


def lp_minimum(model: nn.Module, box: Bounds, pre: list[Bounds], c: np.ndarray, pattern: tuple | None = None) -> float:
    """min ⟨c, output⟩ with every unstable ReLU in its triangle, or, with a pattern, on or off as the pattern says."""
    layers = linears(model)
    sizes = [box.lower.numel(), *(n for w, _ in layers[:-1] for n in (w.shape[0],) * 2)]
    start = np.cumsum([0, *sizes])
    limits = [(float(a), float(b)) for a, b in zip(box.lower[0], box.upper[0], strict=True)]
    a_eq, b_eq, a_ub, b_ub = [], [], [], []

    def row(entries: dict[int, float]) -> np.ndarray:
        r = np.zeros(start[-1])
        for k, v in entries.items():
            r[k] = v
        return r

    bits = iter(pattern or ())
    for i, (w, b) in enumerate(layers[:-1]):
        before, z, a = start[2 * i], start[2 * i + 1], start[2 * i + 2]
        for j in range(w.shape[0]):
            a_eq.append(row({z + j: 1.0} | {before + k: -w[j, k] for k in range(w.shape[1])}))
            b_eq.append(b[j])
        lo, up = pre[i].lower[0], pre[i].upper[0]
        known = [(float(p), float(q)) for p, q in zip(lo, up, strict=True)]
        limits += [(None, None)] * len(known) if pattern else known
        limits += [(0.0, None)] * w.shape[0]
        for j in range(w.shape[0]):
            l, u = float(lo[j]), float(up[j])
            on = next(bits) if pattern else None
            if on == 1 or (on is None and l >= 0):
                a_eq.append(row({a + j: 1.0, z + j: -1.0}))
                b_eq.append(0.0)
                a_ub.append(row({z + j: -1.0}))
                b_ub.append(0.0)
            elif on == 0 or (on is None and u <= 0):
                a_eq.append(row({a + j: 1.0}))
                b_eq.append(0.0)
                a_ub.append(row({z + j: 1.0}))
                b_ub.append(0.0)
            else:
                a_ub += [row({z + j: 1.0, a + j: -1.0}), row({a + j: 1.0, z + j: -u / (u - l)})]
                b_ub += [0.0, -u * l / (u - l)]
    w, b = layers[-1]
    goal = row(dict(enumerate(c @ w, start=int(start[-2]))))
    done = linprog(goal, A_ub=np.array(a_ub), b_ub=b_ub, A_eq=np.array(a_eq), b_eq=b_eq, bounds=limits)
    return float(done.fun + c @ b) if done.status == 0 else np.inf


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_crown_below_lp_below_exact(seed: int) -> None:
    model = dense((3, 4, 3, 2), seed)
    x = torch.rand(1, 3, dtype=torch.float64)
    region, C = Ball(x, 0.4, box=None), torch.tensor([[1.0, -1.0], [0.3, 1.0]], dtype=torch.float64)
    graph = trace(model, x)
    exact = [exact_minimum(model, region.hull, c.numpy()) for c in C]
    for relu, intersect in itertools.product(("adaptive", "parallel", "zero", "one"), (True, False)):
        options = BoundOptions(relu=relu, intersect=intersect)
        layers = layer_bounds(graph, region, options)
        ours = lower_bound(graph, region, C, options, layers=layers)[0]
        best = optimized_bound(graph, region, C, layers).lower[0]
        pre = [layers.bounds[i] for i in graph.pre_activations]
        for k, c in enumerate(C):
            lp = lp_minimum(model, region.hull, pre, c.numpy())
            assert float(ours[k]) <= lp + 1e-9 and lp <= exact[k] + 1e-9
            assert float(best[k]) <= lp + 1e-9  # its hidden layers' bounds are the same
            if not intersect:
                assert float(best[k]) >= float(ours[k]) - 1e-12


def exact_minimum(model: nn.Module, box: Bounds, c: np.ndarray) -> float:
    """The least over all patterns of the hidden neurons, one LP each."""
    nothing = [Bounds(torch.zeros(1, w.shape[0]), torch.zeros(1, w.shape[0])) for w, _ in linears(model)[:-1]]
    count = sum(w.shape[0] for w, _ in linears(model)[:-1])
    return min(lp_minimum(model, box, nothing, c, p) for p in itertools.product((0, 1), repeat=count))


def test_exact_minimum_is_one() -> None:
    """The enumeration itself, against a grid."""
    model = dense((2, 3, 2, 2), 5)
    box = Bounds(torch.full((1, 2), -0.3, dtype=torch.float64), torch.full((1, 2), 0.5, dtype=torch.float64))
    side = torch.linspace(-0.3, 0.5, 201, dtype=torch.float64)
    grid = model(torch.cartesian_prod(side, side))
    exact = exact_minimum(model, box, np.array([1.0, -1.0]))
    least = float((grid[:, 0] - grid[:, 1]).min())
    assert exact <= least + 1e-9 and least - exact < 0.05


def by_matrices(model: nn.Module, box: Bounds, parallel: bool) -> Tensor:
    """CROWN or Fast-Lin on a dense net of one sample, layer by layer with explicit matrices."""
    layers = [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in linears(model)]
    center, radius = box.center[0], box.radius[0]
    relaxed: list[tuple[Tensor, Tensor, Tensor]] = []
    lower = upper = torch.empty(0)
    for i, (w, b) in enumerate(layers):
        ends = []
        for sign in (1.0, -1.0):
            a, c = sign * w, sign * b
            for (below, above, shift), (w_, b_) in zip(reversed(relaxed), reversed(layers[:i]), strict=True):
                plus, minus = a.clamp_min(0), a.clamp_max(0)
                c = c + minus @ shift
                a = plus * below + minus * above
                c = c + a @ b_
                a = a @ w_
            ends.append(sign * (a @ center - a.abs() @ radius + c))
        lower, upper = ends
        slope = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, 0.0, upper / (upper - lower)))
        adaptive = torch.where(upper >= -lower, 1.0, 0.0).double()
        below = slope if parallel else torch.where((lower < 0) & (upper > 0), adaptive, slope)
        relaxed.append((below, slope, torch.where((lower < 0) & (upper > 0), -slope * lower, 0.0)))
    return lower


@pytest.mark.parametrize("seed", range(3))
def test_letter_of_the_papers(seed: int) -> None:
    model = dense((4, 9, 8, 7, 3), seed)
    x = torch.rand(3, 4, dtype=torch.float64)
    region = Ball(x, torch.tensor([0.01, 0.1, 0.4], dtype=torch.float64), box=None)
    for method in ("crown", "fast_lin"):
        ours = bounds(model, region, method=method, intersect=False).lower
        theirs = [by_matrices(model, region.hull.select(slice(i, i + 1)), method == "fast_lin") for i in range(3)]
        torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-11)


class Residual(nn.Module):
    """Convolutions with a shortcut, batch norm and stride."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.c, self.d = nn.Conv2d(3, 2, 2, stride=2), nn.Linear(8, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        h = (self.norm(self.b(h)) + h).relu()
        return self.d(self.c(h).relu().flatten(1))


def residual(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    model = Residual().double().eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2.0)
    for p in model.parameters():
        p.data *= 2.0
    assert bool((model(torch.rand(50, 1, 4, 4, dtype=torch.float64)).std(dim=0) > 0.1).all()), "dead: try another seed"
    return model.requires_grad_(False)


def unrolled(model: nn.Module, x: Tensor) -> nn.Module:
    """The same net with every convolution and batch norm as a dense matrix."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shapes = {"a": (1, 4, 4), "b": (3, 4, 4), "c": (3, 4, 4)}
            for name, shape in shapes.items():
                layer = getattr(model, name)
                layer = nn.Sequential(layer, model.norm) if name == "b" else layer
                size = int(np.prod(shape))
                offset = layer(torch.zeros(1, *shape, dtype=x.dtype)).flatten()
                columns = layer(torch.eye(size, dtype=x.dtype).reshape(size, *shape)).flatten(1) - offset
                matrix = nn.Linear(size, len(offset)).double()
                matrix.weight.data, matrix.bias.data = columns.T.contiguous(), offset
                setattr(self, name, matrix)
            self.d = model.d

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x.flatten(1)).relu()
            h = (self.b(h) + h).relu()
            return self.d(self.c(h).relu())

    return Dense().requires_grad_(False)


class Shortcuts(nn.Module):
    """A block whose shortcut is the identity, then one whose shortcut is a strided convolution."""

    def __init__(self, first: type[nn.Module], second: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.c, self.d = nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.short, self.out = nn.Conv2d(2, 2, 1, stride=2), nn.Linear(8, 3)
        self.first, self.second = first(), second()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.stem(x - 0.5))
        h = self.first(self.b(self.first(self.a(h))) + h)
        h = self.second(self.d(self.second(self.c(h))) + self.short(h))
        return self.out(h.flatten(1))


def shortcuts(seed: int, first: type[nn.Module] = nn.ReLU, second: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(seed)
    model = Shortcuts(first, second).double().eval()
    for p in model.parameters():
        p.data *= 1.5
    return model.requires_grad_(False)


def pooled(seed: int, pool: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), pool(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 3)).double().requires_grad_(False)


def decoded(seed: int) -> nn.Module:
    """Down by an even kernel and an average that is rounded up, up again by a transposed convolution and a resize."""
    torch.manual_seed(seed)
    down = nn.Conv2d(1, 2, 2, padding="same"), nn.ReLU(), nn.AvgPool2d(3, 2, 1, ceil_mode=True)
    up = nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1), nn.ReLU(), nn.Upsample(4, mode="bilinear")
    model = nn.Sequential(*down, *up, nn.Flatten(), nn.Linear(32, 3)).double()
    for p in model.parameters():
        p.data *= 1.5
    return model.requires_grad_(False)


NETS: dict[str, Callable[[int], nn.Module]] = {
    "residual": residual,
    "shortcuts": shortcuts,
    "average_pool": lambda seed: pooled(seed, nn.AvgPool2d),
    "decoded": decoded,
    "max_pool": lambda seed: pooled(seed, nn.MaxPool2d),
    "max_pool_rounded_up": lambda seed: pooled(seed, lambda size: nn.MaxPool2d(size + 1, size, ceil_mode=True)),
    "tanh": lambda seed: shortcuts(seed, nn.Tanh, nn.Tanh),
    "tanh_relu": lambda seed: shortcuts(seed, nn.Tanh, nn.ReLU),
}
"""From a seed to a net of 4×4 images with three outputs."""


MAXIMA = ("max_pool", "max_pool_rounded_up")
PIECEWISE = ("residual", "shortcuts", "average_pool", "decoded", *MAXIMA)


def methods_for(kind: str) -> dict[str, Callable[..., Tensor]]:
    """Those that take the net."""
    relu_only = {"fast_lin", "fast_lip", "wong_kolter"}
    return {k: bound for k, bound in METHODS.items() if kind in PIECEWISE[:-2] or k not in relu_only}


def image_and_rows(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, 3, generator=generator, dtype=torch.float64)


def least_by_integers(model: nn.Module, graph: Graph, box: Bounds, c: Tensor) -> float:
    """min ⟨c, output⟩ by integer programming on an encoding by intervals alone; it is the value of a point."""
    case = Case(box.lower.flatten(), box.upper.flatten(), c[None], torch.zeros(1, dtype=torch.float64))
    proved, found, x = programs.minimum(graph, case, system=encode(graph, case.low, case.high))
    assert x is not None and bool(((x >= case.low) & (x <= case.high)).all())
    value = float(model(x.reshape(box.lower.shape))[0] @ c)
    assert proved == pytest.approx(value, abs=1e-5) and found == pytest.approx(value, abs=1e-5)
    return value


def least_of_program(graph: Graph, box: Bounds, layers: Layers, c: Tensor, *, triangles: bool = False) -> float:
    """min ⟨c, output⟩ where each activation is anything between its two lines, as one linear program.

    With ``triangles``, an activation with a bend lies above both of its sides instead of above one line.
    """
    sizes = [int(np.prod(node.shape)) for node in graph.nodes]
    start = np.cumsum([0, *sizes])
    equal: list[tuple[np.ndarray, np.ndarray]] = []  # rows and right sides
    above: list[tuple[np.ndarray, np.ndarray]] = []

    def rows(*parts: tuple[int, np.ndarray]) -> np.ndarray:
        whole = np.zeros((len(parts[0][1]), start[-1]))
        for i, matrix in parts:
            whole[:, start[i] : start[i + 1]] += matrix
        return whole

    for node in graph.nodes[1:]:
        own = np.eye(sizes[node.index])
        if isinstance(node.op, Elementwise):
            (z,), lines = node.inputs, layers.lines[node.index]
            slope, top, shift = (v.flatten().numpy() for v in (lines.lower_slope, lines.upper_slope, lines.upper_bias))
            base = np.zeros_like(slope) if lines.lower_bias is None else lines.lower_bias.flatten().numpy()
            above.append((rows((z, np.diag(top)), (node.index, -own)), -shift))
            sides = [(slope, base)]
            if triangles and isinstance(node.op, Hinge):
                sides = [(np.full_like(slope, side), np.zeros_like(slope)) for side in (node.op.left, node.op.right)]
            above += [(rows((z, -np.diag(side)), (node.index, own)), offset) for side, offset in sides]
        else:
            zeros = [torch.zeros(1, *graph.nodes[i].shape, dtype=torch.float64) for i in node.inputs]
            offset, parts = node.op.forward(*zeros), [(node.index, own)]
            for k, i in enumerate(node.inputs):
                basis = torch.eye(sizes[i], dtype=torch.float64).reshape(sizes[i], *graph.nodes[i].shape)
                columns = node.op.forward(*zeros[:k], basis, *zeros[k + 1 :]) - offset
                parts.append((i, -columns.flatten(1).T.numpy()))
            equal.append((rows(*parts), offset.flatten().numpy()))
    (a_eq, b_eq), (a, b) = ([np.concatenate(part) for part in zip(*side, strict=True)] for side in (equal, above))
    ends = [*zip(box.lower.flatten().tolist(), box.upper.flatten().tolist(), strict=True)]
    ends += [(None, None)] * int(start[-1] - len(ends))
    goal = np.concatenate([np.zeros(start[-2]), c.numpy()])
    done = linprog(goal, A_ub=-a, b_ub=-b, A_eq=a_eq, b_eq=b_eq, bounds=ends)
    assert done.status == 0
    return float(done.fun)


@pytest.mark.parametrize("kind", NETS)
def test_bounds_of_hidden_layers_hold(kind: str) -> None:
    """At corners of the box, for every node."""
    model, x = NETS[kind](4), image_and_rows(4)[0]
    graph, region = trace(model, x), Ball(x, 0.1)
    points = region.hull.center + region.hull.radius * torch.randn(500, 1, 4, 4, dtype=torch.float64).sign()
    for options in (BoundOptions(intersect=False), BoundOptions(relu="parallel", pool="parallel")):
        for value, held in zip(graph.values(points), layer_bounds(graph, region, options).bounds, strict=True):
            assert bool((value >= held.lower - 1e-9).all() and (value <= held.upper + 1e-9).all())


@pytest.mark.slow
@pytest.mark.parametrize("kind", PIECEWISE)
@pytest.mark.parametrize("seed", [1, 4])
def test_no_bound_passes_the_exact_minimum(kind: str, seed: int) -> None:
    """Residual and convolutional nets: every method, and the program over triangles, against integer programming."""
    model, (x, C) = NETS[kind](seed), image_and_rows(seed)
    graph = trace(model, x)
    region = Ball(x, 0.04)
    exact = torch.tensor([least_by_integers(model, graph, region.hull, c) for c in C], dtype=torch.float64)
    for name, bound in methods_for(kind).items():
        assert bool((bound(graph, region, C)[0] <= exact + 1e-9).all()), name
    if kind not in MAXIMA:
        layers = layer_bounds(graph, region, BoundOptions())
        for c, least in zip(C, exact, strict=True):
            assert least_of_program(graph, region.hull, layers, c, triangles=True) <= float(least) + 1e-7


@pytest.mark.parametrize("kind", [kind for kind in NETS if kind not in MAXIMA])
@pytest.mark.parametrize("seed", [1, 4])
@pytest.mark.slow
def test_order_of_the_programs(kind: str, seed: int) -> None:
    """CROWN ≤ α-CROWN ≤ LP over triangles, final bounds from the same bounds of the hidden layers.

    A backward pass obeys one of the two lines of each activation, the program between the lines both. The second can
    matter where the two cross. Parallel lines do not, so that Fast-Lin solves its program.
    """
    model, (x, C) = NETS[kind](seed), image_and_rows(seed)
    graph, region = trace(model, x), Ball(x, 0.2)

    def solved(layers: Layers, *, triangles: bool = False) -> Tensor:
        found = [least_of_program(graph, region.hull, layers, c, triangles=triangles) for c in C]
        return torch.tensor(found, dtype=torch.float64)

    layers = layer_bounds(graph, region, BoundOptions())
    crown = lower_bound(graph, region, C, BoundOptions(intersect=False), layers=layers)[0]
    best = optimized_bound(graph, region, C, layers).lower[0]
    assert bool((crown <= solved(layers) + 1e-7).all() and (best <= solved(layers, triangles=True) + 1e-7).all())
    assert bool((crown <= best + 1e-12).all())
    assert kind == "tanh" or float((best - crown).sum()) > 1e-6  # tanh has no slopes to optimize
    if kind in PIECEWISE:
        options = BoundOptions(relu="parallel")
        layers = layer_bounds(graph, region, options)
        fast_lin = lower_bound(graph, region, C, replace(options, intersect=False), layers=layers)[0]
        torch.testing.assert_close(fast_lin, solved(layers), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_tanh_nets_on_a_grid() -> None:
    """With two inputs, a grid over the whole box comes as near to the least value as one likes."""
    model, x = dense((2, 6, 5, 3), 0, nn.Tanh), torch.rand(1, 2, dtype=torch.float64)
    C, side = torch.randn(4, 3, dtype=torch.float64), torch.linspace(-0.4, 0.4, 201, dtype=torch.float64)
    least = (model((x + torch.cartesian_prod(side, side)).clamp(0, 1)) @ C.T).amin(dim=0)
    for name, bound in methods_for("tanh").items():
        assert bool((bound(trace(model, x), Ball(x, 0.4), C)[0] <= least + 1e-9).all()), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shortcuts", "max_pool"])
def test_bounds_on_any_device(kind: str, device: torch.device) -> None:
    model, (_, C) = NETS[kind](0), image_and_rows(0)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    here = {name: bound(trace(model, x), Ball(x, 0.1), C) for name, bound in methods_for(kind).items()}
    model, x, C = model.to(device), x.to(device), C.to(device)
    for name, bound in methods_for(kind).items():
        there = bound(trace(model, x), Ball(x, 0.1), C)
        assert there.device.type == device.type
        torch.testing.assert_close(there.cpu(), here[name], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("ibp", "wong_kolter")])
def test_memory_is_bounded(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more coefficients at a node than the budget; how the work is cut changes the bounds by rounding only.

    Interval arithmetic carries none; the dual network is not cut, as its own text says.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3),
    ).double().requires_grad_(False)  # fmt: skip
    x, sizes = torch.rand(8, 1, 8, 8, dtype=torch.float64), [0]
    plain = Forms.__init__

    def counted(forms: Forms, coef: Tensor, *rest: object, **named: object) -> None:
        plain(forms, coef, *rest, **named)  # type: ignore[arg-type]
        sizes.append(coef.numel())

    monkeypatch.setattr(Forms, "__init__", counted)
    graph, region, C = trace(model, x), Ball(x, 0.1), torch.eye(3, dtype=torch.float64)
    whole = METHODS[method](graph, region, C)
    budget = 2**12
    assert max(sizes) > budget
    for module in ("layers", "lower_bound", "ascent", "fast_lip"):
        monkeypatch.setattr(f"robustlab.verification.propagation.{module}.BUDGET", budget)
    sizes.clear()
    torch.testing.assert_close(METHODS[method](graph, region, C), whole, rtol=1e-10, atol=1e-10)
    assert 0 < max(sizes) <= budget


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("intersect", [True, False])
def test_cnn_cert_is_crown_on_the_unrolled_net(norm: str, intersect: bool) -> None:
    model, x = residual(), torch.rand(3, 1, 4, 4, dtype=torch.float64)
    matrices = unrolled(model, x)
    torch.testing.assert_close(model(x), matrices(x), rtol=0, atol=1e-10)
    region = Ball(x, torch.tensor([0.01, 0.1, 0.4], dtype=torch.float64), norm)
    for ours, rule, theirs in (("cnn_cert", "adaptive", "crown"), ("cnn_cert", "parallel", "fast_lin")):
        a = bounds(model, region, method=ours, relu=rule, intersect=intersect)
        b = bounds(matrices, region, method=theirs, intersect=intersect)
        torch.testing.assert_close(a.lower, b.lower, rtol=0, atol=1e-10)
        torch.testing.assert_close(a.upper, b.upper, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("kind", ["dense", "residual"])
def test_the_dual_network_is_fast_lin(norm: str, kind: str) -> None:
    model, shape = (dense((6, 8, 7, 3), 1), (6,)) if kind == "dense" else (residual(1), (1, 4, 4))
    x = torch.rand(3, *shape, dtype=torch.float64)
    region = Ball(x, torch.tensor([0.02, 0.1, 0.3], dtype=torch.float64), norm, box=None)
    a = bounds(model, region, method="wong_kolter")
    b = bounds(model, region, method="fast_lin", intersect=False)
    torch.testing.assert_close(a.lower, b.lower, rtol=0, atol=1e-10)
    torch.testing.assert_close(a.upper, b.upper, rtol=0, atol=1e-10)


def test_what_does_not_hold() -> None:
    """|x| = max(x, 0) + max(−x, 0) on [−1, 1.2]: CROWN is looser than Fast-Lin and than intervals."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    model[0].weight.data, model[2].weight.data = torch.tensor([[1.0], [-1.0]]).double(), torch.ones(1, 2).double()
    model.requires_grad_(False)
    box = Box(torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[1.2]], dtype=torch.float64))
    found = {m: float(bounds(model, box, method=m, intersect=False).lower) for m in ("crown", "fast_lin")}
    found["ibp"] = float(bounds(model, box, method="ibp").lower)
    assert found == pytest.approx({"crown": -1.0, "fast_lin": -1 / 11, "ibp": 0.0}, abs=1e-12)
    assert float(bounds(model, box, method="alpha_crown", steps=60).lower) > -0.02
    assert float(bounds(model, box, method="crown").lower) == pytest.approx(0.0, abs=1e-12)  # intersected


@pytest.mark.parametrize("seed", range(3))
def test_intersection_is_never_looser_than_intervals(seed: int) -> None:
    model, x = dense((5, 9, 8, 3), seed), torch.rand(4, 5, dtype=torch.float64)
    for eps in (0.01, 0.1, 0.5):
        region = Ball(x, eps)
        base = bounds(model, region, method="ibp")
        for method in ("crown", "fast_lin", "alpha_crown", "crown_ibp"):
            tight = bounds(model, region, method=method)
            assert bool((tight.lower >= base.lower - 1e-10).all() and (tight.upper <= base.upper + 1e-10).all())
        graph = trace(model, x)
        layers = layer_bounds(graph, region, BoundOptions()).bounds
        for i in graph.pre_activations:
            node = graph.nodes[i]
            here = node.op.interval(*(layers[k] for k in node.inputs))  # type: ignore[union-attr]
            assert bool((layers[i].lower >= here.lower).all() and (layers[i].upper <= here.upper).all())
        alpha = bounds(model, region, method="alpha_crown")
        assert bool((alpha.lower >= bounds(model, region, method="crown").lower - 1e-12).all())


def test_smaller_boxes_have_tighter_intervals() -> None:
    model, x = residual(), torch.rand(3, 1, 4, 4, dtype=torch.float64)
    last = bounds(model, Ball(x, 1e-9), method="ibp")
    for eps in (0.01, 0.05, 0.2):
        here = bounds(model, Ball(x, eps), method="ibp")
        assert bool((here.lower <= last.lower).all() and (here.upper >= last.upper).all())
        last = here


@pytest.mark.parametrize("method", BOUND_METHODS)
@pytest.mark.parametrize("norm", ["l1", "l2", "linf", 3.0])
def test_a_ball_of_radius_zero_is_a_point(method: str, norm: str | float) -> None:
    model, x = residual(), torch.rand(3, 1, 4, 4, dtype=torch.float64)
    found = bounds(model, Ball(x, 0.0, norm), method=method)
    torch.testing.assert_close(found.lower, model(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.upper, model(x), rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ibp", "crown", "alpha_crown"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus])
def test_smooth_nets_are_bounded(method: str, activation: type[nn.Module]) -> None:
    model, x = dense((4, 7, 6, 3), 2, activation), torch.rand(3, 4, dtype=torch.float64)
    for norm, eps in (("linf", 0.2), (1.5, 0.3)):
        region = Ball(x, eps, norm)
        found = bounds(model, region, method=method)
        u = torch.randn(300, *x.shape, dtype=torch.float64)
        p = {"linf": torch.inf, "l2": 2.0}.get(norm, norm)
        points = (x + eps * u / torch.linalg.vector_norm(u, p, dim=2, keepdim=True)).clamp(0, 1)
        values = model(points)
        assert bool((values >= found.lower - 1e-9).all() and (values <= found.upper + 1e-9).all())


@pytest.mark.parametrize("method", ["fast_lin", "wong_kolter"])
def test_relu_methods_say_so(method: str) -> None:
    model = dense((3, 4, 2), 0, nn.Tanh)
    with pytest.raises(ValueError, match=r"got Smooth\(name='tanh'\) at node"):
        bounds(model, Ball(torch.rand(1, 3).double(), 0.1), method=method)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, torch.inf])
def test_balls_without_walls_have_the_dual_norm(p: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double().requires_grad_(False)
    x, eps = torch.rand(2, 5).double(), torch.tensor([0.1, 2.0]).double()
    q = {1.0: torch.inf, 2.0: 2.0, 3.0: 1.5}.get(p, 1.0)
    slack = eps[:, None] * torch.linalg.vector_norm(model.weight, q, dim=1)
    found = bounds(model, Ball(x, eps, p, box=None))
    torch.testing.assert_close(found.lower, model(x) - slack, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.upper, model(x) + slack, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_balls_cut_off_by_the_box_are_exact(norm: str) -> None:
    """Against a convex solver."""
    import cvxpy as cp

    torch.manual_seed(1)
    model, x = nn.Linear(5, 2).double().requires_grad_(False), torch.rand(1, 5).double().round(decimals=1)
    x[0, :2] = torch.tensor([0.0, 1.0])
    for eps in (0.3, 1.0, 2.5):
        found = bounds(model, Ball(x, eps, norm))
        for k in range(2):
            v = cp.Variable(5)
            inside = [v >= 0, v <= 1, cp.norm(v - x[0].numpy(), 1 if norm == "l1" else 2) <= eps]
            least = cp.Problem(cp.Minimize(model.weight[k].numpy() @ v + float(model.bias[k])), inside).solve()
            assert float(found.lower[0, k]) == pytest.approx(float(least), abs=1e-5)


@pytest.mark.parametrize("method", ["ibp", "crown", "crown_ibp"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.slow
def test_gradients_are_the_bounds_own(activation: type[nn.Module], method: str) -> None:
    """Through the region and through the parameters, against finite differences."""
    close = 2e-2 if activation is nn.GELU else 1e-3  # some of its points of contact are near an inflection
    model, x = dense((3, 5, 4, 2), 3, activation), torch.rand(1, 3, dtype=torch.float64)

    def total(eps: Tensor) -> Tensor:
        return bounds(model, Box(x - eps, x + eps), method=method).lower.sum()

    eps, weight = torch.full((1, 3), 0.07, dtype=torch.float64, requires_grad=True), model[0].weight.requires_grad_()
    by_eps, by_weight = torch.autograd.grad(total(eps), (eps, weight))
    step = 1e-5 * torch.randn_like(eps)
    with torch.no_grad():
        change = total(eps + step) - total(eps - step)
        assert float(change) / 2 == pytest.approx(float((by_eps * step).sum()), rel=close)
        step = 1e-5 * torch.randn_like(weight)
        weight += step
        change = total(eps)
        weight -= 2 * step
        change = change - total(eps)
        assert float(change) / 2 == pytest.approx(float((by_weight * step).sum()), rel=close)


def test_splits_hold_on_their_part() -> None:
    """Assumed signs with multipliers bound all points of the part, and tighten."""
    model, x = dense((3, 5, 4, 1), 4), torch.rand(1, 3, dtype=torch.float64)
    graph, region = trace(model, x), Ball(x, 0.5, box=None)
    C, options = torch.ones(1, 1, dtype=torch.float64), BoundOptions()
    plain = layer_bounds(graph, region, options)
    node = graph.pre_activations[1]
    assert set(graph.relus) == set(graph.pre_activations)
    unstable = (plain.bounds[node].lower < 0) & (plain.bounds[node].upper > 0)
    j = int(unstable[0].nonzero()[0])
    points = x + (torch.rand(4000, 3, dtype=torch.float64) * 2 - 1) * 0.5
    values = graph.values(points)
    both = []
    for sign in (1, -1):
        splits = {node: torch.zeros(1, 4, dtype=torch.int8)}
        splits[node][0, j] = sign
        layers = layer_bounds(graph, region, options, splits=splits)
        found = optimized_bound(graph, region, C, layers, splits=splits, steps=40)
        part = values[node][:, j] * sign >= 0
        assert bool((values[-1][part] >= found.lower - 1e-9).all())
        for value, held in zip(values, layers.bounds, strict=True):
            assert bool((value[part] >= held.lower - 1e-9).all() and (value[part] <= held.upper + 1e-9).all())
        again = layer_bounds(graph, region, options, splits=splits, known={i: layers.bounds[i] for i in graph.relus})
        warm = optimized_bound(
            graph, region, C, again, splits=splits, slopes=found.slopes, multipliers=found.multipliers, steps=0
        )
        assert float(warm.lower) == pytest.approx(float(found.lower), abs=0.05)
        both.append(float(found.lower))
    assert min(both) >= float(optimized_bound(graph, region, C, plain, steps=40).lower) - 1e-3


def test_perturbed_weights() -> None:
    """A linear model exactly; a net by sampled weights and inputs."""
    torch.manual_seed(0)
    linear, x = nn.Linear(4, 2).double().requires_grad_(False), torch.rand(1, 4).double()
    z = linear(x)[0]
    y = z.argmax()[None]
    exact = float((z.max() - z.min()) / (2 * x.abs().sum() + 2))  # ε·(‖a‖₁‖x‖₁ + ‖a‖₁), ‖a‖₁ = 2
    for factor, status in ((0.999, "verified"), (1.001, "unknown")):
        eps = factor * exact
        assert lirpa(linear, x, y, eps=0.0, weights={"weight": eps, "bias": eps}).status == [status]
    model, image = residual(), torch.rand(4, 1, 4, 4, dtype=torch.float64)
    labels = model(image).argmax(dim=1)
    names = ("a.weight", "c.weight", "c.bias", "d.weight")
    sure = [lirpa(model, image, labels, eps=0.01, weights=dict.fromkeys(names, e)).status for e in (1e-4, 3e-3, 0.1)]
    assert sure[0].count("verified") > sure[2].count("verified")
    before = {n: p.clone() for n, p in model.named_parameters()}
    for status, eps in zip(sure, (1e-4, 3e-3, 0.1), strict=True):
        for _ in range(100):
            for name in names:
                part = dict(model.named_parameters())[name]
                part.data = before[name] + eps * torch.randn_like(part).sign()
            moved = (image + 0.01 * torch.randn_like(image).sign()).clamp(0, 1)
            kept = model(moved).argmax(dim=1) == labels
            assert all(k or s != "verified" for k, s in zip(kept.tolist(), status, strict=True))
    with pytest.raises(ValueError, match="weights: want names"):
        lirpa(model, image, labels, eps=0.01, weights={"nonsense": 0.1})
    with pytest.raises(ValueError, match="weights and biases of dense layers"):
        lirpa(model, image, labels, eps=0.01, weights={"norm.weight": 0.1})


def test_radius_of_affine_and_nonlinear_models() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(4, 2).double(), 0.4 + 0.2 * torch.rand(5, 4).double()
    y = linear(x).argmax(dim=1)
    y[0] = 1 - y[0]
    margin = (linear(x)[:, 0] - linear(x)[:, 1]).detach()
    for norm in ("l1", "l2", "linf"):
        found = certified_radius(linear, x, y, norm=norm, box=None)
        exact = linear_distance(margin, (linear.weight[0] - linear.weight[1]).detach().expand(5, -1), norm)
        assert found.status[0] == "falsified" and float(found.radius[0]) == 0
        assert bool((found.radius[1:] <= exact[1:]).all())
        torch.testing.assert_close(found.radius[1:], exact[1:], rtol=1e-3, atol=0)
    model, x = dense((6, 12, 9, 3), 7), torch.rand(5, 6, dtype=torch.float64)
    y = model(x).argmax(dim=1)
    for norm in ("l2", "linf"):
        radius = certified_radius(model, x, y, norm=norm).radius
        assert bool((radius > 0).all() and (radius <= fmn(model, x, y, norm=norm).radius(norm) + 1e-9).all())
        assert certify(model, x, y, norm=norm, eps=radius).status == ["verified"] * 5


def test_float32_is_on_the_safe_side() -> None:
    torch.manual_seed(0)
    model = resnet_tiny(in_shape=(1, 12, 12), channels=(4, 6)).eval().requires_grad_(False)
    x = torch.rand(3, 1, 12, 12)
    exact = trace(model, x).to(torch.float64)
    for eps in (0.0, 0.01):
        for method in ("ibp", "crown"):
            single = bounds(model, Ball(x, eps), method=method)
            double = bounds(exact, Ball(x.double(), eps), method=method)
            assert bool((single.lower <= double.lower).all() and (single.upper >= double.upper).all())
            torch.testing.assert_close(single.lower.double(), double.lower, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
@pytest.mark.parametrize("method", [*BOUND_METHODS, "fast_lip"])
@pytest.mark.slow
def test_float32_is_safe_where_large_terms_cancel(method: str, activation: type[nn.Module]) -> None:
    generator = torch.Generator().manual_seed(3)
    broken = 0
    for _ in range(20):
        x = z = torch.rand(1, 48, generator=generator)
        z = z.double()
        model = nn.Sequential(nn.Linear(48, 48), activation(), nn.Linear(48, 48), activation(), nn.Linear(48, 2))
        for layer, scale in zip(model[::2], (1e4, 1.0, 1e-4), strict=True):
            layer.weight.data = scale * torch.randn(layer.weight.shape, generator=generator)
            summed = z @ layer.weight.data.double().T
            layer.bias.data = 1e-3 - summed[0].float()  # each neuron's terms are thousands of times their sum
            z = (summed + layer.bias.data.double()).clamp_min(0.0)
        model.requires_grad_(False)
        found = bounds(model, Ball(x, 1e-9, box=None), method=method)
        truth = model.double()(x.double())
        broken += bool((found.lower.double() > truth).any() or (found.upper.double() < truth).any())
    assert broken == 0


def test_bounds_checks_its_arguments() -> None:
    model, x = dense((3, 4, 2), 0), torch.rand(2, 3, dtype=torch.float64)
    region = Ball(x, 0.1)
    with pytest.raises(ValueError, match="method: want one of"):
        bounds(model, region, method="magic")
    with pytest.raises(ValueError, match=r"C: want shape \(2, M, 2\)"):
        bounds(model, region, torch.ones(3, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match="C: want the region's dtype"):
        bounds(model, region, torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"lower ≤ upper everywhere, or the box is empty; got 1 and 0\.5 at \(0, 1\)"):
        Box(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="got nan and"):
        Box(x + torch.nan, x)
    for eps in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="eps: want"):
            Ball(x, eps)
    with pytest.raises(ValueError, match="norm: want"):
        Ball(x, 0.1, 0.5)
    assert bounds(model, Ball(x[:0], 0.1)).lower.shape == (0, 2)
    for forward in (lambda self, x: x if x.sum() > 0 else -x, lambda self, x: x * len(x)):
        with pytest.raises(ValueError, match="asks about the values or the shape"):
            trace(type("Branch", (nn.Module,), {"forward": forward})(), x)
    assert isinstance(certify(model, x, eps=0.01), Certificate)


@pytest.mark.parametrize("verifier", [alpha_crown, lagrangian_dual])
@pytest.mark.parametrize("wrong", [{"steps": -1}, {"lr": 0.0}])
def test_an_ascent_refuses_what_is_none(verifier: Callable[..., Certificate], wrong: dict[str, Any]) -> None:
    """Without a step there is the bound at the start; less than none would leave −∞."""
    model, x = nn.Linear(2, 2), torch.full((1, 2), 0.5)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        verifier(model, x, torch.tensor([0]), eps=0.1, **wrong)


@pytest.mark.parametrize("method", ["ibp", "fast_lin", "crown", "alpha_crown", "crown_ibp", "lagrangian_dual"])
def test_a_difference_that_float32_does_not_hold_is_not_certified(method: str) -> None:
    """z₀ − z₁ = (2²⁴x + 1) − 2²⁴x − 0.5 is 0.5 everywhere, and −0.5 in float32 at many points beyond x = 1."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2)).requires_grad_(False)
    for p, value in zip(
        net.parameters(), ([[2.0**24], [2.0**24]], [0.0, 1.0], [[-1.0, 1.0], [0.0, 0.0]], [-0.5, 0.0]), strict=True
    ):
        p.copy_(torch.tensor(value))
    x = torch.tensor([[0.999]])
    near = torch.linspace(0.99, 1.009, 2001)[:, None]
    assert int(net(x).argmax()) == 0
    assert 0.1 < float((net(near).argmax(dim=1) != 0).float().mean()) < 0.9
    assert not bool(certify(net, x, torch.tensor([0]), eps=0.01, method=method, box=(0.0, 2.0)).verified)


class Skipped(nn.Module):
    """A ReLU of Wx + x, then a sum: intervals take x twice, a backward pass once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x + self.first(x)).relu())


def test_a_first_sum_of_the_input_with_itself_is_bounded_again() -> None:
    torch.manual_seed(0)
    net = Skipped().double().requires_grad_(False)
    net.first.weight.copy_(-torch.eye(3) + 0.1 * torch.randn(3, 3))
    x = torch.rand(4, 3, dtype=torch.float64)
    graph = trace(net, x)
    (node,) = graph.pre_activations
    found = layer_bounds(graph, Box(x - 0.3, x + 0.3), BoundOptions()).bounds[node]
    together = net.first.weight + torch.eye(3)  # the exact ends of an affine function on a box
    center, radius = x @ together.T + net.first.bias, 0.3 * together.abs().sum(1)
    assert bool((center.abs() < 0.3 * (1 + net.first.weight.abs().sum(1))).all())  # unstable, if x counts twice
    torch.testing.assert_close(found.lower, center - radius)
    torch.testing.assert_close(found.upper, center + radius)


def test_scales_after_the_first_layer_need_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm at rest is one; intervals are exact there, too."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU())
    net = nn.Sequential(*net, nn.Flatten(), nn.Linear(48, 2)).double().eval().requires_grad_(False)
    net[1].running_mean.uniform_(-0.3, 0.3)
    net[1].running_var.uniform_(0.5, 2.0)
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    graph, region = trace(net, x), Ball(x, 0.2)
    starts = set()

    def watched(*told: Any, **options: Any) -> Any:
        starts.add(told[3])
        return backward(*told, **options)

    monkeypatch.setattr(layers_file, "backward", watched)
    found = layer_bounds(graph, region, BoundOptions())
    first, second = graph.pre_activations
    assert starts == {second}
    at = 2 * torch.rand(500, *x.shape, dtype=torch.float64) - 1
    at[::2] = at[::2].sign()
    values = net[:2]((region.hull.center + region.hull.radius * at).flatten(0, 1)).reshape(500, 2, 4, 6, 6)
    assert bool(
        (values >= found.bounds[first].lower - 1e-9).all() and (values <= found.bounds[first].upper + 1e-9).all()
    )


class Normed(nn.Module):
    """Two blocks of dense layers with batch norm, the second around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)])
        self.norm = nn.ModuleList([nn.BatchNorm1d(8) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm[0](self.dense[0](x)).relu()
        m = self.norm[1](self.dense[1](h)) + self.norm[2](self.dense[2](h))
        return self.dense[3](m.relu())


def test_terms_that_a_sum_takes_over_weigh_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    net = Normed().eval().requires_grad_(False)
    for norm in net.norm:
        norm.running_var.uniform_(0.01, 0.1)  # large factors, so that rounding of what comes before them counts
        norm.running_mean.uniform_(-1.0, 1.0)
    x, options = torch.rand(5, 6), BoundOptions(intersect=False)

    def of_the_sum(dtype: torch.dtype) -> Tensor:
        graph = trace(net.to(dtype), x.to(dtype))
        return layer_bounds(graph, Ball(x.to(dtype), 0.05), options).bounds[graph.pre_activations[1]].lower.double()

    exact, taken = of_the_sum(torch.float64), of_the_sum(torch.float32)
    kept: list[int] = []

    def apart(graph: Graph, node: Any, terms: dict[int, Tensor]) -> dict[int, Tensor]:
        kept.append(len(terms))
        return terms

    monkeypatch.setattr(layers_file, "taken_over", apart)
    plain = of_the_sum(torch.float32)
    assert max(kept) >= 7  # three dense layers, three scales, one sum
    assert bool((plain < exact).all() and (taken < exact).all())
    assert bool(((taken - plain).abs() < 0.05 * (exact - plain)).all())
