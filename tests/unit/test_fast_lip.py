"""Fast-Lip against enumerated activation patterns, linear programs and sampled gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from robustlab.attacks import pgd
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import get_norm, linear_distance
from robustlab.graph.tracing import trace
from robustlab.models import build
from robustlab.verification import certified_radius, certify, fast_lip, lipschitz_bound
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.fast_lip import fast_lip_bound, jacobian_bounds
from robustlab.verification.propagation.layers import layer_bounds
from robustlab.verification.propagation.region import Ball, Box
from robustlab.verification.propagation.specification import margins
from tests.suite.models import seeded

NORMS = ("l1", "l2", "linf")
EPS = {"l1": 0.5, "l2": 0.2, "linf": 0.06}


class Residual(nn.Module):
    """Convolutions, batch norm, ReLU, leaky ReLU, |·|, a sum and a difference of branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.leaky = nn.Conv2d(3, 3, 3, padding=1), nn.LeakyReLU(0.2)
        self.down, self.out = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(36, 3)
        self.norm.running_mean.normal_(0, 0.2)
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        a = torch.relu(self.norm(first))
        b = self.leaky(self.second(-0.7 * a)) + a - torch.abs(first - 0.1)
        return self.out(torch.relu(self.down(b)).flatten(1))


class Difference(nn.Module):
    """relu(A·x − B·x) + relu(A·x + (−1)·B·x) with B = −A: what the branches do to a slope adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False), nn.Linear(8, 3)
        self.b.weight.data = -self.a.weight.data

    def forward(self, x: Tensor) -> Tensor:
        x = x - 0.5
        a, b = self.a(x), self.b(x)
        return self.out(torch.relu(a - b) + torch.relu(a + (-1.0) * b))


def dense(widths: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    """Fully connected ReLU layers in float64, with weights large enough for unstable neurons."""

    def layers() -> nn.Module:
        parts: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            parts += [nn.Linear(a, b), nn.ReLU()]
        net = nn.Sequential(*parts[:-1])
        for p in net.parameters():
            p.data *= 2.0
        return net

    net = seeded(layers, seed).double()
    assert isinstance(net, nn.Sequential)
    return net


def inputs(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sampled_slopes(model: nn.Module, x: Tensor, C: Tensor, norm: str, eps: float, points: int = 200) -> Tensor:
    """(N, M): the largest ‖∇(C·z)‖_q at random points of the balls, cut off by the box."""
    ball, found = get_norm(norm), []
    for draw in range(points):
        point = x + ball.uniform(Noise(0, torch.arange(len(x))), draw, x, eps)
        point = point.clamp(0, 1).requires_grad_()
        z = (C @ model(point)[..., None]).squeeze(-1)
        rows = [torch.autograd.grad(part.sum(), point, retain_graph=True)[0] for part in z.T]
        found.append(torch.stack([ball.dual.length(row) for row in rows], dim=1))
    return torch.stack(found).amax(dim=0)


@pytest.mark.parametrize("norm", NORMS)
def test_exact_on_affine_models(norm: str) -> None:
    model = dense((5, 4))
    x = inputs(6, (5,))
    z, w = model(x).detach(), model[0].weight.detach()
    y = z.argmax(dim=1)
    C = margins(y, 4, torch.float64)
    slopes = get_norm(norm).dual.length((C @ w).flatten(0, 1)).reshape(6, 3)
    torch.testing.assert_close(lipschitz_bound(model, x, norm=norm, eps=EPS[norm]), slopes)
    exact = linear_distance((C @ z[..., None]).flatten(), (C @ w).flatten(0, 1), norm).reshape(6, 3).amin(dim=1)
    found = certified_radius(model, x, norm=norm, method="fast_lip", box=None, steps=30)
    torch.testing.assert_close(found.radius, exact, rtol=1e-6, atol=0.0)
    assert fast_lip(model, x, norm=norm, eps=exact * 0.999, box=None).status == ["verified"] * 6
    assert fast_lip(model, x, norm=norm, eps=exact * 1.001, box=None).status == ["unknown"] * 6


def test_one_hidden_layer_is_exact_entry_by_entry() -> None:
    """Each entry of C·W2·Λ·W1 is enclosed exactly: the extremes over all slopes in {0, 1} of the unstable neurons."""
    model, x = dense((4, 7, 3)), inputs(3, (4,))
    graph = trace(model, x)
    C = margins(model(x).argmax(dim=1), 3, torch.float64)
    layers = layer_bounds(graph, Ball(x, 0.1, "linf"), BoundOptions(relu="parallel")).bounds
    center, radius = jacobian_bounds(graph, layers, C)
    pre = layers[graph.pre_activations[0]]
    unstable = (pre.lower < 0) & (pre.upper > 0)
    assert unstable.sum() >= 3
    for n in range(3):
        products = []
        for choice in itertools.product((0.0, 1.0), repeat=int(unstable[n].sum())):
            slopes = (pre.lower[n] >= 0).double()
            slopes[unstable[n]] = torch.tensor(choice, dtype=torch.float64)
            products.append(C[n] @ model[2].weight @ torch.diag(slopes) @ model[0].weight)
        stack = torch.stack(products).detach()
        torch.testing.assert_close(center[n] + radius[n], stack.amax(dim=0))
        torch.testing.assert_close(center[n] - radius[n], stack.amin(dim=0))


def test_two_hidden_layers_hold_every_pattern() -> None:
    model, x = dense((3, 4, 4, 3), seed=1), inputs(2, (3,))
    graph = trace(model, x)
    C = margins(model(x).argmax(dim=1), 3, torch.float64)
    layers = layer_bounds(graph, Ball(x, 0.15, "linf"), BoundOptions(relu="parallel")).bounds
    center, radius = jacobian_bounds(graph, layers, C)
    first, second = (layers[i] for i in graph.pre_activations)
    for n in range(2):
        for slopes in itertools.product((0.0, 1.0), repeat=8):
            s = torch.tensor(slopes, dtype=torch.float64)
            possible = [
                (low <= 0) if slope == 0 else (high >= 0)
                for slope, low, high in zip(
                    slopes, [*first.lower[n], *second.lower[n]], [*first.upper[n], *second.upper[n]], strict=True
                )
            ]
            if not all(possible):
                continue
            jacobian = (
                C[n] @ model[4].weight @ torch.diag(s[4:]) @ model[2].weight @ torch.diag(s[:4]) @ model[0].weight
            )
            assert ((jacobian - center[n]).abs() <= radius[n] + 1e-12).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["dense", "residual", "difference", "cnn"])
def test_no_sampled_slope_is_larger(kind: str, norm: str) -> None:
    model = {
        "dense": lambda: dense((16, 8, 8, 8, 3)),
        "residual": lambda: seeded(Residual).double(),
        "difference": lambda: seeded(Difference).double(),
        "cnn": lambda: build("small_cnn", in_shape=(1, 12, 12), channels=(2, 3), hidden=6, classes=3).double(),
    }[kind]()
    x = inputs(3, {"dense": (16,), "residual": (1, 6, 6), "difference": (6,), "cnn": (1, 12, 12)}[kind])
    C = margins(model(x).argmax(dim=1), 3, torch.float64)
    for eps in (1e-9, EPS[norm], 4 * EPS[norm]):
        bound = lipschitz_bound(model, x, norm=norm, eps=eps)
        slopes = sampled_slopes(model, x, C, norm, eps, points=40)
        assert (slopes <= bound * (1 + 1e-12)).all()
        if eps == 1e-9:  # no neuron is unstable: the bound is the slope at x
            torch.testing.assert_close(slopes, bound)


@pytest.mark.parametrize("norm", NORMS)
def test_the_bound_grows_with_the_ball_and_shrinks_with_the_box(norm: str) -> None:
    model, x = dense((8, 10, 10, 4)), inputs(4, (8,))
    bounds = [lipschitz_bound(model, x, norm=norm, eps=EPS[norm] * k) for k in (0.2, 0.5, 1.0, 2.0, 4.0)]
    for smaller, larger in itertools.pairwise(bounds):
        assert (smaller <= larger * (1 + 1e-12)).all()
    assert (bounds[-1] > bounds[0]).any()
    free = lipschitz_bound(model, x, norm=norm, eps=EPS[norm] * 4, box=None)
    assert (bounds[-1] <= free * (1 + 1e-12)).all()
    assert norm != "linf" or (bounds[-1] < free).any()


def exact_linf_distance(model: nn.Sequential, x: Tensor, y: int) -> float:
    """The ℓ∞ distance to another class by a linear program for each activation pattern of one hidden layer."""
    (w1, b1), (w2, b2) = ((layer.weight.detach(), layer.bias.detach()) for layer in (model[0], model[2]))
    d, best = len(x), math.inf
    reach = [[*row, -1.0] for s in (1.0, -1.0) for row in (s * torch.eye(d)).tolist()]  # ±(x' − x) ≤ t
    limit = [*x.tolist(), *(-x).tolist()]
    for pattern in itertools.product((0.0, 1.0), repeat=len(b1)):
        on = torch.tensor(pattern, dtype=torch.float64)
        sign = 1 - 2 * on  # sign·z ≤ 0
        for j in set(range(len(b2))) - {y}:
            lead, offset = (w2[y] - w2[j]) * on @ w1, (w2[y] - w2[j]) * on @ b1 + b2[y] - b2[j]
            rows = [*([*row, 0.0] for row in (sign[:, None] * w1).tolist()), [*lead.tolist(), 0.0], *reach]
            ends = [*(-sign * b1).tolist(), -float(offset), *limit]
            answer = linprog([0.0] * d + [1.0], A_ub=rows, b_ub=ends, bounds=[(0, 1)] * d + [(0, None)])
            if answer.status == 0:
                best = min(best, answer.fun)
    return best


@pytest.mark.slow
def test_never_above_the_exact_distance() -> None:
    model, x = dense((2, 5, 3), seed=2), inputs(4, (2,), seed=3)
    y = model(x).argmax(dim=1)
    found = certified_radius(model, x, norm="linf", method="fast_lip").radius
    exact = torch.tensor([exact_linf_distance(model, x[i], int(y[i])) for i in range(4)], dtype=torch.float64)
    assert (found > 0).all() and (found <= exact + 1e-9).all()
    assert (found > 0.2 * exact).any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_attack_breaks_a_certificate(norm: str) -> None:
    model = build("mlp", in_shape=(1, 4, 4), hidden=(12, 12), classes=4, seed=3)
    for p in model.parameters():
        p.data *= 2
    x = inputs(40, (1, 4, 4)).float()
    radius = certified_radius(model, x, norm=norm, method="fast_lip").radius
    assert (radius > 0).all()
    assert not pgd(model, x, norm=norm, eps=radius * 0.9999, steps=40, restarts=3, loss="margin").success.any()


def test_boxes_other_specifications_and_single_precision() -> None:
    model, x = dense((6, 9, 3)), inputs(5, (6,))
    C = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = (x - 0.1).clamp_min(0), (x + 0.05).clamp_max(1)
    bound = fast_lip_bound(trace(model, x), Box(low, high), C)
    points = low + (high - low) * inputs(500, (5, 6), seed=1)
    assert (torch.einsum("mk,pnk->pnm", C, model(points)) >= bound - 1e-12).all()
    affine = dense((6, 3))
    at_center = C @ affine((low + high) / 2).T.detach()
    farthest = (C @ affine[0].weight.detach()).abs() @ ((high - low) / 2).T
    torch.testing.assert_close(fast_lip_bound(trace(affine, x), Box(low, high), C), (at_center - farthest).T)
    options = {"norm": "linf", "eps": 0.05}
    single = lipschitz_bound(dense((6, 9, 3)).float(), x.float(), **options).double()
    double = lipschitz_bound(model, x, **options)
    assert (single >= double).all() and (single <= double * (1 + 1e-3)).all()  # widened outward, a little


def test_it_says_what_it_found() -> None:
    model, x = dense((5, 6, 3)), inputs(4, (5,))
    y = model(x).argmax(dim=1)
    y[1] = (y[1] + 1) % 3
    found = fast_lip(model, x, y, norm="l2", eps=1e-6)
    assert found.status == ["verified", "falsified", "verified", "verified"]
    assert (found.method, found.norm, found.confidence) == ("fast_lip", "l2", 1.0)
    assert found.radius.tolist() == [1e-6, 0.0, 1e-6, 1e-6] and found.counterexample is not None
    assert certify(model, x, y, norm="l2", eps=1e-6, method="fast_lip").status == found.status
    assert fast_lip(model, x[:0], eps=0.1).status == [] and lipschitz_bound(model, x[:0], eps=0.1).shape == (0, 2)


def test_an_operator_without_known_slopes_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with pytest.raises(ValueError, match=r"model: Fast-Lip.*node"):
        fast_lip(model, inputs(2, (3,)), eps=0.1)
    with pytest.raises(ValueError, match="norm"):
        lipschitz_bound(dense((3, 2)), inputs(2, (3,)), norm="l0", eps=0.1)
    for wrong in (-0.1, torch.tensor([0.1, -0.1]), torch.ones(3)):
        with pytest.raises(ValueError, match="eps"):
            lipschitz_bound(dense((3, 2)), inputs(2, (3,)), eps=wrong)
