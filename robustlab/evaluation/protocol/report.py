"""What AutoAttack returns: the points found, the robust accuracy after each attack with its costs, and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from robustlab.attacker.results import Result
from robustlab.evaluation.protocol.state import State
from robustlab.geometry.norms import ProperNorm
from robustlab.intervals import wilson

__all__ = ["AttackRun", "AutoAttackReport"]

_SQUARE_TOO_GOOD = 0.002  # a fall of the accuracy by Square that casts doubt on the gradients


@dataclass(frozen=True)
class AttackRun:
    """What one attack of the sequence did.

    Attributes:
        name: as in :mod:`robustlab.evaluation.protocol.autoattack`.
        tried, fooled: how many samples were handed to it, and how many of them it broke.
        accuracy: the robust accuracy after it.
        seconds: it took, over all batches.
        queries, gradients: it cost, over all samples.
    """

    name: str
    tried: int
    fooled: int
    accuracy: float
    seconds: float
    queries: int
    gradients: int


@dataclass(frozen=True, eq=False, repr=False)
class AutoAttackReport(Result):
    """The outcome on N samples.

    Attributes:
        norm, eps: the ball.
        attacks: what each attack did, in order.
        x_adv: (N, ...), inside the ball and the box: what broke each sample; x where nothing did, or nothing had to.
            None where the data came from a loader.
        broken_by: (N,) int64 on the CPU: 0 where the model is wrong at x, k where the k-th attack succeeded (from 1),
            −1 where none did.
        queries, gradients: (N,) int64 on the CPU, spent on each sample in all, the first checks included.
        flags: what makes the number doubtful: a word → a sentence. Empty if nothing was noticed.
        confidence: level of the interval.
    """

    norm: ProperNorm
    eps: float
    attacks: tuple[AttackRun, ...]
    x_adv: Tensor | None
    broken_by: Tensor
    queries: Tensor
    gradients: Tensor
    flags: dict[str, str]
    confidence: float

    def __len__(self) -> int:
        return self.broken_by.shape[0]

    @property
    def robust(self) -> Tensor:
        """(N,) bool: which samples nobody has fooled."""
        return self.broken_by < 0

    @property
    def clean_accuracy(self) -> float:
        """The share of samples that the model gets right at x."""
        return float((self.broken_by != 0).double().mean())

    @property
    def robust_accuracy(self) -> float:
        """The share that is left in the end: an upper bound of the robust accuracy on these samples."""
        return float(self.robust.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of ``robust_accuracy``, for the population that the samples were drawn from."""
        low, high = wilson(int(self.robust.sum()), len(self), self.confidence)
        return float(low), float(high)

    def summary(self) -> str:
        """A table: a line for each attack, and one for each flag."""
        low, high = self.interval
        lines = [
            f"AutoAttack in {self.norm}, eps {self.eps:g}, {len(self)} samples: "
            f"clean {100 * self.clean_accuracy:.1f} %, robust {100 * self.robust_accuracy:.1f} % "
            f"[{100 * low:.1f}, {100 * high:.1f}]"
        ]
        lines += [
            f"{run.name:9} tried {run.tried:5}  fooled {run.fooled:5}  left {100 * run.accuracy:5.1f} %  "
            f"{run.seconds:7.1f} s  {run.queries} queries  {run.gradients} gradients"
            for run in self.attacks
        ]
        return "\n".join(lines + [f"flag {word}: {sentence}" for word, sentence in self.flags.items()])


def report_of(
    names: Sequence[str], used: Sequence[str], norm: ProperNorm, eps: float, kept: State, confidence: float
) -> AutoAttackReport:
    """The report on a run of the attacks ``used``, of ``names`` that were asked for."""
    runs, flags, n = [], dict(kept.flags), len(kept.broken_by)
    if kept.flat:
        share = f"at {kept.flat} of {kept.right} samples"
        flags["zero_gradients"] = f"the gradient is 0 {share}: gradient attacks are blind there"
    if kept.classes < 4:
        flags["few_classes"] = f"{kept.classes} classes: the margin stands in for a DLR loss that needs 3, targeted 4"
    if used != names:
        flags["no_square"] = "Square Attack is left out: it is made for images, in linf and l2"
    for k, name in enumerate(used, start=1):
        standing = (kept.broken_by < 0) | (kept.broken_by > k)
        fooled = int((kept.broken_by == k).sum())
        runs.append(
            AttackRun(
                name=name,
                tried=int((kept.seen_by >= k).sum()),
                fooled=fooled,
                accuracy=int(standing.sum()) / n,
                seconds=kept.seconds[k],
                queries=int(kept.queries[k].sum()),
                gradients=int(kept.gradients[k].sum()),
            )
        )
        if name == "square" and len(used) > 1 and fooled > _SQUARE_TOO_GOOD * n:
            flags["square_decisive"] = (
                f"Square Attack, which sees no gradients, broke {fooled} samples that the attacks before it did not: "
                "gradients may be masked; try an adaptive attack"
            )
    return AutoAttackReport(
        norm=norm, eps=eps, attacks=tuple(runs), x_adv=kept.x_adv, broken_by=kept.broken_by,
        queries=kept.queries.sum(dim=0), gradients=kept.gradients.sum(dim=0), flags=flags,
        confidence=float(confidence),
    )  # fmt: skip
