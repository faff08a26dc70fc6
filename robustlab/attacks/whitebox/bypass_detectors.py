"""Attack a classifier and its detector together.

Carlini and Wagner, "Adversarial examples are not easily detected: Bypassing ten detection methods" (2017a), section 3:
classifier and detector are one function G with K + 1 classes. With the classifier's logits Z and the detector's score D
(above 0 means "adversarial"),

    G_k(x) = Z_k(x)  for k = 1 … K,      G_{K+1}(x) = (D(x) + 1) · max_k Z_k(x)

so that G answers K + 1 exactly where the detector fires. An adversarial example of G with a target in 1 … K fools the
classifier and passes the detector, and any targeted attack may look for it.

Different here: the formula wants max Z > 0, or its sign flips; the logits are therefore centered (Z − mean Z) first,
which changes no label. D is counted in a unit that the caller names, so that a score of thousands (a squared distance,
say) does not outweigh the classes; where D fires stays the same. An untargeted attack on G would be content with being
detected, so it is run as targeted attacks, the likeliest wrong class first, until one succeeds.

G is also what a black box shows whose scores can be asked for: an attack on scores, such as Square, needs no gradient
of a detector that has none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.losses import rivals
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Access, Session, part_of
from robustlab.attacker.victim import Victim, as_logits
from robustlab.attacks.whitebox.pgd import pgd
from robustlab.geometry.norms import ProperNorm, measure
from robustlab.models.modes import evaluating
from robustlab.progress import bar

Detector = Callable[[Tensor], Tensor]
_FAR = 1e6  # units by which a score is above or below its threshold at most: ∞ times a logit of 0 would be no number


class Joint(nn.Module):
    """The function G: logits (N, K + 1) of a classifier (N, K) and a detector (N,) that fires above ``threshold``.

    The detector's score above its threshold is counted in units of ``scale``.
    """

    def __init__(
        self, classifier: Callable[[Tensor], Tensor], detector: Detector, threshold: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.classifier, self.detector, self.threshold, self.scale = classifier, detector, threshold, scale

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        largest = torch.finfo(logits.dtype).max / 8
        most = largest / logits.shape[1]  # ∞ − ∞ would be no number
        logits = logits.clamp(-most, most)
        logits = logits - logits.mean(dim=1, keepdim=True)
        far = min(_FAR, largest)
        detected = ((self.score(x) / self.scale).clamp(-far, far) + 1) * logits.amax(dim=1, keepdim=True)
        return torch.cat([logits, detected.clamp(-largest, largest)], dim=1)

    def score(self, x: Tensor) -> Tensor:
        """(N, 1), above 0 where the detector fires."""
        score = self.detector(x)
        if score.numel() != x.shape[0]:
            raise ValueError(f"detector: want one score per sample, ({x.shape[0]},), got shape {tuple(score.shape)}")
        if score.dtype == torch.bool:
            raise TypeError(
                "detector: want scores, above the threshold where it fires, got flags, which have no slope; "
                'say flags.float() and ask a Victim(model, access="soft")'
            )
        return score.reshape(-1, 1) - self.threshold

    def fires(self, x: Tensor) -> Tensor:
        """(N,) bool."""
        return self.score(x).squeeze(1) > 0


def bypass_detectors(
    victim: Victim | nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    detector: Detector,
    threshold: float = 0.0,
    scale: float = 1.0,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    attack: Callable[..., AttackResult] = pgd,
    target: int | Tensor | None = None,
    targets: int = 3,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    **arguments: object,
) -> AttackResult:
    """Fool a classifier without being noticed by its detector.

        find δ with ‖δ‖ ≤ ε, x + δ ∈ box, argmax_k G_k(x + δ) = t,   where t ∉ {y, K + 1}

    Args:
        victim: the classifier, a Victim or a model with logits (N, K). Under soft access it may be any callable, and
            the attack must be one on scores.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the classifier's prediction.
        detector: score of a batch, (N,) or (N, 1), such as ``details.score`` of a
            :class:`~robustlab.attacker.results.Detection`. Where it is not differentiable, wrap it with
            :func:`robustlab.evaluation.bpda`, or say ``Victim(model, access="soft")`` and ``attack=square``. A module
            is held in evaluation mode, with frozen parameters.
        threshold: the detector fires above it; default 0.
        scale: unit > 0 in which the score above the threshold is counted; default 1. Where scores are large, the
            spread of clean scores is a good one.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        attack: any attack of ours that takes ``eps`` and ``target``; default PGD. For a minimum-norm attack such as
            ``cw``, give it :class:`~robustlab.attacks.whitebox.bypass_detectors.Joint` as its victim, and a target.
        target: a label, or (N,), for a targeted attack; None tries several.
        targets: how many of the likeliest wrong classes an untargeted attack tries, at least 1 (if above K − 1: all).
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.
        **arguments: passed on to the attack: ``steps``, ``loss``, ``restarts``, …

    Returns:
        AttackResult; success means misread *and* not detected. Cost: one query of the classifier to rank the classes,
        and that of the attack for each class tried, where classifier and detector count as one query; the first class
        that succeeds is the last. A victim's budget is shared out evenly over the classes, or over as many as it can
        pay.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work; the attack's own.

    Source:
        Carlini and Wagner (2017a), section 3. Departures: centered logits, the unit of the score, and the order of the
        targets.
    """
    if not callable(detector):
        raise TypeError(f"detector: want a callable, got {type(detector).__name__}")
    checks.at_least("targets", targets, 1, integer=True)
    checks.positive("scale", scale)
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    both = Joint(_logits_of(victim), detector, float(threshold), float(scale))
    joint = Victim(both, bounds=victim.bounds, mode=victim.mode, access=victim.access)
    needs: Access = "white" if attack is pgd else "soft"  # what another attack needs it says itself
    with (
        victim.session(x, y, target=target, ids=ids, access=needs) as session,
        evaluating(detector),
        joint.held(x.device),
    ):
        if session.clean is None:  # an empty batch
            return session.result()
        live = session.everyone()
        live.eps, live.ids, live.goals = eps, session.ids, _goals(session, session.clean, targets)
        tries = live.goals.shape[1]
        if victim.budget is not None:
            tries = max(1, min(tries, (victim.budget - 1) // 2))
            joint.budget = (victim.budget - 1) // tries
        if victim.budget == 2:
            tries = 0  # the query that ranked the classes was all that could be paid
        success = both.fires(x).logical_not_()
        success &= ~session.lost
        success[session.active] = False
        x_adv, queries, gradients = x.detach().clone(), session.queries.clone(), torch.zeros_like(session.y)
        first_success = success.long() * 2 - 1
        live.leave(success | session.lost)
        for place in bar(range(tries), show=progress, label="targets"):
            if not len(live):
                break
            rows = live.rows
            given = {name: part_of(value, rows, len(x)) for name, value in arguments.items()}
            given |= {"norm": norm, "eps": live.eps, "target": live.goals[:, place], "seed": seed, "ids": live.ids}
            result = attack(joint, live.x.to(x.dtype), live.y, **given)
            won = result.success
            kept = won if place else torch.ones_like(won)  # failures keep the point of the likeliest class
            x_adv[rows[kept]], success[rows] = result.x_adv[kept], won
            first_success[rows[won]] = queries[rows[won]] + result.first_success[won]
            queries[rows] += result.queries
            gradients[rows] += result.gradients
            live.leave(won)
        return AttackResult(x_adv, success, measure(x_adv - session.x), queries, gradients, first_success)


def _goals(session: Session, clean: Tensor, targets: int) -> Tensor:
    """The classes at which to aim, (N, tries): the target, or so many of the wrong ones, the likeliest first."""
    if session.target is not None:
        return session.target[:, None]
    return rivals(clean, session.y)[:, :targets]


def _logits_of(victim: Victim) -> Callable[[Tensor], Tensor]:
    model = victim.model
    if not isinstance(model, nn.Module) and (victim.access == "white" or not callable(model)):
        raise TypeError(f"model: want an nn.Module, got {type(model).__name__}")
    return model if victim.output == "logits" else _LogOf(model)


class _LogOf(nn.Module):
    """Logarithm of a model's probabilities."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return as_logits(self.model(x))
