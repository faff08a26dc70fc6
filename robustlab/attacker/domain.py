"""What a model's inputs may be: floats in a box by default, or tokens, a graph, several inputs.

A domain checks a batch, knows how many samples it has and names the distances in which a change is measured. Norms and
the box belong to floats alone. A batch is a tensor (N, ...), or a tuple of such tensors, which the model takes as its
arguments in order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.parts import Batch, copied, size
from robustlab.geometry.norms import measure
from robustlab.geometry.projections import clip

Bound = float | Tensor


def _holds(condition: bool | Tensor) -> bool:
    return bool(condition.all()) if isinstance(condition, Tensor) else condition


class Domain(ABC):
    """A set of inputs."""

    @abstractmethod
    def check(self, x: object, name: str = "x") -> Any:
        """Raises ValueError or TypeError unless ``x`` is a batch of this domain."""

    @abstractmethod
    def distances(self, x: Batch, x_adv: Batch) -> dict[str, Tensor]:
        """How far ``x_adv`` is from ``x``, (N,) for each name."""

    def inside(self, x: Batch, last: bool = False) -> tuple[Batch, object]:
        """A copy of ``x`` that is surely in the domain, and from what :meth:`strayed` will tell whether ``x`` was.

        An attack that leaves its domain has a bug, which must not reach the model. Where nothing can be clipped it is
        told at once.

        Args:
            x: points of an attack.
            last: whether images are wanted in channels-last layout.
        """
        try:
            self.check(x)
        except (ValueError, TypeError) as error:
            raise RuntimeError(f"a query was outside the domain {self}: a bug of the attack") from error
        return copied(x), None

    def relaxed(self) -> Domain:
        """The inputs about which an attack with gradients may ask on its way, where those of this domain have none.

        What it is given and what it returns stays in this domain; see
        :meth:`robustlab.attacker.session.Session.relax`.
        """
        return self

    def either(self, evidence: Any, other: Any) -> Any:
        """What tells of one ``x`` and of another, by what :meth:`inside` returned of each; the first may be changed."""
        return evidence if other is None else evidence.logical_or_(other)

    def strayed(self, evidence: Any) -> bool:
        """Whether any ``x`` was outside, by what :meth:`inside` returned of it; None: it tells nothing."""
        return evidence is not None and bool(evidence)


class Box(Domain):
    """Floats between two ends, which are numbers, or tensors that broadcast with a sample (one end per channel, say).

    The ends are finite: attacks take their steps in widths of the box, draw from it and change variables to it, so
    that without an end they would return NaN, or find nothing.

    Raises:
        ValueError, TypeError: unless both are finite, and low < high everywhere.
    """

    def __init__(self, low: Bound, high: Bound) -> None:
        self.low, self.high = checks.bound("bounds", low), checks.bound("bounds", high)
        self._is_plain = not isinstance(self.low, Tensor) and not isinstance(self.high, Tensor)
        if not self._is_plain:
            self.low, self.high = self._beside_each_other(self.low, self.high)
        if not _holds(self.low < self.high):
            raise ValueError(f"bounds: want (low, high) with low < high, got {self._text()}")
        if not (_holds(self.low > -math.inf) and _holds(self.high < math.inf)):
            raise ValueError(f"bounds: want finite ends, the range of valid inputs, got {self._text()}")
        self._ends: dict[tuple[torch.dtype, torch.device], tuple[Bound, Bound]] = {}

    def _beside_each_other(self, *ends: Bound) -> list[Tensor]:
        """Two tensors; a number beside a tensor becomes one."""
        try:
            shape = torch.broadcast_shapes(*(end.shape for end in ends if isinstance(end, Tensor)))
        except RuntimeError:
            raise ValueError(f"bounds: want ends that broadcast with each other, got {self._text()}") from None
        return [end if isinstance(end, Tensor) else torch.full(shape, end, dtype=torch.float64) for end in ends]

    def ends(self, like: Tensor) -> tuple[Bound, Bound]:
        """Both ends as the dtype of ``like`` can hold them; tensors are on its device."""
        key = like.dtype, like.device
        if key not in self._ends:
            self._ends[key] = self._end(self.low, like), self._end(self.high, like)
        return self._ends[key]

    @staticmethod
    def _end(end: Bound, like: Tensor) -> Bound:
        if isinstance(end, Tensor):
            return end.to(like)
        return float(torch.tensor(end, dtype=like.dtype)) if like.is_floating_point() else end

    def width(self, like: Tensor) -> float:
        """The largest side of the box."""
        low, high = self.ends(like)
        side = high - low
        return float(side.max()) if isinstance(side, Tensor) else side

    def check(self, x: object, name: str = "x") -> tuple[float, float]:
        """Floats inside the box, without NaN; lengths in it are numbers of their dtype. Returns the extremes of x."""
        span = checks.images(x, (self.low, self.high), name)
        assert isinstance(x, Tensor)
        if self.width(x) > torch.finfo(x.dtype).max ** 0.5:
            kind = str(x.dtype).removeprefix("torch.")
            raise ValueError(f"bounds: want ends whose squared distance {kind} can hold, got {self._text()}")
        return span

    def nearest(self, x: Tensor, span: tuple[float, float]) -> Tensor:
        """``x``, of extremes ``span``; where it passes an end, by rounding that the check allows, a clipped copy."""
        low, high = self.ends(x)
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            inside = bool(((x >= low) & (x <= high)).all())
        else:
            inside = low <= span[0] and span[1] <= high
        return x if inside else clip(x, low, high)

    def distances(self, x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
        """ℓ0, ℓ1, ℓ2 and ℓ∞."""
        return measure(x_adv - x)

    def inside(self, x: Tensor, last: bool = False) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Clipped to the box, without waiting for the device; ``last``: in channels-last layout."""
        low, high = self.ends(x)
        out = torch.empty_like(x, memory_format=torch.channels_last) if last else None
        out = torch.clamp(x, low, high, out=out)  # type: ignore[arg-type]  # numbers or tensors
        seen = x if self._is_plain else x - out  # comparing x with out is five times as slow
        return out, (seen.amin(), seen.amax())  # aminmax takes half as long again

    def either(self, evidence: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The extremes of both, in the memory of the first."""
        (least, most), (less, more) = evidence, other
        return torch.minimum(least, less, out=least), torch.maximum(most, more, out=most)

    def strayed(self, evidence: tuple[Tensor, Tensor] | None) -> bool:
        """Whether an extreme is out of the box, or NaN."""
        if evidence is None:
            return False
        least, most = evidence
        low, high = self.ends(least) if self._is_plain else (0.0, 0.0)
        return not bool((least >= low) & (most <= high))

    def _text(self) -> str:
        """Numbers; of tensors the shapes alone."""
        ends = (f"tensor{tuple(e.shape)}" if isinstance(e, Tensor) else str(e) for e in (self.low, self.high))
        return f"({', '.join(ends)})"

    def __repr__(self) -> str:
        return f"Box{self._text()}"


class Tokens(Domain):
    """Sequences of tokens, int64 (N, T).

    Args:
        vocabulary: number of tokens V; each is in 0 … V − 1.
        fixed: tokens that may neither be changed nor come in by a change, such as the padding.
    """

    def __init__(self, vocabulary: int, fixed: tuple[int, ...] = ()) -> None:
        checks.at_least("vocabulary", vocabulary, 1, integer=True)
        wrong = [token for token in fixed if not 0 <= token < vocabulary]
        if wrong:
            raise ValueError(f"fixed: want tokens in 0 … {vocabulary - 1}, got {wrong}")
        self.vocabulary, self.fixed = int(vocabulary), tuple(fixed)

    def check(self, x: object, name: str = "x") -> None:
        """Integers in 0 … V − 1."""
        if not isinstance(x, Tensor) or x.dtype != torch.int64 or x.dim() != 2:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: want tokens, int64 of shape (N, T), got {got}")
        if x.numel() and not bool(((x >= 0) & (x < self.vocabulary)).all()):
            ends = int(x.min()), int(x.max())
            raise ValueError(f"{name}: want tokens in 0 … {self.vocabulary - 1}, got tokens in {ends[0]} … {ends[1]}")

    def distances(self, x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
        """``tokens``: how many were changed."""
        return {"tokens": (x != x_adv).sum(dim=1)}

    def inside(self, x: Tensor, last: bool = False) -> tuple[Tensor, Tensor]:
        """Clipped to 0 … V − 1, without waiting for the device."""
        clipped = x.clamp(0, self.vocabulary - 1)
        return clipped, (clipped != x).any()

    def movable(self, x: Tensor) -> Tensor:
        """(N, T) bool: the tokens that may be changed."""
        return ~torch.isin(x, torch.tensor(self.fixed, device=x.device, dtype=x.dtype))

    def choices(self, device: torch.device | None = None) -> Tensor:
        """The tokens that a change may bring in, ascending."""
        every = torch.arange(self.vocabulary, device=device)
        return every[self.movable(every)]

    def __repr__(self) -> str:
        return f"Tokens({self.vocabulary})"


class Graphs(Domain):
    """Graphs: features (N, V, F) and an adjacency matrix (N, V, V) of 0 and 1, symmetric and without loops."""

    def check(self, x: object, name: str = "x") -> None:
        """Shapes that fit, features without NaN, and a matrix that is the adjacency of a graph."""
        if not (isinstance(x, tuple) and len(x) == 2 and all(isinstance(part, Tensor) for part in x)):
            raise TypeError(f"{name}: want a pair (features, adjacency) of tensors, got {type(x).__name__}")
        features, adjacency = x
        for part, what in ((features, "features"), (adjacency, "an adjacency")):
            if part.layout != torch.strided:
                raise TypeError(f"{name}: want {what} that is dense, got {part.layout}; say {name}.to_dense()")
        if features.dim() != 3 or adjacency.shape != (*features.shape[:2], features.shape[1]):
            shapes = tuple(features.shape), tuple(adjacency.shape)
            raise ValueError(f"{name}: want shapes (N, V, F) and (N, V, V), got {shapes[0]} and {shapes[1]}")
        checks.finite(name, features)
        loops = torch.diag_embed(adjacency.diagonal(dim1=1, dim2=2) != 0)
        for wrong, what in (
            (~self._values(adjacency), "a weight of {weight} at ({i}, {j}) of graph {graph}"),
            (loops, "a loop at ({i}, {j}) of graph {graph}"),
            (adjacency != adjacency.mT, "an edge without its way back"),
        ):
            if bool(wrong.any()):
                graph, i, j = wrong.nonzero()[0].tolist()
                seen = what.format(weight=adjacency[graph, i, j].item(), i=i, j=j, graph=graph)
                raise ValueError(f"{name}: want an adjacency of {self._wish}, symmetric and without loops, got {seen}")

    _wish = "0 and 1"

    def _values(self, adjacency: Tensor) -> Tensor:
        """Whether each entry may be one."""
        return (adjacency == 0) | (adjacency == 1)

    def relaxed(self) -> Domain:
        """Graphs whose edges have weights."""
        return WeightedGraphs()

    def distances(self, x: tuple[Tensor, Tensor], x_adv: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """``edges``: how many were added or removed; ``features``: how many entries were changed."""
        return {
            "edges": (x[1] != x_adv[1]).sum(dim=(1, 2)) // 2,
            "features": (x[0] != x_adv[0]).sum(dim=(1, 2)),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class WeightedGraphs(Graphs):
    """Graphs whose edges have weights in [0, 1]: :class:`Graphs`, relaxed."""

    _wish = "weights in [0, 1]"

    def _values(self, adjacency: Tensor) -> Tensor:
        return (adjacency >= 0) & (adjacency <= 1)


class Several(Domain):
    """Several inputs, each in a domain of its own; the model takes them in this order.

    Args:
        parts: name → domain; the names prefix the distances.
    """

    def __init__(self, **parts: Domain) -> None:
        if not parts:
            raise ValueError("parts: want at least one input, got none")
        for name, part in parts.items():
            if not isinstance(part, Domain):
                raise TypeError(f"{name}: want a Domain, got {type(part).__name__}")
        self.parts: Mapping[str, Domain] = parts

    def check(self, x: object, name: str = "x") -> None:
        """One batch for each part, of as many samples."""
        if not isinstance(x, tuple) or len(x) != len(self.parts):
            got = f"{len(x)} of them" if isinstance(x, tuple) else type(x).__name__
            raise TypeError(f"{name}: want a tuple ({', '.join(self.parts)}), got {got}")
        for part, value in zip(self.parts, x, strict=True):
            self.parts[part].check(value, part)
        sizes = {part: size(value) for part, value in zip(self.parts, x, strict=True)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{name}: want as many samples in every part, got {sizes}")

    def inside(self, x: tuple[Batch, ...], last: bool = False) -> tuple[tuple[Batch, ...], tuple[object, ...]]:
        """Each part inside its own domain."""
        found = [domain.inside(part) for domain, part in zip(self.parts.values(), x, strict=True)]
        return tuple(part for part, _ in found), tuple(evidence for _, evidence in found)

    def either(self, evidence: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
        """Part by part."""
        parts = zip(self.parts.values(), evidence, other, strict=True)
        return tuple(None if a is None else domain.either(a, b) for domain, a, b in parts)

    def strayed(self, evidence: tuple[Any, ...] | None) -> bool:
        """Whether any part was outside its own domain."""
        return evidence is not None and any(
            domain.strayed(part) for domain, part in zip(self.parts.values(), evidence, strict=True)
        )

    def distances(self, x: tuple[Batch, ...], x_adv: tuple[Batch, ...]) -> dict[str, Tensor]:
        """Those of every part, as ``part.name``."""
        pairs = zip(self.parts.items(), x, x_adv, strict=True)
        return {f"{part}.{k}": v for (part, domain), a, b in pairs for k, v in domain.distances(a, b).items()}

    def __repr__(self) -> str:
        return f"Several({', '.join(f'{name}={part}' for name, part in self.parts.items())})"
