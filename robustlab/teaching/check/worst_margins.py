"""Lower bounds of all margins at once, as training for certificates needs them, held to corners and to robustlab's own.

With one hidden layer the interval bound of a margin is the least value of an affine function on a box of hidden
values, so that going through the corners of that box finds it. Of CROWN-IBP, whose lines start from interval bounds,
robustlab's own bound is the measure, and for both what a network does at sampled points.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, of_the_batch, require_shape
from robustlab.teaching.check.linear_bounds import SLACK, Layers, bent, bounds_case, reference, sampled, values

Margins = Callable[[Layers, Tensor, Tensor, float], Tensor]
"""(layers, x (N, d), y (N,), eps) → lower bounds of z_y − z_k, (N, K)."""
RELU = (0.0, 1.0)
By = Literal["ibp", "crown_ibp"]


def worst_margins(function: Margins, by: By = "ibp", *, seed: int = 0, hints: int = 1) -> None:
    """Check lower bounds of the margins of a ReLU network: prints one line where all holds.

    Args:
        function: called as ``function(layers, x, y, eps)`` with affine layers [(W, b), ...] with a ReLU in between,
            x (N, d) in [0, 1] and y (N,); returns (N, K) lower bounds of z_y − z_k over the ℓ∞ ball of radius eps and
            the box [0, 1], with the last layer and the difference merged into one; 0 where k = y.
        by: what they are to be: ``"ibp"`` (default), or ``"crown_ibp"``, whose lower line of an unstable neuron has
            slope 1 where its upper end is at least as far from 0 as its lower one, else 0.
        seed: of the networks and inputs (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for number, sizes in enumerate([(4, 3), (5, 6, 3), (4, 6, 6, 4)]):
            _bounds(function, by, sizes, seed + number)
    except Wrong as wrong:
        raise wrong.shown_as("worst_margins", hints) from None
    print(f"worst_margins: holds for {by}, on networks of one to three layers, at corners and at sampled points")


def through_corners(layers: Layers, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The interval bounds of a network with one hidden layer, from all corners of its box of hidden values, (N, K)."""
    (W, b), (last, c) = layers
    low, high = ((x + sign * eps).clamp(0, 1) for sign in (-1, 1))
    inputs = torch.tensor(list(itertools.product((0.0, 1.0), repeat=x.shape[1])), dtype=x.dtype)
    hidden = (low + inputs[:, None] * (high - low)) @ W.T + b
    low, high = (bent(end, RELU) for end in (hidden.amin(dim=0), hidden.amax(dim=0)))
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(b))), dtype=x.dtype)
    z = (low + corners[:, None] * (high - low)) @ last.T + c
    return (z.gather(2, y.expand(len(z), -1)[:, :, None]) - z).amin(dim=0)


def _case(sizes: tuple[int, ...], seed: int) -> tuple[Layers, Tensor, Tensor, float]:
    layers, lower, upper = bounds_case(sizes, seed=seed, count=12)
    x = ((lower + upper) / 2).clamp(0, 1)
    x[::3] = x[::3].round()  # at the ends of the box
    if len(layers) > 2:  # a neuron that is always 0, as in a pruned network
        layers[0][0][0], layers[0][1][0] = 0.0, 0.0
    return layers, x, torch.arange(len(x)) % sizes[-1], 0.15


def _own(layers: Layers, x: Tensor, y: Tensor, low: Tensor, high: Tensor, by: By) -> Tensor:
    """robustlab's bounds on boxes, (N, K), class by class."""
    K = len(layers[-1][1])
    eye, found = torch.eye(K, dtype=x.dtype), torch.zeros(len(x), K, dtype=x.dtype)
    for k in range(K):
        rows = y == k
        found[rows] = reference(layers, low[rows], high[rows], eye[k] - eye, RELU, by=by)
    return found


def _bounds(function: Margins, by: By, sizes: tuple[int, ...], seed: int) -> None:
    layers, x, y, eps = _case(sizes, seed)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    out = _asked(function, layers, x, y, eps)
    z = values(layers, sampled(low, high), RELU)[-1]
    least = (z.gather(2, y.expand(len(z), -1)[:, :, None]) - z).amin(dim=0)
    corners = by == "ibp" and len(layers) == 2
    exact = through_corners(layers, x, y, eps) if corners else _own(layers, x, y, low, high, by)
    _alone(function, layers, x, y, eps, out)
    _own_class(out, y)
    if bool((out > least + SLACK).any()):
        raise Wrong(
            f"at a point of the ball a margin is {float((out - least).max()):.2g} below its bound",
            "no lower bound: sign, center or half-width is off",
            "A negative entry of a row takes the upper end, a positive one the lower end.",
            "center @ W.T + b, minus half-width @ W.abs().T.",
        )
    if torch.allclose(out, exact, atol=SLACK):
        return
    if torch.allclose(out, _own(layers, x, y, x - eps, x + eps, by), atol=SLACK):
        raise Wrong(
            "the bounds hold for the whole ball, also outside of [0, 1]",
            "no clamp to [0, 1]",
            "Where x lies at the end of the box, half of the ball is no image.",
            "low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1).",
        )
    eye = torch.eye(sizes[-1], dtype=x.dtype)
    below, above = (s * reference(layers, low, high, s * eye, RELU, by=by) for s in (1, -1))
    if torch.allclose(out, (below.gather(1, y[:, None]) - above).scatter(1, y[:, None], 0.0), atol=SLACK):
        raise Wrong(
            "a margin's bound is the difference of two logits' bounds",
            "the last layer is not merged with the difference",
            "Both logits are taken at their worst, at two different points.",
            "rows, shift = W[y][:, None] - W, b[y][:, None] - b.",
        )
    raise Wrong(
        f"a bound is {float((exact - out).max()):.2g} looser than that of {by}",
        "right, and wider than it has to be",
        "Look at one layer alone: which end does it take for which sign, and are stable neurons exact?",
        "Between two lines of an unstable neuron the lower one has slope 1 where u ≥ −l, else 0.",
    )


def _own_class(out: Tensor, y: Tensor) -> None:
    own = out.gather(1, y[:, None])
    if float(own.abs().max()) > SLACK:
        raise Wrong(
            f"the bound of z_y − z_y is {float(own.abs().max()):.2g}, want 0",
            "the last layer is not merged with the difference",
            "z_y − z_y is 0 wherever it is.",
            "Take the difference of the rows of W first: W[y][:, None] - W.",
        )


def _asked(function: Margins, layers: Layers, x: Tensor, y: Tensor, eps: float) -> Tensor:
    out = function(layers, x.clone(), y.clone(), eps)
    out = require_shape(out, (len(x), len(layers[-1][1])), "a bound per sample and class", "Return (N, K).")
    if not bool(out.isfinite().all()):
        raise Wrong(
            "a bound is not finite",
            "a division by zero",
            "The chord of a stable neuron has no slope of its own.",
            "u / (u - l).clamp_min(1e-9), with l and u cut at 0.",
        )
    return out


def _alone(function: Margins, layers: Layers, x: Tensor, y: Tensor, eps: float, together: Tensor) -> None:
    alone = torch.cat([_asked(function, layers, x[i : i + 1], y[i : i + 1], eps) for i in range(len(x))])
    if not torch.allclose(alone, together, atol=SLACK):
        raise of_the_batch(
            "Every sample has its own bounds, its own lines and its own coefficients.",
        )
