"""Passes in parts that memory bears: which rows go together, and how large their forms become on the way."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from robustlab.graph.affine import Add, ScaleShift, Sub
from robustlab.graph.conv import Conv
from robustlab.graph.hinge import Elementwise
from robustlab.graph.node import Graph, Node

Place = tuple[tuple[int, int, int], ...] | None
"""Stride, shift and length of a window in each dimension; None for forms in full."""


def parts(sample: Tensor, n: int, most: int) -> list[tuple[Tensor, int | None]]:
    """Rows in parts of at most ``most``, and the one sample of each part where there is one; ``sample`` ascends.

    Samples with many rows have parts of their own, which then need no copies of what is known of each sample.
    """
    rows = torch.arange(len(sample), device=sample.device)
    if n > 1 and len(rows) < n * most // 2:
        return [(some, None) for some in rows.split(most) if len(some)]
    each = rows.split([len(rows)] if n == 1 else sample.bincount(minlength=n).tolist())
    return [(some, i) for i, own in enumerate(each) for some in own.split(most) if len(some)]


def largest_form(graph: Graph, start: Node) -> int:
    """How many numbers a form from one neuron of a node has at most on its way to the input, windows as windows.

    A window has a corner at stride·(corner of the neuron) + shift and a length in each of two dimensions; what is no
    window has all numbers of its node.
    """
    pending: dict[int, Place] = {start.index: ((1, 0, 1), (1, 0, 1)) if len(start.shape) == 3 else None}
    most = 1
    for node in reversed(graph.nodes[: start.index + 1]):
        if node.index not in pending:
            continue
        here, before = pending.pop(node.index), None
        if here is not None and isinstance(node.op, Conv):
            geometry = zip(here, node.op.stride, node.op.padding, node.op.reach, strict=True)
            seen = [(s * by, t * by - p, (k - 1) * by + r + 1) for (s, t, k), by, p, r in geometry]
            before = _smaller(seen, graph.nodes[node.inputs[0]])
        elif isinstance(node.op, (ScaleShift, Add, Sub, Elementwise)):
            before = here
        if here is None or (before is None and node.op is not None):  # written out here
            most = max(most, prod(node.shape))
        else:
            most = max(most, node.shape[0] * here[0][2] * here[1][2])
        for i in node.inputs:
            other = pending.get(i, before)
            if before is None or other is None or any(a[0] != b[0] for a, b in zip(before, other, strict=True)):
                pending[i] = None
                continue
            ends = [(s, min(t, v), max(t + k, v + m)) for (s, t, k), (_, v, m) in zip(before, other, strict=True)]
            pending[i] = _smaller([(s, first, last - first) for s, first, last in ends], graph.nodes[i])
    return most


def _smaller(window: list[tuple[int, int, int]], node: Node) -> tuple[tuple[int, int, int], ...] | None:
    """The window, or None where it is no smaller than the map of a node."""
    return None if any(k >= n for (_, _, k), n in zip(window, node.shape[1:], strict=True)) else tuple(window)
