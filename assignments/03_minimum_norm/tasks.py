"""Minimum-norm attacks: what each student gets, and the tests of what comes back.

A student's perturbation is measured by one of three lengths, with weights of their own. The instructor's copy works out
the first, and no student has it:

    ellipsoid   (Σ_i (w_i·δ_i)²)^½
    values      max_i w_i·|δ_i|             the largest change of a value
    pixels      max_p w_p·(Σ_c δ_cp²)^½     the largest change of a pixel, whatever its colors do

The judge knows the smallest distances by the dual of the length alone, so this file does not say in which direction the
nearest point lies. The last network is piecewise affine with a convex region of class 0, so its distances are exact as
well: the region's faces are those of no gradient at x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assignments.grading.task import METHODS, Test, require, tensor_like
from robustlab.teaching.check.finding import lengths
from robustlab.teaching.check.minimum_norm import (
    FAR,
    affine_case,
    bend_case,
    crossing_case,
    margins,
    optimum_distances,
)
from robustlab.teaching.check.onto_sets import ConvexSet
from robustlab.teaching.handout import relu_network

BLOCKED = METHODS
SHAPE = (3, 4, 4)
WORKED, FOR_STUDENTS = "ellipsoid", ("values", "pixels")
FACES = 8


def draw(seed: int, worked: bool) -> dict[str, Any]:
    """A variant: a length with its weights, an affine network of six classes with inputs, and one of many faces."""
    generator = torch.Generator().manual_seed(seed)
    kind = FOR_STUDENTS[int(torch.randint(2, (), generator=generator))]
    kind = WORKED if worked else kind
    weights = 1 + torch.rand((1, *SHAPE[1:]) if kind == "pixels" else SHAPE, generator=generator)
    model, x, y = affine_case(SHAPE, 6, seed=seed + 1, dtype=torch.float32)
    x = 0.5 + 0.05 * torch.randn(200, *SHAPE, generator=generator).clamp(-3, 3)
    y = model(x).argmax(dim=1).detach()
    mislabeled = torch.rand(200, generator=generator) < 0.05
    y[mislabeled] = (y[mislabeled] + 1) % 6
    ball = a_length(kind, weights)
    share = 0.35 + 0.3 * torch.rand((), generator=generator).double()
    eps = round(float(optimum_distances(model, x, y, ball).amin(dim=1).quantile(share)), 4)
    faces, maze_x = _faces(ball, generator)
    return {
        "kind": kind,
        "weights": weights,
        "model": model,
        "x": x,
        "y": y,
        "eps": eps,
        "maze": maze_network(*faces),
        "maze_x": maze_x,
    }


def a_length(kind: str, weights: Tensor) -> ConvexSet:
    """A length and the dual of it, in double precision."""
    w = weights.double()

    def per_pixel(v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v, dim=1, keepdim=True)

    return {
        "ellipsoid": ConvexSet(lambda d: lengths(d * w, "l2"), lambda g: lengths(g / w, "l2")),
        "values": ConvexSet(lambda d: lengths(d * w, "linf"), lambda g: lengths(g / w, "l1")),
        "pixels": ConvexSet(lambda d: lengths(per_pixel(d) * w, "linf"), lambda g: lengths(per_pixel(g) / w, "l1")),
    }[kind]


def _faces(ball: ConvexSet, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Half-spaces a_j·x ≤ b_j of very different slopes, and points between them."""
    a = torch.randn(FACES, 48, generator=generator)
    # The flatter a face, the less its function is below zero at the middle, and the farther away it is: gradients there
    # are those of the farthest.
    order = torch.randperm(FACES, generator=generator)
    a = a / lengths(a, "l2")[:, None] * torch.logspace(0, 3, FACES, base=2.0)[order][:, None]
    distance = torch.linspace(0.08, 0.03, FACES)[order]
    b = 0.5 * a.sum(dim=1) + distance * ball.dual(a.double().reshape(-1, *SHAPE)).float()
    x = 0.5 + 0.004 * torch.randn(60, *SHAPE, generator=generator).clamp(-3, 3)
    x = x[(x.flatten(1) @ a.T < b).all(dim=1)]
    return (a, b), x


def maze_network(a: Tensor, b: Tensor) -> nn.Sequential:
    """Two logits with z₁ − z₀ = max_j (a_j·x − b_j), by a tournament: max(p, q) = relu(q − p) + relu(p) − relu(−p)."""
    layers, weight, bias = list[tuple[Tensor, Tensor]](), a, -b
    while len(weight) > 1:
        p, q = weight[0::2], weight[1::2]
        layers.append(
            (torch.cat([q - p, p, -p]), torch.cat([bias[1::2] - bias[0::2], bias[0::2], -bias[0::2]])),
        )
        half = len(p)
        eye = torch.eye(half)
        weight, bias = torch.cat([eye, eye, -eye], dim=1), torch.zeros(half)
    layers.append((torch.cat([torch.zeros_like(weight), weight]), torch.zeros(2)))
    return relu_network(layers)


def maze_distances(maze: nn.Sequential, x: Tensor, ball: ConvexSet) -> Tensor:
    """How far it is from x to the nearest face, (N,)."""
    first, d = maze[1], FACES // 2
    p, q = first.weight[d : 2 * d], first.weight[:d] + first.weight[d : 2 * d]
    a = torch.cat([p, q]).detach().double()
    b = torch.cat([first.bias[d : 2 * d], first.bias[:d] + first.bias[d : 2 * d]]).detach().double()
    return ((-b - x.double().flatten(1) @ a.T) / ball.dual(a.reshape(-1, *SHAPE))).amin(dim=1)


def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
    """Twenty points by the computer; the questions in words are graded by hand."""
    ball = a_length(mine["kind"], mine["weights"])
    return [
        *_steepest(seed, ball),
        *_optimum(seed + 1, ball),
        *_bisect(seed + 2),
        *_deepfool(seed + 3, ball),
        *_answers(mine, ball),
    ]


def _steepest(seed: int, ball: ConvexSet) -> list[Test]:
    """The direction of length one that gains most: 2 points."""
    g = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(seed))

    def judge(out: Any) -> None:
        out = tensor_like(out, g)
        longest = float(ball.length(out).max())
        require(longest <= 1 + 1e-4, f"a direction has length {longest:.4g}, want 1")
        share = float(((g * out).flatten(1).sum(dim=1) / ball.dual(g.double())).min())
        require(share >= 1 - 1e-3, f"a direction gains {share:.0%} of what one of length 1 can")

    return [Test("steepest", 2, "test-steepest", "steepest", judge, [g])]


def _optimum(seed: int, ball: ConvexSet) -> list[Test]:
    """The nearest point across a boundary of an affine network: 5 points."""

    def nearest(model: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[Any], None]:
        best, scale = optimum_distances(model, x, y, ball).amin(dim=1), float(margins(model, x, y).abs().max())

        def judge(out: Any) -> None:
            out, right = tensor_like(out, x), best > 0
            off = float(margins(model, out.float(), y)[right].abs().max()) / scale
            require(off <= 1e-3, f"a result is not on the boundary: its lead is {off:.2g} of the largest one")
            share = float((ball.length(out - x) / (best + 1e-3 * best.median()))[right].max())
            require(share <= 1 + 1e-3, f"a result is {share:.4g} times as far away as the nearest boundary")

        return judge

    few, many = (affine_case(SHAPE, n, seed=seed + n, dtype=torch.float32) for n in (5, 30))

    def settled(out: Any) -> None:
        moved = lengths(tensor_like(out, few[1]) - few[1], "linf")
        require((moved[1:] > 0).any(), "no sample was moved")
        require(moved[0] <= 1e-6, f"a sample that is misclassified already was moved by {float(moved[0]):.2g}")

    def arguments(case: tuple[nn.Sequential, Tensor, Tensor]) -> list[Any]:
        model, x, y = case
        return [model[1].weight.detach(), model[1].bias.detach(), x, y]

    cell, asks = "test-optimum", "affine_optimum"
    return [
        Test("optimum", 2, cell, asks, nearest(*few), arguments(few)),
        Test("many", 2, cell, asks, nearest(*many), arguments(many)),
        Test("settled", 1, cell, asks, settled, arguments(few)),
    ]


def _bisect(seed: int) -> list[Test]:
    """The first misclassified point along a direction: 2 points."""
    model, x, y, direction, crossing = crossing_case(SHAPE, seed=seed)
    met = crossing.isfinite() & (crossing > 0)
    size = lengths(direction, "l2")

    def across(out: Any) -> None:
        out = tensor_like(out, x)
        t = lengths(out - x, "l2") / size
        off = float((t - crossing)[met].abs().max())
        require(off <= 1.5e-3 * FAR, f"a crossing is missed by {off:.2g}")
        require((margins(model, out, y)[met] < 0).all(), "a result is classified as y")
        aside = lengths(out - x - t.reshape(-1, 1, 1, 1) * direction, "linf")[met]
        require(aside.max() <= 1e-6, "a result is not on the line")

    def stays(out: Any) -> None:
        moved = lengths(tensor_like(out, x) - x, "linf")
        require((moved[met] > 0).any(), "no sample was moved")
        require(moved[~met].max() <= 1e-9, "a sample without a crossing was moved")

    cell, asks, arguments = "test-bisect", "bisect", [model, x, y, direction, FAR]
    return [Test("across", 1, cell, asks, across, arguments), Test("stays", 1, cell, asks, stays, arguments)]


def _deepfool(seed: int, ball: ConvexSet) -> list[Test]:
    """DeepFool in the student's own length: 5 points."""
    model, x, y = affine_case(SHAPE, 6, seed=seed, dtype=torch.float32)
    model.insert(1, nn.Dropout(0.9).eval())  # who puts the model into training mode meets another one
    best = optimum_distances(nn.Sequential(model[0], model[2]), x, y, ball).amin(dim=1)
    bent, bent_x, bent_y = bend_case(SHAPE, seed=seed + 1, dtype=torch.float32)
    near = float(ball.dual(bent[1].weight[:1].detach().double().reshape(1, *SHAPE)))
    ends = (x > 0.5).float()
    ends_y = model(ends).argmax(dim=1).detach()

    def nearest(out: Any) -> None:
        out, right = tensor_like(out, x), best > 0
        require((margins(model, out.float(), y)[right] < 0).all(), "a result is not misclassified")
        share = float((ball.length(out - x) / (best + 1e-3 * best.median()))[right].max())
        require(share <= 1.03, f"with an overshoot of 0.02 a result is {share:.4g} times as far as the boundary")
        require((ball.length(out - x)[~right] <= 1e-6).all(), "a sample that was misclassified before was moved")

    def inside(out: Any) -> None:
        out = tensor_like(out, ends)
        require((out != ends).any(), "no sample was moved")
        require(out.min() >= 0 and out.max() <= 1, "the result leaves the box")

    def follows(out: Any) -> None:
        met = margins(bent, tensor_like(out, bent_x).float(), bent_y) < 0
        require(met.all(), f"beyond a bend {int((~met).sum())} of {len(met)} samples are not misclassified")

    def stops(out: Any) -> None:
        out, early = tensor_like(out, bent_x), bent_y == 1
        lead = margins(bent, bent_x, bent_y).double()
        share = (ball.length(out - bent_x) / (lead / (0.1 * near)))[early]
        said = "a sample that is there after one step is {:.4g} times as far as the boundary"
        require(share.max() <= 1.03, said.format(float(share.max())))
        require(share.min() >= 0.9, said.format(float(share.min())))

    cell, asks = "test-deepfool", "deepfool"
    return [
        Test("nearest", 2, cell, asks, nearest, [model, x, y, 50, 0.02]),
        Test("box", 1, cell, asks, inside, [model, ends, ends_y, 50, 0.02]),
        Test("follows", 1, cell, asks, follows, [bent, bent_x, bent_y, 50, 0.02]),
        Test("stops", 1, cell, asks, stops, [bent, bent_x, bent_y, 50, 0.02]),
    ]


def _answers(mine: dict[str, Any], ball: ConvexSet) -> list[Test]:
    """Numbers about the student's own networks: 6 points."""
    best = optimum_distances(mine["model"], mine["x"], mine["y"], ball).amin(dim=1)
    robust = float((best > mine["eps"]).double().mean())
    maze, maze_x = mine["maze"], mine["maze_x"]
    exact = maze_distances(maze, maze_x, ball)
    inside = torch.zeros(len(maze_x), dtype=torch.int64)

    def each(value: Any) -> None:
        off = (tensor_like(value, mine["x"][:, 0, 0, 0]) - best).abs()
        share = float((off <= 0.01 * best + 1e-5).double().mean())
        require(share >= 0.95, f"{share:.0%} of the distances are within 1% of the smallest")

    def accuracy(value: Any) -> None:
        one = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
        require(one, "robust_accuracy is no number")
        require(abs(float(value) - robust) <= 0.0051, f"{float(value):.3f} is not that of your network")

    def short(most: float) -> Callable[[Any], None]:
        def judge(value: Any) -> None:
            out = tensor_like(value, maze_x)
            require(out.min() >= 0 and out.max() <= 1, "a point leaves the box")
            met = margins(maze, out.float(), inside) < 0
            good = met & (ball.length(out - maze_x) <= most * exact)
            share = float(good.double().mean())
            require(share >= 0.9, f"{share:.0%} of the points are misclassified and at most {most:g} times too far")

        return judge

    cell, maze_cell = "test-answers", "test-maze"
    return [
        Test("distances", 2, cell, "smallest", each, call=False),
        Test("accuracy", 1, cell, "robust_accuracy", accuracy, call=False),
        Test("found", 1, maze_cell, "found", short(3.0), call=False, seconds=30.0),
        Test("shortest", 2, maze_cell, "found", short(1.05), call=False, seconds=30.0),
    ]
