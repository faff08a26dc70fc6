"""SPROUT: self-progressing robust training.

Cheng, Chen, Liu, Chang, Hsieh and Das, "Self-progressing robust training" (2021). No attack is made while training: the
net is made robust by noise, by mixing inputs, and by labels that are drawn around the given one as adversely as a few
shared parameters can. In the vicinity of each sample, with u ∈ R^K shared by all,

    x̃ = λ·(x_i + σ·n_i) + (1 − λ)·(x_j + σ·n_j)          n standard normal, λ ~ Beta(a, a), j a random partner
    ỹ(y) ~ Dirichlet(10·onehot(y) + u)
    loss(θ, u) = E[ λ·CE(model_θ(x̃), ỹ(y_i)) + (1 − λ)·CE(model_θ(x̃), ỹ(y_j)) ]

θ descends on it; after every third step of θ, u ascends on E[CE(model_θ(x), ỹ(y))] of clean inputs.

Different from the authors' code: u is kept above 0.001 where theirs clamps the concentration at 0, which no Dirichlet
distribution has; the three steps of θ are on three batches in turn, theirs on one batch three times; u ascends without
momentum and weight decay, in evaluation mode, which leaves batch norm alone; no checkpoint is chosen on test data.
As in their code, noise is not clamped to the box. Label smoothing flatters attacks by gradients of the cross-entropy:
judge such a net by AutoAttack.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.domain import Box
from robustlab.defenses.training.dirichlet import dirichlet
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.models.modes import evaluating
from robustlab.training.resuming import with_arguments

__all__ = ["sprout"]

CERTAINTY = 10.0  # concentration of the given label
LEAST = 1e-3  # least u: a concentration of 0 has no distribution
TURNS = 3  # steps of θ for each of u


class Sprout:
    """The objective that :func:`sprout` returns; ``u`` holds the shared part of the concentrations, (K,)."""

    takes_labels = True

    def __init__(self, sigma: float, mixup: float, rate: float, bounds: tuple[float, float]) -> None:
        self.sigma, self.mixup, self.rate, self.bounds = sigma, mixup, rate, bounds
        self.u, self.calls = torch.ones(0), 0

    def state_dict(self) -> dict[str, Tensor]:
        """What a training that is resumed has to know."""
        return {"u": self.u, "calls": torch.tensor(self.calls)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from the state of another training."""
        self.u, self.calls = state["u"].clone(), int(state["calls"])

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean loss of noisy, mixed inputs with drawn labels; every third call first lets u ascend."""
        checks.images(x, self.bounds, takes="bounds={}")
        noise, own = Noise(seed, ids.to(x.device)), Noise(derive_seed(seed, 1), torch.zeros(1, dtype=torch.int64))
        if self.calls and self.calls % TURNS == 0:
            self._ascend(model, x, y, noise)
        self.calls += 1
        noisy = x + self.sigma * noise.normal(0, x.shape[1:], x.dtype)
        partner = noise.bits(1, ()).argsort()
        share = float(dirichlet(torch.full((1, 2), self.mixup), own, 0)[0, 0]) if self.mixup else 1.0
        logits = model(torch.lerp(noisy[partner], noisy, share))
        u = self._shared(logits)
        first = F.cross_entropy(logits, drawn_labels(y, u, noise, 2))
        second = F.cross_entropy(logits, drawn_labels(y[partner], u, noise, 3))
        return share * first + (1 - share) * second

    def _shared(self, logits: Tensor) -> Tensor:
        """u beside the logits, in float32 where these are in half precision; 1 at first."""
        start = self.u if len(self.u) == logits.shape[1] else torch.ones(logits.shape[1])
        self.u = start.to(logits.device, torch.promote_types(logits.dtype, torch.float32))
        return self.u

    def _ascend(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> None:
        """u ← max(u + rate·∂/∂u E[CE(model(x), ỹ(y))], 0.001)."""
        with evaluating(model), torch.no_grad():
            logits = model(x)
        with torch.enable_grad():
            u = self._shared(logits).clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, drawn_labels(y, u, noise, 4)), u)
        self.u = (u.detach() + self.rate * slope).clamp_min(LEAST)


def drawn_labels(y: Tensor, u: Tensor, noise: Noise, draw: int) -> Tensor:
    """ỹ(y) ~ Dirichlet(10·onehot(y) + u), (N, K), a differentiable function of u."""
    return dirichlet(CERTAINTY * F.one_hot(y, len(u)) + u, noise, draw)


@with_arguments
def sprout(
    *, sigma: float = 0.1, mixup: float = 0.2, rate: float = 0.1, bounds: tuple[float, float] = (0.0, 1.0)
) -> Sprout:
    """An objective for :func:`robustlab.training.fit.fit`: Dirichlet labels, Gaussian noise and mixup; no attack.

        loss = λ·CE(model(x̃), ỹ(y)) + (1 − λ)·CE(model(x̃), ỹ(y')),   ỹ(y) ~ Dirichlet(10·onehot(y) + u)

    Args:
        sigma: σ of the noise, in units of x, at least 0.
        mixup: a of λ ~ Beta(a, a), drawn once per batch, at least 0; 0 mixes nothing.
        rate: of the ascent of u, above 0. u begins at 1 and stays at 0.001 or above.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``, with a state: ``u`` (K,) and how often it was called. Give each
        training one of its own.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source:
        Cheng et al. (2021), algorithm 1, with the constants of the authors' code. Departures: those of this module.
    """
    checks.not_negative("sigma", sigma)
    checks.not_negative("mixup", mixup)
    checks.positive("rate", rate)
    Box(*bounds)  # raises where it is none
    return Sprout(sigma, mixup, rate, bounds)
