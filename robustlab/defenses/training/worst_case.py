"""What training for certificates shares: bounds of the margins as a loss, and schedules for ε, κ and β.

The logits are replaced by the worst ones that the bounds allow: 0 for the label and −m_j for class j, where m_j is a
lower bound of the margin z_y − z_j on the ball. Their cross-entropy is never below that of any point of the ball,

    CE(worst, y) = log(1 + Σ_j exp(−m_j))  ≥  max {CE(model(x′), y) : ‖x′ − x‖_∞ ≤ ε, x′ in the box}

so a loss that falls is a certificate that grows. Bounds are computed in evaluation mode, as the verifier will, and in
full float32, whatever autocast says; rounding margins are left to the verifier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.domain import Box
from robustlab.graph.arithmetic import full_precision
from robustlab.graph.node import Graph
from robustlab.graph.read_again import ReadAgain
from robustlab.models.modes import evaluating
from robustlab.verification.propagation.region import Ball, Region
from robustlab.verification.propagation.specification import margins


class Growth:
    """Training for certificates begins with the clean loss and grows into the certified one.

        s = (done − start) / (end − start), cut off to [0, 1]
        ε = s·eps,   κ = 1 − s·(1 − kappa)

    Args:
        eps: radius at the end, in units of x.
        kappa: weight of the clean loss at the end, in [0, 1].
        ramp: (start, end), parts of the training between which s grows from 0 to 1.
        evaluated_at: the radius at which the net will be certified; None does not say.
        bounds: the box of the inputs.

    Raises:
        ValueError, TypeError: for an argument out of its range, and where the growth ends below ``evaluated_at``.
    """

    def __init__(
        self, eps: float, kappa: float, ramp: tuple[float, float], evaluated_at: float | None,
        bounds: tuple[float, float],
    ) -> None:  # fmt: skip
        checks.positive("eps", eps)
        checks.not_negative("kappa", kappa)
        checks.at_most("kappa", kappa, 1)
        Box(*bounds)  # raises where it is none
        width = bounds[1] - bounds[0]
        if eps > width:
            hint = f"; did you mean {eps:g}/255?" if 1 <= eps <= 255 else ""
            raise ValueError(f"eps: want at most {width:g}, the width of the box, got {eps:g}{hint}")
        if len(ramp) != 2 or not 0 <= ramp[0] <= ramp[1]:
            raise ValueError(f"ramp: want (start, end) with 0 ≤ start ≤ end < 1, got {ramp}")
        if not ramp[1] < 1:
            reached = eps * min(1.0, (1 - ramp[0]) / (ramp[1] - ramp[0])) if ramp[1] > ramp[0] else 0.0
            raise ValueError(
                f"ramp: want an end below 1, got {ramp}; the training would be over at ε = {reached:.4g} or below, "
                f"short of eps = {eps:g}"
            )
        if evaluated_at is not None:
            checks.positive("evaluated_at", evaluated_at)
            if eps < evaluated_at:
                raise ValueError(
                    f"eps: want at least evaluated_at = {evaluated_at:g}, the radius at which the net will be "
                    f"certified, got {eps:g}: its schedule ends below its evaluation"
                )
        self.largest, self.last_kappa, self.ramp, self.bounds = eps, kappa, ramp, bounds
        self.grown = 1.0  # outside fit, as at the end

    def set_progress(self, fraction: float) -> None:
        """Set s for the part of the training that is over."""
        start, end = self.ramp
        self.grown = 1.0 if fraction >= end else max(0.0, (fraction - start) / (end - start))

    @property
    def eps(self) -> float:
        """The radius now."""
        return self.grown * self.largest

    @property
    def kappa(self) -> float:
        """The weight of the clean loss now."""
        return 1 - self.grown * (1 - self.last_kappa)


class WorstCase(ABC):
    """An objective κ·CE(model(x), y) + (1 − κ)·CE(worst, y), where a method says how it bounds margins."""

    takes_labels = True

    def __init__(self, growth: Growth) -> None:
        self.growth, self.read = growth, ReadAgain()

    @abstractmethod
    def lower(self, graph: Graph, region: Region, C: Tensor, seed: int) -> Tensor:
        """Lower bounds (N, M) of C·output, differentiable in the graph's weights; ``seed`` where they are estimated."""

    def set_progress(self, fraction: float) -> None:
        """Set the schedules for the part of the training that is over; ``fit`` calls this."""
        self.growth.set_progress(fraction)

    def check_model(self, model: nn.Module, x: Tensor) -> None:
        """Raises before any work where the model has an operator without bounds, and names it."""
        with torch.no_grad(), evaluating(model):
            self.worst(model, x, torch.zeros(len(x), dtype=torch.int64, device=x.device), self.growth.largest)

    @full_precision()
    def worst(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int = 0) -> Tensor:
        """The worst logits (N, K) relative to the label's: 0 there, and −m_j at the other classes."""
        checks.images(x, self.growth.bounds, takes="bounds={}")
        graph = self.read(model, x.shape[1:])
        classes = graph.output_shape[-1]
        lower = self.lower(graph, Ball(x, eps, "linf", self.growth.bounds), margins(y, classes, x.dtype), seed)
        others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
        others = others + (others >= y[:, None])
        return lower.new_zeros(len(y), classes).scatter(1, others, -lower)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean loss of a batch; bounds are not computed while they weigh nothing."""
        kappa = self.growth.kappa
        loss = kappa * F.cross_entropy(model(x).to(x.dtype), y) if kappa > 0 else 0.0
        if kappa < 1:
            loss = loss + (1 - kappa) * F.cross_entropy(self.worst(model, x, y, self.growth.eps, seed), y)
        return torch.as_tensor(loss)
