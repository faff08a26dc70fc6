"""A verifier from intervals to CROWN: what each student gets, and the tests of what comes back.

Between the affine layers of a student's networks stands a function of the student's own, with one slope below 0 and
another above:

    relu    0 and 1                              worked out in the instructor's copy, given to no student
    leaky   two positive slopes                  monotone
    vee     a negative slope and a positive one  whose smallest value is at 0, inside of an interval

A verifier is scored as a tool is: an answer "verified" that is right counts one, "unknown" nothing, and one "verified"
where the judge knows a counterexample takes away three eighths of all that there was to get.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assignments.grading.task import METHODS, Test, require, tensor_like
from robustlab.teaching.check import linear_bounds
from robustlab.teaching.check.linear_bounds import Bend, Layers, bent, bounds_case, sampled, values

BLOCKED = METHODS
WORKED, FOR_STUDENTS = "relu", ("leaky", "vee")
GROUP, UNSOUND = 16, 0.375
SLACK = 1e-6


def draw(seed: int, worked: bool) -> dict[str, Any]:
    """A variant: the function between the layers, a network of three classes, and points with the labels it gives."""
    generator = torch.Generator().manual_seed(seed)
    kind = FOR_STUDENTS[int(torch.randint(2, (), generator=generator))]
    size, right = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    left = 0.15 + 0.4 * size if kind == "leaky" else -0.35 - 0.4 * size
    bend = [0.0, 1.0] if worked else [round(left, 3), round(0.8 + 0.4 * right, 3)]
    layers, x, y = network((6, 10, 10, 3), seed, (bend[0], bend[1]), 24)
    kind = WORKED if worked else kind
    return {"kind": kind, "bend": bend, "layers": [list(layer) for layer in layers], "x": x, "y": y}


def network(sizes: tuple[int, ...], seed: int, bend: Bend, count: int) -> tuple[list[Any], Tensor, Tensor]:
    """A random network, and inputs up to the ends of the box that it does not classify by a hair."""
    layers, _, _ = bounds_case(sizes, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.rand(8 * count, sizes[0], generator=generator, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.4, x.round(), x)
    z = values(layers, x, bend)[-1]
    weight, bias = layers[-1]
    layers[-1] = weight, bias - z.mean(dim=0)  # no class has all points then
    top = (z - z.mean(dim=0)).topk(2, dim=1)
    sure = (top.values[:, 0] - top.values[:, 1]).argsort(descending=True)[: 4 * count]
    chosen = sure[torch.randperm(4 * count, generator=generator)[:count]]
    return layers, x[chosen], top.indices[chosen, 0]


def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
    """Twenty points by the program; the rest by hand."""
    bend = (mine["bend"][0], mine["bend"][1])
    return [
        *_intervals(seed, bend),
        *_lines(seed + 1, bend),
        *_bounds(seed + 2, bend),
        *_verdicts(seed + 3, bend),
        *_answers(mine, bend),
    ]


def _intervals(seed: int, bend: Bend) -> list[Test]:
    """Interval propagation: 4 points."""
    layers, lower, upper = bounds_case((4, 7, 6, 3), seed=seed)
    met = values(layers, sampled(lower, upper, seed, 2000), bend)

    def pairs(out: Any) -> list[tuple[Tensor, Tensor]]:
        require(isinstance(out, list) and len(out) == 3, "it returned no list of three pairs")
        like = [here[0] for here in met]
        return [(tensor_like(low, z), tensor_like(high, z)) for (low, high), z in zip(out, like, strict=True)]

    def sound(out: Any) -> None:
        for number, ((low, high), here) in enumerate(zip(pairs(out), met, strict=True)):
            missed = (here < low - SLACK) | (here > high + SLACK)
            require(not missed.any(), f"a point of the box has a value outside of the bounds of layer {number}")

    def tight(out: Any) -> None:
        """No wider than what the bounds of the layer before allow, which are taken as they are."""
        low, high = lower, upper
        for number, ((weight, bias), (l, u)) in enumerate(zip(layers, pairs(out), strict=True)):
            width = (weight.abs() * (high - low)[:, None]).sum(dim=2)
            middle = (low + high) @ weight.T / 2 + bias
            off = torch.maximum((l - middle + width / 2).abs().max(), (u - middle - width / 2).abs().max())
            require(off <= SLACK, f"an end of layer {number} is {float(off):.2g} away from that of the interval")
            ends = torch.stack([bent(end, bend) for end in (l, u, torch.zeros_like(l).clamp(l, u))])
            low, high = ends.amin(dim=0), ends.amax(dim=0)

    cell, arguments = "test-intervals", [layers, lower, upper]
    return [
        Test("sound", 2, cell, "intervals", sound, arguments),
        Test("tight", 2, cell, "intervals", tight, arguments),
    ]


def _lines(seed: int, bend: Bend) -> list[Test]:
    """The lines below and above the function: 3 points."""
    generator = torch.Generator().manual_seed(seed)
    ends = 2 * torch.rand(30, 8, 2, generator=generator, dtype=torch.float64) - 1
    lower, upper = ends.amin(dim=2), ends.amax(dim=2)
    lower[:, 0], upper[:, 0] = 0.0, 0.0
    upper[:, 1] = lower[:, 1]
    unstable = (lower < 0) & (upper > 0)
    z = lower + torch.linspace(0, 1, 51, dtype=torch.float64)[:, None, None] * (upper - lower)

    def gaps(out: Any) -> tuple[Tensor, Tensor]:
        """How far the function is above the line below it, and below the line above it, at points of the interval."""
        require(isinstance(out, list) and len(out) == 3, "it returned no three tensors")
        below, above, intercept = (tensor_like(part, lower) for part in out)
        return bent(z, bend) - below * z, above * z + intercept - bent(z, bend)

    def hold(out: Any) -> None:
        under, over = gaps(out)
        require(under.min() >= -SLACK, "the line below is above the function somewhere")
        require(over.min() >= -SLACK, "the line above is below the function somewhere")

    def least_area(out: Any) -> None:
        under, over = gaps(out)
        touches = torch.maximum(over[0].abs(), over[-1].abs())[unstable]
        require(touches.max() <= SLACK, "the line above is no chord")
        sides = torch.stack([bent(z, bend) - slope * z for slope in bend]).mean(dim=1)
        excess = (under.mean(dim=0) - sides.amin(dim=0))[unstable]
        require(excess.max() <= 0.02, "another line below leaves less area")

    def exact(out: Any) -> None:
        off = torch.maximum(*(gap.abs().amax(dim=0) for gap in gaps(out)))[~unstable]
        require(off.max() <= SLACK, "where the sign is known both lines are the function")

    cell, arguments = "test-lines", [lower, upper]
    return [
        Test("hold", 1, cell, "lines", hold, arguments),
        Test("area", 1, cell, "lines", least_area, arguments),
        Test("stable", 1, cell, "lines", exact, arguments),
    ]


def _bounds(seed: int, bend: Bend) -> list[Test]:
    """The bound of CROWN: 5 points."""
    layers, lower, upper = bounds_case((5, 9, 9, 9, 3), seed=seed, count=16)
    C = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    least = (values(layers, sampled(lower, upper, seed, 4000), bend)[-1] @ C.T).amin(dim=0)
    one, low, high = bounds_case((5, 9, 3), seed=seed + 1, count=16)

    def bound(out: Any) -> None:
        over = float((tensor_like(out, least) - least).max())
        require(over <= SLACK, f"it is no bound: a point of the box has a value that is {over:.2g} smaller")

    def tight(layers: Layers, lower: Tensor, upper: Tensor) -> Callable[[Any], None]:
        known = crowns(layers, lower, upper, C, bend)

        def judge(out: Any) -> None:
            out = tensor_like(out, known)
            share = float((out >= known - SLACK).double().mean())
            require(share >= 0.97, f"{share:.0%} of the bounds are as large as CROWN's")
            higher = float((out - known).max())
            require(higher <= 2.0 * float(known.abs().max()), "bounds as large as these are none")

        return judge

    cell = "test-crown"
    return [
        Test("bound", 2, cell, "crown", bound, [layers, lower, upper, C]),
        Test("one-row", 1, cell, "crown", tight(one, low, high), [one, low, high, C]),
        Test("as-crown", 2, cell, "crown", tight(layers, lower, upper), [layers, lower, upper, C]),
    ]


def crowns(layers: Layers, lower: Tensor, upper: Tensor, C: Tensor, bend: Bend) -> Tensor:
    """What every good answer reaches: the smaller of CROWN's bounds by the letter, and cut with intervals."""
    found = [linear_bounds.reference(layers, lower, upper, C, bend, intersect=cut) for cut in (False, True)]
    return torch.minimum(*found)


def margin_bounds(layers: Layers, x: Tensor, y: Tensor, eps: Tensor, bend: Bend, by: str) -> Tensor:
    """The smallest lower bound of z_y − z_k over the ball and the box, (N,)."""
    lower, upper = (x - eps[:, None]).clamp(0, 1), (x + eps[:, None]).clamp(0, 1)
    eye = torch.eye(len(layers[-1][1]), dtype=x.dtype)
    C = (eye[:, None] - eye).flatten(0, 1)
    if by == "ibp":
        found = linear_bounds.reference(layers, lower, upper, C, bend, by="ibp")
    else:
        found = crowns(layers, lower, upper, C, bend)
    mine = found.reshape(len(x), len(eye), len(eye))[torch.arange(len(x)), y]
    return mine.scatter(1, y[:, None], torch.inf).amin(dim=1)


def largest(holds: Callable[[Tensor], Tensor], x: Tensor, steps: int = 14) -> Tensor:
    """The radius up to which something holds, by bisection from 0 to 1, (N,)."""
    low, high = torch.zeros_like(x[:, 0]), torch.ones_like(x[:, 0])
    for _ in range(steps):
        middle = (low + high) / 2
        right = holds(middle)
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    return low


def attacked(layers: Layers, x: Tensor, y: Tensor, eps: Tensor, bend: Bend, seed: int = 0) -> Tensor:
    """The smallest z_y − z_k that a search in the ball and the box finds, (N,)."""
    x, y, eps = x.repeat(6, 1), y.repeat(6), eps.repeat(6)[:, None]
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    share = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    point, best = low + share * (high - low), torch.full((len(x),), torch.inf, dtype=x.dtype)
    for step in range(25):
        point.requires_grad_()
        z = values(layers, point, bend)[-1]
        lead = z.gather(1, y[:, None]).squeeze(1) - z.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        (grad,) = torch.autograd.grad(lead.sum(), point)
        best = torch.minimum(best, lead.detach())
        point = (point.detach() - eps * 0.8**step * grad.sign()).clamp(low, high)
    return best.reshape(6, -1).amin(dim=0)


class Instances(NamedTuple):
    """Questions to a verifier, and what is known of the answers."""

    x: Tensor
    y: Tensor
    eps: Tensor
    provable: Tensor
    false: Tensor


def instances(layers: Layers, x: Tensor, y: Tensor, bend: Bend) -> Instances:
    """A third that intervals verify, a third that only CROWN does, a third with a counterexample."""
    by_ibp, by_crown = (
        largest(lambda eps, by=by: margin_bounds(layers, x, y, eps, bend, by) > 0, x)  # type: ignore[misc]
        for by in ("ibp", "crown")
    )
    order = (by_ibp / by_crown.clamp_min(1e-9)).argsort()
    hard, easy, broken = order[:GROUP], order[GROUP : 2 * GROUP], order[2 * GROUP : 3 * GROUP]
    found = largest(lambda eps: attacked(layers, x[broken], y[broken], eps, bend) > 0, x[broken], 10)
    factor = torch.where(torch.arange(GROUP) % 2 == 0, 1.03, 1.3)
    eps = torch.cat([0.95 * by_crown[hard], 0.9 * by_ibp[easy], factor * (found + 2.0**-10)])
    rows = torch.cat([hard, easy, broken])
    x, y = x[rows], y[rows]
    false = attacked(layers, x, y, eps, bend) < 0
    provable = margin_bounds(layers, x, y, eps, bend, "crown") > 0
    return Instances(x, y, eps, provable, false)


def _verdicts(seed: int, bend: Bend) -> list[Test]:
    """The score of the verifier on hidden networks: 5 points."""

    def scored(sizes: tuple[int, ...], seed: int, share: float) -> tuple[list[Any], Callable[[Any], None]]:
        layers, x, y = network(sizes, seed, bend, 3 * GROUP)
        asked = instances(layers, x, y, bend)
        order = torch.randperm(len(asked.x), generator=torch.Generator().manual_seed(seed))
        asked = Instances(*(part[order] for part in asked))

        def judge(out: Any) -> None:
            require(isinstance(out, Tensor) and out.dtype == torch.bool, "it returned no tensor of bools")
            require(out.shape == asked.y.shape, f"it returned {tuple(out.shape)}, want {tuple(asked.y.shape)}")
            right, wrong = int((out & asked.provable).sum()), int((out & asked.false).sum())
            score = right / int(asked.provable.sum()) - UNSOUND * wrong
            said = f"of {int(asked.provable.sum())} that CROWN verifies it verifies {right}"
            said += f", and {wrong} that have a counterexample" if wrong else ""
            require(score >= share, f"{said}: a score of {score:.2f}, want {share}")

        return [layers, asked.x, asked.y, asked.eps], judge

    found = []
    for name, points, sizes, share in (
        ("some", 1, (12, 10, 3), 0.4),
        ("most", 2, (12, 10, 10, 3), 0.9),
        ("deep", 2, (12, 8, 8, 8, 4), 0.9),
    ):
        arguments, judge = scored(sizes, seed + len(found), share)
        found.append(Test(name, points, "test-verify", "verify", judge, arguments))
    return found


def _answers(mine: dict[str, Any], bend: Bend) -> list[Test]:
    """Numbers about the student's own network: 3 points."""
    layers, x, y = mine["layers"], mine["x"], mine["y"]
    proven, by_ibp = (
        largest(lambda eps, by=by: margin_bounds(layers, x, y, eps, bend, by) > 0, x)  # type: ignore[misc]
        for by in ("crown", "ibp")
    )
    false = largest(lambda eps: attacked(layers, x, y, eps, bend) > 0, x, 12) + 2.0**-12

    def radii(least: Tensor) -> Callable[[Any], None]:
        def judge(value: Any) -> None:
            value = tensor_like(value.double() if isinstance(value, Tensor) else value, x[:, 0])
            wrong = int((value > false).sum())
            require(wrong == 0, f"at {wrong} of the radii there is a counterexample")
            share = float((value >= 0.97 * least - 1e-4).double().mean())
            require(share >= 0.9, f"{share:.0%} of the radii are as large as they could be")

        return judge

    def better(value: Any) -> None:
        one = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
        require(one, "times_larger is no number")
        exact = float(proven.median() / by_ibp.median())
        require(abs(float(value) - exact) <= 0.08 * exact, f"{float(value):.2f} is not that of your network")

    cell = "test-answers"
    return [
        Test("radii", 2, cell, "largest_eps", radii(proven), call=False, seconds=20.0),
        Test("larger", 1, cell, "times_larger", better, call=False, seconds=20.0),
    ]
