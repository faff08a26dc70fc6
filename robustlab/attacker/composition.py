"""Gradients through what an attack does to its points before the model sees them, and several models as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.domain import Bound
from robustlab.attacker.live import Live
from robustlab.attacker.losses import AttackerLoss, LossFunction, log_mean_probabilities
from robustlab.attacker.session import Answer, Session
from robustlab.attacker.victim import Victim
from robustlab.geometry.projections import clip

Join = Literal["probabilities", "logits", "losses"]


def boxed(points: Tensor, low: Bound, high: Bound) -> Tensor:
    """Points clipped to a box: what is outside has no gradient, what is at an end its own.

    Of the latter torch's minimum and maximum of tensors would pass one half.
    """
    return torch.where((points >= low) & (points <= high), points, clip(points.detach(), low, high))


def gradient_through(
    session: Session, live: Live, points: Tensor, view: Callable[[Tensor], Tensor], loss: LossFunction,
    penalty: Callable[[Tensor], Tensor] | None = None,
) -> Answer:  # fmt: skip
    """What the model says of view(points), and the gradient of the loss with respect to ``points``.

        ∇_x g(view(x)) = J_view(x)ᵀ ∇g(view(x))

    The view is any differentiable function, whose outcome, one row for each of the samples ``live``, is clipped to the
    box; ``points`` need not have so many rows, and what several rows say of one then adds up. One query and one
    gradient per row. A ``penalty`` (n,) of what is seen is added to the loss, and its slope to the gradient.
    """
    with torch.enable_grad():
        leaf = points.detach().requires_grad_(True)
        seen = boxed(view(leaf), session.low, session.high)
        price = None if penalty is None else penalty(seen)
    answer = session.gradient(seen.detach(), live, loss)
    ends = [(seen, answer.grad)]
    if price is not None:
        answer = answer._replace(loss=answer.loss + price.detach().to(answer.loss))
        ends.append((price, torch.ones_like(price)))
    moving = [(end, slope) for end, slope in ends if end.requires_grad]
    if not moving:  # a view that does not look at its points
        return answer._replace(grad=torch.zeros_like(points))
    outcomes, slopes = zip(*moving, strict=True)
    (grad,) = torch.autograd.grad(outcomes, leaf, slopes)
    return answer._replace(grad=grad)


class Mixture(nn.Module):
    """Several models as one, joined by the weighted mean of their probabilities, their logits or their losses.

        "probabilities"   z(x) = log Σ_k α_k softmax(z_k(x)),  of which the cross-entropy is −log Σ_k α_k f_k(x)_y
        "logits"          z(x) = Σ_k α_k z_k(x)
        "losses"          z(x) = (z_1(x), z_2(x), …) side by side, on which :meth:`loss` is Σ_k α_k g(z_k(x))

    Args:
        models: victims or modules with logits (N, K), at least one.
        weights: α ≥ 0, one per model, of sum 1; None for equal ones.
        name: what errors call the models.
        join: of what the mean is taken.

    Raises:
        TypeError, ValueError: naming the argument ``name``, ``weights`` or ``join``.
    """

    def __init__(
        self, models: Sequence[Victim | nn.Module], weights: Sequence[float] | None = None, name: str = "surrogates",
        join: Join = "probabilities",
    ) -> None:  # fmt: skip
        super().__init__()
        checks.one_of("join", join, get_args(Join))
        if isinstance(models, nn.Module | Victim) or not isinstance(models, Sequence) or not models:
            got = "an empty one" if isinstance(models, Sequence) and not models else type(models).__name__
            raise TypeError(f"{name}: want a list of at least one model, got {got}")
        for model in models:
            module = model.model if isinstance(model, Victim) and model.access == "white" else model
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name}: want modules, or victims of modules under white access, got {model!r}")
        self._victims = [Victim.of(model) for model in models]
        self.parts = nn.ModuleList([v.model for v in self._victims if isinstance(v.model, nn.Module)])
        self.weights = [1 / len(models)] * len(models) if weights is None else list(weights)
        for weight in self.weights:
            checks.at_least("weights", weight, 0.0)
        if len(self.weights) != len(models) or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights: want {len(models)} numbers of sum 1, got {self.weights}")
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the joined model; of models that are joined by their losses those of all, (N, J·K)."""
        answers = [victim._answers(x) for victim in self._victims]
        if len({tuple(answer.shape) for answer in answers}) > 1:
            shapes = ", ".join(str(tuple(answer.shape)) for answer in answers)
            raise ValueError(f"surrogates: want models of the same classes, got scores of shapes {shapes}")
        if self.join == "losses":
            return torch.cat(answers, dim=1)
        each = torch.stack(answers)
        if self.join == "logits":
            return self._mean(list(each))
        return log_mean_probabilities(each, dim=0, weights=each.new_tensor(self.weights))

    def loss(self, g: AttackerLoss) -> AttackerLoss:
        """The loss of what :meth:`forward` gives: g, or its mean over models that are joined by their losses."""
        if self.join != "losses":
            return g

        def mean(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
            each = logits.unflatten(1, (len(self.weights), -1))
            for name, label in (("y", y), ("target", target)):
                if label is not None:
                    checks.in_classes(name, label, each.shape[2])
            return self._mean([g(answer, y, target, kappa) for answer in each.unbind(dim=1)])

        return replace(g, function=mean)

    def _mean(self, each: Sequence[Tensor]) -> Tensor:
        """Σ_k α_k·each_k; what has no weight plays no part, though it be infinite."""
        return torch.stack([weight * part for weight, part in zip(self.weights, each, strict=True) if weight]).sum(0)
