"""Branch and bound by each of its options: domains and seconds on images that bounds alone leave open.

    python benchmarks/branching.py                            three networks, twelve images of each
    python benchmarks/branching.py --models mnist_mlp --images 20 --timeout 120

Asked is whether the label is kept at all on the ball. The images are the first of the test set that are classified
correctly, that α-CROWN does not certify and that PGD with 20 restarts does not fool. All options get the same time, on
one thread; seconds are of CPU, those of undecided images included.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from robustlab import data, zoo
from robustlab.attacks import pgd
from robustlab.graph.node import Graph
from robustlab.graph.tracing import trace
from robustlab.verification import certify
from robustlab.verification.complete.branch_and_bound import solve
from robustlab.verification.complete.query import Clock, Verdict, label_cases
from robustlab.verification.complete.verify import ball

RADII = {"mnist_mlp": 0.06, "fashion_mlp": 0.05, "mnist_cnn": 0.03}
DECIDED = ("verified", "falsified")
OPTIONS: dict[str, dict[str, Any]] = {
    "sensitivity": {"branching": "sensitivity"},
    "babsr": {"branching": "babsr"},
    "sensitivity, joint": {"branching": "sensitivity", "alpha": "joint"},
    "babsr, joint": {"branching": "babsr", "alpha": "joint"},
}


def open_images(name: str, eps: float, count: int) -> tuple[Tensor, Tensor]:
    """The first images that neither bounds nor an attack decide."""
    model = zoo.load(name).requires_grad_(False)
    loaded = data.load("mnist5k" if name.startswith("mnist") else "fashion")
    found: list[int] = []
    for rows in torch.arange(len(loaded.x_test)).split(50):
        x, y = loaded.x_test[rows], loaded.y_test[rows]
        bounds = certify(model, x, y, eps=eps, method="alpha_crown")
        left = (~bounds.verified & ~bounds.falsified).nonzero().flatten()
        if len(left):
            kept = ~pgd(model, x[left], y[left], norm="linf", eps=eps, steps=60, restarts=20).success
            found += rows[left[kept]].tolist()
        if len(found) >= count:
            break
    return loaded.x_test[found[:count]], loaded.y_test[found[:count]]


def asked(graph: Graph, image: Tensor, digit: int, eps: float, timeout: float, options: dict[str, Any]) -> Verdict:
    """Whether the label is kept on the ball around one image."""
    low, high = ball(image, eps, (0.0, 1.0))

    def replay(points: Tensor) -> Tensor | None:
        lost = graph(points.reshape(-1, *graph.input_shape)).argmax(dim=1) != digit
        return points[lost][0] if bool(lost.any()) else None

    cases = label_cases(low.flatten(), high.flatten(), digit, graph.output_shape[0])
    return solve(graph, cases, replay, Clock(timeout), **options)


def main() -> None:
    """One line for each network and choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(RADII), choices=list(RADII))
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--tiny", action="store_true", help="a smoke run: one image, half a second")
    given = parser.parse_args()
    if given.tiny:
        given.images, given.timeout = 1, 0.5
    torch.set_num_threads(1)
    for name in given.models:
        eps = RADII[name]
        x, y = open_images(name, eps, given.images)
        graph = trace(zoo.load(name), x).to(torch.float64)
        for label, options in OPTIONS.items():
            said, domains, seconds = [], [], []
            for image, digit in zip(x, y.tolist(), strict=True):
                start = time.process_time()
                verdict = asked(graph, image, digit, eps, given.timeout, options)
                seconds.append(time.process_time() - start)
                said.append(verdict.status)
                domains.append(f"{int(verdict.details['domains']):,}{'' if verdict.status in DECIDED else '+'}")
            share, each = f"{sum(status in DECIDED for status in said)}/{len(x)}", " ".join(domains)
            print(f"{name:14} {eps:<5} {label:20} {share} decided {sum(seconds):7.1f} s   domains {each}", flush=True)


if __name__ == "__main__":
    main()
