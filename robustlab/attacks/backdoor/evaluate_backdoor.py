"""How good a backdoor is: two aims, and what else happens to a triggered input.

Survey section 2.1: a backdoored model has (i) high accuracy without the trigger and (ii) a high attack success rate
with it. The success rate counts **only samples of other classes**: of a target-class sample the model says t anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.victim import predict
from robustlab.attacks.backdoor.poisoned_dataset import Target, target_of
from robustlab.attacks.backdoor.trigger import Trigger, stamped
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.intervals import Rate
from robustlab.models.modes import evaluating
from robustlab.models.probing import count_outputs

__all__ = ["BackdoorReport", "evaluate_backdoor"]


@dataclass(frozen=True)
class BackdoorReport:
    """What :func:`evaluate_backdoor` measured; each a :class:`~robustlab.intervals.Rate` with its interval.

    Attributes:
        clean_accuracy: accuracy without the trigger, on all samples.
        attack_success: share of triggered samples *of other classes* that get the target label.
        triggered_accuracy: share of the same samples that still get their true label ("robust accuracy").
        cross_accuracy: accuracy, on all samples, under triggers that are not meant for the sample; None where the
            trigger has none. A model that such a trigger wakes as well still scores the target class's share.
    """

    clean_accuracy: Rate
    attack_success: Rate
    triggered_accuracy: Rate
    cross_accuracy: Rate | None = None

    def __str__(self) -> str:
        lines = [f"clean accuracy      {self.clean_accuracy}", f"attack success      {self.attack_success}"]
        lines.append(f"triggered accuracy  {self.triggered_accuracy}")
        if self.cross_accuracy is not None:
            lines.append(f"cross accuracy      {self.cross_accuracy}")
        return "\n".join(lines)


def evaluate_backdoor(
    model: Callable[[Tensor], Tensor], test: Pairs, trigger: nn.Module, target: Target, *, seed: int = 0
) -> BackdoorReport:
    """Measure a backdoor on test data: clean accuracy, attack success, accuracy in spite of the trigger.

        clean accuracy      P( ŷ(x) = y )
        attack success      P( ŷ(trigger(x)) = t(y) | y ≠ t(y) )
        triggered accuracy  P( ŷ(trigger(x)) = y    | y ≠ t(y) )

    Args:
        model: gives logits (N, K); used in evaluation mode, and put back.
        test: a Dataset, whose test part is used, or a pair (x, y) of tensors.
        trigger: a module from inputs to inputs.
        target: the label t, or one for each class (all-to-all).
        seed: of the triggers in ``cross_accuracy``, which is measured where the trigger has a
            :meth:`~robustlab.attacks.Trigger.cross`.

    Returns:
        BackdoorReport.

    Raises:
        ValueError, TypeError: for a wrong argument, or if all samples are of the target class.
    """
    x, y = read_labeled(test, "test", "test")
    if not isinstance(trigger, nn.Module):
        raise TypeError(f"trigger: want a torch.nn.Module, got {type(trigger).__name__}")
    wanted = target_of(target, y)
    others = y != wanted
    if not bool(others.any()):
        raise ValueError("test: want samples of other classes than the target's, got none")
    checks.at_home(model, x, "test")
    classes = count_outputs(model, x)
    checks.in_classes("y", y, classes)
    checks.in_classes("target", wanted, classes)
    said = predict(model, stamped(trigger, x[others]))
    with torch.no_grad(), evaluating(trigger, device=x.device):
        crossed = trigger.cross(x, seed=seed) if isinstance(trigger, Trigger) else None
    return BackdoorReport(
        clean_accuracy=Rate.of(predict(model, x) == y),
        attack_success=Rate.of(said == wanted[others]),
        triggered_accuracy=Rate.of(said == y[others]),
        cross_accuracy=None if crossed is None else Rate.of(predict(model, crossed) == y),
    )
