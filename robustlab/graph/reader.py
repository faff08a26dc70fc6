"""What the converters work with: symbols for tensors that depend on the input, and the reader that adds operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from robustlab.graph.affine import ScaleShift
from robustlab.graph.node import Builder
from robustlab.graph.operators import Operator, broadcast_shape


@dataclass(frozen=True)
class Symbol:
    """A tensor that depends on the input: the node of the graph that holds it."""

    index: int


Convert = Callable[..., Any]


class Reader:
    """Calls the converters and adds what they find to the builder."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.name = ""

    def shape(self, symbol: Symbol) -> tuple[int, ...]:
        """Of one sample."""
        return self.builder.nodes[symbol.index].shape

    def add(self, op: Operator, *inputs: Symbol) -> Symbol:
        """A node for an operator on symbols."""
        return Symbol(self.builder.add(op, *(s.index for s in inputs), name=self.name))

    def tensor(self, number: Any) -> Tensor:
        """A constant as a tensor beside the input."""
        return torch.as_tensor(number, dtype=self.builder.like.dtype, device=self.builder.like.device)

    def call(
        self,
        convert: Convert | None,
        thing: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str,
        target: Any,
    ) -> Any:
        """The symbol of a call that depends on the input; the plain result of one that does not."""
        found: list[Symbol] = []
        fx.node.map_aggregate((args, dict(kwargs)), lambda x: found.append(x) if isinstance(x, Symbol) else None)
        if not found:
            return without_chance(lambda: thing(*args, **kwargs), f"model: node {name!r}")
        self.name = name
        if convert is None:
            raise ValueError(
                f"model: node {name!r} calls {getattr(target, '__name__', target)}, which the verifiers do not know; "
                "write it with operators they know (see robustlab.graph.convert), or add an Operator"
            )
        return convert(self, thing, *args, **kwargs)

    def scale_shift(self, x: Symbol, scale: Any, shift: Any) -> Symbol:
        """scale·x + shift by constants that do not make x larger."""
        scale, shift = self.tensor(scale), self.tensor(shift)
        want = (1, *self.shape(x))
        if broadcast_shape(want, scale.shape, shift.shape) != torch.Size(want):
            raise ValueError(f"model: node {self.name!r} broadcasts its input {want[1:]}; expand the input first")
        return self.add(ScaleShift(scale, shift), x)


def without_chance(run: Callable[[], Any], who: str) -> Any:
    """What ``run`` gives; an error if it draws from the global generator, whose state is put back."""
    state = torch.get_rng_state()
    result = run()
    if not torch.equal(state, torch.get_rng_state()):
        torch.set_rng_state(state)
        raise ValueError(f"{who} draws random numbers; want a model without chance")
    return result


def as_pair(value: Any) -> tuple[int, int]:
    """Two numbers, or one for both dimensions of a map."""
    first, second = as_tuple(value, 2)
    return first, second


def as_tuple(value: Any, rank: int) -> tuple[int, ...]:
    """A number for every dimension, or one a dimension."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
