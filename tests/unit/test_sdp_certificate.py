"""The semidefinite certificates: against the solver's optimum, the exact answer, the linear program; and two traps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import pgd
from robustlab.graph.smooth import CURVES
from robustlab.verification import Ball, Box, bounds, milp, sdp_certificate, trace
from robustlab.verification.duals import eigenvalues, sdp_relaxation
from robustlab.verification.duals.eigenvalues import lanczos, top_eigenvectors
from robustlab.verification.duals.one_hidden import SLOPES, parts_of
from robustlab.verification.duals.sdp_certificate import multipliers, sdp_bound, shifted
from robustlab.verification.duals.sdp_relaxation import sdp_relaxation_bound
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import layer_bounds
from robustlab.verification.propagation.specification import margins


def dense(sizes: Sequence[int], seed: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pairs = list(itertools.pairwise(sizes))
        layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), activation())][:-1]
        return nn.Sequential(*layers).double().requires_grad_(False)


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_corners(first: Tensor, last: Tensor, radius: Tensor) -> float:
    """max tᵀdiag(ρ)Wᵀ(v ⊙ s) over signs t and s in {0, 1}: what the certificate of a ReLU net must not be below."""
    s = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(last))), dtype=torch.float64)
    return float((((s * last) @ first).abs() @ radius).max())


def test_the_coupling_matrix_is_the_quadratic_form() -> None:
    """½·yᵀMy = tᵀ(w₀ + Wᵀ(v ⊙ slope)) for all signs t and slopes, with W, v and w₀ written out."""
    for seed, (activation, low, high) in enumerate([(nn.ReLU, 0.0, 1.0), (nn.Tanh, 0.0, 1.0), (nn.Sigmoid, 0.0, 0.25)]):
        net = dense((3, 4, 2), seed, activation)
        C = torch.tensor([[1.0, -1.0], [0.3, 2.0]], dtype=torch.float64)
        M = parts_of(trace(net, points(1, 3))).coupling(C)
        for row in range(2):
            v = C[row] @ net[2].weight
            for t in itertools.product((-1.0, 1.0), repeat=3):
                for s in itertools.product((-1.0, 0.4, 1.0), repeat=4):
                    y = torch.tensor([1.0, *t, *s], dtype=torch.float64)
                    slope = low + (high - low) * (1 + y[4:]) / 2
                    want = y[1:4] @ net[0].weight.T @ (v * slope)
                    torch.testing.assert_close(y @ M[row] @ y / 2, want)


def test_a_path_beside_the_hidden_layer_and_convolutions() -> None:
    """The gradient of the model itself is w₀ + Wᵀ(v ⊙ σ′)."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 3, stride=2), nn.Linear(8, 3), nn.Linear(25, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(2 * x - 1)).flatten(1)) + self.c(x.flatten(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Beside().double()
    x = points(2, 25).reshape(2, 1, 5, 5)
    parts = parts_of(trace(model, x))
    hidden = model.a(2 * x - 1).flatten(1)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda one: model(one[None])[0], x[i]).flatten(1)
        ours = parts.direct + (parts.outer * (1 - hidden[i].tanh() ** 2)) @ parts.inner
        torch.testing.assert_close(ours, jacobian)


def test_slopes_hold_the_derivatives() -> None:
    at = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    assert set(SLOPES) <= set(CURVES)
    for name, (low, high) in SLOPES.items():
        slope = CURVES[name].slope(at)
        assert low <= float(slope.min()) and float(slope.max()) <= high
        assert float(slope.max()) > high - 0.01 and float(slope.min()) < low + 0.01


def primal(M: Tensor) -> float:
    """max {⟨M, P⟩ : P ⪰ 0, diag P ≤ 1}, by cvxpy."""
    P = cp.Variable((len(M), len(M)), PSD=True)
    problem = cp.Problem(cp.Maximize(cp.trace(M.numpy() @ P)), [cp.diag(P) <= 1])
    return float(problem.solve(solver=cp.CLARABEL))


@pytest.mark.parametrize("seed", range(3))
def test_the_dual_is_never_below_the_programs_optimum_and_comes_near(seed: int) -> None:
    net = dense((4, 5, 3), seed)
    C = margins(torch.tensor([0]), 3, torch.float64)[0]
    M = parts_of(trace(net, points(1, 4))).coupling(C)
    optimum = [primal(one) for one in M]
    for steps in (0, 300):
        value = multipliers(M, steps=steps).sum(dim=1)
        for ours, best in zip(value.tolist(), optimum, strict=True):
            assert ours >= best - 1e-6
            if steps:
                assert ours <= 1.02 * best, (ours, best)
    kappa = multipliers(M, steps=300)
    assert float(torch.linalg.eigvalsh(torch.diag_embed(kappa) - M).min()) >= -1e-12, "feasible"
    assert bool((kappa.sum(1) <= multipliers(M, steps=0).sum(1)).all()), "never worse than the start"
    for one in M:
        t = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=9)), dtype=torch.float64)
        y = torch.cat([torch.ones(len(t), 1, dtype=torch.float64), t], dim=1)
        assert float(((y @ one) * y).sum(1).max()) <= optimum[0] + optimum[1], "the test's own form"


@pytest.mark.parametrize("seed", range(4))
def test_between_the_corners_and_hoelder(seed: int) -> None:
    """max over slopes in {0, 1} ≤ √(A·B) ≤ Hölder's; cut off by the box, with a radius of its own for each pixel."""
    net, x = dense((4, 5, 2), seed), points(3, 4, seed)
    region = Ball(x, 0.3)
    C = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    v = (C @ net[2].weight)[0]
    hull = region.hull
    lower = sdp_bound(trace(net, x), region, C)[:, 0]
    at = ((net(hull.center)) @ C.T)[:, 0]
    for i in range(3):
        change = float(at[i] - lower[i])
        assert change >= by_corners(net[0].weight, v, hull.radius[i]) - 1e-9
        rows = (net[0].weight * v[:, None]).abs().sum(0) / 2 + ((v / 2) @ net[0].weight).abs()
        assert change <= float(rows @ hull.radius[i]) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_never_above_exact(seed: int) -> None:
    """Both relaxations against milp on random nets, over radii; some are verified, and a point is no worse."""
    net, x = dense((3, 5, 3), seed), points(4, 3, seed)
    y = net(x).argmax(dim=1)
    seen = 0
    for eps in (0.01, 0.05, 0.15):
        exact = milp(net, x, y, eps=eps)
        for relaxation in ("dual", "layers"):
            certificate = sdp_certificate(net, x, y, eps=eps, relaxation=relaxation)  # type: ignore[arg-type]
            assert not bool((certificate.verified & ~exact.verified).any())
            seen += int(certificate.verified.sum())
    assert seen > 3


def least(net: nn.Module, region: Ball, C: Tensor) -> Tensor:
    """The least value that many points of the ball have, (N, M)."""
    corner = 2 * torch.rand(4000, *region.x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    corner[:2000] = corner[:2000].sign()
    at = (region.x + torch.as_tensor(region.eps)[:, None] * corner).clamp(0, 1)
    return (net(at) @ C.T).amin(dim=0)


def linear_program(net: nn.Module, region: Ball, c: Tensor) -> float:
    """min ⟨c, output⟩ over the triangles between CROWN's bounds, for one sample, by cvxpy."""
    graph = trace(net, region.x)
    known, hull = layer_bounds(graph, region, BoundOptions()).bounds, region.hull
    x = cp.Variable(region.x.shape[1])
    held, z = [x >= hull.lower[0].numpy(), x <= hull.upper[0].numpy()], x
    index = 0
    for layer in net:
        index += 1
        if isinstance(layer, nn.Linear):
            z = layer.weight.numpy() @ z + layer.bias.numpy()
            continue
        low, high = (end[0].numpy() for end in (known[index - 1].lower, known[index - 1].upper))
        out = cp.Variable(len(low))
        most = np.maximum(high, 0)
        slope = np.where(low >= 0, 1.0, most / np.maximum(most - low, 1e-300))
        held += [out >= 0, out >= z, out <= cp.multiply(slope, z - np.minimum(low, 0))]
        z = out
    return float(cp.Problem(cp.Minimize(c.numpy() @ z), held).solve(solver=cp.CLARABEL))


@pytest.mark.parametrize("sizes", [(3, 5, 2), (3, 4, 4, 2)])
def test_the_program_over_layers_lies_between_the_linear_program_and_the_truth(sizes: tuple[int, ...]) -> None:
    """A theorem with the triangles' lines. Without them it is sound, and that is all."""
    gained = []
    for seed in range(3):
        net, x = dense(sizes, seed), points(1, 3, seed)
        region, C = Ball(x, 0.4), torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        graph, truth = trace(net, x), least(net, Ball(x, 0.4), C)
        ours, free = (sdp_relaxation_bound(graph, region, C, triangle=t) for t in (True, False))
        linear = torch.tensor([[linear_program(net, region, c) for c in C]], dtype=torch.float64)
        assert bool((linear - 1e-5 <= ours).all()) and bool((ours <= truth + 1e-9).all())
        assert bool((free <= ours + 1e-5).all())
        gained.append(float((ours - linear).max()))
    assert max(gained) > 1e-3, "the program could be the linear one"


def test_whatever_the_multipliers_the_bound_holds() -> None:
    """What is certified does not rest on the solver: multipliers at random give bounds below all points."""
    net, x = dense((3, 4, 4, 2), 0), points(1, 3)
    region, C = Ball(x, 0.3), torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    graph = trace(net, x)
    before, output = sdp_relaxation.affine_maps(graph)
    layers = layer_bounds(graph, region, BoundOptions())
    inside = {n.index: layers.bounds[n.inputs[0]].select(torch.tensor([0])) for n in graph.nonlinear}
    hull = region.hull.select(torch.tensor([0]))
    made, largest = sdp_relaxation.program(graph, before, hull, inside, triangle=True)
    cost = np.zeros((made.size, made.size))
    cost[0] = C[0].numpy() @ output
    cost, truth = (cost + cost.T) / 2, float(least(net, region, C))
    random = np.random.default_rng(0)
    for scale in (0.0, 0.1, 1.0, 10.0):
        found = sdp_relaxation.proved(made, cost, scale * random.standard_normal(len(made.right)), largest)
        assert found <= truth
    # Every point of the region is feasible, and no longer than R.
    for at in (region.x + 0.3 * (2 * points(200, 3, 5) - 1)).clamp(0, 1):
        z1 = net[:2](at)
        w = np.concatenate([[1.0], at.numpy(), z1.numpy(), net[2:4](z1).numpy()])
        values = np.array(made.rows) @ np.outer(w, w).ravel()
        assert (values <= np.array(made.right) + 1e-9).all() and w @ w <= largest + 1e-9
        assert np.abs((values - np.array(made.right))[np.array(made.equal)]).max() < 1e-9


def test_multipliers_of_the_wrong_sign_prove_nothing() -> None:
    """Taken as an equality, a triangle's line has a multiplier below 0, and would "prove" that z − ẑ/2 > 0."""
    net, x = dense((2, 3, 2), 0), torch.full((1, 2), 0.5, dtype=torch.float64)
    net[0].bias.copy_(-net[0].weight @ x[0])  # all neurons are 0 at x, and unstable around it
    graph, region = trace(net, x), Ball(x, 0.3)
    known = layer_bounds(graph, region, BoundOptions())
    inside = {n.index: known.bounds[n.inputs[0]].select(torch.tensor([0])) for n in graph.nonlinear}
    before, _ = sdp_relaxation.affine_maps(graph)
    hull = region.hull.select(torch.tensor([0]))
    made, largest = sdp_relaxation.program(graph, before, hull, inside, triangle=True)
    rows, right, equal = np.array(made.rows), np.array(made.right), np.array(made.equal)
    line, place = 1 + 2 + 4, 3  # the first neuron's: after P₀₀, two inputs and four other rows
    assert rows[line].reshape(made.size, -1)[0, place] == 0.5 and not equal[line]
    cost = np.zeros((made.size, made.size))
    cost[0] = np.eye(made.size)[place] - before[graph.nonlinear[0].index][0] / 2  # z − ẑ/2, which is 0 at x
    cost = (cost + cost.T) / 2
    P, below = cp.Variable((made.size, made.size), PSD=True), ~equal & (np.arange(len(right)) != line)
    flat = cp.vec(P, order="C")
    held = [rows[k] @ flat == right[k] for k in (equal, line)] + [rows[below] @ flat <= right[below]]
    program = cp.Problem(cp.Minimize(cp.sum(cp.multiply(cost, P))), held)
    assert program.solve(solver=cp.CLARABEL) > 0.05, "on the line it is above the truth"
    found = np.zeros(len(right))
    for k, constraint in zip((equal, line, below), held, strict=True):
        found[k] = constraint.dual_value
    assert found[line] < -0.1 and sdp_relaxation.proved(made, cost, found, largest) <= 0


def test_the_constant_beside_the_hidden_block_is_unsound() -> None:
    """One neuron, two pixels that cancel in the sum: Σ_i Q_ij = 0, so that the wrong matrix knows no middle slope.

    f = ½·relu(x₁ − x₂) − ½·relu(x₂ − x₁) has W of two rows that cancel, v = (½, −½): f = (x₁ − x₂)/2 exactly.
    """
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)).double().requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    model[2].weight.copy_(torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    model[2].bias.zero_()
    C = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    M = parts_of(trace(model, torch.zeros(1, 2, dtype=torch.float64))).coupling(C)[0]
    wrong = M.clone()
    wrong[0, 1:3] = wrong[1:3, 0] = 0
    wrong[0, 3:] = wrong[3:, 0] = M[1:3, 3:].sum(dim=0)
    truth = by_corners(model[0].weight, C[0] @ model[2].weight, torch.ones(2, dtype=torch.float64))
    assert primal(M) / 2 >= truth - 1e-6, "sound"
    assert primal(wrong) / 2 < 0.6 * truth, "the wrong matrix proves a falsehood"


def test_a_ritz_value_is_no_certificate() -> None:
    """Few steps of Lanczos lie below the largest eigenvalue, all of them reach it; what is certified lies above."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(4, 60, 60, generator=generator, dtype=torch.float64)
    A = A + A.mT
    top = torch.linalg.eigvalsh(A)[:, -1]
    start = torch.randn(4, 60, generator=generator, dtype=torch.float64)
    found = [lanczos(lambda u: (A @ u[..., None])[..., 0], start, steps) for steps in (1, 5, 15, 60)]
    ritz = torch.stack([value for value, _ in found])
    assert bool((ritz.diff(dim=0) >= -1e-9).all()) and bool((ritz[:3] < top - 1e-6).all())
    torch.testing.assert_close(ritz[3], top)
    value, u = found[3]
    torch.testing.assert_close((A @ u[..., None])[..., 0], value[:, None] * u, rtol=0, atol=1e-6)
    for c in (torch.zeros(4, 60, dtype=torch.float64), A.abs().sum(2)):
        kappa = shifted(A, c)
        assert float(torch.linalg.eigvalsh(torch.diag_embed(kappa) - A).min()) >= -1e-10
    false = torch.linalg.eigvalsh(torch.diag_embed(ritz[1][:, None].expand(4, 60)) - A)[:, 0]
    assert bool((false < -0.1).all()), "with the Ritz value in its place, the matrix is no proof"
    flat = torch.randn(1, 60, 3, generator=generator, dtype=torch.float64)
    low_rank = flat @ flat.mT
    value, u = lanczos(lambda u: (low_rank @ u[..., None])[..., 0], start[:1], 30)
    torch.testing.assert_close(value, torch.linalg.eigvalsh(low_rank)[:, -1])
    torch.testing.assert_close((low_rank @ u[..., None])[..., 0], value[:, None] * u, rtol=0, atol=1e-6)
    # A space that is exhausted early: diagonal matrices of two values.
    two = torch.diag_embed(torch.where(torch.arange(60) % 2 == 0, -1.0, -2.0).double())[None]
    assert float(lanczos(lambda u: (two @ u[..., None])[..., 0], start[:1], 20)[0]) == pytest.approx(-1.0)


def test_the_search_by_lanczos_is_certified_by_all_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    """With approximate eigenvectors alone, the result is feasible and hardly worse."""
    M = parts_of(trace(dense((6, 8, 3), 0), points(1, 6))).coupling(margins(torch.tensor([0]), 3, torch.float64)[0])
    exact = multipliers(M, steps=100)
    monkeypatch.setattr(eigenvalues, "SMALL", 0)
    rough = multipliers(M, steps=100)
    assert float(torch.linalg.eigvalsh(torch.diag_embed(rough) - M).min()) >= -1e-12
    assert bool((rough.sum(1) <= 1.1 * exact.sum(1)).all())
    assert top_eigenvectors(M)[0].shape == (2,)


def test_one_search_serves_all_samples_and_radii(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many matrices as pairs of classes, C and −C as one; in parts as whole."""
    from robustlab.verification.duals import sdp_certificate as module

    net, x = dense((4, 6, 3), 2), points(20, 4)
    sizes = []
    real = module.multipliers
    monkeypatch.setattr(module, "multipliers", lambda M, *, steps: (sizes.append(len(M)), real(M, steps=steps))[1])
    region = Ball(x, torch.linspace(0.001, 0.3, 20, dtype=torch.float64))
    graph, C = trace(net, x), margins(torch.arange(20) % 3, 3, torch.float64)
    whole = sdp_bound(graph, region, C)
    assert sizes == [3]
    monkeypatch.setattr(module, "NUMBERS", 1)
    torch.testing.assert_close(sdp_bound(graph, region, C), whole)
    assert sizes == [3, 1, 1, 1]


def test_float32_is_lower_than_float64() -> None:
    """By a margin that covers the network's rounding."""
    for seed in range(3):
        net, x = dense((5, 30, 2), seed), points(6, 5, seed)
        C = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
        double = sdp_bound(trace(net, x.float().double()), Ball(x.float().double(), 0.05), C)
        single = net.float()
        found = sdp_bound(trace(single, x.float()), Ball(x.float(), 0.05), C.float())
        assert found.dtype == torch.float32
        assert bool((found.double() < double).all()) and bool((double - found.double() < 1e-3).all())


def test_no_attack_breaks_a_certificate_of_a_wider_net() -> None:
    net, x = dense((10, 40, 4), 1), points(30, 10)
    y = net(x).argmax(dim=1)
    certificate = sdp_certificate(net, x, y, eps=0.03)
    assert int(certificate.verified.sum()) > 0
    assert not bool((certificate.verified & pgd(net, x, y, eps=0.03, steps=20).success).any())


def test_a_box_is_a_region_too() -> None:
    net, x = dense((3, 5, 2), 0), points(2, 3)
    C = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    box = Box(x, (x + torch.tensor([0.0, 0.1, 0.3])).clamp(max=1))
    lower = sdp_bound(trace(net, x), box, C)
    assert bool((lower <= bounds(net, box, C, method="alpha_crown").upper).all())
    values = torch.stack([net(x + (box.upper - x) * part) @ C.T for part in points(500, 3, 3)])
    assert bool((values.amin(dim=0) >= lower).all())


def test_wrong_arguments_are_named() -> None:
    net, x = dense((3, 4, 2), 0), points(2, 3)
    for change, match in (
        ({"norm": "l2"}, "norm: want 'linf'"),
        ({"relaxation": "primal"}, "relaxation"),
        ({"steps": -1}, "steps"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{match}"):
            sdp_certificate(net, x, eps=0.1, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model: want one hidden layer, got a second one, .* at node"):
        sdp_certificate(dense((3, 4, 4, 2), 0), x, eps=0.1)
    with pytest.raises(ValueError, match=r"model: want at most 80 inputs and neurons for the program, got 83"):
        sdp_certificate(dense((3, 80, 2), 0), x, eps=0.1, relaxation="layers")
    with pytest.raises(ValueError, match=r"model: the program over layers knows ReLUs alone, got .* at node"):
        sdp_certificate(dense((3, 4, 2), 0, nn.Tanh), x, eps=0.1, relaxation="layers")
    pooled = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(1, 2)).double()
    with pytest.raises(ValueError, match=r"node"):
        sdp_certificate(pooled, x, eps=0.1)
