"""Bound propagation on the shipped checkpoints: milliseconds an image, verified share, and agreement with a peer.

    python benchmarks/verification.py                       speed, then agreement
    python benchmarks/verification.py --models mnist_cnn_adv --batches 1 20
    python benchmarks/verification.py --pairs 1000000       certified pairs of random nets and boxes, tried by attack
    python benchmarks/verification.py --lirpa               time over auto_LiRPA's, and which bounds are tighter

The nine margins z_y − z_j of each image are bounded, in float32, on one thread, by CPU time; the best of some rounds.
The share is of the images that are classified correctly. wong_kolter is left out: it carries one column a pixel.
Agreement is with bound-propagation in float64, ours on the convolutions, the peer's on matrices. The peer intersects
the bounds of hidden layers with intervals, as we do. It is not a dependency; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType

import torch
from attacks import in_turns, ratio
from pairs import report, tried
from torch import Tensor, nn

from robustlab import data, zoo
from robustlab.verification import Ball, Graph, trace
from robustlab.verification.duals.lagrangian_dual import dual_bound
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.certify import METHODS
from robustlab.verification.propagation.layers import layer_bounds
from robustlab.verification.propagation.lower_bound import lower_bound
from robustlab.verification.propagation.specification import margins

INSTALL = (
    "python -m pip install --target PEERS --no-deps bound-propagation==0.4.7\n"
    "PYTHONPATH=PEERS python benchmarks/verification.py"
)
RADII = {
    "mnist_cnn": 0.02, "mnist_cnn_adv": 0.1, "mnist_mlp": 0.02,
    "fashion_cnn": 0.01, "fashion_cnn_adv": 0.05, "fashion_mlp": 0.02,
    "mnist_resnet": 0.02,
}  # fmt: skip
LIRPA = (
    "python -m pip install --target PEERS --no-deps appdirs graphviz"
    " git+https://github.com/Verified-Intelligence/auto_LiRPA\n"
    "PYTHONPATH=PEERS python benchmarks/verification.py --lirpa"
)
OPERATIONS = 64
"""Elementwise operations of a step of the dual on each ReLU's coefficients, autograd's and the optimizer's too, as
dispatched on mnist_cnn; one on the three points of an inner minimum counts three."""
SPEED = ("ibp", "crown_ibp", "fast_lin", "crown", "cnn_cert", "alpha_crown")


def images(name: str, count: int) -> tuple[Tensor, Tensor]:
    """The first test images of the data set that a checkpoint was trained on."""
    loaded = data.load("mnist5k" if name.startswith("mnist") else "fashion")
    return loaded.x_test[:count], loaded.y_test[:count]


@torch.no_grad()
def speed(name: str, eps: float, batches: list[int], rounds: int) -> None:
    """One line a method and batch."""
    model = zoo.load(name).requires_grad_(False)
    x, y = images(name, max(batches))
    graph = trace(model, x)
    for method, n in itertools.product(SPEED, batches):
        if method == "alpha_crown" and n > 20:
            continue
        C, region = margins(y[:n], 10), Ball(x[:n], eps)
        right = model(x[:n]).argmax(dim=1) == y[:n]
        best = float("inf")
        METHODS[method](graph, Ball(x[:1], eps), C[:1])  # the first call of an optimizer imports much
        for _ in range(1 if n > 20 or method == "alpha_crown" else rounds):
            start = time.process_time()
            lower = METHODS[method](graph, region, C)
            best = min(best, time.process_time() - start)
        share = float(((lower > 0).all(dim=1) & right).sum() / right.sum().clamp_min(1))
        print(
            f"{name:16} {eps:<6} {method:12} {n:4} {1e3 * best / n:9.2f} ms/image   {share:6.1%} verified", flush=True
        )


def dual_step(name: str, eps: float, n: int, rounds: int) -> None:
    """One step of the Lagrangian dual's ascent over one pass of as many rows through the net and back to its input, and
    over that pass and the step's elementwise operations alone, each a multiplication in place."""
    model = zoo.load(name).requires_grad_(False)
    x, y = images(name, n)
    C, region, graph = margins(y, 10), Ball(x, eps), trace(model, x)
    with torch.no_grad():
        layers = layer_bounds(graph, region, BoundOptions())
    rows = x.repeat_interleave(C.shape[1], dim=0).requires_grad_(True)

    def ascent(steps: int) -> Tensor:
        return dual_bound(graph, region, C, layers, steps=steps)

    def both_ways() -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(rows).sum(), rows)

    sizes = [rows.new_ones(len(rows), *node.shape) for node in graph.nonlinear]

    def bare() -> None:
        both_ways()
        for numbers in sizes:
            for _ in range(OPERATIONS):
                numbers.mul_(numbers)

    short, long, floor, with_operations = in_turns([partial(ascent, 1), partial(ascent, 6), both_ways, bare], rounds)
    step = [(b - a) / 5 for a, b in zip(short, long, strict=True)]
    print(
        f"{name:16} {eps:<6} {'dual step':12} {n:4} {1e3 * min(step) / n:9.2f} ms/image   "
        f"{ratio(step, floor):5.2f} of {len(rows)} rows forward and back, {ratio(step, with_operations):5.2f} of "
        "these and the elementwise operations",
        flush=True,
    )


@torch.no_grad()
def beside_lirpa(peer: ModuleType, name: str, eps: float, n: int, rounds: int, mode: str) -> None:
    """Time over auto_LiRPA's for the same lower bounds of nine margins an image; graphs of both are built before.

    ``mode`` is the peer's own, how it holds convolutions. Its hidden bounds are held against the values at the center.
    """
    model = zoo.load(name).requires_grad_(False)
    x, y = images(name, n)
    C, region, graph = margins(y, 10), Ball(x, eps), trace(model, x)
    theirs = peer.BoundedModule(model, x, bound_opts={"conv_mode": mode})
    ends = {"x_L": region.hull.lower, "x_U": region.hull.upper}
    held = peer.BoundedTensor(x, peer.PerturbationLpNorm(norm=float("inf"), **ends))
    before = [graph.values(x)[i] for i in graph.relus]
    for method, called in (("ibp", "IBP"), ("crown_ibp", "CROWN-IBP"), ("crown", "CROWN")):

        def own(method: str = method) -> Tensor:
            return METHODS[method](graph, region, C)

        def other(called: str = called) -> Tensor:
            return theirs.compute_bounds(x=(held,), C=C, method=called, bound_upper=False)[0]

        a, b = own(), other()
        bends = [node.inputs[0] for node in theirs.nodes() if type(node).__name__ == "BoundRelu"]
        outside = sum(
            int(((z < h.lower - 1e-3) | (z > h.upper + 1e-3)).sum()) for z, h in zip(before, bends, strict=True)
        )
        ours, peers = in_turns([own, other], 1 if method == "crown" and n > 20 else rounds)
        apart = (a - b) / b.abs().amax()
        print(
            f"{name:16} {eps:<6} {method:12} {n:4} {mode:8} {1e3 * min(ours) / n:9.2f} ms/image   "
            f"{ratio(ours, peers):5.2f} of auto_LiRPA's, bounds apart by {float(apart.min()):+.1e} to "
            f"{float(apart.max()):+.1e} of the largest; {outside} values at the center are outside its hidden bounds",
            flush=True,
        )


def unrolled(graph: Graph) -> nn.Sequential:
    """A chain of affine operators and ReLUs as dense layers in float64."""
    layers: list[nn.Module] = []
    run: list[int] = []
    for node in graph.nodes[1:]:
        if node.op.affine:
            run.append(node.index)
        if run and (not node.op.affine or node is graph.nodes[-1]):
            shape = graph.nodes[run[0] - 1].shape
            size = torch.Size(shape).numel()
            value = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().reshape(-1, *shape)
            for i in run:
                value = graph.nodes[i].op.forward(value)
            value = value.flatten(1)
            layer = nn.Linear(size, value.shape[1]).double().requires_grad_(False)
            layer.weight.data, layer.bias.data = (value[1:] - value[0]).T.contiguous(), value[0]
            layers, run = [*layers, layer], []
        if not node.op.affine:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def lower_of(method: str, graph: Graph, region: Ball, C: Tensor) -> Tensor:
    """As the peer has it: hidden bounds intersected with intervals, the last bound not."""
    if method == "ibp":
        return METHODS["ibp"](graph, region, C)
    relu = "parallel" if method == "fast_lin" else "adaptive"
    hidden = "interval" if method == "crown_ibp" else "backward"
    policy = BoundOptions(relu=relu, intermediate=hidden)
    layers = layer_bounds(graph, region, policy)
    return lower_bound(graph, region, C, replace(policy, intersect=False), layers=layers)


def agreement(peer: ModuleType, name: str, eps: float, count: int) -> None:
    """Largest difference of the outputs' bounds, ours on the convolutions, the peer's on matrices."""
    model = zoo.load(name).requires_grad_(False)
    x = images(name, count)[0].double()
    graph = trace(model.double(), x)
    dense = unrolled(graph)
    region, eye = Ball(x, eps), torch.eye(10, dtype=torch.float64)
    box = peer.HyperRectangle(region.hull.lower.flatten(1), region.hull.upper.flatten(1))
    for method, call, adaptive in (
        ("ibp", "ibp", True), ("crown", "crown", True), ("crown_ibp", "crown_ibp", True), ("fast_lin", "crown", False),
    ):  # fmt: skip
        found = getattr(peer.BoundModelFactory(adaptive_relu=adaptive).build(dense), call)(box)
        other = found if method == "ibp" else found.concretize()
        lower, upper = lower_of(method, graph, region, eye), -lower_of(method, graph, region, -eye)
        error = max(float((lower - other.lower).abs().max()), float((upper - other.upper).abs().max()))
        top = float(torch.maximum(upper.abs(), lower.abs()).max())
        print(f"{name:16} {eps:<6} {method:12} differs by at most {error:.1e} of {top:.3g}", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(RADII)[:6], choices=list(RADII))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 20, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="one image, one round")
    parser.add_argument("--lirpa", action="store_true", help="beside auto_LiRPA, and no more")
    parser.add_argument(
        "--mode", default="patches", choices=("patches", "matrix"), help="auto_LiRPA's, for convolutions"
    )
    parser.add_argument("--pairs", type=int, help="try so many certified pairs of random nets and boxes, and no more")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.pairs:
        print(report(tried(args.pairs, seed=args.seed, count=2000, tell=9)))
        return
    if args.lirpa:
        try:
            lirpa = import_module("auto_LiRPA")
        except ImportError as error:
            print(f"auto_LiRPA is left out ({error}). To have it beside us:\n{LIRPA}")
            return
        for name, n in itertools.product(args.models, args.batches):
            beside_lirpa(lirpa, name, RADII[name], n, args.rounds, args.mode)
        return
    for name in args.models:
        speed(name, RADII[name], [1] if args.tiny else args.batches, 1 if args.tiny else args.rounds)
        for n in [1] if args.tiny else [n for n in args.batches if n <= 20]:
            dual_step(name, RADII[name], n, 1 if args.tiny else args.rounds)
    try:
        peer = import_module("bound_propagation")
    except ImportError as error:
        print(f"bound_propagation is left out ({error}). To have it beside us:\n{INSTALL}")
        return
    for name in args.models:
        agreement(peer, name, RADII[name], 1 if args.tiny else 3)


if __name__ == "__main__":
    main()
