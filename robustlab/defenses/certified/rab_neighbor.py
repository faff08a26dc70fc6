"""RAB's exact certificate of a nearest-neighbor classifier: no models are drawn, the probabilities are computed.

Weber et al., "RAB: Provable robustness against backdoor attacks" (2020), section 6. The squared distance of x to the
noisy row x_i + σz_i is σ² times a noncentral chi-square number of d degrees of freedom, with noncentrality
‖x − x_i‖²/σ². Distances are put into L buckets, whose edges depend on d, σ and the box alone. The classifier takes the
label of the row in the lowest bucket, of several the *first* in the order of the data:

    p_i = Σ_l Pr[b_i = l]·Π_{j<i} Pr[b_j > l]·Π_{j>i} Pr[b_j ≥ l],     p_c = Σ_{i: y_i = c} p_i

Different here: any number of classes; the first bucket begins at 0, so that the p_i sum to one, where the published
code leaves out what lies below the first edge and divides by the sum.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.defenses.certified.noisy_models import same_shape_as_rows

__all__ = ["neighbor_probabilities", "rab_neighbor"]

LEAST = 1e-12  # no class is said to be less likely: the distribution's own rounding
_NUMBERS = 1 << 22  # probabilities in memory at once


def bucket_edges(d: int, sigma: float, buckets: int) -> np.ndarray:
    """The L − 1 edges between buckets of squared distances, for rows in [0, 1]^d.

    Evenly from the 1e-4 quantile at noncentrality 0 to the 1 − 1e-4 quantile at the box's diameter √d.
    """
    from scipy.stats import ncx2

    ends = ncx2.ppf(1e-4, d, 0), ncx2.ppf(1 - 1e-4, d, d / sigma**2)
    return np.linspace(*ends, num=buckets - 1) * sigma**2


def neighbor_probabilities(data: Pairs, x: Tensor, *, sigma: float, buckets: int = 200) -> Tensor:
    """(N, K) float64: how likely the quantized nearest neighbor of x is of each class, K the largest label + 1.

    Args:
        data: rows (n, ...) in [0, 1] and labels.
        x: (N, ...) inputs.
        sigma: σ of the noise on the rows, above 0.
        buckets: L, at least 3.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source: Weber et al. (2020), section 6.
    """
    from scipy.stats import ncx2

    rows, y = read_labeled(data)
    checks.images(rows, (0.0, 1.0), "data", takes=None)
    checks.floats(x)
    checks.finite("x", x)
    checks.positive("sigma", sigma)
    checks.at_least("buckets", buckets, 3, integer=True)
    if not len(rows):
        raise ValueError("data: want rows, got none")
    same_shape_as_rows(x, rows.shape[1:])
    classes = max(2, int(y.max()) + 1)
    rows, points = rows.flatten(1).double(), x.flatten(1).double()
    d, member = rows.shape[1], torch.nn.functional.one_hot(y, classes).double()
    edges = bucket_edges(d, sigma, buckets) / sigma**2
    found = []
    for part in points.split(max(1, _NUMBERS // (len(rows) * buckets))):
        away = torch.cdist(part, rows, compute_mode="donot_use_mm_for_euclid_dist").square() / sigma**2
        beyond = torch.from_numpy(ncx2.sf(edges, d, away.cpu().numpy()[..., None])).to(rows)
        reach = torch.cat([torch.ones_like(away)[..., None], beyond], dim=2)  # (N, n, L): Pr[b ≥ l]
        above = torch.cat([beyond, torch.zeros_like(away)[..., None]], dim=2)  # Pr[b > l]
        one = torch.ones_like(reach[:, :1])
        before = torch.cat([one, above.cumprod(dim=1)[:, :-1]], dim=1)
        after = torch.cat([reach.flip(1).cumprod(dim=1).flip(1)[:, 1:], one], dim=1)
        found.append(((reach - above) * before * after).sum(dim=2) @ member)
    return torch.cat(found) if found else rows.new_zeros(0, classes)


def rab_neighbor(data: Pairs, x: Tensor, y: Tensor | None = None, *, sigma: float, buckets: int = 200) -> Certificate:
    """Certify the vote of the noisy nearest neighbor: exact probabilities, confidence 1.

        R = σ/2·(Φ⁻¹(p_A) − Φ⁻¹(p_B))

    Args:
        data, x, sigma, buckets: as in :func:`neighbor_probabilities`.
        y: (N,) labels; None takes the likelier class.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate` in ℓ2, over the changes of all rows together.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source: Weber et al. (2020), section 6.
    """
    label = None if y is None else checks.labels("y", y, x)
    p = neighbor_probabilities(data, x, sigma=sigma, buckets=buckets)
    winner = p.argmax(dim=1)
    others = p.scatter(1, winner[:, None], 0.0)
    # 1 − p_A is summed, not subtracted: near 1 nothing would be left of it.
    rest, second = others.sum(dim=1).clamp_min(LEAST), others.amax(dim=1).clamp_min(LEAST)
    radius = -sigma / 2 * (torch.special.ndtri(rest) + torch.special.ndtri(second))
    verified = (radius > 0) & (winner == (winner if label is None else label))
    radius = torch.where(verified, radius, 0.0).to(x.dtype)
    return Certificate(verified, torch.zeros_like(verified), radius, "l2", "rab_neighbor")
