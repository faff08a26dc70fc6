"""Training on the semidefinite certificate.

Raghunathan, Steinhardt and Liang, "Certified defenses against adversarial examples" (2018), section 4: the dual of the
certificate holds for whatever multipliers c, so it is a regularizer that is trained along with its multipliers,

    minimize_{θ, c}  E_(x, y) CE(model_θ(x), y) + λ Σ_{i≠j} ¼·[ D·max(λmax(2·M_ij − diag c_ij), 0) + Σ max(c_ij, 0) ]

for one hidden layer, with M_ij the form of :func:`~robustlab.verification.sdp_certificate` for z_i − z_j, and D = 1 + d
+ m. It knows neither x nor ε. The largest eigenvalue comes from Lanczos's iteration, warm from step to step, and its
gradient from its vector u, uᵀ(∂M)u. Such a Ritz value lies *below* λmax: what is trained on is no certificate. The net
is certified afterwards by ``sdp_certificate``, with all eigenvalues.

Different here: the cross-entropy in place of the hinge loss; the c_ij are moved by Adam of their own, in units of the
first λmax, between the steps of ``fit``; M_ij and M_ji have the same eigenvalues, so each pair is computed once and
counts twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.geometry.adam import Adam
from robustlab.graph.arithmetic import full_precision
from robustlab.graph.tracing import trace
from robustlab.models.modes import evaluating
from robustlab.training.resuming import with_arguments
from robustlab.verification.duals.eigenvalues import first_guess, lanczos
from robustlab.verification.duals.one_hidden import Parts, parts_of

__all__ = ["sdp_training"]


class SdpTraining:
    """The objective that :func:`sdp_training` returns."""

    takes_labels = True

    def __init__(self, weight: float, iterations: int, lr: float) -> None:
        self.weight, self.iterations, self.lr = weight, iterations, lr
        self.c: Tensor | None = None
        self.u: Tensor | None = None
        self.unit: Tensor | None = None
        self.adam: Adam | None = None
        self.slope: Tensor | None = None

    def check_model(self, model: nn.Module, x: Tensor) -> None:
        """Raises before any work where the model has more than one hidden layer, and names the second."""
        with torch.no_grad(), evaluating(model):
            parts_of(trace(model, x.shape[1:]))

    def set_progress(self, fraction: float) -> None:
        """The multipliers take the step that the last batch asked for; ``fit`` calls this before each batch."""
        if self.slope is None:
            return
        assert self.c is not None
        self.adam = self.adam or Adam([self.c])
        self.adam.step([self.slope], self.lr)
        self.slope = None

    @full_precision()
    def regularizer(self, model: nn.Module, x: Tensor) -> Tensor:
        """Σ_{i≠j} ¼·[D·max(λmax(2M − diag c), 0) + Σ max(c, 0)], differentiable in the weights."""
        parts = parts_of(trace(model, x.shape[1:]))
        K, d, m = parts.outer.shape[0], parts.inner.shape[1], parts.inner.shape[0]
        first, second = torch.triu_indices(K, K, 1, device=x.device)
        eye = torch.eye(K, dtype=parts.inner.dtype, device=x.device)
        pq = _of(parts, eye[first] - eye[second])
        held = pq[0].detach(), pq[1].detach(), pq[2].detach()
        begin = first_guess(held[0], len(first), 1 + d + m)
        c = held[0].new_zeros(begin.shape) if self.c is None or self.unit is None else self.c * self.unit
        start = begin if self.u is None else self.u + 0.01 * begin
        _, u = lanczos(lambda vector: 2 * _product(held, vector) - c * vector, start, self.iterations)
        top = 2 * torch.linalg.vecdot(u, _product(pq, u)) - torch.linalg.vecdot(c, u.square())
        if self.c is None:
            self.unit = top.detach().mean().clamp_min(torch.finfo(c.dtype).tiny)
            self.c = torch.zeros_like(c)
        self.u = u if self.slope is None or self.u is None else self.u
        size = u.shape[1]
        self.slope = (c >= 0).to(c.dtype) - size * u.square() * (top.detach() > 0)[:, None]
        return 2 * ((size * top.clamp_min(0.0) + c.clamp_min(0.0).sum(dim=1)) / 4).sum()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean loss of a batch."""
        checks.images(x, (-torch.inf, torch.inf), takes="bounds={}")
        return F.cross_entropy(model(x).to(x.dtype), y) + self.weight * self.regularizer(model, x)

    def state_dict(self) -> dict[str, Tensor]:
        """Multipliers, eigenvectors, and the moments of the multipliers' steps."""
        found = {"c": self.c, "u": self.u, "unit": self.unit, "slope": self.slope}
        if self.adam is not None:
            found |= {"first": self.adam.first[0], "second": self.adam.second[0]}
            found["count"] = torch.tensor(self.adam.count)
        return {name: value.clone() for name, value in found.items() if value is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state_dict`` gave."""
        self.c, self.u, self.unit, self.slope = (state.get(name) for name in ("c", "u", "unit", "slope"))
        self.adam = None
        if "count" in state and self.c is not None:
            self.adam = Adam([self.c])
            self.adam.first, self.adam.second = [state["first"]], [state["second"]]
            self.adam.count = int(state["count"])


def _of(parts: Parts, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p (R, d), W (m, d) and v ⊙ (β − α)/2 (R, m), of which M consists."""
    low, high = parts.slopes
    v = C @ parts.outer
    return C @ parts.direct + (v * ((low + high) / 2)) @ parts.inner, parts.inner, v * ((high - low) / 2)


def _product(pq: tuple[Tensor, Tensor, Tensor], u: Tensor) -> Tensor:
    """M·u for each of R forms, without the matrices M."""
    p, W, v = pq
    one, t, s = u[:, :1], u[:, 1 : 1 + W.shape[1]], u[:, 1 + W.shape[1] :]
    return torch.cat([torch.linalg.vecdot(p, t)[:, None], p * one + (v * s) @ W, v * (t @ W.T)], dim=1)


@with_arguments
def sdp_training(*, weight: float = 0.002, iterations: int = 30, lr: float = 0.01) -> SdpTraining:
    """An objective for :func:`robustlab.training.fit.fit`: cross-entropy and the certificate's dual, for all radii.

        loss = 1/N Σ_i CE(z_i, y_i) + weight·Σ_{i≠j} ¼·[D·max(λmax(2·M_ij − diag c_ij), 0) + Σ max(c_ij, 0)]

    The second term is a slope: it times ε bounds, once its eigenvalues are exact, how far margins move in the ball.

    Args:
        weight: λ, at least 0; the larger, the flatter the net. In units of loss per slope.
        iterations: products with M per step of Lanczos's iteration, at least 1.
        lr: size of the steps of the multipliers c, above 0, in units of the first λmax.

    Returns:
        An objective ``(model, x, y, *, ids, seed)`` without randomness, for models with one hidden layer. It remembers
        c and the eigenvectors: take a new one for each training.

    Raises:
        ValueError, TypeError: for an argument out of its range; by ``fit`` before any work, for a model with another
            number of hidden layers, the second of which is named.

    Source:
        Raghunathan et al. (2018), section 4.
    """
    checks.not_negative("weight", weight)
    checks.at_least("iterations", iterations, 1, integer=True)
    checks.positive("lr", lr)
    return SdpTraining(weight, iterations, lr)
