"""The fast gradient sign method and its iterated form.

Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples" (2015), section 4:

    x_adv = x + ε · sign(∇_x loss(f_θ(x), y))

which maximizes the loss linearized at x over the ℓ∞ ball. Kurakin, Goodfellow and Bengio, "Adversarial examples in the
physical world" (2017), section 2.2, repeat it with a small step and clip at every step (BIM, also called I-FGSM).

Different here: ``fgsm`` solves the same linearized problem exactly in ℓ1 and ℓ2 too, and over ball ∩ box instead of
clipping afterwards (in ℓ∞ both are the same point). A sample that is already misclassified is returned unchanged.
"""

from __future__ import annotations

from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.pgd import pgd
from robustlab.geometry.norms import ProperNorm, get_norm
from robustlab.geometry.projections import clip


def fgsm(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    loss: LossName | LossFunction = "ce",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Fast gradient sign method: one step to the optimum of the linearized loss.

        δ = argmax { −⟨∇_x g(x), v⟩ : ‖v‖_p ≤ ε, x + v ∈ box },   in ℓ∞:  δ = −ε · sign(∇_x g(x))

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"``, ``"l1"`` or ``"l2"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        loss: attacker's loss g of survey section 2.2, minimized (:mod:`robustlab.attacker.losses`).
        target: a label, or (N,), for a targeted attack.
        seed, ids, progress: accepted for uniformity; the method is deterministic and has no loop.

    Returns:
        AttackResult; cost: 3 queries and 1 gradient per sample.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Goodfellow et al. (2015), section 4.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    ball, g, victim = get_norm(norm), attacker_loss(loss), Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    with victim.session(x, y, target=target, ids=ids, loss=g) as session:
        live = session.live(eps=eps)
        live.keep(session.can_pay(live))
        if not len(live):  # all of them have paid the same, for x
            return session.result(session.start.x)
        grad = session.gradient(live.x, live, g).grad
        delta = ball.linear_max(-grad, live.eps, session.low - live.x, session.high - live.x)
        return session.result(clip(live.x + delta, session.low, session.high))


def bim(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    loss: LossName | LossFunction = "ce",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    trace: bool = False,
) -> AttackResult:
    """Basic iterative method (iterated FGSM): PGD that starts at x instead of at a random point.

    Args:
        steps: number K of steps.
        step_size: α; None means ε/K, so that K steps just reach the edge of the ball (Kurakin et al. use α = 1/255).

    The other arguments, the result and the errors are those of :func:`robustlab.attacks.whitebox.pgd.pgd`.

    Source:
        Kurakin et al. (2017), section 2.2, iterating Goodfellow et al. (2015).
    """
    checks.at_least("steps", steps, 1, integer=True)
    if step_size is None and isinstance(eps, (int, float, Tensor)):
        step_size = (eps + (eps == 0)) / steps  # in a ball of one point any step will do
    return pgd(
        victim, x, y, norm=norm, eps=eps, steps=steps, step_size=step_size, loss=loss, target=target,
        init=x.new_zeros(()).expand_as(x) if isinstance(x, Tensor) else None,
        seed=seed, ids=ids, progress=progress, trace=trace,
    )  # fmt: skip
