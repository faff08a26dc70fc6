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
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import LossFunction, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.progress import bar


def spatial(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    search: str = "grid",
    rotation: float = 30.0,
    translation: float = 0.1,
    grid: tuple[int, int, int] = (31, 5, 5),
    k: int = 10,
    steps: int = 50,
    step_size: float | Tensor = 0.1,
    loss: str | LossFunction = "ce",
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
    access = "white" if search == "first_order" else "soft"
    with victim.session(x, y, ids=ids, kappa=kappa, access=access, loss=g) as session:
        found = _Search(session, g, session.x.new_tensor([rotation, translation, translation]))
        if search == "first_order":
            _descend(found, steps, alpha, seed, progress)
        else:
            tries = _grid(grid, session.x) if search == "grid" else _random(session, k, seed)
            rows = session.active
            for unit in bar(list(tries), show=progress, label="spatial"):
                rows = rows[session.can_pay(rows)]
                if not rows.numel():
                    break
                rows = found.ask(rows, unit(rows))
        kept = (found.unit * found.limits).T.unsqueeze(1) if trace else None
        names = ("rotation", "down", "right")
        return session.result(
            found.best, asked=True, trace=None if kept is None else dict(zip(names, kept, strict=True))
        )


def transform(x: Tensor, degrees: Tensor, down: Tensor, right: Tensor, fill: float = 0.0) -> Tensor:
    """T_{φ,t}: turn images about their center, counterclockwise, then move them; differentiable in φ and t.

    Args:
        x: (N, C, H, W).
        degrees, down, right: (N,); shifts are fractions of H and W.
        fill: value of what lies outside the image.
    """
    _, _, height, width = x.shape
    rows = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2
    columns = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    # The pixel at (v, u) of the result is looked up where the inverse of T sends it, in units of half the image.
    v = (rows - height * down[:, None])[:, :, None]
    u = (columns - width * right[:, None])[:, None, :]
    cos, sin = (f(degrees * (math.pi / 180))[:, None, None] for f in (torch.cos, torch.sin))
    across = u * (cos * (2 / width)) - v * (sin * (2 / width))
    along = u * (sin * (2 / height)) + v * (cos * (2 / height))
    where = torch.stack([across, along], dim=-1)
    if fill == 0:
        return F.grid_sample(x, where, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.grid_sample(x - fill, where, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


class _Search:
    """The transformation of smallest g of every sample so far, in units of the limits: (N, 3) in [−1, 1]."""

    def __init__(self, session: Session, g: LossFunction, limits: Tensor) -> None:
        self.session, self.g, self.limits = session, g, limits
        self.best, self.unit = session.x.clone(), session.x.new_zeros(session.x.shape[0], 3)
        self.loss = session.x.new_zeros(session.x.shape[0])
        if session.clean is not None:
            self.loss = g(session.clean, session.y, None, session.kappa)  # the identity is one of the transformations

    def points(self, rows: Tensor, unit: Tensor) -> Tensor:
        """T(x) for the samples ``rows``, in the box."""
        low, high = self.session.low, self.session.high
        return transform(self.session.x[rows], *(unit * self.limits).unbind(1), fill=low).clamp(low, high)

    def ask(self, rows: Tensor, unit: Tensor) -> Tensor:
        """Try one transformation of each of ``rows``; returns those that are not fooled."""
        points = self.points(rows, unit)
        answer = self.session.ask(points, rows)
        self.keep(rows, unit, points, self.g(answer.logits, self.session.y[rows], None, self.session.kappa), answer.met)
        return rows[~answer.met]

    def keep(self, rows: Tensor, unit: Tensor, points: Tensor, loss: Tensor, met: Tensor) -> None:
        better = met | (loss < self.loss[rows])
        chosen = rows[better]
        self.best[chosen], self.unit[chosen], self.loss[chosen] = points[better], unit[better], loss[better]


def _grid(counts: tuple[int, int, int], like: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """All combinations but the identity, the mildest first."""
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1).double() for n in counts]
    points = torch.cartesian_prod(*axes)
    points = points[points.norm(dim=1).argsort(stable=True)].to(like)
    for point in points[points.abs().amax(dim=1) > 1e-6]:
        yield lambda rows, point=point: point.expand(rows.shape[0], 3)


def _random(session: Session, k: int, seed: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """k draws for each sample, uniform within the limits."""
    noise = session.noise(seed)
    for draw in range(k):
        yield lambda rows, draw=draw: noise.take(rows).uniform(draw, (3,), session.x.dtype, -1.0, 1.0)


def _descend(found: _Search, steps: int, alpha: Tensor, seed: int, progress: bool) -> None:
    """Sign steps on (φ, t); the gradient in the pixels is asked of the victim and led back through T."""
    session, rows = found.session, found.session.active
    unit = session.noise(seed).take(rows).uniform(0, (3,), session.x.dtype, -1.0, 1.0)
    for step in bar(range(steps + 1), show=progress, label="spatial"):
        paying = session.can_pay(rows)
        rows, unit = rows[paying], unit[paying]
        if not rows.numel() or step == steps:
            break
        with torch.enable_grad():
            unit.requires_grad_(True)
            points = found.points(rows, unit)
        answer = session.gradient(points.detach(), rows, found.g)
        (grad,) = torch.autograd.grad(points, unit, answer.grad)
        unit = unit.detach()
        found.keep(rows, unit, points.detach(), answer.loss, answer.met)
        going = ~answer.met
        rows, unit = rows[going], (unit - alpha[rows, None] * grad.sign()).clamp(-1, 1)[going]
    if rows.numel():
        found.ask(rows, unit)
