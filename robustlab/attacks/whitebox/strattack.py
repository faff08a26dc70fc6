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
taken for each sample alone; the goal asks for a little more than κ (``spare``); lengths count in widths of the box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Best, Live, closest
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacker.weight_search import first_weight, next_weight
from robustlab.geometry.projections import clip
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
        AttackResult; where it fails, x. Cost: two queries (at z and at x + y) and one gradient per step.

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
    checks.below("percentile", percentile, 100)
    if stride > window:
        raise ValueError(f"stride: want at most the window {window}, got {stride}")
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    checks.pictures(x)
    with victim.session(x, y, target=target, ids=ids, kappa=kappa) as session:
        best, whole, groups = closest(session), session.live(), Groups(session.x, window, stride)
        admm = _Admm(session, groups, cap, gamma, tau, rho, alpha)
        first_weight(whole, c)
        whole.start, whole.mask = torch.zeros_like(whole.x), torch.ones_like(whole.x)
        for _ in bar(range(search_steps), show=progress, label="strattack"):
            admm.run(whole, best, tau, steps)
        solved, found = best.value.isfinite(), (best.points - whole.x) / admm.width
        first_weight(whole, 5 * c)
        whole.mask = _largest(found, percentile)
        whole.start = found * whole.mask
        for _ in bar(range(search_steps), show=progress, label="strattack refines"):
            admm.run(whole, best, 0.0, refine_steps, solved)
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
    rank = size.argsort(dim=1, stable=True).argsort(dim=1) - (size.shape[1] - changed)  # counted from 0 at the smallest
    return (rank >= torch.minimum(dropped, changed - 1)).to(delta.dtype).reshape(delta.shape)


class _Admm:
    """One run for given c: all steps for all samples."""

    def __init__(
        self, session: Session, groups: Groups, cap: float, gamma: float, tau: float, rho: float, alpha: float
    ) -> None:
        self.session, self.groups, self.cap = session, groups, cap
        self.gamma, self.tau, self.rho, self.alpha = gamma, tau, rho, alpha
        self.width = session.high - session.low

    def run(self, whole: Live, best: Best, tau: float, steps: int, among: Tensor | None = None) -> None:
        """From ``whole.start`` on the elements of ``whole.mask``, with ``whole.c``: keeps in ``best`` what succeeds.

        Then chooses the next ``whole.c``. ``among``: a mask (n,) of the samples that are run; None for all.
        """
        session, rho, found, live = self.session, self.rho, closest(self.session), self.session.live()
        live.c, live.z, live.mask = whole.c, whole.start, whole.mask
        live.low = ((session.low - live.x) / self.width).clamp_min_(-self.cap)
        live.high = ((session.high - live.x) / self.width).clamp_max_(self.cap)
        live.u, live.s = torch.zeros_like(live.z), torch.zeros_like(live.z)
        live.v = live.z.new_zeros(len(live), self.groups.count, *live.z.shape[1:])
        live.keep(among)
        for k in range(steps):
            live.keep(session.can_pay(live, 2))
            if not len(live):
                break
            delta = (live.z - live.u).mul_(rho / (rho + 2 * self.gamma))
            w = torch.clamp(live.z - live.s, live.low, live.high)
            y = self.groups.prox(live.z[:, None] - live.v, tau / rho).mul_(live.mask[:, None])
            answer = session.gradient(self._point(live.z, live), live, session.shortfall(live))
            slope = answer.grad * beside(live.c * (answer.loss > 0), live.z) * self.width
            eta = self.alpha * (k + 1) ** 0.5
            live.u += delta
            live.s += w
            live.v += y
            together = (live.u + live.s).add_(live.v.sum(dim=1))
            live.z = (eta * live.z - slope).add_(together, alpha=rho).div_(eta + (2 + self.groups.count) * rho)
            live.u -= live.z
            live.s -= live.z
            live.v -= live.z[:, None]
            points = self._point(self.groups.fold(y), live)
            won = session.secure(session.ask(points, live).logits, live)
            found.keep(live, points, self._penalty((points - live.x) / self.width), won)
        best.keep(whole, found.points, found.value)
        won = found.value.isfinite()
        next_weight(whole, won, ~won, factor=5.0)

    def _point(self, delta: Tensor, live: Live) -> Tensor:
        """x + δ, within cap and box; an element with δ = 0 is that of x."""
        moved = torch.clamp(delta, live.low, live.high).mul_(self.width).add_(live.x)
        return clip(moved, self.session.low, self.session.high)

    def _penalty(self, delta: Tensor) -> Tensor:
        """γ·‖δ‖₂² + τ·Σ‖δ_D‖₂, (n,)."""
        return self.gamma * delta.flatten(1).square().sum(dim=1) + self.tau * self.groups.lengths(delta).sum(dim=1)
