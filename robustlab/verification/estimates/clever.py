"""CLEVER: a score from the extreme values of gradient norms.

Weng et al., "Evaluating the robustness of neural networks: an extreme value theory approach" (2018), algorithms 1
(targeted) and 2 (untargeted). For a target class j let g(x) = z_y − z_j. If L bounds ‖∇g‖_q over the ball of radius R
around x, with q dual to p (theorem 3.2),

    no δ with ‖δ‖_p < min(g(x) / L, R) makes j win.

L, the local cross-Lipschitz constant, is not known. Gradient norms at random points of the ball are bounded by it. If
the maxima of many batches of them follow a reverse Weibull law, and if its location is L, then fit it, and divide.

    v_i = max { ‖∇g(x + δ)‖_q : δ among N_s random points },  i = 1 … N_b
    score_j = min(g(x) / â, R),   â = location of the law fitted to v_1 … v_Nb;   untargeted: min_{j ≠ y} score_j

It is an estimate: nothing keeps a network from being steep where no point fell. Hence an Estimate, never a Certificate.
The score depends on R, and so may the order of two networks. A model without a Lipschitz constant (one that rounds its
input) has no L to estimate; its gradients vanish, and its score is R.

Different here: points are clipped to the victim's box, since an attack stays inside it too, and only the gradients in
ball ∩ box matter to the theorem (both are convex); the paper's ball without a box is that of a Victim with wide bounds.
One set of points serves all classes of a sample. The likelihood is maximized by its profile (weibull.py), where the
authors' code runs a simplex search from many starts, with a small penalty on the shape. Where the Kolmogorov–Smirnov
test rejects the fit, or there is none (all maxima are equal, as on an affine model), â is the largest maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import rivals
from robustlab.attacker.results import Estimate
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import ProperNorm, get_norm
from robustlab.progress import bar
from robustlab.verification.estimates.weibull import fit_reverse_weibull

Choice = Literal["random", "top2", "least"]
CHOICES = get_args(Choice)
_CHOOSE, _SAMPLE = 0, 1  # draws


def clever(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "l2",
    radius: float | Tensor,
    target: int | Tensor | Choice | None = None,
    batches: int = 500,
    samples: int = 1024,
    level: float = 0.05,
    batch_size: int = 1024,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> Estimate:
    """CLEVER score: margin over an estimated local Lipschitz constant. No guarantee.

        min over j of min((z_y − z_j) / â_j, R)

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction. The score is 0 where the model does not predict y.
        norm: ``"l1"``, ``"l2"`` or ``"linf"``, in which the score is measured.
        radius: R > 0, or (N,): radius of the ball that is sampled, and the largest score. Scores for different radii
            are not comparable.
        target: None for all classes but y; a label, or (N,), for a targeted score; ``"random"``, ``"top2"`` (the
            largest other logit at x) or ``"least"`` (the smallest logit) choose one target per sample.
        batches: N_b ≥ 2, the number of maxima.
        samples: N_s, points whose gradients each maximum is taken over.
        level: of the Kolmogorov–Smirnov test; a fit with a smaller p-value is rejected. 0 accepts all.
        batch_size: points evaluated at once; a matter of memory and time, not of the result.
        seed, ids: randomness, by sample; ids None means 0 … N − 1.
        progress: show a bar in a terminal.

    Returns:
        Estimate. ``value`` is the score, (N,); ``details`` holds, for each of the C classes tried, (N, C):
        ``classes``, ``scores``, ``lipschitz`` (â), ``shape``, ``p_value``, ``fitted`` (False where the largest
        maximum stands in); and ``maxima``, (N, C, N_b). Cost: N_b·N_s + 1 queries and C·N_b·N_s gradients per sample. A
        gradient that is not finite counts as 0, as in all of robustlab.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Weng et al. (2018b), algorithms 1 and 2.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.at_least("batches", batches, 2, integer=True)
    checks.at_least("samples", samples, 1, integer=True)
    checks.at_least("batch_size", batch_size, 1, integer=True)
    checks.at_least("level", level, 0.0)
    checks.images(x, (-torch.inf, torch.inf))
    limit = checks.per_sample("radius", radius, x)
    if isinstance(target, str):
        checks.one_of("target", target, CHOICES)
    victim = Victim.of(victim)
    if victim.budget is not None and victim.budget < batches * samples + 1:
        raise ValueError(f"budget: want at least {batches * samples + 1} queries per sample, got {victim.budget}")
    label = None if isinstance(target, str) else target
    with victim.session(x, y, target=label, ids=ids) as session:
        if session.clean is None:  # an empty batch
            return Estimate(x.new_zeros(0), norm, "clever")
        classes = _classes(session, target, seed)
        maxima = _maxima(session, classes, norm, limit, batches, samples, batch_size, seed, progress)
        own = session.clean.gather(1, session.y[:, None])
        right = session.clean.argmax(dim=1) == session.y
        margin = (own - session.clean.gather(1, classes)).clamp_min(0) * right[:, None]
    fit = fit_reverse_weibull(maxima)
    fitted = fit.exists & (fit.p_value >= level)
    lipschitz = torch.where(fitted, fit.location, maxima.amax(dim=2).double())
    scores = torch.minimum(margin / lipschitz, limit[:, None].double())
    scores = torch.where(margin > 0, scores, 0.0).to(x.dtype)  # 0 also if margin and L are both 0
    details = {
        "classes": classes,
        "scores": scores,
        "lipschitz": lipschitz.to(x.dtype),
        "shape": fit.shape.to(x.dtype),
        "p_value": fit.p_value.to(x.dtype),
        "fitted": fitted,
        "maxima": maxima,
    }
    return Estimate(scores.amin(dim=1), norm, "clever", details)


def _classes(session: Session, target: int | Tensor | Choice | None, seed: int) -> Tensor:
    """(N, C): the classes j of each sample."""
    assert session.clean is not None
    k = session.clean.shape[1]
    if session.target is not None:
        checks.other_than_y("target", session.target, session.y)
        return session.target[:, None]
    if target == "top2":
        return rivals(session.clean, session.y)[:, :1]
    if target == "least":
        return rivals(session.clean, session.y)[:, -1:]
    step = torch.arange(1, k, device=session.y.device).expand(len(session.y), -1)
    if target == "random":
        step = 1 + session.noise(seed).integers(_CHOOSE, (1,), k - 1)
    return (session.y[:, None] + step) % k


def _maxima(
    session: Session,
    classes: Tensor,
    norm: ProperNorm,
    limit: Tensor,
    batches: int,
    samples: int,
    batch_size: int,
    seed: int,
    progress: bool,
) -> Tensor:
    """(N, C, N_b) maxima of ‖∇(z_y − z_j)‖_q over N_s points each, ``batch_size`` points at a time."""
    n, many = classes.shape[0], batches * samples
    ball = get_norm(norm)
    pairs = torch.cat([session.y[:, None], classes], dim=1)
    maxima = session.x.new_zeros(n * batches, classes.shape[1])
    for start in bar(range(0, n * many, batch_size), show=progress, label="clever"):
        place = torch.arange(start, min(start + batch_size, n * many), device=session.x.device)
        rows, point = place // many, place % many
        noise = Noise(seed, session.ids[rows] * many + point)  # each point of each sample has a number of its own
        center = session.x[rows]
        points = (center + ball.uniform(noise, _SAMPLE, center, limit[rows])).clamp_(session.low, session.high)
        live = session.of(rows)
        _, _, slopes = session.jacobian(points, live, _always(pairs[rows]))
        session.settle(live)
        length = ball.dual.length(slopes.flatten(0, 1)).reshape(slopes.shape[:2])
        maxima.scatter_reduce_(0, (place // samples)[:, None].expand_as(length), length, "amax")
    return maxima.reshape(n, batches, -1).transpose(1, 2)


def _always(classes: Tensor) -> Callable[[Tensor], Tensor]:
    """The choice of these classes, whatever the logits are."""
    return lambda _: classes
