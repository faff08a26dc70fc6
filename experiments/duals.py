"""Chapter 24: how tight the bounds of the book are, and how long they take, on nets that can be decided.

Nets of 56 inputs and neurons on digits of 6×6 pixels, the middle 24×24 averaged by fours: one hidden layer of 20 ReLUs,
two of 10, and two of 10 trained on attacks, at three seeds each. A row is one digit at one radius: the least margin
over the runner-up, as each method bounds it from below, as mixed-integer programming decides it, and the seconds of
one thread. The digits are the first that the net reads correctly. CROWN, α-CROWN, the dual and the programs
share CROWN's bounds of hidden neurons, intersected with intervals; the linear program has the triangles between them,
and l ≤ z ≤ u. Fast-Lin and CROWN-IBP have hidden bounds of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor, nn

from experiments.record import Experiment
from robustlab import data, defenses, models
from robustlab.graph.node import Graph
from robustlab.graph.tracing import trace
from robustlab.training.fit import cross_entropy, fit
from robustlab.verification import Ball, bounds
from robustlab.verification.complete import milp
from robustlab.verification.complete.query import Case
from robustlab.verification.duals.sdp_certificate import sdp_bound
from robustlab.verification.duals.sdp_relaxation import sdp_relaxation_bound
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import layer_bounds

HIDDEN = {"one layer": (20,), "two layers": (10, 10), "two layers, attacks": (10, 10)}
SEEDS, RADII, DIGITS = (0, 1, 2), (0.05, 0.1, 0.2), 2
LINES = {
    "intervals": ("ibp", {}), "CROWN-IBP": ("crown_ibp", {}), "Fast-Lin": ("fast_lin", {}), "CROWN": ("crown", {}),
    "α-CROWN": ("alpha_crown", {"steps": 100}), "dual, 10 steps": ("lagrangian_dual", {"steps": 10}),
    "dual, 100 steps": ("lagrangian_dual", {"steps": 100}),
}  # fmt: skip
NAMES = (*LINES, "linear program", "SDP of 2018", "SDP, layers", "SDP, no triangles", "exact")


def small(x: Tensor) -> Tensor:
    """Digits of 6×6 pixels, in float64."""
    return F.avg_pool2d(x[..., 2:26, 2:26], 4).double()


@cache
def net(kind: str, seed: int) -> nn.Module:
    """A trained network in float64."""
    digits = data.load("mnist5k")
    model = models.build("mlp", in_shape=(1, 6, 6), hidden=HIDDEN[kind], seed=seed).double()
    loss = defenses.adversarial_training(norm="linf", eps=0.05, steps=5) if "attacks" in kind else cross_entropy
    fit(model, (small(digits.x_train), digits.y_train), objective=loss, epochs=10, lr=1e-2, seed=seed)
    return model.eval().requires_grad_(False)


def linear_program(model: nn.Module, graph: Graph, region: Ball, c: Tensor) -> float:
    """min ⟨c, output⟩ where each ReLU lies in its triangle, by HiGHS."""
    linear = [(m.weight.numpy(), m.bias.numpy()) for m in model.modules() if isinstance(m, nn.Linear)]
    known, hull = layer_bounds(graph, region, BoundOptions()).bounds, region.hull
    ends = [(known[n.inputs[0]].lower[0].numpy(), known[n.inputs[0]].upper[0].numpy()) for n in graph.nonlinear]
    sizes = [hull.lower.numel(), *(len(l) for l, _ in ends)]
    start = np.cumsum([0, *sizes])
    rows, right = [], []
    limits = [*zip(hull.lower.flatten().tolist(), hull.upper.flatten().tolist(), strict=True)]
    for i, ((W, b), (l, u)) in enumerate(zip(linear[:-1], ends, strict=True)):
        h, z = np.zeros((len(b), start[-1])), np.zeros((len(b), start[-1]))
        h[:, start[i] : start[i + 1]], z[:, start[i + 1] : start[i + 2]] = W, np.eye(len(b))
        slope = np.where(l >= 0, 1.0, np.maximum(u, 0) / np.maximum(u - l, 1e-300))[:, None]
        rows += [h, -h, h - z, z - slope * h]
        right += [u - b, b - l, -b, slope[:, 0] * (b - np.minimum(l, 0))]
        limits += [(0.0, max(float(end), 0.0)) for end in u]
    W, b = linear[-1]
    cost = np.concatenate([np.zeros(start[-2]), c.numpy() @ W])
    found = linprog(cost, A_ub=np.vstack(rows), b_ub=np.concatenate(right), bounds=limits)
    return float(found.fun + c.numpy() @ b)


@torch.no_grad()
def measure(kind: str, seed: int, eps: float, digit: int) -> dict[str, float]:
    """Every bound of one margin, and its seconds."""
    digits, model = data.load("mnist5k"), net(kind, seed)
    x, y = small(digits.x_test[:100]), digits.y_test[:100]
    i = int((model(x).argmax(1) == y).nonzero()[digit])
    image, label = x[i : i + 1], int(y[i])
    other = int(model(image)[0].index_fill(0, torch.tensor(label), -torch.inf).argmax())
    C = torch.zeros(1, 10, dtype=torch.float64)
    C[0, label], C[0, other] = 1, -1
    graph, region = trace(model, image), Ball(image, eps)
    case = Case(region.hull.lower.flatten(), region.hull.upper.flatten(), C, torch.zeros(1).double())

    def propagated(method: str, how: dict[str, int]) -> float:
        return float(bounds(graph, region, C, method=method, **how).lower)  # type: ignore[arg-type]

    runs: dict[str, Callable[[], float]] = {
        name: lambda m=m, how=how: propagated(m, how)  # type: ignore[misc]
        for name, (m, how) in LINES.items()
    }
    runs["linear program"] = lambda: linear_program(model, graph, region, C[0])
    if kind == "one layer":
        runs["SDP of 2018"] = lambda: float(sdp_bound(graph, region, C))
    runs["SDP, layers"] = lambda: float(sdp_relaxation_bound(graph, region, C))
    runs["SDP, no triangles"] = lambda: float(sdp_relaxation_bound(graph, region, C, triangle=False))
    runs["exact"] = lambda: milp.minimum(graph, case)[0]
    result = {}
    for name, run in runs.items():
        begun = time.process_time()
        result[name] = run()
        result[f"{name}, s"] = time.process_time() - begun
    order = ("CROWN", "dual, 10 steps", "dual, 100 steps", "linear program", "SDP, layers", "exact")
    worst = max(result[a] - result[b] for a, b in pairwise(order))
    return {key: float(f"{value:.6g}") for key, value in result.items()} | {"order broken by": float(f"{worst:.2g}")}


EXPERIMENT = Experiment(
    name="duals",
    question="How tight are the bounds of the book on networks that can be decided, and how long do they take?",
    cases=[
        {"kind": kind, "seed": seed, "eps": eps, "digit": digit}
        for kind in HIDDEN
        for seed in SEEDS
        for eps in RADII
        for digit in range(DIGITS)
    ],
    measure=measure,
    n={"networks": len(HIDDEN) * len(SEEDS), "digits per network": DIGITS},
    seeds=SEEDS,
    data=["mnist5k"],
    # Trainings differ in the last digits between machines, and margins with them. Seconds are one machine's own.
    tolerance=dict.fromkeys(NAMES, 0.05) | {f"{name}, s": 1e6 for name in NAMES} | {"order broken by": 0.05},
)

if __name__ == "__main__":
    EXPERIMENT.main()
