"""The questions of the checklist, in groups; each yields verdicts with the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustlab.attacker.losses import logit_change
from robustlab.defenses.robustness_claim import Claim
from robustlab.evaluation.hygiene.compared_attacks import ComparedAttacks
from robustlab.geometry.norms import get_norm
from robustlab.intervals import wilson
from robustlab.models.modes import evaluating


@dataclass(frozen=True)
class Check:
    """One question of the checklist.

    Attributes:
        name: what ought to hold, in words.
        passed: whether it does; None if there was nothing to check it with.
        evidence: the numbers behind the verdict, by name.
        advice: what to do where it does not hold.
    """

    name: str
    passed: bool | None
    evidence: dict[str, float]
    advice: str


def units(x: Tensor, claim: Claim) -> Check:
    """Data, box and ε speak of the same units."""
    low, high = claim.bounds
    least, most = (float(end) for end in torch.aminmax(x))
    reach = claim.span(x)
    return Check(
        "data, box and eps are in the same units",
        low <= least and most <= high and most - least > (high - low) / 2 and claim.eps < reach / 2,
        {"smallest value": least, "largest value": most, "eps / half the box": claim.eps / (reach / 2)},
        "make normalization a layer of the model, and give box and eps in raw units",
    )


def state(b: ComparedAttacks) -> Iterator[Check]:
    """The model is one function of one sample."""
    training = any(module.training for module in b.model.modules())
    moved = float((b.as_handed_in(0).argmax(1) != b.once(0).argmax(1)).double().mean()) if training else 0.0
    yield Check(
        "the model is in evaluation mode", not training, {"labels that training mode changes": moved},
        "call model.eval() before evaluating: dropout and batch norm must not act as in training",
    )  # fmt: skip
    differ = float((b.once(0).argmax(1) != b.once(1).argmax(1)).double().mean())
    yield Check(
        "two predictions of one input agree", not b.random, {"labels that differ": differ},
        "attack the average, eot(model), take all steps, judge on fresh draws, and claim an expectation",
    )  # fmt: skip
    if b.random:
        return
    first = slice(0, min(8, len(b.x)))
    alone = torch.cat([b.as_handed_in(0, row[None]) for row in b.x[first]])
    gap = logit_change(alone, b.as_handed_in(0)[first])
    yield Check(
        "a prediction does not depend on the batch", float(gap.max()) < 1e-3, {"relative change": float(gap.max())},
        "find the layer that mixes samples, most often batch norm in training mode",
    )  # fmt: skip


def gradients(b: ComparedAttacks) -> Iterator[Check]:
    """Gradients exist, and point somewhere."""
    dead = b.dead_gradients()
    yield Check(
        "gradients are there", max(dead.values()) < 0.1, {f"dead, {name}": share for name, share in dead.items()},
        "find the layer that has none: replace it by bpda(layer), or attack the logits in front of a saturation",
    )  # fmt: skip
    share = b.uphill()
    yield Check(
        "a small step along the gradient does what it promises", share > 0.8, {"share of samples": share},
        "the gradient is noise: replace the layer that shatters it by bpda(layer)",
    )  # fmt: skip


def orderings(b: ComparedAttacks) -> Iterator[Check]:
    """Each pair: what must not be stronger, and what must not be weaker."""
    n = len(b.x)
    slack = _slack(n)

    def ordered(
        name: str, weak: tuple[str, Tensor | None], strong: tuple[str, Tensor], advice: str,
        *, each: bool = False, allowed: int = slack,
    ) -> Check:  # fmt: skip
        """The weak attack fools no more samples than the strong one; with ``each``, none that the strong one spares."""
        if weak[1] is None:
            return Check(name, None, {}, advice)
        more = int((weak[1] & ~strong[1]).sum()) if each else int(weak[1].sum() - strong[1].sum())
        kept = {f"accuracy, {label}": 1 - float(mask.double().mean()) for label, mask in (weak, strong)}  # type: ignore[union-attr]
        return Check(name, more <= allowed, kept, advice)

    masked = "gradients are masked: look for what hides them, then use bpda, eot or another loss"
    white = ("white box", b.white)
    yield ordered("one step is not stronger than many", ("one step", b.one_step), ("many steps", b.by_ce), masked)
    yield ordered(
        "few steps are not stronger than many", ("few steps", b.few_steps), ("many steps", b.by_ce),
        "keep the best iterate, and check the step size",
    )  # fmt: skip
    yield ordered(
        "the loss does not decide the outcome", ("margin", b.by_margin), ("cross-entropy", b.by_ce),
        "the cross-entropy is saturated: attack the margin or the DLR loss", allowed=max(slack, n // 10),
    )  # fmt: skip
    yield ordered("random noise never wins", ("noise", b.by_noise), white, masked, each=True)
    yield ordered("white box beats search", ("search", b.by_search), white, masked, each=True)
    yield ordered("white box beats transfer", ("transfer", b.by_transfer), white, masked, each=True)
    kept = {f"eps x {factor:g}": 1 - float(b.at(factor).double().mean()) for factor in (0.5, 1, 2)}
    rises = max(later - sooner for sooner, later in zip(list(kept.values()), list(kept.values())[1:], strict=False))
    yield Check("accuracy falls as eps grows", rises * n <= slack, kept, masked)
    left = 1 - float(b.everywhere.double().mean())
    yield Check(
        "accuracy reaches zero in a large ball", left * n <= slack, {"accuracy, the ball holds the box": left}, masked
    )


def authors(b: ComparedAttacks) -> Iterator[Check]:
    """The attack behind the claim is one that the claim is about."""
    if b.claim.attack is None:
        return
    with evaluating(b.model, mode="asis", device=b.x.device):
        torch.manual_seed(b.seed)
        found = b.claim.attack(b.model, b.x, b.y, b.claim.eps).detach()
    low, high = b.claim.bounds
    outside = float(((found < low) | (found > high)).flatten(1).any(dim=1).double().mean())
    yield Check(
        "the attack stays in the box", outside == 0, {"share of points outside": outside},
        "project onto ball and box at every step: clipping afterwards takes back what the attack relied on",
    )  # fmt: skip
    used = float(get_norm(b.claim.norm).length(found - b.x).max()) / b.claim.eps
    yield Check(
        "the attack uses the budget that is claimed", 0.9 <= used <= 1.001, {"largest distance / eps": used},
        "spend eps in the units of the inputs, and let steps times step size exceed it",
    )  # fmt: skip


def numbers(b: ComparedAttacks) -> Iterator[Check]:
    """The claimed accuracies stand."""
    n, claim = len(b.x), b.claim
    right = ~b.wrong
    if claim.detector is not None:
        with torch.no_grad(), evaluating(claim.detector, device=b.x.device):
            right &= claim.detector(b.x) <= 0
    clean = float(right.double().mean())
    low, high = wilson(torch.tensor(int(right.sum())), n, 0.99)
    yield Check(
        "clean accuracy is reported, and right",
        claim.clean_accuracy is not None and bool(low <= claim.clean_accuracy <= high),
        {"here": clean} | ({} if claim.clean_accuracy is None else {"claimed": claim.clean_accuracy}),
        "report it: a defense that gives up accuracy (or refuses clean inputs) can look robust",
    )  # fmt: skip
    kept = 1 - float(b.fooled().mean())
    _, most = wilson(torch.tensor(round(kept * n)), n, 0.99)
    name = "the claimed robust accuracy stands"
    advice = "state what the strongest of these attacks leaves, not the weakest"
    if claim.detector is not None:
        advice = "attack classifier and detector together (bypass_detectors), and state what that leaves"
    stands = None if claim.robust_accuracy is None else claim.robust_accuracy <= float(most)
    stated = {} if claim.robust_accuracy is None else {"claimed": claim.robust_accuracy}
    yield Check(name, stands, {"here": kept, **stated}, advice)


def _slack(n: int) -> int:
    """Samples by which a comparison may be off without meaning anything."""
    return max(1, math.ceil(0.02 * n))


GROUPS = (state, gradients, orderings, authors, numbers)
"""All groups, in the order of a report."""
