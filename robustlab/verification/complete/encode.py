"""A piecewise-linear network as affine expressions joined by ReLUs: what simplex and integer programs are made of.

Every value of the network is an affine expression of the inputs x and of the outputs a of its ReLUs,

    a_i = max(b_i, 0),   b_i = P_i·(x, a) + p_i,   f(x) = O·(x, a) + o,

where b_i looks only at inputs and at earlier ReLUs. Leaky ReLU, absolute value, clamp and max-pooling are rewritten:

    left·min(z, 0) + right·max(z, 0) = left·z + (right − left)·relu(z)
    clamp(z, l, h)                   = l + relu(z − l) − relu(z − h)
    max(y, z)                        = y + relu(z − y)

A ReLU whose sign is known from bounds on its input is no ReLU but 0 or the expression itself: such *stable* neurons
leave no trace, so that the exact solvers see the others only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from robustlab.graph.hinge import Clamp, Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.pool import MaxPool
from robustlab.graph.time_limit import tick
from robustlab.verification.complete.query import TooLarge, unit

Array = NDArray[np.float64]

LARGEST = 2**24  # coefficients of all ReLUs' inputs
WIDEST = 2**25  # coefficients of one node's expressions, 268 MB; a step over them takes a fraction of a second
_TOGETHER = 2**18  # numbers that go through an operator between two looks at the time


@dataclass(frozen=True, eq=False)
class System:
    """n inputs, r ReLUs that are not stable, m outputs, all float64.

    Attributes:
        low, high: (n + r,) bounds of the variables, inputs first.
        P, p: (r, n + r) and (r,), the ReLUs' inputs.
        lower, upper: (r,), bounds of the ReLUs' inputs, lower < 0 < upper; where both are tiny or huge, a ReLU's input
            and output are in units of them.
        O, o: (m, n + r) and (m,), the outputs.
        units: (n,), of the inputs, where those are tiny or huge; else 1.
    """

    low: Array
    high: Array
    P: Array
    p: Array
    lower: Array
    upper: Array
    O: Array
    o: Array
    units: Array

    @property
    def inputs(self) -> int:
        return len(self.low) - len(self.p)

    def point(self, variables: Array) -> Tensor:
        """The inputs of a solution, (n,), as the network takes them."""
        return torch.from_numpy(variables[: self.inputs] * self.units)


def require_piecewise_linear(graph: Graph) -> None:
    """Raise a ValueError that names a node whose operator cannot be rewritten in ReLUs."""
    for node in graph.nonlinear:
        if not isinstance(node.op, (Hinge, Clamp, MaxPool)):
            raise ValueError(
                f"model: exact methods want affine operators, ReLU, leaky ReLU, abs, clamp and max-pooling, "
                f"got {type(node.op).__name__} at node {node.name!r}"
            )


@torch.no_grad()
def encode(graph: Graph, low: Tensor, high: Tensor, layers: Sequence[Bounds] | None = None) -> System:
    """The network on one box.

    Args:
        graph: with affine operators, ReLUs and what can be rewritten in ReLUs.
        low, high: (n,), the flat box.
        layers: sound bounds (1, *shape) of every node, for example by CROWN; None takes intervals alone, in which the
            stable neurons of earlier layers are already seen through.

    Raises:
        ValueError: naming an operator that is not piecewise linear.
        TooLarge: with more than ``LARGEST`` coefficients, or more than ``WIDEST`` on the way.
    """
    require_piecewise_linear(graph)
    graph = graph.to("cpu", torch.float64)
    return _Encoder(graph, low.double().cpu(), high.double().cpu()).run(layers)


class _Encoder:
    """Expressions are tensors (1 + variables, *shape): the constant, then one coefficient a variable."""

    def __init__(self, graph: Graph, low: Tensor, high: Tensor) -> None:
        self.graph, self.n = graph, len(low)
        self.low, self.high = low, high
        self.rows: list[Tensor] = []
        self.lower, self.upper = low.new_empty(0), low.new_empty(0)

    def run(self, layers: Sequence[Bounds] | None) -> System:
        identity = torch.eye(1 + self.n, dtype=torch.float64)[:, 1:]
        values = {0: identity.reshape(1 + self.n, *self.graph.input_shape)}
        last = {i: node.index for node in self.graph.nodes for i in node.inputs}  # the last use of each value
        for node in self.graph.nodes[1:]:
            for i in (node.index, *node.inputs):
                self._room(prod(self.graph.nodes[i].shape), 0)
            parts = [self._pad(values[i]) for i in node.inputs]
            known = None if layers is None else layers[node.inputs[0]]
            values[node.index] = self._apply(node, parts, known)
            for i in set(node.inputs):
                if last[i] == node.index:
                    del values[i]
        output = self._pad(values[self.graph.nodes[-1].index].flatten(1)).T
        width = len(self.low)
        rows = [F.pad(part, (0, 1 + width - part.shape[1])) for part in self.rows]
        tick()
        relus = torch.cat([*rows, torch.empty(0, 1 + width, dtype=torch.float64)])
        one = torch.ones(self.n, dtype=torch.float64)
        P, p, O, o = relus[:, 1:], relus[:, 0], output[:, 1:], output[:, 0]
        pieces = (self.low, self.high, P, p, self.lower, self.upper, O, o, one)
        return _in_units(System(*(piece.numpy() for piece in pieces)))

    def _apply(self, node: Node, parts: list[Tensor], known: Bounds | None) -> Tensor:
        op = node.op
        assert op is not None
        if op.affine:
            zero = op.forward(*(torch.zeros_like(part[:1]) for part in parts))
            found = [op.forward(*(part[:1] for part in parts))]
            together = max(1, _TOGETHER // self.graph.widest)
            for some in zip(*(part[1:].split(together) for part in parts), strict=True):
                tick()
                found.append(op.forward(*some) - zero)
            return torch.cat(found)
        (z,) = parts
        if isinstance(op, Hinge):
            return self._sum((op.left, z), (op.right - op.left, self._relu(z, known)))
        if isinstance(op, Clamp):
            if op.low > -np.inf:
                z = _shift(self._relu(_shift(z, -op.low), _moved(known, -op.low)), op.low)
            if op.high < np.inf:
                z = self._sum((1.0, z), (-1.0, self._relu(_shift(z, -op.high), None)))
            return z
        assert isinstance(op, MaxPool)
        return self._max_pool(op, z)

    def _relu(self, z: Tensor, known: Bounds | None) -> Tensor:
        """relu of an expression: 0, the expression, or a new variable."""
        rows = z.flatten(1).T
        lower, upper = self._range(rows)
        tick()
        if known is not None:
            lower = torch.maximum(lower, known.lower[0].flatten().to(lower))
            upper = torch.minimum(upper, known.upper[0].flatten().to(upper))
        out = torch.where(lower >= 0, z.flatten(1), 0.0)
        new = ((lower < 0) & (upper > 0)).nonzero().flatten()
        relus = len(self.lower) + len(new)
        if relus * (self.n + relus) > LARGEST:
            raise TooLarge
        self._room(out.shape[1], len(new))
        self.rows.append(rows[new])
        self.lower, self.upper = torch.cat([self.lower, lower[new]]), torch.cat([self.upper, upper[new]])
        self.low = torch.cat([self.low, torch.zeros_like(lower[new])])
        self.high = torch.cat([self.high, upper[new]])
        fresh = torch.zeros(len(new), out.shape[1], dtype=torch.float64)
        fresh[torch.arange(len(new)), new] = 1.0
        return torch.cat([out, fresh]).reshape(-1, *z.shape[1:])

    def _max_pool(self, op: MaxPool, z: Tensor) -> Tensor:
        """The maximum, one element of each window after the other; padding is never the maximum."""
        _, channels, height, width = z.shape
        places = torch.arange(1.0, 1 + channels * height * width, dtype=torch.float64)
        windows = op.windows(places.reshape(1, channels, height, width), 0.0)[0]
        windows = windows.long().movedim(1, 0).flatten(1)  # (elements, outputs), 0 where padding is
        out_shape = op.forward(z[:1]).shape[1:]
        windows = windows.sort(dim=0, descending=True).values  # padding last: the first element is real
        flat = z.flatten(1)
        best = flat[:, windows[0] - 1]
        for window in windows[1:]:
            tick()
            flat, best = self._pad(flat), self._pad(best)
            rise = torch.where(window > 0, flat[:, (window - 1).clamp_min(0)] - best, 0.0)
            best = self._sum((1.0, best), (1.0, self._relu(rise, None)))
        return best.reshape(-1, *out_shape)

    def _range(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Interval arithmetic over the variables."""
        constant, slope = rows[:, 0], rows[:, 1:]
        low, high = self.low[: slope.shape[1]], self.high[: slope.shape[1]]
        lower, upper = constant, constant
        for part, one, other in ((slope.clamp_min(0), low, high), (slope.clamp_max(0), high, low)):
            tick()
            lower, upper = lower + part @ one, upper + part @ other
        return lower, upper

    def _room(self, numbers: int, more: int) -> None:
        """Refuse what would be too large before it is made: expressions of so many numbers, in ``more`` variables."""
        tick()
        if numbers * (1 + len(self.low) + more) > WIDEST:
            raise TooLarge

    def _pad(self, value: Tensor) -> Tensor:
        """Zero coefficients for the variables that have come since."""
        missing = 1 + len(self.low) - value.shape[0]
        return torch.cat([value, value.new_zeros(missing, *value.shape[1:])]) if missing else value

    def _sum(self, *terms: tuple[float, Tensor]) -> Tensor:
        total = torch.zeros(())
        for factor, value in terms:
            if factor:
                total = total + factor * self._pad(value)
        return total


def _in_units(system: System) -> System:
    """Inputs and ReLUs far from 1 in units of their own, powers of two: the tolerances of solvers are absolute."""
    n = system.inputs
    ends = np.maximum(np.abs(system.low[:n]), np.abs(system.high[:n]))
    columns = np.array([unit(size) for size in [*ends, *np.maximum(-system.lower, system.upper)]])
    if (columns == 1).all():
        return system
    units = columns[n:]
    return System(
        system.low / columns, system.high / columns, system.P * columns / units[:, None], system.p / units,
        system.lower / units, system.upper / units, system.O * columns, system.o, columns[:n],
    )  # fmt: skip


def _shift(z: Tensor, by: float) -> Tensor:
    return torch.cat([z[:1] + by, z[1:]])


def _moved(known: Bounds | None, by: float) -> Bounds | None:
    return None if known is None else Bounds(known.lower + by, known.upper + by)
