"""One attack's conversation with a model: questions that are counted, goals, and the checked result.

Opened by :meth:`robustlab.attacker.victim.Victim.session`. An attack asks about the samples of a
:class:`~robustlab.attacker.live.Live`; each question costs each of them one query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Box, Domain
from robustlab.attacker.live import Best, Live, filtered
from robustlab.attacker.losses import AttackerLoss, LossFunction, at_its_end, compared, goal_margin, logit_size, spare
from robustlab.attacker.parts import Batch, Reply, copied, detached, every, first, put, size, take, tensors
from robustlab.attacker.results import AttackResult, PhysicalResult, UniversalResult
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import measure
from robustlab.geometry.projections import clip

Access = Literal["white", "soft", "hard"]
LEVEL = {"hard": 0, "soft": 1, "white": 2}
AnswerKind = Literal["classes", "sequence", "boxes"]
Goal = Callable[[Reply, Tensor], Tensor]
"""``goal(answer, rows) -> bool (n,)``: whether each of the samples ``rows`` (n,) of the batch is where the attack wants
it, by the model's answer for them."""
Found = TypeVar("Found")
_NEVER = torch.iinfo(torch.int64).max
_AIM = 1.01  # times what is spared for rounding: a threshold is approached forever
_CUT_OFF = "an output that is differentiable in its input, got one that is cut off from it"
_NO_GRADIENT = {  # what PyTorch says of a model without a gradient, and we
    "used in the graph": _CUT_OFF,
    "use_reentrant": "checkpoints that let input gradients pass, got some with use_reentrant=True; say False",
    "derivative for": "operators that have a derivative, got one without; attacks on scores do without gradients",
}


class Model(Protocol):
    """What a session asks: a victim's model, whose raw answers are read as logits or as what the victim declares."""

    def __call__(self, points: Batch, *, fast: bool = False) -> Reply:
        """The answer for a batch; ``fast`` for a gradient in channels-last layout."""
        ...


class Answer(NamedTuple):
    """What the victim said of some samples; ``loss`` and ``grad`` only where they were asked for."""

    logits: Reply
    met: Tensor
    loss: Tensor
    grad: Batch


class Lead(NamedTuple):
    """The goal margin (n,), whether the goal is met so clearly that rounding cannot undo it, and where to aim."""

    margin: Tensor
    secure: Tensor
    aim: Tensor


class Session:
    """One attack's conversation with a victim over a fixed batch of N samples.

    Attributes:
        x, y, target, ids: the batch; ``target`` is None for an untargeted attack. Without labels ``y`` is what the
            model says at x, (N,) or for a sequence (N, T); for boxes, of which no label is told, 0.
        low, high: the box in the dtype of x: numbers, or tensors that broadcast with a sample.
        width: the largest side of the box, a number.
        active: int64, the samples whose goal is not met at ``x``; the attack works on these only.
        start: these samples, as a Live.
        lost: (N,) bool, the samples of which the model says NaN at ``x``; their attack has failed, and they are not
            active.
        clean: the answer at ``x``, logits (N, K) where it is classes, or None for an empty batch or under hard access.
    """

    def __init__(
        self,
        model: Model,
        domain: Domain,
        access: Access,
        budget: int | None,
        x: Batch,
        y: Tensor | None,
        target: Tensor | None,
        ids: Tensor,
        *,
        kappa: float = 0.0,
        min_classes: int = 2,
        answer: AnswerKind = "classes",
        goal: Goal | None = None,
        convolves: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        n, device = size(x), first(x).device
        self._model, self.domain, self.access, self.budget = model, domain, access, budget
        self._questions = domain  # what points a question may be about
        self._dtype = dtype  # the dtype of the caller's x, where the attack computes in another
        self.x, self.target, self.ids, self.kappa, self.answer, self._goal = x, target, ids, kappa, answer, goal
        if isinstance(domain, Box):
            self.low, self.high = domain.ends(x)
            self.width = domain.width(x)
        self._queries = torch.zeros(n, dtype=torch.int64, device=device)
        self._gradients = torch.zeros_like(self._queries)
        self._first_success = torch.full_like(self._queries, _NEVER)
        self._most = 1  # queries that no sample has more of, without a look at the counts
        self._asking: Live | None = None  # about whom something was asked that is not yet in the counts
        self._strayed: Any = None  # tells whether any question was outside the domain
        self.bests = list[Best]()  # what the attack keeps; the first is what it will return
        self._shared: tuple[Tensor, Tensor] | None = None  # a universal attack's best δ, and whom it moved
        self._texture: tuple[Tensor, Tensor] | None = None  # what a physical attack has painted so far, and its mask
        # A gradient may be faster in channels-last. A model that fails there is asked with care from then on.
        images = isinstance(x, Tensor) and x.dim() == 4 and x.dtype == torch.float32
        self._fast = images and convolves and device.type == "cpu"
        self._careful = False
        self._has_slope = False  # not looked at yet
        self.y = torch.zeros_like(self._queries) if y is None else y
        self.clean: Reply = None
        self.lost = torch.zeros_like(self._queries, dtype=torch.bool)
        self.active = torch.arange(n, device=device)
        self.start = self.everyone()
        if n:
            self._clean_question(y, min_classes)

    def _clean_question(self, y: Tensor | None, min_classes: int) -> None:
        """Ask about x itself, in the caller's own layout: who has met the goal is done."""
        answer = self._model(copied(self.x))
        if self.answer != "boxes":
            if not self._is_label(answer):
                classes = self._check_logits(answer, min_classes)
                self.lost = _lost(answer)
                for name, label in (("y", y), ("target", self.target)):
                    if label is not None:
                        checks.in_classes(name, label, classes)
            if y is None:
                self.y = self._top(answer)
        self.clean = None if self.access == "hard" else _in_dtype_of(self.x, answer)
        self.start = self.everyone()
        met = self.met(answer, self.start) & ~self.lost
        self._queries.fill_(1)
        self._first_success.masked_fill_(met, 1)
        self.start.leave(met | self.lost)
        self.active, self.start.place = self.start.rows, None

    def everyone(self) -> Live:
        """All samples of the batch, those too that have met the goal at x."""
        rows = torch.arange(len(self._queries), device=self._queries.device)
        return Live(self, rows, x=self.x, y=self.y, target=self.target)

    def of(self, rows: Tensor) -> Live:
        """Samples by their places in the batch, (n,) int64, each as often as it is named."""
        self._most = _NEVER  # a sample that is named twice is asked about twice at once
        labels = {"y": self.y, "target": self.target}
        return Live(self, rows, x=take(self.x, rows), **{k: v if v is None else v[rows] for k, v in labels.items()})

    def one_by_one(self, live: Live, asked: Tensor, only: Sequence[str] | None = None) -> Live:
        """A Live with a row for each of those of m points per sample that a mask (n, m) names, in order."""
        self._most = _NEVER  # samples differ in what they are asked
        return live.part(asked.nonzero()[:, 0], only)

    def _is_label(self, answer: Tensor) -> bool:
        """Whether a model under hard access told the labels alone, (n,) integers, instead of scores."""
        told = self.answer == "classes" and answer.dim() == 1 and not answer.is_floating_point()
        if told and self.access != "hard":
            raise ValueError(
                f"model: want scores of shape ({len(self.y)}, K), got labels alone; an attack that needs no more asks "
                'Victim(model, access="hard")'
            )
        return told

    def _top(self, answer: Tensor) -> Tensor:
        """The top label of each answer."""
        return answer.long() if self._is_label(answer) else answer.argmax(dim=-1)

    def _check_logits(self, logits: Reply, min_classes: int) -> int:
        n, dims, wish = (len(self.y), 2, "K") if self.answer == "classes" else (len(self.y), 3, "T, K")
        if logits.dim() != dims or logits.shape[0] != n or not logits.is_floating_point():
            raise ValueError(f"model: want output of shape ({n}, {wish}), got {tuple(logits.shape)} of {logits.dtype}")
        if logits.shape[-1] < min_classes:
            raise ValueError(f"model: this attack needs at least {min_classes} classes, got {logits.shape[-1]}")
        return logits.shape[-1]

    @property
    def rounding(self) -> float:
        """The relative rounding of the floats about which the model is asked."""
        return torch.finfo(self._dtype or self.x.dtype).eps

    def audible(self, length: float, elements: int = 1) -> float:
        """At least ``length``, and so much that a probe of it, shared by so many elements, is not rounded away."""
        return max(length, elements**0.5 * self.rounding * self.width)

    # The samples at work ---------------------------------------------------------------------------------------

    def live(self, among: Tensor | None = None, **rows: Batch | Noise) -> Live:
        """The active samples, or those of a mask over them, with what belongs to them.

        Args:
            among: bool beside ``active``; None for all.
            rows: tensors (N, ...) or Noise of the whole batch, which become attributes of the Live.
        """
        self._settled()
        place = None if among is None else among.nonzero().flatten()
        start: dict[str, Any] = {name: getattr(self.start, name) for name in ("rows", "x", "y", "target")}
        if place is not None:
            start = {name: value if value is None else take(value, place) for name, value in start.items()}
        whole = len(start["rows"]) == len(self._queries)
        fields: dict[str, Any] = {
            name: value if value is None else filtered(value, None if whole else start["rows"])
            for name, value in rows.items()
        }
        return Live(self, place=place, **start, **fields)

    def unmet(self) -> Tensor:
        """Bool beside ``active``: the samples whose goal has never been met so far."""
        return self.first_success[self.active] < 0

    # Questions -------------------------------------------------------------------------------------------------

    def ask(self, points: Batch, live: Live, loss: LossFunction | None = None) -> Answer:
        """Scores of ``points``, which belong to the samples ``live``, and their loss; one query each."""
        self._need("soft")
        answer = self._answer(points)
        empty = torch.empty(0)
        value = empty if loss is None else loss(answer, live.y, live.target, self.kappa)
        return Answer(answer, self._count(live, answer), value, empty)

    def ask_labels(self, points: Batch, live: Live) -> tuple[Reply, Tensor]:
        """The top label of each point and whether the goal is met there; one query each. All that hard access shows.

        The labels are (n,), or (n, T) of a sequence; of boxes there are none, so that the goal alone is told.
        """
        if self.kappa:
            raise ValueError("kappa: want 0 under hard access, where no scores are seen")
        answer = self._answer(points)
        return None if self.answer == "boxes" else self._top(answer), self._count(live, answer)

    def ask_many_labels(self, points: Batch, live: Live) -> Tensor:
        """Whether the goal is met at m points per sample, (n, m, ...) → (n, m); m queries each, in order."""
        if self.kappa:
            raise ValueError("kappa: want 0 under hard access, where no scores are seen")
        m = first(points).shape[1]
        met = self._met_at_many(self._answer(every(lambda part: part.flatten(0, 1), points)), live, m)
        self._book(live, met)
        return met

    def ask_many(self, points: Batch, live: Live) -> Answer:
        """Scores of m points per sample, (n, m, ...) → logits (n, m, K) and met (n, m); m queries each, in order.

        Boxes are told as the model says them, of n·m points in one batch.
        """
        self._need("soft")
        n, m = first(points).shape[:2]
        answer = self._answer(every(lambda part: part.flatten(0, 1), points))
        met = self._met_at_many(answer, live, m)
        self._book(live, met)
        empty = torch.empty(0)
        return Answer(answer if self.answer == "boxes" else answer.unflatten(0, (n, m)), met, empty, empty)

    def _met_at_many(self, answer: Reply, live: Live, m: int) -> Tensor:
        """(n, m): whether the goal is met, by the answer for m points per sample."""
        y, rows = live.y.repeat_interleave(m), live.rows.repeat_interleave(m)
        target = None if live.target is None else live.target.repeat_interleave(m)
        return self.met(answer, Live(self, rows, y=y, target=target)).reshape(len(live), m)

    def values(self, live: Live, loss: LossFunction) -> Callable[[Batch], Tensor]:
        """The loss as a function of points (n, m, ...) → (n, m), float64, for estimates of its gradient.

        A loss of r columns, (n·m, r) for n·m points, makes it (n, m, r).

        Each point costs its sample one query. Whether the goal is met there is not looked at: such probes need not be
        inside the attack's budget. Differences are small, so that the loss is computed from the scores in float64.
        """
        self._need("soft")

        def ask(points: Batch) -> Tensor:
            n, m = first(points).shape[:2]
            logits = self._answer(every(lambda part: part.flatten(0, 1), points)).double()
            y, target = (None if label is None else label.repeat_interleave(m, 0) for label in (live.y, live.target))
            self._book(live, m)
            value: Tensor = loss(logits, y, target, self.kappa)
            return value.reshape(n, m, *value.shape[1:])

        return ask

    def goals(self, live: Live) -> Callable[[Tensor], Tensor]:
        """Whether the goal is met, as a function of points (n, m, ...) → (n, m); what :meth:`values` is to labels."""

        def ask(points: Tensor) -> Tensor:
            met = self._met_at_many(self._answer(points.flatten(0, 1)), live, points.shape[1])
            self._book(live, points.shape[1])
            return met

        return ask

    def gradient(self, points: Batch, live: Live, loss: LossFunction) -> Answer:
        """Scores, loss and input gradient of the loss at ``points``; one query and one gradient each.

        Of several inputs, those of floats have a gradient; in the place of the others stands None. A ``loss`` of boxes
        is a function of the answer as it comes.
        """
        self._need("white")
        points = self._leaf(points)

        def work(asked: Batch, fast: bool) -> tuple[Reply, Tensor, Batch]:
            answer = self._read(asked, fast)
            value = loss(answer, live.y, live.target, self.kappa)
            return answer, value, _input_gradient(value.sum(), points)

        answer, value, grad = self._differentiate(points, work)
        answer, value = detached(answer), value.detach()
        live._differentiated += 1
        met = self._count(live, answer)
        if not self._has_slope:
            self._look_at_slope(grad, value, loss)
        return Answer(answer, met, value, grad)

    def _look_at_slope(self, grad: Batch, value: Tensor, loss: LossFunction) -> None:
        """Once: warn where a loss of probabilities is at its end, and has no slope, since they round to 1 and 0."""
        self._has_slope = True
        ended = at_its_end(loss, value, self.target, self.kappa)
        if ended is None or not isinstance(grad, Tensor) or not bool(ended.any()):
            return
        assert isinstance(loss, AttackerLoss)  # others have no such end
        flat = int((ended & ~grad.flatten(1).any(dim=1)).sum())
        if flat:
            checks.warn(
                f"loss: {loss.name!r} has a gradient of exactly 0 on {flat} of {len(value)} samples, since the model "
                'is so sure that its probabilities round to 1 and 0; want loss="margin", which does not saturate, or, '
                "where there is no loss to choose, fmn, which goes by it"
            )

    def jacobian(self, points: Tensor, live: Live, choose: Callable[[Tensor], Tensor]) -> tuple[Answer, Tensor, Tensor]:
        """How the logits of chosen classes move against that of the first of them.

        Returns the answer, the classes (n, C) = choose(logits), and the gradients of z_k − z_first for the others,
        (n, C − 1, ...). One query and C − 1 gradients per sample.
        """
        self._need("white")
        points = self._leaf(points)

        def work(asked: Tensor, fast: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
            logits = self._read(asked, fast)
            classes = choose(logits.detach())
            chosen = logits.gather(1, classes)
            chosen = (chosen[:, 1:] - chosen[:, :1]).sum(dim=0)
            parts = [_input_gradient(part, points, retain=i + 1 < len(chosen)) for i, part in enumerate(chosen)]
            return logits, classes, parts

        logits, classes, parts = self._differentiate(points, work)
        live._differentiated += len(parts)
        logits = logits.detach()
        empty = logits.new_empty(0)
        return Answer(logits, self._count(live, logits), empty, empty), classes, torch.stack(parts, dim=1)

    # Goals -----------------------------------------------------------------------------------------------------

    def goal_margin(self, logits: Tensor, live: Live) -> Tensor:
        """How clearly the goal is met by logits of the samples ``live``; positive means met."""
        return goal_margin(logits, live.y, live.target)

    def met(self, answer: Reply, live: Live) -> Tensor:
        """Goal met: argmax ≠ y or argmax = target, and, where κ > 0, with a margin of at least κ. NaN never wins."""
        if self._goal is not None:
            return self._checked_goal(self._goal(answer, live.rows), len(live))
        if self._is_label(answer):
            return answer != live.y if live.target is None else answer == live.target
        top, label = answer.max(dim=1)  # NaN is taken for the largest
        won = label != live.y if live.target is None else label == live.target
        if self.kappa > 0:
            won &= self.goal_margin(answer, live) >= self.kappa
        return won & (top == top)

    @staticmethod
    def _checked_goal(met: object, n: int) -> Tensor:
        if not isinstance(met, Tensor) or met.dtype != torch.bool or met.shape != (n,):
            got = f"{met.dtype} of shape {tuple(met.shape)}" if isinstance(met, Tensor) else type(met).__name__
            raise TypeError(f"goal: want a function that returns bools of shape ({n},), got {got}")
        return met

    def secure(self, logits: Tensor, live: Live) -> Tensor:
        """Goal met with κ and what :func:`~robustlab.attacker.losses.spare` says, so that rounding cannot undo it."""
        return self._is_secure(*self._lead(logits, live))

    def _is_secure(self, margin: Tensor, spared: Tensor) -> Tensor:
        return (margin > 0) & (margin >= (self.kappa + spared if self.kappa else spared))

    def lead(self, logits: Tensor, live: Live) -> Lead:
        """:meth:`goal_margin`, :meth:`secure`, and κ + :meth:`beyond`, for who wants several of them."""
        margin, spared = self._lead(logits, live)
        return Lead(margin, self._is_secure(margin, spared), self.kappa + _AIM * spared)

    def beyond(self, logits: Tensor, live: Live) -> Tensor:
        """The margin at which to aim, (n,): 1 % more than is spared, since a threshold is approached forever."""
        return _AIM * self._lead(logits, live)[1]

    def _lead(self, logits: Tensor, live: Live) -> tuple[Tensor, Tensor]:
        """The goal margin, and how much of it is spared for rounding, without a gradient."""
        if "logit_size" not in vars(live):  # most attacks do without
            live.logit_size = self._logit_size[live.rows]
        own, other = compared(logits, live.y if live.target is None else live.target)
        spared = spare(own, other, live.logit_size, self._dtype or logits.dtype)
        return other - own if live.target is None else own - other, spared

    @cached_property
    def _logit_size(self) -> Tensor:
        """(N,), :func:`robustlab.attacker.losses.logit_size` at x; 0 where no logits are seen."""
        if self.clean is None or self.answer != "classes":
            return torch.zeros(len(self.y), device=self.y.device)
        return logit_size(self.clean, self.y, self.target)

    def shortfall(self, live: Live) -> LossFunction:
        """The loss κ + margin aimed at − goal margin: 0 or less where the goal is met clearly. Not cut off at 0."""

        def loss(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
            lead, spared = self._lead(logits, live)
            return kappa + _AIM * spared - lead

        return loss

    def check_toward(self, label: Tensor) -> None:
        """Raises unless every ``label`` (N,), at which an untargeted attack aims, is one of the others."""
        if self.clean is not None:
            checks.in_classes("toward", label, self.clean.shape[1])
            checks.other_than_y("toward", label, self.y)

    # Counts ----------------------------------------------------------------------------------------------------

    @property
    def queries(self) -> Tensor:
        """Forward rows spent on each sample so far, (N,) int64."""
        return self._settled()._queries

    @property
    def gradients(self) -> Tensor:
        """Input gradients spent on each sample so far, (N,) int64."""
        return self._settled()._gradients

    @property
    def first_success(self) -> Tensor:
        """Queries spent when the goal was first met, (N,) int64; −1 where it never was."""
        found = self._settled()._first_success
        return torch.where(found == _NEVER, -1, found)

    def forget_successes(self, before: Tensor) -> None:
        """Take back what ``first_success`` has noted since it was ``before``: a phase in which nothing counts."""
        self._settled()._first_success = torch.where(before < 0, _NEVER, before)

    def can_pay(self, live: Live, cost: int | Tensor = 1) -> Tensor | None:
        """Which live samples have ``cost`` more queries in their budget, and still one for the final check.

        The cost is one number, or one for each of them, (n,). What is returned is bool (n,), for
        :meth:`robustlab.attacker.live.Live.keep`, or None where all can, as without a budget.
        """
        if self.all_surely_pay(cost):
            return None
        assert self.budget is not None
        return self.queries[live.rows] + cost + 1 <= self.budget

    def all_surely_pay(self, cost: int | Tensor = 1) -> bool:
        """Whether all samples can, without a look at the counts: all questions, about whomever, are too few."""
        return self.budget is None or (isinstance(cost, int) and self._most + cost + 1 <= self.budget)

    def all_can_pay(self, live: Live, cost: int | Tensor = 1) -> bool:
        """Whether each of them can, which an attack with one δ for all asks."""
        paying = self.can_pay(live, cost)
        return paying is None or bool(paying.all())

    def settle(self, live: Live) -> None:
        """Book what was asked about live samples since the last time.

        All samples of a Live pay alike, so that a question adds to one number and not to N.
        """
        if not live._asked:
            return
        self._asking, rows = None, live.rows  # a place may be named twice
        met = live._met[: live._asked]  # (questions, n)
        if live._judged:
            after = torch.where(met.any(dim=0), self._queries[rows] + met.int().argmax(dim=0) + 1, _NEVER)
            self._first_success.scatter_reduce_(0, rows, after, "amin")
        self._queries.index_add_(0, rows, torch.full_like(rows, live._asked))
        if live._differentiated:
            self._gradients.index_add_(0, rows, torch.full_like(rows, live._differentiated))
        live._asked, live._differentiated, live._judged = 0, 0, False

    def _settled(self) -> Session:
        if self._asking is not None:
            self.settle(self._asking)
        return self

    def _count(self, live: Live, answer: Reply) -> Tensor:
        """Book one query for each live sample; note first successes; return whether the goal is met."""
        met = self.met(answer, live)
        self._book(live, met)
        return met

    def _book(self, live: Live, met: Tensor | int) -> None:
        """Note a query of ``met`` (n,), or one for each column of (n, m), or so many of which no goal is looked at."""
        if self._asking is not live:  # what was asked about others comes first, since samples may be among both
            self._settled()._asking = live
        self._most += live.note(met)

    # Means -----------------------------------------------------------------------------------------------------

    def noise(self, seed: int) -> Noise:
        """Randomness keyed by the samples' ids, for the whole batch."""
        return Noise(seed, self.ids)

    def result(
        self, x_adv: Batch = None, *, asked: bool = False, revert: bool = False, trace: dict[str, Tensor] | None = None
    ) -> AttackResult:
        """Check the points of the active samples once more and wrap up.

        Samples that met the goal at x are returned as they were, without another query; so are those that are lost.

        Args:
            x_adv: points (n, ...) beside ``active``; None where there is none.
            asked: all points have been asked about before, so that only the successes among them are checked again.
            revert: (minimum-norm attacks) a sample whose attack failed gets x back.
            trace: what the attack kept.
        """
        success = ~self.lost
        success[self.active] = False
        final = copied(self.x)
        if x_adv is not None and len(self.active):
            points = every(lambda part, like: part.to(like.dtype), x_adv, self.start.x)
            if not revert:
                final = put(final, self.active, points)
            live = self.live(~self.unmet() if asked else None)
            if len(live):
                points = points if live.place is None else take(points, live.place)
                won = self._count(live, self._model(self._inside(points)))
                success[live.rows] = won
                final = put(final, live.rows[won], take(points, won))
        if self.domain.strayed(self._strayed):
            raise RuntimeError(f"a query was outside the domain {self.domain}: a bug of the attack")
        return self._wrapped(final, success, trace)

    @contextmanager
    def relax(self) -> Iterator[None]:
        """Let questions be about the domain's relaxation, such as graphs whose edges have weights.

        No answer about such points is a success, so that what ``first_success`` notes meanwhile is taken back.
        """
        before = self.first_success
        self._questions = self.domain.relaxed()
        try:
            yield
        finally:
            self._questions = self.domain
            self.forget_successes(before)

    def keep_shared(self, delta: Tensor, met: Tensor, live: Live) -> None:
        """(Universal attacks) Put aside the best δ so far, the shape of a sample, and where it met the goal, (n,)."""
        self._shared = delta, torch.zeros_like(self.lost).index_put_((live.rows,), met)

    def moved(self, live: Live, delta: Tensor) -> Tensor:
        """x + δ, clipped, as the caller will compute it: in the dtype of the caller's x."""
        dtype = self._dtype or self.x.dtype
        return clip(live.x.to(dtype) + delta.to(dtype), self.low, self.high).to(live.x.dtype)

    def universal_result(
        self, delta: Tensor, *, success: Tensor | None = None, trace: dict[str, Tensor] | None = None
    ) -> UniversalResult:
        """Check one δ, the shape of a sample, on all samples once more and wrap up.

        ``success`` (N,): from an attack that has asked by itself, since its goal is not about x + δ alone.
        """
        delta = delta.to(self._dtype or self.x.dtype)
        live = self.of((~self.lost).nonzero().flatten())
        if success is None:
            success = torch.zeros_like(self.lost)
            if len(live):
                success[live.rows] = self._count(live, self._model(self._inside(self.moved(live, delta))))
        if self.domain.strayed(self._strayed):
            raise RuntimeError(f"a query was outside the domain {self.domain}: a bug of the attack")
        return self._wrapped_shared(delta, success, trace)

    def _wrapped_shared(self, delta: Tensor, success: Tensor, trace: dict[str, Tensor] | None) -> UniversalResult:
        lengths = {name: value[0] for name, value in measure(delta[None]).items()}
        return UniversalResult(delta, success, lengths, self.queries, self.gradients, trace)

    def keep_texture(self, texture: Tensor, mask: Tensor) -> None:
        """(Physical attacks) Put aside the texture so far, (C, h, w), and where it is painted, (1, h, w)."""
        self._texture = texture, mask

    def labels_of(self, points: Tensor) -> Tensor:
        """The top label of each of points (m, ...) that judge what was made on the batch; not counted as queries."""
        return self._top(self._answer(points))

    def answer_of(self, points: Tensor) -> Reply:
        """The answer for points (m, ...) that judge what was made on the batch, as it comes; not counted as queries."""
        return self._answer(points)

    def physical_result(
        self, texture: Tensor, mask: Tensor, success: Tensor, trace: dict[str, Tensor] | None = None
    ) -> PhysicalResult:
        """Wrap up a texture with its success (N, T) in held-out pictures."""
        if self.domain.strayed(self._strayed):
            raise RuntimeError(f"a query was outside the domain {self.domain}: a bug of the attack")
        dtype = self._dtype or self.x.dtype
        return PhysicalResult(texture.to(dtype), mask.clone(), success, self.queries, self.gradients, trace)

    def so_far(self) -> AttackResult | UniversalResult | PhysicalResult:
        """What the attack has found up to now, for when it is interrupted.

        ``success`` tells what the model said when it was asked: nothing is asked again. A sample that was not fooled
        has the best point that the attack had put aside.
        """
        if self._texture is not None:
            texture, mask = self._texture
            return self.physical_result(texture, mask, torch.zeros(0, 0, dtype=torch.bool, device=mask.device))
        if self._shared is not None:
            delta, met = self._shared
            return self._wrapped_shared(delta.to(self._dtype or self.x.dtype), met, None)
        success, final = ~self.lost, copied(self.x)
        success[self.active] = False
        if self.bests and len(self.active):
            best, points = self.bests[0], self.bests[0].points
            if isinstance(points, tuple) and not isinstance(self.x, tuple):
                points = points[0]  # beside it stands what the attack has made it from
            final = put(final, self.active, points)
            success[self.active] = ~self.unmet() & (best.value < torch.inf)
        return self._wrapped(final, success, None)

    def _wrapped(self, final: Batch, success: Tensor, trace: dict[str, Tensor] | None) -> AttackResult:
        given = final if self._dtype is None else final.to(self._dtype)
        return AttackResult(
            x_adv=given,
            success=success,
            distances=self.domain.distances(self.x, given),
            queries=self.queries,
            gradients=self.gradients,
            first_success=self.first_success,
            trace=trace,
        )

    def _answer(self, points: Batch) -> Reply:
        """The answer at points, without a gradient."""
        return self._read(self._inside(points), False)

    def _read(self, points: Batch, fast: bool) -> Reply:
        """In the dtype that the attack computes in; the judge sees a more precise model's as they are."""
        return _in_dtype_of(points, self._model(points, fast=fast))

    def _leaf(self, points: Batch) -> Batch:
        """A copy inside the domain whose floats want a gradient."""
        copy = self._inside(points, last=self._fast and not self._careful)
        return every(lambda part: part.requires_grad_(part.is_floating_point()), copy)

    def _differentiate(self, points: Batch, work: Callable[[Batch, bool], Found]) -> Found:
        """``work`` on points that want a gradient, as they are: in channels-last, where that may be faster.

        A model that cannot bear that is asked with a copy in the caller's layout from then on: its first layer works in
        place, or it has a line like ``x.view(len(x), -1)`` after a convolution. What fails there is not counted.
        """
        with torch.enable_grad():
            if not self._careful:
                try:
                    return work(points, self._fast)
                except RuntimeError as error:
                    if not (self._fast or "in-place" in str(error)):
                        raise  # else what fails in either way raises below
            found = work(every(lambda part: part.clone(memory_format=torch.contiguous_format), points), False)
        self._careful = True
        return found

    def _need(self, access: Access) -> None:
        if LEVEL[self.access] < LEVEL[access]:
            raise ValueError(f"access: this question needs {access!r} access, the victim grants {self.access!r}")

    def _inside(self, points: Batch, last: bool = False) -> Batch:
        """A copy for the model, in which nothing is outside the domain; whether anything was is told at the end."""
        copy, strayed = self._questions.inside(points, last)
        self._strayed = strayed if self._strayed is None else self.domain.either(self._strayed, strayed)
        return copy


def _lost(answer: Tensor) -> Tensor:
    """Which samples have NaN in their scores, (n,); a warning names them."""
    lost = answer.isnan().flatten(1).any(dim=1)
    if bool(lost.any()):
        rows = lost.nonzero().flatten().tolist()
        more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
        checks.warn(f"model: want numbers at x, got NaN in rows {rows[:10]}{more}; their attack has failed")
    return lost


def part_of(value: Any, rows: Tensor, n: int) -> Any:
    """What of an argument belongs to ``rows``: those of a tensor with one row for each of n samples, else all of it."""
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.shape[:1] == (n,) else value


def _in_dtype_of(points: Batch, answer: Reply) -> Reply:
    """Scores in the dtype of the points, where these are floats."""
    computes = isinstance(points, Tensor) and points.is_floating_point() and isinstance(answer, Tensor)
    return answer.to(points.dtype) if computes and answer.is_floating_point() else answer


def _input_gradient(value: Tensor, points: Batch, retain: bool = False) -> Batch:
    """d value / d points, with NaN and infinities (from a saturated loss) set to 0; None for what is no float."""
    leaves = [part for part in tensors(points) if part.requires_grad]
    if not leaves:
        raise TypeError("victim: want inputs of floats for a gradient, got others")
    if not value.requires_grad:
        raise ValueError(f"model: want {_CUT_OFF}")
    try:
        grads = iter(torch.autograd.grad(value, leaves, retain_graph=retain, allow_unused=isinstance(points, tuple)))
    except RuntimeError as error:
        wish = next((wish for sign, wish in _NO_GRADIENT.items() if sign in str(error)), None)
        if wish is None:
            raise
        raise ValueError(f"model: want {wish}") from error

    def finite(part: Tensor) -> Tensor | None:
        if not part.requires_grad:
            return None
        grad = next(grads)
        if grad is None:  # the model passes it over
            return torch.zeros_like(part)
        # What is not finite shows in the sum, which a CPU reads for a fifth of the price; a GPU would have to be
        # waited for. Not in place: a gradient may be an expanded view, or the model's own.
        if grad.device.type != "cpu" or not math.isfinite(grad.sum()):
            grad = grad.nan_to_num(0.0, 0.0, 0.0)
        return grad.contiguous()  # the layout in which the attack computes

    return every(finite, points)
