"""CROWN-IBP: training on linear bounds first and on intervals in the end.

Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning and Hsieh, "Towards stable and efficient training of verifiably robust
neural networks" (2020), section 3: hidden layers are bounded by intervals, and the margins by one backward pass
through CROWN's lines,

    minimize_θ  E_(x, y) [ κ·CE(model_θ(x), y) + (1 − κ)·CE(worst_θ(x, ε), y) ],
    m = β·m_CROWN-IBP + (1 − β)·m_IBP

Linear bounds are tight while ε is small, where intervals over-regularize; intervals train to the better net once they
are tight. So β falls from 1 to 0 as ε grows.

Different here: the schedules are parts of the training, as in :func:`~robustlab.defenses.ibp_training`; β falls over
the same ramp as κ, as in the authors' code.
"""

from __future__ import annotations

from torch import Tensor

from robustlab import checks
from robustlab.defenses.training.worst_case import Growth, WorstCase
from robustlab.graph.node import Graph
from robustlab.training.resuming import with_arguments
from robustlab.verification.propagation.backward import backward, interval_bound
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import interval_layers
from robustlab.verification.propagation.region import Region
from robustlab.verification.propagation.specification import as_forms

__all__ = ["crown_ibp"]

OPTIONS = BoundOptions(relu="adaptive", intermediate="interval", intersect=False)


class CrownIbp(WorstCase):
    """The objective that :func:`crown_ibp` returns."""

    def __init__(self, growth: Growth, beta: float) -> None:
        super().__init__(growth)
        self.last_beta = beta

    @property
    def beta(self) -> float:
        """The weight of the linear bounds now."""
        return 1 - self.growth.grown * (1 - self.last_beta)

    def lower(self, graph: Graph, region: Region, C: Tensor, seed: int) -> Tensor:
        """β·CROWN-IBP + (1 − β)·IBP; what weighs nothing is not computed."""
        layers, forms, beta = interval_layers(graph, region, rounding=False), as_forms(C, len(region)), self.beta
        value = forms.coef.new_zeros(len(forms.sample))
        if beta < 1:
            value = (1 - beta) * interval_bound(graph, layers, forms, rounding=False)
        if beta > 0:
            lines = {n.index: n.op.relax(OPTIONS, *(layers[i] for i in n.inputs)) for n in graph.nonlinear if n.op}
            at_input, constant = backward(graph, lines, forms, len(graph.nodes) - 1)
            value = value + beta * (region.minimum(at_input) + constant)
        return value.reshape(len(region), -1)


@with_arguments
def crown_ibp(
    *,
    eps: float,
    kappa: float = 0.5,
    beta: float = 0.0,
    ramp: tuple[float, float] = (0.05, 0.5),
    evaluated_at: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> CrownIbp:
    """An objective for :func:`robustlab.training.fit.fit`: as ``ibp_training``, with linear bounds to begin with.

        loss = 1/N Σ_i [ κ·CE(model(x_i), y_i) + (1 − κ)·log(1 + Σ_j exp(−m_ij)) ],   m = β·m_CROWN-IBP + (1 − β)·m_IBP

    Args:
        eps: the radius at the end, in units of x, above 0 and no wider than the box.
        kappa: κ at the end, in [0, 1]; it falls from 1 as ε grows from 0.
        beta: β at the end, in [0, 1]; it falls from 1 as ε grows. 0, the default, ends on intervals alone, which is
            what the net is then certified by at no cost; 1 stays with linear bounds.
        ramp: (start, end), the parts of the training between which ε, κ and β move, linearly; 0 ≤ start ≤ end < 1.
        evaluated_at: the radius at which the net will be certified; eps must not be below.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)`` without randomness. Outside ``fit`` it is as at the end of the
        training.

    Raises:
        ValueError, TypeError: for an argument out of its range; by ``fit`` before any work, for a model with an
            operator without bounds, which is named.

    Source:
        Zhang et al. (2020), section 3, "CROWN-IBP".
    """
    checks.not_negative("beta", beta)
    checks.at_most("beta", beta, 1)
    return CrownIbp(Growth(eps, kappa, ramp, evaluated_at, bounds), beta)
