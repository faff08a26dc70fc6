"""The samples still at work, with every tensor that has a row for each of them, and the best point of each.

An attack's loop keeps its state as attributes of one :class:`Live`, which filters them together::

    live = session.live(eps=eps)                 # live.x, live.y, live.target, live.eps: (n, ...)
    live.points = live.x.clone()
    for k in range(steps):
        answer = session.gradient(live, live.points, loss)
        best.keep(live, live.points, answer.loss)
        live.keep(~answer.met)                   # all of them go on with these samples only
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from robustlab.attacker.parts import copied, first, put, size, take, where
from robustlab.geometry.keyed import Noise

NEVER = torch.iinfo(torch.int64).max


class Books(Protocol):
    """Who keeps the counts: a :class:`robustlab.attacker.session.Session`."""

    start: Live

    def settle(self, live: Live) -> None:
        """Book what was asked about live samples."""
        ...


class Live:
    """Samples at work. Made by :meth:`robustlab.attacker.session.Session.live`.

    Every attribute that is a tensor with n rows, or a :class:`~robustlab.geometry.keyed.Noise` of n samples, belongs to
    the samples and is filtered with them. Names that begin with an underscore are not.

    Attributes:
        x, y, target: the samples, their labels, and their targets or None.
        rows: (n,) int64, their places in the batch.
        place: (n,) int64, their places among ``session.active``; None as long as all of these are at work.
    """

    x: Any
    y: Tensor
    target: Tensor | None
    rows: Tensor
    place: Tensor | None

    def __init__(self, session: Books, rows: Tensor, place: Tensor | None = None, **fields: Any) -> None:
        vars(self).update(fields, rows=rows, place=place, _session=session)
        self._asked = self._differentiated = 0  # rows of questions since the session's counts were brought up to date
        self._first: Tensor | None = None  # (n,) after how many of these questions the goal was first met

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no tensor called {name!r} goes with these samples")

    def keep(self, mask: Tensor | None) -> None:
        """Go on with the samples of a mask (n,) only; None stands for all."""
        if mask is None:
            return
        index = mask.nonzero().flatten()
        if len(index) == len(self):
            return
        self._session.settle(self)
        for name, value in vars(self).items():
            if not name.startswith("_") and value is not None:
                vars(self)[name] = filtered(value, index)
        if self.place is None:
            self.place = index


def filtered(value: Any, index: Tensor) -> Any:
    """The rows of an index of a batch, or of a Noise."""
    return value.take(index) if isinstance(value, Noise) else take(value, index)


class Best:
    """The best point of every sample, the one of smallest value.

    Attributes:
        points: (n, ...) beside ``session.active``; x where nothing was found.
        value: (n,); ∞ where nothing was found.
    """

    def __init__(self, session: Books, tolerance: float = 0.0) -> None:
        """``tolerance``: a value must be smaller by this fraction, so that of equal points the first is kept."""
        self.points = copied(session.start.x)
        like = first(self.points)
        dtype = like.dtype if like.is_floating_point() else torch.float32
        self.value = torch.full((size(self.points),), torch.inf, dtype=dtype, device=like.device)
        self._scale = 1.0 - tolerance

    def keep(self, live: Live, points: Any, value: Tensor, allowed: Tensor | None = None) -> None:
        """Take the ``points`` whose ``value`` is smaller than any before, where that is ``allowed``."""
        at = live.place
        old = self.value if at is None else self.value[at]
        better = value < (old if self._scale == 1.0 else self._scale * old)
        if allowed is not None:
            better = better & allowed
        value = torch.where(better, value, old)
        if at is None:
            self.points, self.value = where(better, points, self.points), value
        else:
            put(self.points, at, where(better, points, take(self.points, at)))
            self.value[at] = value

    def of(self, live: Live) -> Tensor:
        """The best value of each live sample, (n,)."""
        return self.value if live.place is None else self.value[live.place]
