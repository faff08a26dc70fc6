"""Training on interval bounds.

Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelović, Mann and Kohli, "Scalable verified training for provably
robust image classification" (2019), section 3: the worst logits that interval arithmetic allows are trained on,

    minimize_θ  E_(x, y) [ κ·CE(model_θ(x), y) + (1 − κ)·CE(worst_θ(x, ε), y) ]

with the last layer merged into the margins, as in its verification. Intervals are loose, yet a net that is trained on
them becomes one for which they are tight. Without schedules nothing is learned: ε grows from 0 and κ falls from 1.

Different here: the schedules are parts of the training instead of numbers of steps. The authors train 60,000 steps on
MNIST, of which 2,000 are clean and 10,000 grow, which is ``ramp=(1/30, 1/5)``; short trainings need a longer growth.
"""

from __future__ import annotations

from torch import Tensor

from robustlab.defenses.training.worst_case import Growth, WorstCase
from robustlab.graph.node import Graph
from robustlab.training.resuming import with_arguments
from robustlab.verification.propagation.backward import interval_bound
from robustlab.verification.propagation.layers import interval_layers
from robustlab.verification.propagation.region import Region
from robustlab.verification.propagation.specification import as_forms

__all__ = ["ibp_training"]


class IbpTraining(WorstCase):
    """The objective that :func:`ibp_training` returns."""

    def lower(self, graph: Graph, region: Region, C: Tensor, seed: int) -> Tensor:
        """By intervals: what the verifier ``ibp`` says, but for its rounding margins."""
        layers = interval_layers(graph, region, rounding=False)
        return interval_bound(graph, layers, as_forms(C, len(region)), rounding=False).reshape(len(region), -1)


@with_arguments
def ibp_training(
    *,
    eps: float,
    kappa: float = 0.5,
    ramp: tuple[float, float] = (0.05, 0.5),
    evaluated_at: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> IbpTraining:
    """An objective for :func:`robustlab.training.fit.fit`: clean loss and loss of the worst logits by intervals.

        loss = 1/N Σ_i [ κ·CE(model(x_i), y_i) + (1 − κ)·log(1 + Σ_j exp(−m_ij)) ],   m_ij ≤ z_y − z_j within ε in ℓ∞

    A step costs about three plain ones: clean, centers and radii are one product each.

    Args:
        eps: the radius at the end, in units of x, above 0 and no wider than the box. The authors train at a somewhat
            larger radius than they certify at: 0.2 for 0.1, and 0.4 for 0.3.
        kappa: κ at the end, in [0, 1]; it falls from 1 as ε grows from 0.
        ramp: (start, end), the parts of the training between which ε and κ move, linearly; 0 ≤ start ≤ end < 1.
        evaluated_at: the radius at which the net will be certified. If eps is below, that is an error here instead of a
            surprise there.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)`` without randomness. Outside ``fit`` it is as at the end of the
        training.

    Raises:
        ValueError, TypeError: for an argument out of its range; by ``fit`` before any work, for a model with an
            operator without bounds, which is named.

    Source:
        Gowal et al. (2019), section 3, "Loss", and section 4 for the schedules.
    """
    return IbpTraining(Growth(eps, kappa, ramp, evaluated_at, bounds))
