"""Ensemble adversarial training.

Tramèr, Kurakin, Papernot, Goodfellow, Boneh and McDaniel, "Ensemble adversarial training: attacks and defenses" (2018),
section 4: half of what is trained on is crafted, in each step on one source h, drawn from M frozen models and the model
itself. What the frozen ones fall for does not depend on θ, so that the model cannot learn to make its own crafted
inputs weak, as it does when one signed step is taken on itself alone.

    minimize_θ  ½·CE(model_θ(x), y) + ½·CE(model_θ(x_adv), y),   x_adv by R+FGSM on h (equation (6)):
    x' = x + α·sign(n),  n ~ N(0, I)        x_adv = x' + (ε − α)·sign(∇ CE(h(x'), ŷ))

As in the authors' code the gradient is that of the label ŷ = argmax h(x') which h predicts there. With the true label
a model would learn to read it off the crafted input (label leaking). Their code for MNIST trains on the plain step
α = 0, and keeps R+FGSM, with α = ε/2, to attack with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.defenses.training.crafting import Ball, InBall
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.training.resuming import with_arguments

__all__ = ["ensemble_adversarial_training"]


class EnsembleAdversarialTraining(InBall):
    """The objective that :func:`ensemble_adversarial_training` returns."""

    def __init__(self, ball: Ball, surrogates: Sequence[nn.Module], random_step: float, labels: str) -> None:
        super().__init__(ball)
        self.surrogates, self.random_step, self.labels = list(surrogates), random_step, labels

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """Half of the mean cross-entropy at x, and half of that at what was crafted on this step's source."""
        self.ball.check(x)
        x_adv = self.craft(model, x, y, ids=ids, seed=seed)
        return (F.cross_entropy(model(x), y) + F.cross_entropy(model(x_adv), y)) / 2

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """R+FGSM in ball ∩ box on the source of this step, which is held in evaluation mode."""
        sources = [*self.surrogates, model]
        source, eps = sources[derive_seed(seed, 1) % len(sources)], self.ball.eps
        alpha = self.random_step * eps
        start = (x.detach() + alpha * Noise(seed, ids.to(x.device)).sign(0, x.shape[1:], x.dtype)).clamp(
            *self.ball.bounds
        )
        with self.ball.holding(source), torch.enable_grad():
            logits = source(start.requires_grad_(True))
            label = logits.argmax(dim=1) if self.labels == "predicted" else y
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, label, reduction="sum"), start)
        return (start.detach() + (eps - alpha) * grad.sign()).clamp(*self.ball.bounds)


@with_arguments
def ensemble_adversarial_training(
    *,
    surrogates: Sequence[nn.Module],
    eps: float,
    random_step: float = 0.5,
    labels: Literal["predicted", "true"] = "predicted",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> EnsembleAdversarialTraining:
    """An objective for :func:`robustlab.training.fit.fit`: cross-entropy at x, and at what fools other models.

        loss = 1/2N Σ_i [ CE(model(x_i), y_i) + CE(model(x_i + δ_i), y_i) ],  δ_i by R+FGSM on this step's source

    Args:
        surrogates: at least one frozen model with logits (N, K), on the device and in the dtype of the data; each step
            draws its source from these and the model that is trained. They are used in evaluation mode, and nothing of
            theirs is changed.
        eps: radius ε of the ℓ∞ ball, in units of x, above 0 and no wider than the box.
        random_step: α/ε, the random part of R+FGSM, in [0, 1); 0 is FGSM.
        labels: whose gradient is taken: the label that the source ``"predicted"``, or the ``"true"`` one.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``; the source depends on the step's seed, the random part on the
        sample's id as well.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source:
        Tramèr et al. (2018), section 4 and equation (6).
    """
    if isinstance(surrogates, nn.Module) or not isinstance(surrogates, Sequence) or not surrogates:
        got = "an empty one" if isinstance(surrogates, Sequence) and not surrogates else type(surrogates).__name__
        raise TypeError(f"surrogates: want a list of at least one module, got {got}")
    for model in surrogates:
        if not isinstance(model, nn.Module):
            raise TypeError(f"surrogates: want modules, got {type(model).__name__}")
    checks.at_least("random_step", random_step, 0.0)
    checks.below("random_step", random_step, 1.0)
    checks.one_of("labels", labels, ("predicted", "true"))
    return EnsembleAdversarialTraining(Ball("linf", eps, 1, None, 0.0, "eval", bounds), surrogates, random_step, labels)
