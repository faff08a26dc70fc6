"""The samples still at work, with every tensor that has a row for each of them, and the best point of each.

An attack's loop keeps its state as attributes of one :class:`Live`, which filters them together::

    live = session.live(eps=eps)                 # live.x, live.y, live.target, live.eps: (n, ...)
    live.points = live.x.clone()
    for k in range(steps):
        answer = session.gradient(live.points, live, loss)
        best.keep(live, live.points, answer.loss)
        live.leave(answer.met)                   # the others go on, with what belongs to them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from robustlab.attacker.parts import Batch, copied, first, ordinary, overwrite, put, size, take
from robustlab.geometry.keyed import Noise


class Books(Protocol):
    """Who keeps the counts, and knows what the attack puts aside: a :class:`robustlab.attacker.session.Session`."""

    start: Live
    bests: list[Best]

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

    x: Batch
    y: Tensor
    target: Tensor | None
    rows: Tensor
    place: Tensor | None

    def __init__(self, session: Books, rows: Tensor, place: Tensor | None = None, **fields: Batch | Noise) -> None:
        vars(self).update(fields, rows=rows, place=place, _session=session)
        # Since the session's counts were last brought up to date: questions, gradients, and where the goal was met.
        # That has a row for each question, in memory that is taken once: small tensors kept from step to step would
        # break up the memory that the large ones are to find again, which on a CPU doubles the time of a step.
        self._asked = self._differentiated = 0
        self._met = torch.empty(0, len(rows), dtype=torch.bool, device=rows.device)
        self._judged = False  # whether the goal was looked at in any of them
        self._bests: list[Best] = []

    def __len__(self) -> int:
        return self.rows.shape[0]

    def note(self, met: Tensor | int) -> int:
        """A question of ``met`` (n,), or one for each column of (n, m), or so many of which no goal is looked at.

        Returns how many these are for each sample.
        """
        m = met if isinstance(met, int) else 1 if met.dim() == 1 else met.shape[1]
        if self._asked + m > len(self._met):
            more = self._met.new_empty(max(64, len(self._met), m), len(self))
            self._met = torch.cat([self._met, more])
        if not isinstance(met, int) and met.dim() == 1:
            self._met[self._asked] = met
        else:
            self._met[self._asked : self._asked + m] = False if isinstance(met, int) else met.T
        self._judged |= not isinstance(met, int)
        self._asked += m
        return m

    if TYPE_CHECKING:  # what an attack keeps here is its own business

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no tensor called {name!r} goes with these samples")

    def keep(self, mask: Tensor | None) -> None:
        """Go on with the samples of a mask (n,) only; None stands for all."""
        if mask is not None and not bool(mask.all()):
            self._go_on(mask)

    def leave(self, mask: Tensor) -> None:
        """Go on without the samples of a mask (n,)."""
        if bool(mask.any()):
            self._go_on(~mask)

    def _go_on(self, mask: Tensor) -> None:
        index = mask.nonzero().flatten()
        self._session.settle(self)
        for best in self._bests:
            best.settle()
        for name, value in vars(self).items():
            if not name.startswith("_") and value is not None:
                vars(self)[name] = filtered(value, index)
        if self.place is None:
            self.place = index
        self._met = self._met.new_empty(0, len(self))

    def part(self, mask: Tensor | None = None, only: Sequence[str] | None = None) -> Live:
        """A Live of its own of the samples of a mask (n,), or of all, with their tensors; this one stays as it is.

        For questions that only some of the samples have, or several at once. What is asked is in the same books.

        Args:
            mask: bool; or an index, int64, by which a sample is there as often as it is named; None for all.
            only: which tensors go along, beside the samples and their labels; None for all.
        """
        kept = None if only is None else {"x", "y", "target", "rows", "place", *only}
        index = mask.nonzero().flatten() if mask is not None and mask.dtype == torch.bool else mask
        fields: dict[str, Any] = {
            name: value if value is None else filtered(value, index)
            for name, value in vars(self).items()
            if not name.startswith("_") and (kept is None or name in kept)
        }
        if self.place is None and index is not None:
            fields["place"] = index
        rows: Tensor = fields.pop("rows")
        return Live(self._session, rows, fields.pop("place"), **fields)


def filtered(value: Any, index: Tensor | None) -> Any:
    """The rows of an index of a batch, or of a Noise; None for all."""
    if isinstance(value, Noise):
        return value if index is None else value.take(index)
    return ordinary(value) if index is None else take(value, index)


class Best:
    """The best point of every sample, the one of smallest value.

    While samples stay at work together their best points are kept beside them; those of samples that leave are put
    where they belong.
    """

    def __init__(self, session: Books, tolerance: float = 0.0, points: Batch = None) -> None:
        """Nothing found so far.

        Args:
            tolerance: a value must be smaller by this fraction, so that of equal points the first is kept.
            points: what stands beside ``session.active`` until then, a tensor or a tuple of tensors; None for x.
        """
        self._points = copied(session.start.x if points is None else points)
        like = first(self._points)
        plain = isinstance(self._points, Tensor) and like.is_floating_point()
        dtype = like.dtype if plain else torch.float64  # values of what is no float may have any dtype
        self._value = torch.full((size(self._points),), torch.inf, dtype=dtype, device=like.device)
        self._scale = 1.0 - tolerance
        self._live: Live | None = None  # the best points and values of its samples are in ``_now``
        self._now: tuple[Batch, Tensor] = (self._points, self._value)
        session.bests.append(self)

    @property
    def points(self) -> Batch:
        """A copy, (n, ...) beside ``session.active``; x where nothing was found, if nothing else was given."""
        self.settle()
        return copied(self._points)

    @property
    def value(self) -> Tensor:
        """(n,) beside ``session.active``; ∞ where nothing was found."""
        self.settle()
        return self._value

    def keep(self, live: Live, points: Batch, value: Tensor, allowed: Tensor | None = None) -> None:
        """Take the ``points`` whose ``value`` is smaller than any before, where that is ``allowed``."""
        best, old = self._of(live)
        better = value < (old if self._scale == 1.0 else self._scale * old)
        if allowed is not None:
            better = better & allowed
        overwrite(best, better, points)
        self._now = best, torch.where(better, value, old)

    def of(self, live: Live) -> Tensor:
        """The best value of each live sample, (n,)."""
        return self._of(live)[1]

    def _of(self, live: Live) -> tuple[Batch, Tensor]:
        if self._live is not live:
            self.settle()
            at = live.place
            self._now = (self._points, self._value) if at is None else (take(self._points, at), self._value[at])
            self._live = live
            if self not in live._bests:
                live._bests.append(self)
        return self._now

    def settle(self) -> None:
        """Put what is kept beside live samples where it belongs."""
        if self._live is None:
            return
        if self._live.place is None:
            self._points, self._value = self._now
        else:
            put(self._points, self._live.place, self._now[0])
            self._value[self._live.place] = self._now[1]
        self._live = None


def closest(session: Books) -> Best:
    """Keeps of every sample the nearest success: ``best.keep(live, points, length, won)``.

    Nearer means by more than rounding, so that of two points at one length the first is kept on every machine.
    """
    return Best(session, tolerance=1e-6)
