"""Structured attack (StrAttack).

Xu, Liu, Zhao, Chen, Zhang, Fan, Erdogmus, Wang and Lin, "Structured adversarial attack: towards general implementation
and better interpretability" (2019b), sections 3 and 4, on the penalty-based formulation (2) of the survey. A window
slides over the image; the pixels D under one of its positions, in all channels, are a group. With the margin loss g,

    minimize over x + δ in the box, ‖δ‖∞ ≤ ε    c·g + γ·‖δ‖₂² + τ·Σ_D ‖δ_D‖₂

The last term empties whole groups. The alternating direction method of multipliers (ADMM) gives each term a copy of the
perturbation, and multipliers (u, s and v, in units of the copies) pull the copies δ, w and y towards a common z:

    δ ← ρ/(ρ + 2γ)·(z − u)                                      w ← (z − s), clipped to box and ε
    y_D ← max{1 − τ/(ρ·‖a_D‖₂), 0}·a_D  with a = z − v          group by group
    z ← (η_k·z + ρ·(δ + u + w + s + y + v) − c·∇g(z)) / (η_k + 3ρ),   η_k = α·√(k + 1)      g is linearized at z
    u ← u + δ − z,   s ← s + w − z,   v ← v + y − z

A binary search chooses c. Then the attack is *refined*: it goes on from its best point with τ = 0 on the mask of those
elements that exceed the σ-th percentile of the non-zero ones, all others staying 0, with a search for c of its own.

Where windows overlap, a copy y belongs to each set of windows that do not: ⌈size/stride⌉² copies, with 2 + their number
in the place of 3 above. A pixel outside the windows of a set is left alone there. An element of the point that is
returned is 0 as soon as one of its groups is, and the mean over the copies otherwise.

Different here: x + y is clipped to the box and ε and asked again as that, since y obeys neither (the published code
returns it as it is); windows are cut at the border, so that every pixel is in a group; z is clipped to the box before
the model is asked; of all successes the one of the least penalty γ·‖δ‖₂² + τ·Σ‖δ_D‖₂ is returned; the percentile is
taken for each sample alone; the goal asks for 1e-4·max(1, largest |logit|) more than κ; lengths count in widths of the
box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import shortfall
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.minimum_norm import Closest
from robustlab.attacks.whitebox.weight_search import WeightSearch
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar


def strattack(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    window: int = 2,
    stride: int = 2,
    cap: float = 0.5,
    gamma: float = 2.0,
    tau: float = 3.0,
    rho: float = 15.0,
    alpha: float = 5.0,
    percentile: float = 3.0,
    target: int | Tensor | None = None,
    kappa: float = 0.0,
    steps: int = 1000,
    search_steps: int = 8,
    refine_steps: int = 400,
    c: float = 1.0,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """A group-sparse perturbation, found by ADMM and refined on its own support.

        minimize_δ c·max{κ − goal margin(x + δ), 0} + γ‖δ‖₂² + τ Σ_D ‖δ_D‖₂  subject to x + δ ∈ box, ‖δ‖∞ ≤ ε

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, C, H, W), in the box.
        y: (N,) labels; None takes the model's prediction.
        window: side of the sliding window in pixels; a group is what it covers, in all channels.
        stride: by which it slides; windows overlap if that is less than ``window``, and must not leave gaps.
        cap: ε > 0, the largest change of an element, in widths of the box.
        gamma, tau: weights γ > 0 and τ ≥ 0 of ‖δ‖₂² and of the groups, with lengths in widths of the box.
        rho, alpha: ADMM's ρ > 0, and α > 0 of the step size 1/(α·√(k + 1)).
        percentile: σ, 0 ≤ σ < 100; the refinement drops this share of the changed elements.
        target: a label, or (N,), for a targeted attack.
        kappa: confidence κ ≥ 0, in logits, that the result must have.
        steps: ADMM steps for one c.
        search_steps: values of c tried, in either phase; c grows fivefold until the first success.
        refine_steps: ADMM steps of the refinement for one c.
        c: first value of c.
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: two queries (at z and at x + y) and one gradient a step.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Xu et al. (2019b), equations (4) to (13) and section 4.
    """
    for name, count in (("window", window), ("stride", stride), ("steps", steps), ("search_steps", search_steps)):
        checks.at_least(name, count, 1, integer=True)
    checks.at_least("refine_steps", refine_steps, 1, integer=True)
    for name, weight in (("cap", cap), ("gamma", gamma), ("rho", rho), ("alpha", alpha), ("c", c)):
        checks.positive(name, weight)
    checks.at_least("tau", tau, 0.0)
    checks.at_least("percentile", percentile, 0.0)
    if percentile >= 100:
        raise ValueError(f"percentile: want less than 100, got {percentile}")
    if stride > window:
        raise ValueError(f"stride: want at most the window {window}, got {stride}")
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    checks.pictures(x)
    with victim.session(x, y, target=target, ids=ids, kappa=kappa) as session:
        best, groups, rows = Closest(session, get_norm("l2")), Groups(session.x, window, stride), session.active
        admm = _Admm(session, best, groups, cap, gamma, tau, rho, alpha)
        search, mask = WeightSearch(session.x, c, search_steps, factor=5.0), torch.ones_like(session.x)
        for _ in bar(range(search_steps if rows.numel() else 0), show=progress, label="strattack"):
            won = admm.run(rows, search.c[rows], torch.zeros_like(session.x[rows]), mask[rows], tau, steps)
            search.next(rows, won)
        rows = rows[best.distance[rows].isfinite()]
        full = session.x.clone()
        full[session.active] = best.points
        found = (full - session.x)[rows] / (session.high - session.low)
        mask, search = _largest(found, percentile), WeightSearch(session.x, 5 * c, search_steps, factor=5.0)
        for _ in bar(range(search_steps if rows.numel() else 0), show=progress, label="strattack refines"):
            won = admm.run(rows, search.c[rows], found * mask, mask, 0.0, refine_steps)
            search.next(rows, won)
        return session.result(best.points, asked=True, revert=True)


class Groups:
    """The windows of images like ``x`` (N, C, H, W), in sets within which they do not overlap.

    Attributes:
        count: number of sets P.
    """

    def __init__(self, x: Tensor, window: int, stride: int) -> None:
        self.sets = [(rows, columns) for rows in _axis(x, 2, window, stride) for columns in _axis(x, 3, window, stride)]
        self.count = len(self.sets)

    def lengths(self, delta: Tensor) -> Tensor:
        """‖δ_D‖₂ of all groups, (n, groups)."""
        square = delta.square().sum(dim=1)
        return torch.cat([(r.T @ square @ c).flatten(1) for r, c in self.sets], dim=1).sqrt()

    def prox(self, copies: Tensor, threshold: float) -> Tensor:
        """argmin_y Σ_p ½‖y_p − a_p‖₂² + threshold·Σ_{D in set p} ‖y_{p, D}‖₂ for ``copies`` a, (n, P, C, H, W)."""
        shrunk = []
        for copy, (r, c) in zip(copies.unbind(dim=1), self.sets, strict=True):
            length = (r.T @ copy.square().sum(dim=1) @ c).sqrt()
            factor = (1 - threshold / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_min(0)
            outside = 1 - r.sum(dim=1)[:, None] * c.sum(dim=1)
            shrunk.append(copy * (r @ factor @ c.T).add_(outside)[:, None])
        return torch.stack(shrunk, dim=1)

    def fold(self, copies: Tensor) -> Tensor:
        """One perturbation (n, C, H, W) of the P copies: 0 where one of them is, their mean elsewhere."""
        return copies[:, 0] if self.count == 1 else copies.mean(dim=1) * (copies != 0).all(dim=1)


def _axis(x: Tensor, dim: int, window: int, stride: int) -> list[Tensor]:
    """Windows along one axis, as matrices (length, windows) of 0 and 1: one for each set without overlap."""
    length, apart = x.shape[dim], -(-window // stride)
    starts = stride * torch.arange(-(-max(length - window, 0) // stride) + 1, device=x.device)
    place = torch.arange(length, device=x.device)[:, None]
    inside = ((place >= starts) & (place < starts + window)).to(x.dtype)
    return [inside[:, first::apart] for first in range(min(apart, len(starts)))]


def _largest(delta: Tensor, percentile: float) -> Tensor:
    """1 where |δ| exceeds the percentile of its sample's m non-zero elements, or is the last of them; else 0."""
    size = delta.flatten(1).abs()
    changed = (size > 0).sum(dim=1, keepdim=True)
    dropped = (percentile / 100 * (changed - 1)).floor().long() + 1
    rank = size.argsort(dim=1, stable=True).argsort(dim=1) - (size.shape[1] - changed)  # from 0 at the smallest
    return (rank >= torch.minimum(dropped, changed - 1)).to(delta.dtype).reshape(delta.shape)


class _Admm:
    """One run for given c: all steps for all samples; keeps what succeeds in ``best``."""

    def __init__(
        self,
        session: Session,
        best: Closest,
        groups: Groups,
        cap: float,
        gamma: float,
        tau: float,
        rho: float,
        alpha: float,
    ) -> None:
        self.session, self.best, self.groups = session, best, groups
        self.gamma, self.tau, self.rho, self.alpha = gamma, tau, rho, alpha
        self.width = session.high - session.low
        self.low = ((session.low - session.x) / self.width).clamp_min_(-cap)
        self.high = ((session.high - session.x) / self.width).clamp_max_(cap)

    def run(self, rows: Tensor, c: Tensor, z: Tensor, mask: Tensor, tau: float, steps: int) -> Tensor:
        """From ``z`` (n, C, H, W) on the elements of ``mask``; returns which of ``rows`` succeeded with their c."""
        session, rho, place = self.session, self.rho, torch.arange(len(rows), device=rows.device)
        succeeded = torch.zeros_like(rows, dtype=torch.bool)
        limits = (session.x[rows], self.low[rows], self.high[rows])
        u, s, v = torch.zeros_like(z), torch.zeros_like(z), z.new_zeros(len(z), self.groups.count, *z.shape[1:])
        for k in range(steps):
            going = session.can_pay(rows, 2)
            if not bool(going.all()):
                rows, place, c, z, mask, u, s, v = (t[going] for t in (rows, place, c, z, mask, u, s, v))
                limits = tuple(t[going] for t in limits)
            if not rows.numel():
                break
            delta = (z - u).mul_(rho / (rho + 2 * self.gamma))
            w = torch.clamp(z - s, *limits[1:])
            y = self.groups.prox(z[:, None] - v, tau / rho).mul_(mask[:, None])
            answer = session.gradient(self._point(z, *limits), rows, shortfall)
            slope = answer.grad * beside(c * (answer.loss > 0) * self.width, z)
            eta = self.alpha * (k + 1) ** 0.5
            u, s, v = u.add_(delta), s.add_(w), v.add_(y)
            together = (u + s).add_(v.sum(dim=1))
            z = (eta * z - slope).add_(together, alpha=rho).div_(eta + (2 + self.groups.count) * rho)
            u, s, v = u.sub_(z), s.sub_(z), v.sub_(z[:, None])
            points = self._point(self.groups.fold(y), *limits)
            won = session.secure(session.ask(points, rows).logits, rows)
            if bool(won.any()):
                succeeded[place[won]] = True
                self._keep(rows[won], points[won])
        return succeeded

    def _point(self, delta: Tensor, clean: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """x + δ, within cap and box; an element with δ = 0 is that of x."""
        moved = torch.clamp(delta, low, high).mul_(self.width).add_(clean)
        return moved.clamp_(self.session.low, self.session.high)

    def _keep(self, rows: Tensor, points: Tensor) -> None:
        """These ``points`` succeed: keep them where their penalty is smaller than before."""
        delta = (points - self.session.x[rows]) / self.width
        penalty = self.gamma * delta.flatten(1).square().sum(dim=1) + self.tau * self.groups.lengths(delta).sum(dim=1)
        self.best.keep(rows, points, penalty, torch.ones_like(rows, dtype=torch.bool))
