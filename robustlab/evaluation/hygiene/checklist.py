"""The checklist for a claimed defense, as one call.

Carlini et al., "On evaluating adversarial robustness" (2019a), sections 3 to 5, and Tramèr, Carlini, Brendel and Mądry,
"On adaptive attacks to adversarial example defenses" (2020): what any correct evaluation must satisfy, whatever the
defense. Attacks bound robust accuracy from above, so a stronger attack, a larger ball or more knowledge can only lower
it. Where the numbers rise instead, it is the attack that fails, and not the model that is robust.

A report without a complaint proves nothing: it says that the usual mistakes were not found. What a defense does must
still be attacked by someone who has read how it works.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robustlab import checks
from robustlab.data.pairs import Pairs, beside, read_labeled
from robustlab.defenses.robustness_claim import Claim
from robustlab.evaluation.hygiene.compared_attacks import ComparedAttacks
from robustlab.evaluation.hygiene.criteria import GROUPS, Check, units

__all__ = ["ChecklistReport", "checklist"]


@dataclass(frozen=True, repr=False)
class ChecklistReport:
    """What :func:`robustlab.evaluation.checklist` found; print it. ``report["name"]`` is one check.

    Attributes:
        checks: all checks, in order.
        claim: what was claimed.
        n: number of samples.
    """

    checks: tuple[Check, ...]
    claim: Claim
    n: int

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        done = sum(check.passed is not None for check in self.checks)
        lines = [
            f"{done} checks on {self.n} samples, {self.claim.norm}, eps {self.claim.eps:g}: {len(self.failed)} fail"
        ]
        for check in self.checks:
            sign = {True: "ok  ", False: "FAIL", None: "-   "}[check.passed]
            numbers = ", ".join(f"{name} {value:.3g}" for name, value in check.evidence.items())
            lines.append(f"{sign} {check.name}" + (f" ({numbers})" if numbers else ""))
            if check.passed is False:
                lines.append(f"     -> {check.advice}")
        return "\n".join(lines)

    __repr__ = __str__


def checklist(
    model: nn.Module,
    x: Tensor | Pairs,
    y: Tensor | None = None,
    *,
    claim: Claim,
    surrogate: nn.Module | None = None,
    steps: int = 40,
    queries: int = 300,
    seed: int = 0,
) -> ChecklistReport:
    """Test a claimed defense for the usual mistakes of its evaluation.

        stronger attack, larger ball, more knowledge  ⇒  robust accuracy must not rise

    Args:
        model: the defense, logits (N, K), in the state in which it was evaluated.
        x: 50 to 200 inputs (N, ...); or, in the place of x and y, a Dataset, whose test part is taken, or a torch
            DataLoader, whose batches are collected.
        y: (N,) labels.
        claim: what is claimed, see :class:`Claim`.
        surrogate: an undefended or otherwise trained model to transfer attacks from; None leaves that check out.
        steps: of PGD, at least 4; default 40.
        queries: of the Square Attack a sample; default 300.
        seed: of all randomness.

    Returns:
        ChecklistReport. A comparison allows for 2 % of the samples, and at least one; an accuracy is compared with its
        claim by Wilson's 99 % interval. Cost: about 10 runs of PGD.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Carlini et al. (2019a), sections 3 to 5; Tramèr et al. (2020), section 4. Thresholds are ours.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want an nn.Module, got {type(model).__name__}")
    if surrogate is not None and not isinstance(surrogate, nn.Module):
        raise TypeError(f"surrogate: want an nn.Module or None, got {type(surrogate).__name__}")
    if not isinstance(claim, Claim):
        raise TypeError(f"claim: want a Claim, got {type(claim).__name__}")
    checks.at_least("steps", steps, 4, integer=True)
    checks.at_least("queries", queries, 1, integer=True)
    x, y = read_labeled(beside(x, y), "x", "test")
    found = [units(x, claim)]
    if found[0].passed:
        battery = ComparedAttacks(model, x, y, claim, surrogate, steps, queries, seed)
        checks.in_classes("y", y, battery.once(0).shape[1])
        with checks.scores_are_judged():  # one of the checks judges them
            for group in GROUPS:
                found.extend(group(battery))
    return ChecklistReport(tuple(found), claim, len(x))
