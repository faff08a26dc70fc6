"""How good a targeted poisoning is: retrained victims, several targets, several seeds, and controls beside them.

Schwarzschild, Goldblum, Gupta, Dickerson and Goldstein, "Just how toxic is data poisoning? A unified benchmark for
backdoor and data poisoning attacks" (2021), on what makes such numbers comparable: success is judged on victims that
the attacker has not seen, and counted over targets. Different here: several victims a
target, and controls of the same budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Result
from robustlab.attacker.victim import accuracy, predict
from robustlab.attacks.poisoning.clean_label import CleanLabelPoison, prepare
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.intervals import wilson

__all__ = ["PoisoningReport", "evaluate_poisoning", "poisoning_control"]

Control = Literal["none", "noise", "flips"]
CONTROLS = get_args(Control)


@dataclass(frozen=True, eq=False, repr=False)
class PoisoningReport(Result):
    """What :func:`evaluate_poisoning` measured, over T targets and S victims for each.

    Attributes:
        success: (T, S) bool; the victim gives the target input the label t.
        accuracy: (T, S) of the victims on the test data, NaN without such data.
    """

    success: Tensor
    accuracy: Tensor

    @property
    def rate(self) -> float:
        """Share of successes, the mean over targets and victims."""
        return float(self.success.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 % for the rate, with one trial per *target*.

        Victims of one target share its poisons, so that they count as one trial with their mean as outcome. For
        outcomes between 0 and 1 the variance is at most that of a yes or no, hence the interval errs on the wide side.
        """
        n = len(self.success)
        low, high = wilson(self.success.double().mean(dim=1).sum(), n)
        return float(low), float(high)

    def __str__(self) -> str:
        (low, high), (targets, victims) = self.interval, self.success.shape
        return f"{100 * self.rate:.0f} % [{100 * low:.0f}, {100 * high:.0f}], {targets} targets x {victims} victims"


def evaluate_poisoning(
    train: Callable[[Tensor, Tensor, int], nn.Module],
    poisonings: Sequence[CleanLabelPoison],
    *,
    victims: int = 2,
    test: Pairs | None = None,
    seed: int = 0,
) -> PoisoningReport:
    """Train victims on each poisoned data set, from a fresh initialization, and ask them for its target.

        success[i, s] = 1 if ŷ_θ(x_t⁽ⁱ⁾) = t⁽ⁱ⁾,   θ = train(poisoned data i, seed of (i, s))

    Args:
        train: ``train(x, y, seed) -> model``, the victim's whole training: a new model every time, which owes its
            initial weights and its batches to the seed. Where the victim keeps a frozen extractor, its new last layer.
        poisonings: one a target; see :func:`poisoning_control` for what to put beside them.
        victims: S, victims a target (default 2).
        test: a Dataset, whose test part is used, or a pair (x, y), for the victims' accuracy; None leaves it out.
        seed: of the victims' seeds, which depend on nothing else than (seed, i, s): attacks and controls that are
            evaluated with the same seed meet the same initial weights.

    Returns:
        PoisoningReport; its interval counts targets.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work; TypeError if `train` does not return a module,
            ValueError if it returns one model twice.

    Source:
        Schwarzschild et al. (2021), for the demand; Geiping et al. (2021), section 5, for several victims a target.
    """
    if not callable(train):
        raise TypeError(f"train: want a callable (x, y, seed) -> model, got {type(train).__name__}")
    poisonings = list(poisonings)
    if not poisonings or not all(isinstance(p, CleanLabelPoison) for p in poisonings):
        raise TypeError(
            f"poisonings: want CleanLabelPoison, at least one, got {[type(p).__name__ for p in poisonings]}"
        )
    checks.at_least("victims", victims, 1, integer=True)
    x_test, y_test = (None, None) if test is None else read_labeled(test, "test", "test")
    success = torch.zeros(len(poisonings), victims, dtype=torch.bool)
    reached = torch.full((len(poisonings), victims), torch.nan, dtype=torch.float64)
    before: nn.Module | None = None
    for i, poisoned in enumerate(poisonings):
        for s in range(victims):
            model = train(*poisoned.data, derive_seed(seed, i, s))
            if not isinstance(model, nn.Module):
                raise TypeError(f"train: want a torch.nn.Module back, got {type(model).__name__}")
            if model is before:
                raise ValueError("train: want a fresh model every time, got the same one again")
            before = model
            success[i, s] = bool(predict(model, poisoned.x_target) == poisoned.target)
            if x_test is not None and y_test is not None:
                reached[i, s] = accuracy(model, x_test, y_test)
    return PoisoningReport(success, reached)


def poisoning_control(
    data: Pairs,
    x_target: Tensor,
    target: int,
    *,
    kind: Control,
    rate: float = 0.01,
    eps: float = 16 / 255,
    source: int | None = None,
    seed: int = 0,
) -> CleanLabelPoison:
    """What to hold an attack against: the same budget, spent without thought.

    * ``"none"``: the data as they are. Some targets are misread anyway.
    * ``"noise"``: random signs, x_i + ε·sign, on the samples that an attack with this `rate` and `seed` changes.
    * ``"flips"``: round(rate·n) random samples of class `source`, the target's own, get the label t.

    Flips are as many votes for t, but with a label that anyone can see is wrong.

    Args:
        data, x_target, target, rate, seed: as for the attacks.
        kind: one of the three.
        eps: ℓ∞ size of the noise.
        source: the true class of the target, for ``"flips"``.

    Returns:
        CleanLabelPoison, for :func:`evaluate_poisoning`.

    Raises:
        ValueError, TypeError: for a wrong argument.
    """
    checks.one_of("kind", kind, CONTROLS)
    checks.positive("eps", eps)
    if kind == "flips":
        if source is None or source == target:
            raise ValueError(f"source: want the target's own class, other than {target}, got {source}")
        flipped = prepare(data, x_target, source, rate, seed)
        result = flipped.poisoned(flipped.bases, {"kind": kind})
        result.y[flipped.rows] = result.target = target
        return result
    job = prepare(data, x_target, target, rate, seed)
    if kind == "none":
        x, y = read_labeled(data)
        nothing = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return CleanLabelPoison(
            x.clone(), y.clone(), is_poison=nothing, original_y=y.clone(), x_target=job.x_target, target=target,
            details={"kind": kind},
        )  # fmt: skip
    checks.radius(eps, job.bases, "linf", (0.0, 1.0))  # tells of one wider than the box
    signs = Noise(seed, job.rows).sign(1, job.bases.shape[1:], job.x.dtype)
    return job.poisoned((job.bases + eps * signs).clamp(0.0, 1.0), {"kind": kind})
