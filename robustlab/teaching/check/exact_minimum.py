"""The least output of a network with one hidden layer on a box, held to all patterns of its ReLUs.

For one pattern of ReLUs, on or off, the network is affine, and the inputs with this pattern are those that satisfy one
linear inequality per neuron. So the least of 2ᴿ linear programs is the minimum.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustlab.teaching.check.finding import Wrong

Array = NDArray[np.float64]
Network = tuple[Array, Array, Array, float]
"""W1 (m, d), b1 (m,), W2 (m,), b2."""
Minimum = Callable[[Array, Array, Array, float, Array, Array], Any]
"""(W1, b1, W2, b2, lower (d,), upper (d,)) → the least W2·relu(W1·x + b1) + b2."""
CLOSE = 1e-6


def exact_minimum(function: Minimum, *, seed: int = 0, hints: int = 1) -> None:
    """Check a complete verifier of networks with one hidden layer: prints one line where all holds.

    Args:
        function: called as ``function(W1, b1, W2, b2, lower, upper)`` with NumPy arrays (m, d), (m,), (m,), a number,
            and the ends of a box (d,); returns the least value of W2·relu(W1·x + b1) + b2 on the box, a number.
        seed: of the networks and boxes (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for number, (d, m, shift) in enumerate([(3, 4, 6.0), (2, 3, 0.0), (3, 5, 0.0), (4, 5, 0.0)]):
            _exact(function, *minimum_case(d, m, shift, seed + number))
    except Wrong as wrong:
        raise wrong.shown_as("exact_minimum", hints) from None
    print("exact_minimum: holds, with ReLUs that are stable and with such that are not, by all their patterns")


def minimum_case(d: int, m: int, shift: float, seed: int) -> tuple[Network, Array, Array]:
    """A random network and a box that leaves [0, 1]; biases of ±shift make all neurons stable."""
    draws = np.random.default_rng(seed)
    weight, last = draws.normal(size=(m, d)) / d**0.5, draws.normal(size=m)
    bias = 0.3 * draws.normal(size=m) + shift * (-1.0) ** np.arange(m)
    x, half = draws.uniform(-0.5, 1, size=d), draws.uniform(0.3, 1, size=d)
    if not shift:  # unstable: the middle of the box is about where each neuron turns
        bias = bias - weight @ x
    return (weight, bias, last, float(draws.normal())), x - half, x + half


def by_patterns(network: Network, lower: Array, upper: Array) -> float:
    """The minimum, by a linear program for each pattern of ReLUs."""
    from scipy.optimize import linprog

    W1, b1, W2, b2 = network
    found = []
    for bits in itertools.product((0.0, 1.0), repeat=len(b1)):
        on = np.array(bits)
        side = 1 - 2 * on  # (1 - 2z)·(W1·x + b1) <= 0
        done = linprog((on * W2) @ W1, side[:, None] * W1, -side * b1, bounds=np.stack([lower, upper], axis=1))
        if done.status == 0:
            found.append(done.fun + (on * W2) @ b1 + b2)
    return float(min(found))


def relaxed(network: Network, lower: Array, upper: Array) -> float:
    """A lower bound: the minimum where each bit of a ReLU may be any number from 0 to 1, a linear program."""
    from scipy.optimize import linprog

    W1, b1, W2, b2 = network
    low, high = _ends(network, lower, upper)
    eye, none = np.eye(len(b1)), np.zeros((len(b1), len(b1)))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    rows = np.block([[W1, -eye, none], [-W1, eye, -np.diag(low)], [0 * W1, eye, -np.diag(high)]])
    limits = [*zip(lower, upper, strict=True), *((0, u) for u in high), *((0, 1) for _ in high)]
    cost = np.concatenate([0 * lower, W2, 0 * b1])
    return float(linprog(cost, rows, np.concatenate([-b1, b1 - low, 0 * b1]), bounds=limits).fun + b2)


def _ends(network: Network, lower: Array, upper: Array) -> tuple[Array, Array]:
    W1, b1, _, _ = network
    middle, half = W1 @ (lower + upper) / 2 + b1, np.abs(W1) @ (upper - lower) / 2
    return middle - half, middle + half


def _exact(function: Minimum, network: Network, lower: Array, upper: Array) -> None:
    W1, b1, W2, b2 = network
    out = function(W1.copy(), b1.copy(), W2.copy(), b2, lower.copy(), upper.copy())
    try:
        value = float(out)
    except (TypeError, ValueError):
        raise Wrong(
            f"the function returned {type(out).__name__}, want one number",
            "not a number",
            "Return the least value alone, not where it is.",
        ) from None
    exact = by_patterns(network, lower, upper)
    if abs(value - exact) < CLOSE:
        return
    for other, seen, cause, *told in _slips(network, lower, upper, exact):
        if abs(value - other) < CLOSE:
            raise Wrong(f"{seen}: {value:.4g}, and the minimum is {exact:.4g}", cause, *told)
    if not np.isfinite(value):
        raise Wrong(
            f"the function returned {value}",
            "no program had a solution, or none was solved",
            "Some patterns have no input. Does the search go on after one of them?",
            "Leave out what is infeasible: status 2 of linprog and milp.",
        )
    if value > exact:
        raise Wrong(
            f"the result is {value:.4g}, and an input of the box reaches {exact:.4g}",
            "not sound: the search leaves out a part of the box",
            "A verifier that is too high calls a network safe that is not.",
            "Are l ≤ W1·x + b1 ≤ u on the whole box, are both signs of each ReLU allowed, and is each half looked at?",
        )
    raise Wrong(
        f"the result is {value:.4g}, and no input of the box gets below {exact:.4g}",
        "sound, and not complete: the result is a bound",
        "A bound below the minimum is right and leaves cases undecided.",
        "Go on until the relaxed minimum is the value of the network at the point that reaches it.",
    )


def _slips(network: Network, lower: Array, upper: Array, exact: float) -> Iterator[tuple[Any, ...]]:
    """The results of likely slips: the value, what was seen, the cause and hints."""
    W1, b1, W2, b2 = network
    corners = np.array(list(itertools.product(*zip(lower, upper, strict=True))))
    low, high = (np.maximum(end, 0) for end in _ends(network, lower, upper))
    yield (
        -by_patterns((W1, b1, -W2, -b2), lower, upper),
        "the result is the largest value",
        "sign lost",
        "linprog and milp minimize. Which sign has the cost?",
    )
    yield exact - b2, "the result has no b2 in it", "the last bias is lost", "Add b2 to the cost of the best point."
    yield (
        float(np.min(corners @ W1.T @ W2)) + W2 @ b1 + b2,
        "the result is that of the network without its ReLUs",
        "no ReLU",
        "a = relu(W1·x + b1) has to follow from the constraints.",
        "a ≥ W1·x + b1 and a ≥ 0 from below; a ≤ W1·x + b1 − l·(1 − z) and a ≤ u·z from above.",
    )
    yield (
        float(np.minimum(W2 * low, W2 * high).sum()) + b2,
        "the result is the interval bound",
        "every neuron is taken at its worst alone",
        "One input has to bring all neurons there at once.",
        "Keep x in the program: each neuron is a function of it.",
    )
    yield (
        relaxed(network, lower, upper),
        "the result is the minimum of the relaxation",
        "the bits are not whole",
        "With a bit of one half a ReLU is neither on nor off.",
        "integrality=1 for the bits, or branch on one that is not whole.",
    )
    yield (
        float((np.maximum(corners @ W1.T + b1, 0) @ W2).min()) + b2,
        "the result is the least value at a corner of the box",
        "corners alone are looked at",
        "A network with ReLUs may be least at any point, where some of them turn.",
    )
