"""The unrestricted contest: no confident mistake on any unambiguous input.

Brown, Carlini, Zhang, Olsson, Christiano and Goodfellow, "Unrestricted adversarial examples" (2018), sections 3 and 4.
Attackers may submit any input at all; no reference sample, no norm. What keeps the game meaningful are two rules:

* a submission counts only if it is unambiguous: all human judges agree which class it shows;
* a defense may abstain, but must answer on at least 80 % of the clean, unambiguous inputs.

The defense is broken by a single confident mistake, which is an unambiguous input that it answers wrongly. Here a model
answers where its confidence, the lead of its largest logit, is at least τ, and τ is as high as the rule lets it be:

    answers(x)  ⇔  c(x) = z_(1) − z_(2) ≥ τ,        τ = max { t : P_clean( c(x) ≥ t ) ≥ coverage }

The warm-up of the contest scores attacks more softly, by the accuracy on the 80 % of the submissions on which the model
is most confident; :meth:`Submission.accuracy_at` is that number, and :meth:`Submission.curve` the whole curve of error
against coverage.

Different here: there are no human judges; where ``judge`` is None, all submissions are taken to be unambiguous, so it
is up to the caller to submit attacks that keep the class, such as small rotations. The contest's task is birds against
bicycles; here any model and data will do.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.results import AttackResult, Result
from robustlab.attacker.victim import Victim
from robustlab.data.pairs import Pairs, beside, read_pair
from robustlab.models.modes import evaluating

__all__ = ["Contest", "Submission", "unanimous", "unrestricted"]

Attack = Callable[..., AttackResult]
Judge = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Submission(Result):
    """A set of inputs and what the model did with them; everything on the CPU, (N,).

    Attributes:
        confidence: lead of the largest logit, float64.
        correct: whether the largest logit is that of the class which the judges see.
        unambiguous: whether the judges agree; the others do not count.
        answered: whether the model does not abstain.
    """

    confidence: Tensor
    correct: Tensor
    unambiguous: Tensor
    answered: Tensor

    @property
    def mistakes(self) -> Tensor:
        """Which inputs are confident mistakes."""
        return self.unambiguous & self.answered & ~self.correct

    @property
    def broken(self) -> bool:
        """Whether one confident mistake was found: then the defense is lost."""
        return bool(self.mistakes.any())

    def curve(self) -> tuple[Tensor, Tensor]:
        """Coverage 1/n … 1, and the share of errors among so many most confident unambiguous inputs, (n,) each."""
        order = self.confidence[self.unambiguous].argsort(descending=True, stable=True)
        wrong = (~self.correct[self.unambiguous])[order].double()
        count = torch.arange(1, len(order) + 1, dtype=torch.float64)
        return count / max(1, len(order)), wrong.cumsum(0) / count

    def accuracy_at(self, coverage: float) -> float:
        """Accuracy on that share of the unambiguous inputs, the most confident; NaN if there are none."""
        errors = self.curve()[1]
        return 1 - float(errors[_at_least(coverage, len(errors)) - 1]) if len(errors) else math.nan


@dataclass(frozen=True, eq=False, repr=False)
class Contest(Result):
    """The outcome of :func:`unrestricted`.

    Attributes:
        threshold: τ, the confidence from which on the model answers.
        clean: the clean inputs.
        attacks: a :class:`Submission` for each attack.
    """

    threshold: float
    clean: Submission
    attacks: dict[str, Submission]

    @property
    def eligible(self) -> bool:
        """Whether the model makes no mistake on the clean inputs that it answers, as the contest demands."""
        return not self.clean.broken

    @property
    def broken(self) -> bool:
        """Whether any attack found a confident mistake."""
        return any(part.broken for part in self.attacks.values())

    def summary(self) -> str:
        """A line for each set: how many are unambiguous, answered, and confidently wrong."""
        lines = [f"answers from a lead of {self.threshold:.3g}; {'eligible' if self.eligible else 'not eligible'}"]
        for name, part in {"clean": self.clean, **self.attacks}.items():
            answered = int((part.unambiguous & part.answered).sum())
            lines.append(
                f"{name}: {int(part.unambiguous.sum())} unambiguous, {answered} answered, "
                f"{int(part.mistakes.sum())} confident mistakes"
            )
        return "\n".join(lines)


def unrestricted(
    model: Victim | Callable[[Tensor], Tensor],
    x: Tensor | Pairs,
    y: Tensor | None = None,
    *,
    attacks: Mapping[str, Attack] | None = None,
    coverage: float = 0.8,
    judge: Judge | None = None,
    batch_size: int = 250,
) -> Contest:
    """Judge a model by the rule of the unrestricted contest.

        broken  ⇔  some attack finds an unambiguous x' with c(x') ≥ τ and ŷ_θ(x') ≠ y

    Args:
        model: a Victim that grants at least soft access, or a model with logits (N, K).
        x: clean, unambiguous inputs (N, ...): the eligibility set, and what attacks start from. Or, in the place of x
            and y, a Dataset, whose test part is taken, or a torch DataLoader, whose batches are collected.
        y: (N,) labels.
        attacks: name → attack with the signature of :mod:`robustlab.attacks`; ``functools.partial`` binds arguments.
            One that takes ``kappa`` is given τ, since only a mistake with that lead counts. None: rotations and
            translations on a grid (:func:`robustlab.attacks.spatial`).
        coverage: the share of the clean inputs that must be answered, in (0, 1].
        judge: ``judge(x_adv, y)`` → bool (N,), whether all judges see class y there; None: they do.
        batch_size: inputs at a time.

    Returns:
        Contest.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work; the attacks' own.

    Source:
        Brown et al. (2018), sections 3 and 4.
    """
    victim = Victim.of(model)
    x, label = read_pair(beside(x, y), "x", "test")
    checks.images(x, victim.bounds)
    y = checks.labels("y", label, x)
    if isinstance(coverage, bool) or not isinstance(coverage, int | float) or not 0 < coverage <= 1:
        raise ValueError(f"coverage: want a number in (0, 1], got {coverage!r}")
    checks.at_least("batch_size", batch_size, 1, integer=True)
    if attacks is None:
        from robustlab.attacks import spatial

        attacks = {"spatial": spatial}
    everything = torch.ones(len(x), dtype=torch.bool)
    confidence, correct = _read(victim, x, y, batch_size)
    needed = _at_least(coverage, len(x))
    threshold = float(confidence.sort(descending=True).values[needed - 1])
    found = {}
    for name, attack in attacks.items():
        extra = {"kappa": max(threshold, 0.0)} if "kappa" in inspect.signature(attack).parameters else {}
        parts = [
            attack(victim, x[rows], y[rows], ids=rows, **extra).x_adv for rows in torch.arange(len(x)).split(batch_size)
        ]
        x_adv = torch.cat(parts)
        seen = everything if judge is None else _judged(judge, x_adv, y)
        if seen.shape != everything.shape or seen.dtype != torch.bool:
            raise ValueError(f"judge: want bool of shape ({len(x)},), got {seen.dtype} of {tuple(seen.shape)}")
        lead, right = _read(victim, x_adv, y, batch_size)
        found[name] = Submission(lead, right, seen, lead >= threshold)
    return Contest(threshold, Submission(confidence, correct, everything, confidence >= threshold), found)


def unanimous(votes: Tensor, y: Tensor) -> Tensor:
    """Whether all judges vote for class y: (N,) bool from votes (N, J), where −1 stands for "not sure".

    Raises:
        ValueError: if there is not a row of votes for each label.
    """
    if votes.dim() != 2 or votes.shape[:1] != y.shape or not votes.shape[1]:
        raise ValueError(f"votes: want shape ({len(y)}, J) with J at least 1, got {tuple(votes.shape)}")
    return (votes == y[:, None]).all(dim=1)


def _judged(judge: Judge, x_adv: Tensor, y: Tensor) -> Tensor:
    with evaluating(judge), torch.no_grad():
        return judge(x_adv, y).cpu()


def _read(victim: Victim, x: Tensor, y: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Confidence (the lead of the largest logit) and whether the label is right, on the CPU."""
    leads, right = [], []
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        with victim.session(x[rows], y[rows], access="soft") as session:
            assert session.clean is not None
            top = session.clean.topk(2, dim=1)
            leads.append((top.values[:, 0] - top.values[:, 1]).double().masked_fill(session.lost, 0.0).cpu())
            right.append(((top.indices[:, 0] == session.y) & ~session.lost).cpu())
    return torch.cat(leads), torch.cat(right)


def _at_least(coverage: float, n: int) -> int:
    """The smallest count that is at least that share of n, and at least 1."""
    return max(1, math.ceil(coverage * n - 1e-9))
