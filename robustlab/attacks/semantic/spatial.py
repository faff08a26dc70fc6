"""Rotations and translations.

Engstrom, Tran, Tsipras, Schmidt and Madry, "Exploring the landscape of spatial robustness" (2019), section 3. What is
similar to an image x is x rotated by an angle φ and moved by t, and the attacker looks among these for

    minimize g( T_{φ,t}(x) | x, y, θ )  subject to |φ| ≤ 30°, and |t| ≤ 10 % of the height and of the width

by an exhaustive grid of 31 × 5 × 5 transformations, by the worst of k random ones, or by first-order steps on (φ, t).

T is fixed: bilinear interpolation about the center of the image, and what comes in from outside has the value of the
box's lower end (black).

Different here: the grid is walked from the identity outward and a sample stops at its first success, so what is found
is the mildest success of the grid and not the one of highest loss; a sample that is never fooled gets its
transformation of highest loss, as in the paper. First-order steps follow the sign of the gradient in units of the three
limits.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Bound
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Access, Answer, Session
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.projections import clip
from robustlab.progress import bar


def spatial(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    search: Literal["grid", "random", "first_order"] = "grid",
    rotation: float = 30.0,
    translation: float = 0.1,
    grid: tuple[int, int, int] = (31, 5, 5),
    k: int = 10,
    steps: int = 50,
    step_size: float | Tensor = 0.1,
    loss: LossName | LossFunction = "ce",
    kappa: float = 0.0,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    trace: bool = False,
) -> AttackResult:
    """Rotate and move an image until the model errs.

        minimize g(T_{φ,t}(x) | x, y, θ)  subject to |φ| ≤ rotation, |t| ≤ translation

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: images (N, C, H, W), in the box.
        y: (N,) labels; None takes the model's prediction.
        search: ``"grid"`` (all combinations), ``"random"`` (the worst of ``k``) or ``"first_order"`` (gradients).
        rotation: largest angle in degrees, in both directions, ≥ 0.
        translation: largest shift as a fraction of the height or the width, in both directions, ≥ 0.
        grid: numbers of angles, of vertical and of horizontal shifts, evenly spaced from limit to limit.
        k: number of random transformations, uniform within the limits.
        steps: number of first-order steps, from one random transformation.
        step_size: α > 0 of a first-order step, as a fraction of the limits; a number or (N,).
        loss: attacker's loss g of survey section 2.2, minimized (:mod:`robustlab.attacker.losses`).
        kappa: κ ≥ 0; a success has a winning margin of at least κ between the logits.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.
        trace: keep the transformation of each returned point, (1, N) tensors: ``"rotation"`` in degrees
            (counterclockwise), ``"down"`` and ``"right"`` as fractions of the size.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success: a query for each
        transformation tried, and one for the clean check; first-order search costs steps + 1 queries and ``steps``
        gradients instead. A success has 1 query more, for the final check.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Engstrom et al. (2019), section 3.
    """
    checks.one_of("search", search, ("grid", "random", "first_order"))
    checks.at_least("rotation", rotation, 0.0)
    checks.at_least("translation", translation, 0.0)
    for name, count in (("k", k), ("steps", steps), *(("grid", count) for count in grid)):
        checks.at_least(name, count, 1, integer=True)
    if len(grid) != 3:
        raise ValueError(f"grid: want three numbers, got {grid}")
    g, victim = attacker_loss(loss), Victim.of(victim)
    checks.images(x, victim.bounds)
    checks.pictures(x)
    alpha = checks.per_sample("step_size", step_size, x)
    access: Access = "white" if search == "first_order" else "soft"
    with victim.session(x, y, ids=ids, kappa=kappa, access=access, loss=g) as session:
        limits, points = session.x.new_tensor([rotation, translation, translation]), _grid(grid, session.x)
        tries = {"grid": len(points), "random": k, "first_order": steps + 1}[search]
        best, live = _identity(session, g), session.live(noise=session.noise(seed), alpha=alpha)
        for i in bar(range(tries), show=progress, label="spatial"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            if search == "grid":
                live.unit = points[i].expand(len(live), 3)
            elif search == "random" or i == 0:
                live.unit = live.noise.uniform(i, (3,), live.x.dtype, -1.0, 1.0)
            slope = search == "first_order" and bool(i < steps)
            moved, answer, grad = _look(session, live, limits, g, slope)
            best.keep(live, (moved, live.unit), torch.where(answer.met, -torch.inf, answer.loss))
            if slope:
                live.unit = (live.unit - live.alpha[:, None] * grad.sign()).clamp(-1, 1)
            live.leave(answer.met)
        found, unit = best.points
        kept = session.x.new_zeros(3, 1, len(session.x)).index_copy_(2, session.active, (unit * limits).T[:, None])
        traces = dict(zip(("rotation", "down", "right"), kept, strict=True)) if trace else None
        return session.result(found, asked=True, trace=traces)


def transform(
    x: Tensor, degrees: Tensor, down: Tensor, right: Tensor, fill: Bound = 0.0, scale: Tensor | None = None
) -> Tensor:
    """T_{φ,t}: turn images about their center, counterclockwise, then move them; differentiable in φ and t.

    Args:
        x: (N, C, H, W).
        degrees, down, right: (N,); shifts are fractions of H and W.
        fill: value of what lies outside the image, a number or a tensor that broadcasts with an image.
        scale: (N,), by which images grow about their center before they are moved; None is 1.
    """
    _, _, height, width = x.shape
    rows = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2
    columns = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    # The pixel at (v, u) of the result is looked up where the inverse of T sends it, in units of half the image.
    v = (rows - height * down[:, None])[:, :, None]
    u = (columns - width * right[:, None])[:, None, :]
    if scale is not None:
        u, v = u / scale[:, None, None], v / scale[:, None, None]
    cos, sin = (f(degrees * (math.pi / 180))[:, None, None] for f in (torch.cos, torch.sin))
    across = u * (cos * (2 / width)) - v * (sin * (2 / width))
    along = u * (sin * (2 / height)) + v * (cos * (2 / height))
    where = torch.stack([across, along], dim=-1)
    if not isinstance(fill, Tensor) and fill == 0:
        return F.grid_sample(x, where, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.grid_sample(x - fill, where, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def _grid(counts: tuple[int, int, int], like: Tensor) -> Tensor:
    """All combinations but the identity, the mildest first: (tries, 3) in units of the limits."""
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1).double() for n in counts]
    points = torch.cartesian_prod(*axes)
    points = points[points.norm(dim=1).argsort(stable=True)].to(like)
    return points[points.abs().amax(dim=1) > 1e-6]


def _identity(session: Session, g: LossFunction) -> Best:
    """Points and transformations (n, 3) of smallest g, in units of the limits; the identity is the first of them."""
    start = session.live(clean=session.clean)
    best = Best(session, points=(start.x, start.x.new_zeros(len(start), 3)))
    if session.clean is not None:
        best.keep(start, best.points, g(start.clean, start.y, None, session.kappa))
    return best


def _look(session: Session, live: Live, limits: Tensor, g: LossFunction, slope: bool) -> tuple[Tensor, Answer, Tensor]:
    """T(x) in the box, the answer about it, and the slope of g in the transformation if it is asked for, else 0."""
    with torch.set_grad_enabled(slope):
        unit = live.unit.detach().requires_grad_(slope)
        degrees, down, right = (unit * limits).unbind(1)
        moved = transform(live.x, degrees, down, right, fill=session.low)
        points = clip(moved, session.low, session.high)
    if not slope:
        return points, session.ask(points, live, g), torch.zeros_like(unit)
    answer = session.gradient(points.detach(), live, g)
    (grad,) = torch.autograd.grad(points, unit, answer.grad)
    return points.detach(), answer, grad
