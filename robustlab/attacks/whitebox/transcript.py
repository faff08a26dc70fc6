"""A targeted attack on what a recognizer of speech hears.

Carlini and Wagner, "Audio adversarial examples: targeted attacks on speech-to-text" (2018), section III, on the
budget-based formulation (3) of the survey: the probability of the target t, summed over all paths of frames that say
it, is raised inside the ball by projected gradient descent,

    minimize_δ CTC(z(x + δ), t)  subject to ‖δ‖_∞ ≤ ε, x + δ ∈ box

A defense that also listens to parts of a sound (its beginning, a segment) is attacked along with the recognizer: each
part is a mask m with a target t_m of its own, and the attacker minimizes the sum

    CTC(z(x + δ), t) + Σ_m CTC(z(m ⊙ (x + δ)), t_m)

of which the attacks that Yang, Li, Chen and Song, "Characterizing audio adversarial examples using temporal dependency"
(2019) try against their detector are special cases (:func:`robustlab.defenses.detection.temporal_dependency`).

Different here: signed steps that shrink linearly, where the paper runs Adam on ‖δ‖₂² + c·CTC and lowers ε as it
succeeds; the best point is kept; a sample stops at its first success.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Live
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.norms import measure
from robustlab.models.speech import ctc_loss, same_labels, transcripts
from robustlab.progress import bar


@dataclass(frozen=True, eq=False, repr=False)
class Heard:
    """A part of each sound, and what the recognizer is to hear in it.

    Attributes:
        mask: (N, T) bool, the samples of the part; the rest is silence to it.
        target: (N, S) int64 labels, with −1 behind the last.
    """

    mask: Tensor
    target: Tensor

    def __repr__(self) -> str:
        return f"Heard({tuple(self.mask.shape)} samples, up to {self.target.shape[1]} labels)"


def transcript(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    eps: float | Tensor,
    target: Tensor | None = None,
    also: Sequence[Heard] = (),
    movable: Tensor | None = None,
    steps: int = 200,
    step_size: float | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Make a recognizer hear a target, or anything else than what is said, inside an ℓ∞ ball.

        δ ← P( δ − α_k · sign(∇ Σ_m CTC(z(m ⊙ (x + δ)), t_m)) ),   α_k = α·(1 − k/K)

    Args:
        victim: a recognizer: a Victim of ``answer="sequence"``, or a model with scores (N, F, K), whose last label is
            the blank and whose sounds are in [−1, 1].
        x: sounds (N, T), in the box.
        y: (N, S) int64, what is said, with −1 behind the last label; None takes what the model hears. Only an
            untargeted attack reads it.
        eps: radius ε ≥ 0 of the ℓ∞ ball; a number or (N,).
        target: (N, S) int64 labels with −1 behind the last; None is the untargeted attack, which lowers the probability
            of y.
        also: further parts that are to be heard as their own targets.
        movable: (N, T) bool, the samples that the attacker can change; None is all.
        steps: K ≥ 1 gradient steps.
        step_size: α > 0, a number or (N,); None means ε/5.
        seed, ids: of the random start, uniform in the ball, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; success means that the whole is heard as the attacker wants, and so is every part. The look at x,
        each step and the final check of a success cost one query for the whole and one for each part; a step costs as
        many gradients. Of a failure it has the point of smallest loss. A victim's budget is shared out evenly over the
        whole and the parts.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Carlini and Wagner (2018), section III; Yang et al. (2019), section 4.4, for the parts. Departures: see the
        module.
    """
    victim = listener(victim)
    checks.images(x, victim.bounds)
    checks.at_least("steps", steps, 1, integer=True)
    eps = checks.radius(eps, x, "linf", victim.bounds)
    alpha = eps / 5 if step_size is None else checks.per_sample("step_size", step_size, x)
    # One radius for each sample of the sound.
    radius = beside(eps, x) * (1 if movable is None else _mask("movable", movable, x))
    masks, wanted = _parts(x, y, target, also)  # (P, N, T) and (P, N, S)
    parts, sign = len(masks), -1 if target is None else 1
    ids = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)

    def goal(answer: Tensor, rows: Tensor) -> Tensor:
        said = transcripts(answer) if wanted is None else wanted.flatten(0, 1)[rows]
        return (says(answer, said) == (sign > 0)) & ~answer.isnan().flatten(1).any(dim=1)

    def loss(answer: Tensor, *_: object) -> Tensor:
        return sign * ctc_loss(answer, labels[live.rows])

    with victim.session((x * masks).flatten(0, 1), ids=ids.repeat(parts), goal=goal) as session:
        if session.clean is None:  # an empty batch
            return session.result()
        wanted = transcripts(session.clean)[None] if wanted is None else wanted
        _check_room(session.clean, wanted)
        labels = wanted.flatten(0, 1)
        session.budget = None if session.budget is None else session.budget // parts
        live, found = session.everyone(), _Found(session, x, parts)
        everyone = live.part()
        live.mask = everyone.mask = masks.flatten(0, 1)
        live.noise, live.alpha = session.noise(seed), alpha.repeat(parts)
        live.low = (x - radius).clamp_min(session.low).repeat(parts, 1)
        live.high = (x + radius).clamp_max(session.high).repeat(parts, 1)
        live.leave(found.closed.repeat(parts))
        live.points = live.noise.uniform(0, x.shape[1:], x.dtype) * (live.high - live.low) + live.low
        for k in bar(range(steps + 1), show=progress, label="transcript"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            answer = session.gradient(live.points * live.mask, live, loss)
            met = found.keep(live, answer.loss, answer.met)
            grad = (answer.grad * live.mask).unflatten(0, (parts, -1)).sum(dim=0).repeat(parts, 1)
            live.points = live.points - beside(live.alpha, grad) * (1 - k / steps) * grad.sign()
            live.points = live.points.clamp(live.low, live.high)
            live.leave(met.repeat(parts))
        return found.result(everyone)


class _Found:
    """What was found of N sounds, each of which stands P times in the batch, once for each part."""

    def __init__(self, session: Session, x: Tensor, parts: int) -> None:
        self.session, self.x, self.parts = session, x.detach(), parts
        self.best = self.x.clone()
        self.least = torch.full_like(self._sums(session.queries), torch.inf, dtype=x.dtype)
        lost = session.lost.unflatten(0, (parts, -1)).any(dim=0)
        self.success = (session.first_success > 0).unflatten(0, (parts, -1)).all(dim=0) & ~lost
        self.first = torch.where(self.success, parts, -1)
        self.closed = self.success | lost

    def keep(self, live: Live, loss: Tensor, met: Tensor) -> Tensor:
        """Note where the sum of the losses is smallest, and which sounds are heard as wanted in all parts, (n,)."""
        loss, met = (value.unflatten(0, (self.parts, -1)) for value in (loss, met))
        rows, points, all_met = live.rows[: loss.shape[1]], live.points[: loss.shape[1]], met.all(dim=0)
        value = loss.sum(dim=0).masked_fill(all_met, -torch.inf)
        better = value < self.least[rows]
        self.best[rows[better]], self.least[rows[better]] = points[better], value[better]
        won = rows[all_met]
        self.success[won], self.first[won] = True, self._sums(self.session.queries)[won]
        return all_met

    def result(self, live: Live) -> AttackResult:
        """The best points; of all sounds ``live``, the successes are asked about once more."""
        live.keep((self.success & ~self.closed).repeat(self.parts))
        if len(live):
            answer = self.session.ask(self.best[live.rows % len(self.x)] * live.mask, live)
            met = answer.met.unflatten(0, (self.parts, -1)).all(dim=0)
            self.success[live.rows[: len(met)]] = met
        return AttackResult(
            self.best, self.success, measure(self.best - self.x), self._sums(self.session.queries),
            self._sums(self.session.gradients), self.first,
        )  # fmt: skip

    def _sums(self, counts: Tensor) -> Tensor:
        return counts.unflatten(0, (self.parts, -1)).sum(dim=0)


def listener(victim: Model) -> Victim:
    """A victim that answers in sequences; a bare model hears sounds in [−1, 1]."""
    if not isinstance(victim, Victim):
        return Victim(victim, bounds=(-1.0, 1.0), answer="sequence")
    if victim.answer != "sequence":
        raise ValueError(f'victim: want a Victim of answer="sequence", got answer={victim.answer!r}')
    return victim


def says(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether the transcripts of scores (N, F, K) are the labels (N, S), with −1 behind the last; (N,) bool."""
    return same_labels(transcripts(scores), labels)


def _parts(x: Tensor, y: Tensor | None, target: Tensor | None, also: Sequence[Heard]) -> tuple[Tensor, Tensor | None]:
    """The masks (P, N, T) of the whole and of the parts, and what is (not) to be heard in each, (P, N, S).

    The labels are None where nobody says what is not to be heard: what the model hears at x.
    """
    if target is None and also:
        raise ValueError(f"also: want a target of the whole beside those of {len(also)} parts, got None")
    masks = [torch.ones_like(x, dtype=torch.bool)]
    if target is None and y is None:
        return torch.stack(masks), None
    labels = [checked_labels("y", y, x) if target is None else checked_labels("target", target, x)]
    for part in also:
        masks.append(_mask("also", part.mask, x))
        labels.append(checked_labels("also", part.target, x))
    width = max(label.shape[1] for label in labels)
    return torch.stack(masks), torch.stack([F.pad(label, (0, width - label.shape[1]), value=-1) for label in labels])


def _mask(name: str, value: object, x: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.bool or value.shape != x.shape:
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: want a mask, bool of shape {tuple(x.shape)}, got {got}")
    return value.to(x.device)


def checked_labels(name: str, value: object, x: Tensor) -> Tensor:
    """Labels (N, S) on the device of x: none behind the first −1."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != 2 or len(value) != len(x):
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: want labels, int64 of shape ({len(x)}, S) with −1 behind the last, got {got}")
    ended = value < 0
    if bool((ended[:, :-1] & ~ended[:, 1:]).any()) or bool((value < -1).any()):
        raise ValueError(f"{name}: want labels of at least 0, and −1 behind the last alone, got another order")
    return value.to(x.device)


def _check_room(scores: Tensor, labels: Tensor) -> None:
    """Raises where labels are none of the recognizer's, or its frames are too few to say them."""
    frames, classes = scores.shape[1:]
    if labels.numel() and int(labels.max()) >= classes - 1:
        raise ValueError(f"target: want labels of 0 … {classes - 2}, got {int(labels.max())}")
    twice = (labels[..., 1:] == labels[..., :-1]) & (labels[..., 1:] >= 0)  # between them a blank is needed
    needed = (labels >= 0).sum(dim=-1) + twice.sum(dim=-1)
    if labels.numel() and int(needed.max()) > frames:
        raise ValueError(f"target: want labels that fit into {frames} frames, got some that take {int(needed.max())}")
