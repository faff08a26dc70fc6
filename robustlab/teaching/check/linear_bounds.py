"""Intervals and CROWN, held to robustlab's own and to what a network does at sampled points.

A network here is a list of affine layers (W, b) with one function between them, ``left·z`` below 0 and ``right·z``
above: the ReLU is (0, 1), the absolute value (−1, 1). Its bounds come apart into pieces that can be looked at alone:
one layer without any function, neurons that are all stable, one row of neurons that are not, and then two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, of_the_batch, require_shape

Layers = Sequence[Sequence[Tensor]]
"""[(W, b), ...] of the affine layers."""
Bend = tuple[float, float]
"""The slopes (left, right) of the function between the layers."""
SLACK = 1e-7


def intervals(function: Callable[..., Any], *, bend: Bend = (0.0, 1.0), seed: int = 0, hints: int = 1) -> None:
    """Check interval bound propagation: prints one line where all holds.

    Args:
        function: called as ``function(layers, lower, upper)`` with ``layers`` as in this module, and the ends of a box
            of inputs (N, d); returns a list with the bounds (lower, upper), (N, width) each, of the values *after* each
            affine layer and *before* the function between the layers.
        bend: the slopes of the function between the layers (default: the ReLU).
        seed: of the networks and boxes (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for number, sizes in enumerate([(3, 2), (4, 6, 3), (3, 5, 5, 2)]):
            layers, lower, upper = bounds_case(sizes, seed=seed + number)
            _intervals(function, layers, lower, upper, bend)
    except Wrong as wrong:
        raise wrong.shown_as("intervals", hints) from None
    print("intervals: holds, on networks of one to three layers, at sampled points and sample by sample")


def crown(function: Callable[..., Tensor], *, bend: Bend = (0.0, 1.0), seed: int = 0, hints: int = 1) -> None:
    """Check the backward bound of CROWN, against robustlab's own: prints one line where all holds.

    Args:
        function: called as ``function(layers, lower, upper, C)`` with C (M, K); returns lower bounds (N, M) of C·f(x)
            on the box. The bounds of hidden layers come from backward passes of their own, or are tighter.
        bend, seed, hints: as in :func:`intervals`; the slopes must not fall from left to right.

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        _affine_alone(function, seed)
        for shift, piece in ((6.0, _stable), (0.0, _one_row)):
            piece(function, bounds_case((4, 6, 3), seed=seed + 1, shift=shift), bend)
        for number, sizes in enumerate([(4, 8, 8, 3), (3, 6, 6, 6, 2)]):
            _deep(function, bounds_case(sizes, seed=seed + 2 + number, count=20), bend)
    except Wrong as wrong:
        raise wrong.shown_as("crown", hints) from None
    print("crown: holds, on networks of one to four layers, against robustlab's and at sampled points")


def bounds_case(
    sizes: Sequence[int], *, seed: int, count: int = 8, shift: float = 0.0
) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """A random network, and boxes of inputs of several widths; biases of ±shift make hidden neurons stable."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for n, m in pairwise(sizes):
        weight = torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5
        bias = 0.3 * torch.randn(m, generator=generator, dtype=torch.float64)
        if shift and m != sizes[-1]:
            bias = bias + shift * (-1.0) ** torch.arange(m)
        layers.append((weight, bias))
    x = torch.rand(count, sizes[0], generator=generator, dtype=torch.float64)
    radius = torch.linspace(0.05, 0.4, count, dtype=torch.float64)[:, None]
    return layers, x - radius, x + radius


def values(layers: Layers, x: Tensor, bend: Bend) -> list[Tensor]:
    """The values after each affine layer, for x (..., d)."""
    found = list[Tensor]()
    for weight, bias in layers:
        found.append(x @ weight.T + bias)
        x = bent(found[-1], bend)
    return found


def bent(z: Tensor, bend: Bend) -> Tensor:
    """left·z below 0 and right·z above."""
    return bend[0] * z.clamp_max(0) + bend[1] * z.clamp_min(0)


def sampled(lower: Tensor, upper: Tensor, seed: int = 0, count: int = 400) -> Tensor:
    """Points of each box, half of them corners, (count, N, d)."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *lower.shape, generator=generator, dtype=lower.dtype)
    share[::2] = share[::2].round()
    return lower + share * (upper - lower)


def _pairs(out: Any, layers: Layers, lower: Tensor) -> list[Tensor]:
    """The bounds as one list of lower and upper ends, if they have the form that is asked for."""
    if not isinstance(out, list | tuple) or len(out) != len(layers):
        got = f"{len(out)} entries" if isinstance(out, list | tuple) else f"a {type(out).__name__}"
        raise Wrong(
            f"the function returned {got}, the network has {len(layers)} affine layers",
            "the bounds of one layer too many or too few",
            "One pair (lower, upper) per affine layer, the last one included.",
            "Append the bounds in the loop over layers, before the function between the layers.",
        )
    found = list[Tensor]()
    for number, (pair, (weight, _)) in enumerate(zip(out, layers, strict=True)):
        shape = (len(lower), len(weight))
        ends = list(pair) if isinstance(pair, list | tuple) else []
        if len(ends) != 2 or any(not isinstance(end, Tensor) or end.shape != shape for end in ends):
            raise Wrong(
                f"the bounds of layer {number} are no pair of tensors of shape {shape}",
                "wrong shape",
                "x is (N, n) and W is (m, n): the values of a layer are x @ W.T + b.",
                "Return (lower, upper) of the values, not their center and radius.",
            )
        found += [end.detach() for end in ends]
    return found


def _intervals(function: Callable[..., Any], layers: Layers, lower: Tensor, upper: Tensor, bend: Bend) -> None:
    out = _pairs(function(layers, lower, upper), layers, lower)
    _require_same_alone(lambda some: _pairs(function(layers, lower[some], upper[some]), layers, lower[some]))
    met = values(layers, sampled(lower, upper), bend)
    _before_the_function(out[:2], layers[0], (lower, upper), bend)
    for number, here in enumerate(met):
        low, high = out[2 * number : 2 * number + 2]
        if bool((low > high + SLACK).any()):
            raise Wrong(
                f"in layer {number} a lower end is above the upper one",
                "W applied to both ends, whatever its signs",
                "A negative weight takes the lower end of its input to the upper end of its output.",
                "Split W = W.clamp(min=0) + W.clamp(max=0), or carry the box as center and radius with |W|.",
            )
        if bool(((here < low - SLACK) | (here > high + SLACK)).any()):
            raise _misses(number, low, high, layers, (lower, upper), bend)
        _as_tight(number, low, high, out[2 * number - 2 : 2 * number], layers, (lower, upper), bend)


def _before_the_function(out: list[Tensor], layer: Sequence[Tensor], box: tuple[Tensor, Tensor], bend: Bend) -> None:
    """Raises where the first layer's bounds are those of what the function makes of its values."""
    exact = _image(layer, box)
    ends = [bent(end, bend) for end in exact]
    least = torch.where((exact[0] < 0) & (exact[1] > 0), 0.0, torch.minimum(*ends))
    for after in (ends, [least, torch.maximum(*ends)]):
        if all(torch.allclose(a, b, atol=SLACK) for a, b in zip(out, after, strict=True)) and not all(
            torch.allclose(a, b, atol=SLACK) for a, b in zip(out, exact, strict=True)
        ):
            raise Wrong(
                "the bounds of layer 0 are those of its values after the function between the layers",
                "the function is applied before the bounds are kept",
                "The last layer has no function behind it, so bounds are of the values before it.",
                "Keep the bounds of W·x + b first, and apply the function at the start of the next layer.",
            )


def _image(layer: Sequence[Tensor], box: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The closest bounds of an affine layer's values on a box."""
    corners = torch.stack([layer[0] * box[0][:, None], layer[0] * box[1][:, None]])
    return corners.amin(dim=0).sum(dim=-1) + layer[1], corners.amax(dim=0).sum(dim=-1) + layer[1]


def _misses(number: int, low: Tensor, high: Tensor, layers: Layers, box: tuple[Tensor, Tensor], bend: Bend) -> Wrong:
    """Why a point of the box has a value outside of the bounds."""
    seen = f"a point of the box has a value outside of the bounds of layer {number}"
    if number == 0:
        two = torch.stack([end @ layers[0][0].T + layers[0][1] for end in box])
        if torch.allclose(low, two.amin(dim=0)) and torch.allclose(high, two.amax(dim=0)):
            return Wrong(
                seen,
                "two corners of the box are looked at, of all that it has",
                "With weights of both signs, the smallest value is at neither of the two.",
                "lower = W⁺·lower + W⁻·upper + b, with W⁺ = max(W, 0) and W⁻ = min(W, 0).",
            )
        return Wrong(
            seen,
            "the affine layer is not bounded as a whole",
            "Is b added to both ends?",
            "lower = W⁺·lower + W⁻·upper + b, with W⁺ = max(W, 0) and W⁻ = min(W, 0).",
        )
    if min(bend) < 0:
        return Wrong(
            seen,
            "the function between the layers is not monotone",
            "Its value at 0 is below its values on both sides.",
            "Where lower < 0 < upper, the smallest value is that at 0, and the largest that of one of the ends.",
        )
    return Wrong(
        seen,
        "the function between the layers is not applied to the box",
        "The bounds of a layer start from the bounds of the one before, after the function.",
        "A monotone function takes ends to ends: act(lower), act(upper).",
    )


def _as_tight(
    number: int, low: Tensor, high: Tensor, before: list[Tensor], layers: Layers, box: tuple[Tensor, Tensor], bend: Bend
) -> None:
    """Raises where bounds are wider than those that follow from the bounds of the layer before."""
    if number:
        ends = [bent(end, bend) for end in (before[0], before[1], torch.zeros_like(before[0]))]
        ends[2] = torch.where((before[0] < 0) & (before[1] > 0), ends[2], ends[0])
        box = torch.stack(ends).amin(dim=0), torch.stack(ends).amax(dim=0)
    exact = _image(layers[number], box)
    wider = max(float((exact[0] - low).max()), float((high - exact[1]).max()))
    if wider > SLACK:
        raise Wrong(
            f"the bounds of layer {number} hold, but are {wider:.2g} wider than they could be",
            "wider than intervals need to be",
            "From a box, an affine layer gives exactly center ± |W|·radius.",
            "Is the box after the function as small as it could be? Look at the neurons that cannot be negative.",
        )


def _require_same_alone(ask: Callable[[slice], list[Tensor]]) -> None:
    together = ask(slice(None))
    alone = [ask(slice(i, i + 1)) for i in range(len(together[0]))]
    if not all(torch.allclose(a, torch.cat(parts), atol=SLACK) for a, *parts in zip(together, *alone, strict=True)):
        raise of_the_batch(
            "Every sample has its own bounds, its own lines and its own coefficients.",
            "Look for max(), mean() or any() over dimension 0, and for lower[0].",
        )


def reference(
    layers: Layers, lower: Tensor, upper: Tensor, C: Tensor, bend: Bend, *, by: str = "crown", intersect: bool = False
) -> Tensor:
    """robustlab's own bounds of such a network, (N, M), by ``"crown"``, ``"crown_ibp"`` or ``"ibp"``."""
    from robustlab.graph.affine import Linear  # not above: assignments do without these
    from robustlab.graph.hinge import Hinge
    from robustlab.graph.node import Builder
    from robustlab.verification.propagation.crown import crown_bound, crown_ibp_bound
    from robustlab.verification.propagation.ibp import ibp_bound
    from robustlab.verification.propagation.region import Box

    builder, last = Builder(lower.shape[1:], dtype=lower.dtype), 0
    for number, (weight, bias) in enumerate(layers):
        last = builder.add(Hinge(*bend), last) if number else last
        last = builder.add(Linear(weight, bias), last)
    graph, region = builder.finish(last), Box(lower, upper)
    if by == "ibp":
        return ibp_bound(graph, region, C)
    return {"crown": crown_bound, "crown_ibp": crown_ibp_bound}[by](graph, region, C, intersect=intersect)


def _asked(function: Callable[..., Tensor], layers: Layers, lower: Tensor, upper: Tensor, C: Tensor) -> Tensor:
    out = function(layers, lower, upper, C)
    require_shape(
        out,
        (len(lower), len(C)),
        "one bound per sample and row of C",
        "Each sample has its own lines, so the coefficients of a backward pass are (N, M, width).",
        "At the input: (A.clamp(min=0) @ lower[:, :, None] + A.clamp(max=0) @ upper[:, :, None]).squeeze(2).",
    )
    if not bool(out.isfinite().all()):
        raise Wrong(
            "a bound is not finite",
            "a division by zero",
            "Where lower = upper, the chord of a neuron has no slope.",
            "Stable neurons need no chord: choose by torch.where, and clamp the denominator first.",
        )
    return out.detach()


def _both_signs(layers: Layers) -> Tensor:
    eye = torch.eye(len(layers[-1][1]), dtype=torch.float64)
    return torch.cat([eye, -eye])


def _affine_alone(function: Callable[..., Tensor], seed: int) -> None:
    layers, lower, upper = bounds_case((4, 3), seed=seed)
    C = _both_signs(layers)
    out = _asked(function, layers, lower, upper, C)
    A = C @ layers[0][0]
    shift = C @ layers[0][1]
    exact = A.clamp_min(0) @ lower.T + A.clamp_max(0) @ upper.T + shift[:, None]
    if torch.allclose(out, exact.T, atol=SLACK):
        return
    highest = A.clamp_min(0) @ upper.T + A.clamp_max(0) @ lower.T + shift[:, None]
    if torch.allclose(out, highest.T, atol=SLACK):
        raise Wrong(
            "on one affine layer the result is the largest value, not the smallest",
            "the wrong end of the box",
            "A lower bound takes the lower end of an input where its coefficient is positive.",
            "A⁺·lower + A⁻·upper + constant.",
        )
    if torch.allclose(out, exact.T - shift, atol=SLACK):
        raise Wrong(
            "on one affine layer the result lacks C·b",
            "the biases are lost",
            "Each affine layer on the way back adds A·b to the constant.",
            "constant = constant + A @ b, and only then A = A @ W.",
        )
    raise Wrong(
        "on one affine layer, where the bound is exact, the result differs by "
        f"{float((out - exact.T).abs().max()):.2g}",
        "the backward pass of an affine layer, or the minimum over the box",
        "C·(W·x + b) = (C·W)·x + C·b: the order of the factors matters.",
        "A starts as C. Then A·W, the constant A·b, and at the box A⁺·lower + A⁻·upper.",
    )


Case = tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]


def _stable(function: Callable[..., Tensor], case: Case, bend: Bend) -> None:
    layers, lower, upper = case
    C = _both_signs(layers)
    out, exact = _asked(function, layers, lower, upper, C), reference(layers, lower, upper, C, bend)
    if not torch.allclose(out, exact, atol=SLACK):
        raise Wrong(
            "where no neuron changes its sign on the box, the network is affine, and the bound should be exact",
            "stable neurons are relaxed as if they were not, or not passed at all",
            "Where lower ≥ 0 both lines are the function's right side, where upper ≤ 0 its left side.",
            f"There the slopes are {bend[1]:g} and {bend[0]:g}, and the intercepts are 0.",
        )


def _one_row(function: Callable[..., Tensor], case: Case, bend: Bend) -> None:
    """One hidden layer, whose bounds are exact: what is wrong is a line, or how coefficients choose between them."""
    layers, lower, upper = case
    C = _both_signs(layers)
    out = _asked(function, layers, lower, upper, C)
    _require_same_alone(lambda some: [_asked(function, layers, lower[some], upper[some], C)])
    least = (values(layers, sampled(lower, upper), bend)[-1] @ C.T).amin(dim=0)
    over = float((out - least).max())
    if over > SLACK:
        raise Wrong(
            f"a bound is no bound: a point of the box has a value that is {over:.2g} smaller",
            "a line on the wrong side, or chosen by the wrong sign",
            "Where a neuron's coefficient is positive, a lower bound needs the line below it, else the line above.",
            "The line above is the chord from (l, act(l)) to (u, act(u)): it has an intercept, which A⁻ multiplies.",
            "Have hidden neurons bounds on both sides? An upper bound of z is a lower one of −z, sign turned.",
        )
    if bool((out < reference(layers, lower, upper, C, bend) - SLACK).any()):
        raise Wrong(
            "with one hidden layer a bound holds, but is below CROWN's",
            "a line with more area than CROWN's",
            "Above, the chord. Below, the one of the two sides that leaves less area.",
            "The line below has the right side's slope where u ≥ −l, else the left side's.",
        )


def _deep(function: Callable[..., Tensor], case: Case, bend: Bend) -> None:
    layers, lower, upper = case
    C = _both_signs(layers)
    out = _asked(function, layers, lower, upper, C)
    _require_same_alone(lambda some: [_asked(function, layers, lower[some], upper[some], C)])
    least = (values(layers, sampled(lower, upper), bend)[-1] @ C.T).amin(dim=0)
    if bool((out > least + SLACK).any()):
        raise Wrong(
            "with two hidden layers a bound is no bound",
            "the layers are passed in another order, or with each other's lines",
            "On the way back: affine layer, lines of the layer before, affine layer, ... down to the input.",
            "A hidden layer's lines come from its own bounds, and those from a backward pass that starts there.",
        )
    letter, tight = (reference(layers, lower, upper, C, bend, intersect=cut) for cut in (False, True))
    if bool((out < torch.minimum(letter, tight) - SLACK).any()):
        by_intervals = torch.allclose(out, reference(layers, lower, upper, C, bend, by="crown_ibp"), atol=SLACK)
        raise Wrong(
            "with two hidden layers a bound holds, but is below CROWN's",
            "hidden layers are bounded by intervals" if by_intervals else "hidden bounds are wider than CROWN's",
            "Intervals make the hidden bounds wide, and wide bounds make bad lines.",
            "Bound each hidden layer as if it were the output: C is then the identity, once for each side.",
        )
