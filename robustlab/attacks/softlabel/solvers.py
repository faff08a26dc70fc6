"""Steps from an estimated gradient: the solvers that attacks on scores share.

A solver says how points move, given an estimate ĝ of the gradient of a loss that is minimized. A method pairs one with
an estimator of :mod:`robustlab.attacker.estimators`, and so can you::

    with Victim.of(model).session(x, y, access="soft", loss=g) as session:
        live, best, ends = session.live(noise=session.noise(0)), Best(session), (session.low, session.high)
        live.points, live.eps = live.x, live.x.new_full((len(live),), 0.1)
        for k in range(steps):
            directions = Directions(live.noise, k, 20, live.x, "sphere")                   # an estimator …
            ĝ = central(session.values(live, g), live.points, directions, 1e-3, box=ends)
            live.points = feasible(ball, live, live.points + adam(live, ĝ, rate=0.01), ends)     # … and a solver
            answer = session.ask(live.points, live, g)
            best.keep(live, live.points, answer.loss.masked_fill(answer.met, -torch.inf))
            live.leave(answer.met)
        result = session.result(best.points, asked=True)

Functions return the *move* of every sample, which is added to its point. What a solver remembers from step to step it
keeps as attributes of ``at``, a :class:`~robustlab.attacker.live.Live` or any plain object, so that the memory of
samples that are done goes with them.

Source: Liu et al., "A primer on zeroth-order optimization in signal processing and machine learning" (2020), section
III.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Bound
from robustlab.attacker.live import Live
from robustlab.attacker.parts import beside
from robustlab.geometry.norms import Norm, ProperNorm, get_norm
from robustlab.geometry.projections import clip, clip_, onto_l1

State = Live | SimpleNamespace
Rate = float | Tensor
"""A step size: a number, or one for each sample, (n,)."""


def feasible(ball: Norm, at: State, points: Tensor, box: tuple[Bound, Bound]) -> Tensor:
    """The nearest points of {‖δ‖ ≤ ``at.eps``} ∩ box around ``at.x``: what projected descent returns to.

    ``at.room`` keeps how far the box reaches around ``at.x``, which stays where it is.
    """
    if not hasattr(at, "room"):
        at.room = box[0] - at.x, box[1] - at.x
    return clip_(ball.project_box(points - at.x, at.eps, *at.room).add_(at.x), *box)


def with_room(x: Tensor, reach: float, box: tuple[Bound, Bound]) -> Tensor:
    """The nearest points that are ``reach`` away from the ends of the box, or a quarter of its width if that is less.

    About these few probes of one-sided differences are clipped. Of an image whose pixels are mostly at an end, half of
    the elements of each probe would be, and f would be off by the same amount along all directions.
    """
    quarter = (box[1] - box[0]) / 4
    room = quarter.clamp_max(reach) if isinstance(quarter, Tensor) else min(reach, quarter)
    return clip(x, box[0] + room, box[1] - room)


def descent(grad: Tensor, rate: Rate) -> Tensor:
    """Plain descent: −η ĝ."""
    return -_beside(rate, grad) * grad


def steepest_descent(ball: Norm, grad: Tensor, rate: Rate) -> Tensor:
    """−η v, with the steepest unit step v of a norm: the sign of ĝ in ℓ∞ (signSGD), ĝ/‖ĝ‖₂ in ℓ2."""
    return ball.steepest(grad).mul_(-_beside(rate, grad))


def heavy(at: State, grad: Tensor, momentum: float) -> Tensor:
    """A running mean of gradients, m ← β m + (1 − β) ĝ, kept as ``at.momentum``; starts at 0."""
    old = getattr(at, "momentum", None)
    at.momentum = (1 - momentum) * grad if old is None else momentum * old + (1 - momentum) * grad
    return at.momentum


def adam(
    at: State, grad: Tensor, *, rate: Rate, index: Tensor | None = None, like: Tensor | None = None,
    beta1: float = 0.9, beta2: float = 0.999, tiny: float = 1e-8,
) -> Tensor:  # fmt: skip
    """Adam, in which every coordinate counts its own steps.

        m ← β₁m + (1 − β₁)ĝ,   v ← β₂v + (1 − β₂)ĝ²,   move = −η · m/(1 − β₁^T) / (√(v/(1 − β₂^T)) + tiny)

    Args:
        at: keeps m, v and T as ``first``, ``second`` and ``times``, (n, d), of T one column as long as all coordinates
            step together; :func:`forget` resets them.
        grad: (n, ...), or with ``index`` (n, m) the slopes in these places of the flattened sample.
        rate: η.
        index: (n, m) int64, no place twice for one sample; None for all coordinates.
        like: (n, ...), the variable; wanted with ``index``.

    Returns:
        The move, the shape of ``grad``.

    Source:
        Chen et al., "ZOO" (2017), algorithm 2; Kingma and Ba (2015).
    """
    rows, every = grad.flatten(1), index is None
    if not hasattr(at, "first"):
        at.first, at.second = (torch.zeros_like((grad if like is None else like).flatten(1)) for _ in "mv")
        at.times = at.first.new_zeros(len(rows), 1)
    if not every:
        at.times = at.times.expand_as(at.first)
    m, v, t = (memory if every else memory.gather(1, index) for memory in (at.first, at.second, at.times))
    m, v, t = beta1 * m + (1 - beta1) * rows, beta2 * v + (1 - beta2) * rows.square(), t + 1
    for name, new in (("first", m), ("second", v), ("times", t)):
        setattr(at, name, new if every else getattr(at, name).scatter(1, index, new))
    m, v = m / -torch.expm1(t * math.log(beta1)), v / -torch.expm1(t * math.log(beta2))  # divided by 1 − β^T
    move = m / (v.sqrt() + tiny)
    return -_beside(rate, grad) * move.reshape(grad.shape)


def forget(at: State, mask: Tensor) -> None:
    """Adam starts anew for the samples of a mask (n,)."""
    if hasattr(at, "first") and bool(mask.any()):
        kept = (~mask).to(at.first.dtype)[:, None]
        at.first, at.second, at.times = at.first * kept, at.second * kept, at.times * kept


def newton(slope: Tensor, bend: Tensor, rate: Rate) -> Tensor:
    """Newton's move of each coordinate, −η ĝ_j/ĥ_j, or −η ĝ_j where the curvature ĥ_j is not positive.

    Source:
        Chen et al., "ZOO" (2017), algorithm 3.
    """
    return -_beside(rate, slope) * slope / torch.where(bend > 0, bend, 1.0)


def natural(grad: Tensor, scores: Tensor, damping: float) -> Tensor:
    """The natural gradient (F + λI)⁻¹ ĝ with the empirical Fisher matrix of r score vectors, by Woodbury's identity.

        F = 1/r Σ_i s_i s_iᵀ,   (F + λI)⁻¹ ĝ = (ĝ − Sᵀ (rλ I + S Sᵀ)⁻¹ S ĝ)/λ,   S the (r, d) matrix of the s_i

    For r = 1 that is Sherman and Morrison's formula; no matrix of d × d is made.

    Args:
        grad: ĝ, (n, ...).
        scores: s_i, estimates of ∇ log p, (n, r, ...).
        damping: λ > 0.

    Source:
        Zhao et al., "Towards query-efficient black-box adversary with zeroth-order natural gradient descent" (2020).
    """
    checks.positive("damping", damping)
    g, s = grad.flatten(1)[..., None], scores.flatten(2)  # (n, d, 1), (n, r, d)
    gram = s @ s.mT
    gram.diagonal(dim1=1, dim2=2).add_(s.shape[1] * damping)
    return ((g - s.mT @ torch.linalg.solve(gram, s @ g)) / damping).reshape(grad.shape)


def exponentiated(prior: Tensor, ascent: Tensor, rate: Rate) -> Tensor:
    """Exponentiated gradient on [−1, 1]: the new prior, not a move. It *ascends* along ``ascent``.

        p = (v + 1)/2,   p ← p e^{ηg} / (p e^{ηg} + (1 − p) e^{−ηg}),   v = 2p − 1,   that is v ← tanh(artanh v + ηg)

    An element that has reached an end by rounding can still come back.

    Source:
        Ilyas et al., "Prior convictions: black-box adversarial attacks with bandits and priors" (2019), for ℓ∞.
    """
    inner = 1 - torch.finfo(prior.dtype).eps
    return torch.tanh(torch.atanh(prior.clamp(-inner, inner)) + _beside(rate, ascent) * ascent)


# ADMM: minimize f(δ) + γ·D(z) with δ = z and z in ball ∩ box -----------------------------------------------------


def prox(norm: ProperNorm | Literal["l2 squared"], v: Tensor, weight: Rate) -> Tensor:
    """argmin_z  weight·D(z) + ½‖z − v‖²: ADMM's z step before its projection.

    D is ‖z‖₁ (soft threshold), ‖z‖₂ (block soft threshold), ‖z‖_∞ (Moreau: v less its projection onto the ℓ1 ball of
    radius ``weight``), or ‖z‖₂² (v/(1 + 2·weight)).
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf", "l2 squared"))
    scale = _beside(weight, v)
    if norm == "l2 squared":
        return v / (1 + 2 * scale)
    if norm == "l1":
        return v.sign() * (v.abs() - scale).clamp_min(0)
    rows = v.flatten(1)
    column = torch.as_tensor(weight, dtype=v.dtype, device=v.device).reshape(-1, 1).expand(len(rows), 1)
    if norm == "linf":
        return (rows - onto_l1(rows, column)).reshape(v.shape)
    length = get_norm("l2").length(v)[:, None].clamp_min(torch.finfo(v.dtype).tiny)
    return (rows * (1 - column / length).clamp_min(0)).reshape(v.shape)


def linearized(delta: Tensor, grad: Tensor, goal: Tensor, *, rho: Rate, eta: Rate) -> Tensor:
    """ADMM's step in δ, with f replaced by its tangent and a pull toward the last δ; returns the new δ.

        argmin_δ ⟨ĝ, δ⟩ + ρ/2 ‖δ − goal‖² + η/2 ‖δ − δ_k‖² = (ρ·goal + η·δ_k − ĝ)/(ρ + η)

    Args:
        delta, grad: δ_k and ĝ there, (n, ...).
        goal: z − u, with the scaled dual u, which then grows by δ − z.
        rho, eta: ρ > 0 and η ≥ 0; Zhao et al. take η = α√k.

    Source:
        Zhao et al., "On the design of black-box adversarial examples by leveraging gradient-free optimization and
        operator splitting method" (2019), its linearized step.
    """
    rho, eta = _beside(rho, delta), _beside(eta, delta)
    return (rho * goal + eta * delta - grad) / (rho + eta)


def _beside(rate: Rate, like: Tensor) -> Rate:
    return beside(rate.to(like), like) if isinstance(rate, Tensor) and rate.dim() else rate
