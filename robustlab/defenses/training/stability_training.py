"""Stability training: the same answer with noise as without.

Zheng, Song, Leung and Goodfellow, "Improving the robustness of deep neural networks via stability training" (2016),
equation (4), which Li, Chen, Wang and Carin (2019), section 4, train their smoothed classifiers with:

    minimize_θ  E [ CE(model_θ(x), y) + β·KL(p_θ(x) ‖ p_θ(x + σε)) ],   ε ~ N(0, I),   p_θ = softmax(model_θ)

The label has no part in the second term, so that images without one could serve it, too.

Different here: noise is not clipped to the box, since it is not when the classifier is certified.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.data import gaussian_noise
from robustlab.defenses.training.crafting import divergence
from robustlab.training.resuming import with_arguments

__all__ = ["stability_training"]


class StabilityTraining:
    """The objective that :func:`stability_training` returns."""

    takes_labels = True

    def __init__(self, sigma: float, beta: float) -> None:
        self.noise, self.beta = gaussian_noise(sigma), beta

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean cross-entropy at x, and β times the mean divergence between x and noisy inputs."""
        clean = model(x)
        return (
            F.cross_entropy(clean, y) + self.beta * divergence(clean, model(self.noise(x, ids=ids, seed=seed))).mean()
        )


@with_arguments
def stability_training(*, sigma: float, beta: float = 6.0) -> StabilityTraining:
    """An objective for :func:`robustlab.training.fit.fit`: natural loss, and how much noise changes the answer.

        loss = 1/N Σ_i [ CE(model(x_i), y_i) + β·KL(p(x_i) ‖ p(x_i + σε_i)) ]

    Args:
        sigma: σ > 0, in units of x: that of the certificate.
        beta: β, at least 0; more is more certified and less accurate.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``; the noise depends on the step's seed and the sample's id.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source:
        Zheng et al. (2016), equation (4); Li et al. (2019), section 4.
    """
    checks.positive("sigma", sigma)
    checks.not_negative("beta", beta)
    return StabilityTraining(sigma, beta)
