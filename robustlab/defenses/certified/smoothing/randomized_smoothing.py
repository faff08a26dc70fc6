"""Randomized smoothing.

Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing" (2019), theorem 1 and the
procedures Certify and Predict. The smoothed classifier answers what the model answers most often under Gaussian noise,

    g(x) = argmax_k P( argmax model(x + σε) = k ),   ε ~ N(0, I),

and if its class has probability at least p > ½ there, g is constant within σ·Φ⁻¹(p) of x in ℓ2. By the lemma of Neyman
and Pearson no larger radius follows from p alone.

Different here: at a bound of exactly ½ it abstains, where the authors' code certifies the radius 0.
"""

from __future__ import annotations

import torch
from scipy.stats import binom
from torch import Tensor, nn

from robustlab import checks
from robustlab.defenses.certified.smoothing.votes import (
    Smoothed,
    certificate,
    check,
    check_draws,
    choose_and_count,
    clopper_pearson,
    count_votes,
)

__all__ = ["randomized_smoothing", "smoothed_prediction"]

_PREDICT = 2  # the part of its draws; 0 chooses and 1 estimates


def randomized_smoothing(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    batch_size: int | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> Smoothed:
    """Certify the smoothed classifier: n₀ draws choose the class, n fresh ones bound its probability.

        p = Clopper–Pearson's lower bound at level 1 − α,      radius = σ·Φ⁻¹(p) where p > ½, else abstain

    The model should have been trained under the same noise (:func:`robustlab.data.gaussian_noise`).

    Args:
        model: a module with logits (N, K), of which only the largest is used.
        x: (N, ...), in raw pixels: a model that normalizes does so inside, behind the noise.
        y: (N,) labels; a sample whose smoothed class is another is not verified. None asks for constancy alone.
        sigma: σ > 0 of the noise, in units of x; so is the radius.
        n0: draws that choose the class, at least 1.
        n: fresh draws that bound its probability, more than n0. The largest radius is σ·Φ⁻¹(α^(1/n)).
        alpha: α in (0, 1), the probability that a sample's certificate is wrong; that all of N are right has
            probability at least 1 − Nα.
        batch_size: rows of a forward pass; None: 250 on a CPU, whose caches hold what they become, else 1,000.
        seed, ids: of the draws, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        Smoothed, a Certificate in ℓ2 with confidence 1 − α, with the classes, bounds and votes beside it. Cost:
        n0 + n forward rows per sample.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Cohen et al. (2019), theorem 1 and procedure Certify; Clopper and Pearson (1934).
    """
    y = check(model, x, y, sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size, ids=ids)
    chosen, counts = choose_and_count(
        model, x, y, sigma=sigma, n0=n0, n=n, seed=seed, ids=ids, batch_size=batch_size, progress=progress
    )
    p, _ = clopper_pearson(counts.gather(1, chosen[:, None])[:, 0], n, alpha)
    radius = torch.where(p > 0.5, sigma * torch.special.ndtri(p), 0.0)
    return certificate(x, y, chosen, p, radius, counts, "randomized_smoothing", alpha)


def smoothed_prediction(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float,
    n: int = 1000,
    alpha: float = 0.001,
    batch_size: int | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> Tensor:
    """The smoothed classifier's class, or −1 where the two most frequent ones cannot be told apart.

        answer k₁ if the two-sided binomial test of (c₁, c₁ + c₂) against ½ has a p-value of at most α

    Args:
        model, x, sigma, n, alpha, batch_size, seed, ids, progress: as of :func:`randomized_smoothing`.

    Returns:
        (N,) int64. With probability at least 1 − α the answer is g(x) or −1.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Cohen et al. (2019), procedure Predict; Hung and Fithian, "Rank verification for exponential families" (2019).
    """
    check_draws(model, x, sigma=sigma, n=n, alpha=alpha, batch_size=batch_size, ids=ids)
    if 2 * 0.5**n > alpha:
        checks.warn(f"n: {n} draws cannot answer at alpha = {alpha:g} even if they agree; want more")
    counts = count_votes(
        model, x, sigma=sigma, n=n, part=_PREDICT, seed=seed, ids=ids, batch_size=batch_size, progress=progress
    )
    (most, second), (class_, _) = (part.T for part in counts.topk(2, dim=1))
    both = (most + second).cpu().numpy()
    p_value = torch.as_tensor(2 * binom.sf(most.cpu().numpy() - 1, both, 0.5)).to(x.device)
    return torch.where(p_value <= alpha, class_, -1)
