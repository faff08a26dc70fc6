"""On-manifold adversarial examples.

Stutz, Hein and Schiele, "Disentangling adversarial robustness and generalization" (2019), section 3.3. The images of a
class are thought to form a manifold, all that a decoder dec(·, y) can draw, and similar to x is what the decoder makes
of similar codes. With the code z of x the attacker looks for

    minimize_ζ g( dec(z + ζ, y) | y, θ )  subject to ‖ζ‖_∞ ≤ η

by projected gradient descent on the code; the perturbation of the pixels may be as large as it likes. What is found
keeps the label y as far as the decoder is right, and is then an error on an image that the data might have held.

Different here: the decoder may be any class-wise pair of encoder and decoder; a sample stops at its first success, as
in our PGD.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Answer, Session
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import clip
from robustlab.models.modes import evaluating
from robustlab.progress import bar


class Manifold(Protocol):
    """A class-wise model of the data, such as :class:`robustlab.models.ClassVAE`."""

    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        """Codes (N, ...) of samples x (N, ...) of the classes y (N,)."""
        ...

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Samples (N, ...) from codes, differentiable in z."""
        ...


def on_manifold(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    manifold: Manifold,
    eps: float | Tensor,
    latent: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
    steps: int = 40,
    step_size: float | Tensor | None = None,
    loss: LossName | LossFunction = "ce",
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Search the codes near that of x for one whose image fools the model.

        minimize_ζ g(dec(z + ζ, y) | y, θ)  subject to ‖ζ‖_∞ ≤ ε,   z = enc(x, y)

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels, which also say on whose manifold to search; None takes the model's prediction.
        manifold: a :class:`Manifold`; a module is held in evaluation mode.
        eps: radius ε ≥ 0 (η of the paper) in units of the code; a number or (N,).
        latent: (N, ...) codes of x where they are known; None asks the encoder.
        bounds: (low, high) that the codes are held in; None leaves them free.
        steps: number K ≥ 1 of gradient steps, from a random start in the ball.
        step_size: α > 0 in units of the code, a number or (N,); None means 2.5·ε/K.
        loss: attacker's loss g of survey section 2.2, minimized (:mod:`robustlab.attacker.losses`).
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled gets its image of smallest g. ``distances`` are those of the pixels,
        and include what encoder and decoder get wrong. Cost without success: K + 1 queries and K gradients, and 1 query
        for the clean check. A success has 1 more, for the final check.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Stutz et al. (2019), section 3.3, equation (1).
    """
    checks.at_least("steps", steps, 1, integer=True)
    if not (callable(getattr(manifold, "encode", None)) and callable(getattr(manifold, "decode", None))):
        raise TypeError(f"manifold: want an object with encode(x, y) and decode(z, y), got {type(manifold).__name__}")
    if bounds is not None and not float(bounds[0]) < float(bounds[1]):
        raise ValueError(f"bounds: want (low, high) with low < high, got {bounds}")
    g, victim = attacker_loss(loss), Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.per_sample("eps", eps, x)
    alpha = 2.5 * eps / steps if step_size is None else checks.per_sample("step_size", step_size, x)
    if latent is not None and (not isinstance(latent, Tensor) or len(latent) != len(x)):
        raise ValueError(f"latent: want a tensor of {len(x)} codes, got {getattr(latent, 'shape', latent)}")
    latent = None if latent is None else latent.detach().to(x)
    with victim.session(x, y, ids=ids, loss=g) as session, evaluating(manifold):
        best, live = Best(session), session.live(eps=eps, alpha=alpha, latent=latent, noise=session.noise(seed))
        if not len(live):
            return session.result()
        center = (manifold.encode(live.x.to(x.dtype), live.y) if latent is None else live.latent).to(live.x)
        radius = beside(live.eps, center)
        live.low, live.high = center - radius, center + radius
        if bounds is not None:
            live.low, live.high = live.low.clamp(*bounds), live.high.clamp(*bounds)
        live.z = clip(center + get_norm("linf").uniform(live.noise, 0, center, live.eps), live.low, live.high)
        for k in bar(range(steps + 1), show=progress, label="on_manifold"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            points, answer, grad = _look(session, manifold, live, g, x.dtype, slope=bool(k < steps))
            best.keep(live, points, torch.where(answer.met, -torch.inf, answer.loss))
            live.z = clip(live.z - beside(live.alpha, grad) * grad.sign(), live.low, live.high)
            live.leave(answer.met)
        return session.result(best.points, asked=True)


def _look(
    session: Session, manifold: Manifold, live: Live, g: LossFunction, dtype: torch.dtype, slope: bool
) -> tuple[Tensor, Answer, Tensor]:
    """The images of the codes ``live.z``, the answer about them, and the loss's gradient in z if asked for, else 0.

    The manifold takes codes of this ``dtype``.
    """
    with torch.enable_grad():
        z = live.z.detach().requires_grad_(slope)
        made = manifold.decode(z.to(dtype), live.y).to(live.x)
    points = clip(made.detach(), session.low, session.high)  # the gradient passes by the clipping
    if points.shape[1:] != session.x.shape[1:]:
        raise ValueError(f"manifold: want decode to give {tuple(session.x.shape[1:])}, got {tuple(points.shape[1:])}")
    if not slope:
        return points, session.ask(points, live, g), torch.zeros_like(z)
    answer = session.gradient(points, live, g)
    (grad,) = torch.autograd.grad(made, z, answer.grad)
    return points, answer, grad.nan_to_num(0.0, 0.0, 0.0)
