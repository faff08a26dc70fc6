"""The Lagrangian dual's value of given prices, held to its definition, to what the network does, and to CROWN.

Of a network so small the definition can be carried out to the letter: every hidden value at each of its ends or at the
bend, every input at each of its ends, all of them combined, and the least Lagrangian of all. That the minimum falls
apart into one for each neuron, which the function under test lives on, is not used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, blame, of_the_batch, require_shape
from robustlab.teaching.check.linear_bounds import SLACK, Layers, bounds_case, reference, sampled, values

Price = Callable[[int, Tensor], Tensor]
"""(hidden layer i, coefficients (N, width) with which its ReLUs count) → prices μ of what enters them, (N, width)."""
Ends = list[tuple[Tensor, Tensor]]
Value = Callable[[Layers, Ends, Tensor, Price, Tensor, Tensor], Tensor]
"""(layers, ends, a (N, K), price, low (d,), high (d,)) → (N,)."""
RELU = (0.0, 1.0)
SIZES = ((3, 4, 2), (3, 4, 3, 2), (2, 3, 2, 2, 2))
ROWS = 12


def dual_value(function: Value, *, seed: int = 0, hints: int = 1) -> None:
    """Check the Lagrangian dual's value of a ReLU network at given prices: prints one line where all holds.

        V(μ) = min {a·z + Σ_i μ_i·(W_i·o_{i−1} + b_i − h_i)},   o = max(h, 0),   each h_i and the input free in its box

    Args:
        function: called as ``function(layers, ends, a, price, low, high)`` with affine layers [(W, b), ...] with a ReLU
            in between, the ends (l, u) of what enters each hidden layer's ReLUs, rows a (N, K) that the outputs are
            multiplied by, and the ends of the inputs' box, (d,). ``price(i, a)`` gives the prices μ (N, width) of
            hidden layer i, and is told with which coefficients a (N, width) its ReLUs count; layers are gone through
            from the last to the first. Returns V, one per row, (N,).
        seed: of the networks and prices (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for number, sizes in enumerate(SIZES):
            _at_prices(function, sizes, seed + number)
        _of_crown(function, seed)
    except Wrong as wrong:
        raise wrong.shown_as("dual_value", hints) from None
    print("dual_value: holds, on networks of two to four layers, against all combinations, sampled points and CROWN")


def by_definition(layers: Layers, ends: Ends, a: Tensor, prices: Sequence[Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The least Lagrangian over all combinations of hidden values and inputs, (N,)."""
    every = [torch.stack([l, torch.zeros_like(l).clamp(l, u), u]) for l, u in ends]
    axes = [torch.stack([low, high]), *every]
    sizes = [len(low), *(len(l) for l, _ in ends)]
    points = torch.cartesian_prod(*(column for axis in axes for column in axis.T))
    x, *hidden = points.split(sizes, dim=1)
    (last, c), total = layers[-1], 0.0
    for mu, (W, b), h, before in zip(prices, layers, hidden, [x, *(h.clamp_min(0) for h in hidden)], strict=False):
        total = total + (before @ W.T + b - h) @ mu.T
    return (total + (hidden[-1].clamp_min(0) @ last.T + c) @ a.T).amin(dim=0)


def _case(sizes: Sequence[int], seed: int, row: int = 5) -> tuple[Layers, Ends, Tensor, Tensor]:
    """A network with one box, and the interval ends of its hidden values; some neurons are stable."""
    layers, lower, upper = bounds_case(sizes, seed=seed)
    layers[0][1][0] += 3.0
    layers[0][1][1] -= 3.0
    low, high, ends = lower[row], upper[row], list[tuple[Tensor, Tensor]]()
    l, u = low, high
    for W, b in layers[:-1]:
        center, radius = W @ (l + u) / 2 + b, W.abs() @ (u - l) / 2
        ends.append((center - radius, center + radius))
        l, u = (end.clamp_min(0) for end in ends[-1])
    return layers, ends, low, high


def _asked(
    function: Value, layers: Layers, ends: Ends, a: Tensor, prices: Sequence[Tensor], low: Tensor, high: Tensor
) -> Tensor:
    """V at these prices, which do not depend on the coefficients; with the right ones, layer by layer."""
    told = dict[int, Tensor]()

    def price(i: int, coefficients: Tensor) -> Tensor:
        told[i] = coefficients.detach()
        return prices[i]

    with torch.enable_grad():
        out = function(layers, ends, a.clone(), price, low, high)
    value = require_shape(out, (len(a),), "one value per row", "Sum over neurons, and keep the rows apart.")
    below = [*prices[1:], a]
    for i, arrives in enumerate(below):
        right = arrives.detach() @ layers[i + 1][0]
        if i not in told:
            raise Wrong(f"price is not asked for hidden layer {i}", "a layer is left out", "Each hidden layer pays.")
        if told[i].shape != right.shape or not torch.allclose(told[i], right, atol=SLACK):
            raise Wrong(
                f"price({i}, a) is told coefficients that are not those of the ReLUs of layer {i}",
                "not the prices are handed down" if i + 1 < len(prices) else "not the rows times the last weights",
                "What leaves the ReLUs of a layer is multiplied by the next W and paid at the next layer's prices.",
                "a = mu @ W, after the layer's own terms are added.",
            )
    if not out.requires_grad:
        raise Wrong(
            "the value has no gradient in the prices",
            "detached: nothing could climb",
            "Prices are found along the gradient of V.",
            "No detach() and no no_grad() in here.",
        )
    return value


def _at_prices(function: Value, sizes: Sequence[int], seed: int) -> None:
    layers, ends, low, high = _case(sizes, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    a = torch.randn(ROWS, sizes[-1], generator=generator, dtype=torch.float64)
    prices = [torch.randn(ROWS, n, generator=generator, dtype=torch.float64) for n in sizes[1:-1]]
    for mu in prices:
        mu[0] = 0.0  # nothing of the first row costs anything
        mu.requires_grad_()
    told = (layers, ends, a, prices, low, high)
    out, bare = _asked(function, *told), [mu.detach() for mu in prices]
    right = by_definition(layers, ends, a, bare, low, high)
    if not torch.allclose(out, right, atol=SLACK):
        seen = f"V differs by up to {float((out - right).abs().max()):.2g} from the least Lagrangian"
        slips = _slips(layers, ends, a, bare, low, high)
        blame(seen, slips, lambda slip: torch.allclose(out, slip, atol=SLACK))
        z = values(layers, sampled(low[None], high[None]), RELU)[-1][:, 0]
        above = float((out - (z @ a.T).amin(dim=0)).max())
        if above > SLACK:
            seen = f"at a point of the box the network is {above:.2g} below its bound"
        raise Wrong(
            seen,
            "a sign, or a term that is missing",
            "An honest network pays nothing: put its own h into the Lagrangian, and the prices drop out.",
            "Per layer the sum of (a * relu(h) - mu * h).amin over l, bend, u, and mu @ b; in the end the box.",
        )
    some = [slice(k, k + 1) for k in range(ROWS)]
    alone = torch.cat([_asked(function, layers, ends, a[k], [mu[k] for mu in prices], low, high) for k in some])
    if not torch.allclose(alone, out, atol=SLACK):
        raise of_the_batch(
            "Every row has its own prices and its own minimum.",
            who="rows",
            seen="a row gets another value in company than alone",
        )


def _apart(
    layers: Layers, ends: Ends, a: Tensor, prices: Sequence[Tensor], low: Tensor, high: Tensor, *, bend: str = "inside",
    pays: float = -1.0, hidden_bias: bool = True, last_bias: bool = True, worst: float = -1.0, high_end: bool = False,
    handed: bool = True,
) -> Tensor:  # fmt: skip
    """The minimum taken apart, with a slip: what :func:`_slips` shows."""
    (W, b), value = layers[-1], a.new_zeros(len(a))
    value, a = value + (a @ b if last_bias else 0.0), a @ W
    for (l, u), (W, b), mu in reversed(list(zip(ends, layers, prices, strict=False))):
        zero = torch.zeros_like(l)
        at = {"inside": [l, zero.clamp(l, u), u], "left out": [l, u], "outside": [l, zero, u]}[bend]
        h = torch.stack(at)[:, None]
        worth = a * h.clamp_min(0) + pays * mu * h
        value = value + (worth.amax(0) if high_end else worth.amin(0)).sum(1)
        value, a = value + (mu @ b if hidden_bias else 0.0), (mu if handed else a) @ W
    return value + a @ (low + high) / 2 + worst * a.abs() @ (high - low) / 2


def _slips(
    layers: Layers, ends: Ends, a: Tensor, prices: Sequence[Tensor], low: Tensor, high: Tensor
) -> Iterator[tuple[Any, ...]]:
    """The values of likely slips, each with its cause and hints."""

    def slip(**told: Any) -> Tensor:
        return _apart(layers, ends, a, prices, low, high, **told)

    yield (
        slip(bend="left out"),
        "the bend is left out",
        "a·max(h, 0) − μ·h has three places where it may be least.",
        "torch.stack([l, zero.clamp(l, u), u]).",
    )
    yield (
        slip(bend="outside"),
        "the bend counts where 0 is not between the ends",
        "A neuron that is always on has no bend: h = 0 never happens there. The bound is right and too low.",
        "torch.zeros_like(l).clamp(l, u).",
    )
    yield slip(pays=1.0), "a sign: whoever moves h is charged", "The price is on the layer minus h.", "- mu * h."
    yield (
        slip(hidden_bias=False),
        "a hidden layer's bias is left out",
        "The price is on W·o + b − h, with b.",
        "value + mu @ b.",
    )
    yield (
        slip(handed=False),
        "not the prices are handed down",
        "What leaves the layer before is multiplied by W, and paid at this layer's prices.",
        "a = mu @ W.",
    )
    yield slip(last_bias=False), "the last layer's bias is left out", "a·z has a·b in it.", "value = a @ b."
    yield (
        slip(worst=1.0),
        "the largest value on the box of inputs, not the least",
        "Pixels, too, are at their worst.",
        "a @ (low + high) / 2 - a.abs() @ (high - low) / 2.",
    )
    yield slip(worst=0.0), "the inputs stay in the middle of their box", "Pixels, too, are at their worst."
    yield slip(high_end=True), "the largest of the candidates, not the least", "A bound from below takes amin."


def _of_crown(function: Value, seed: int) -> None:
    """With the slopes of CROWN's lines times a as prices, V is CROWN's bound from the same ends."""
    sizes = (4, 6, 6, 3)
    layers, ends, low, high = _case(sizes, seed + 50)
    C = torch.eye(3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64).roll(1, dims=0)

    def price(i: int, a: Tensor) -> Tensor:
        l, u = ends[i][0].clamp_max(0), ends[i][1].clamp_min(0)
        return torch.where(a >= 0, (u >= -l).to(a), u / (u - l)) * a

    out = require_shape(function(layers, ends, C, price, low, high), (3,), "one value per row")
    right = reference(layers, low[None], high[None], C, RELU, by="crown_ibp")[0]
    if not torch.allclose(out, right, atol=SLACK):
        raise Wrong(
            "with the slopes of CROWN's lines as prices, V is not CROWN's bound",
            "the prices of a layer do not reach the layer before",
            "CROWN is one point of this hill: μ = slope · a, layer by layer.",
            "mu = price(i, a), then a = mu @ W.",
        )
