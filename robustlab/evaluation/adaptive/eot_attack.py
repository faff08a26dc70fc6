"""Expectation over transformation as an attack: a point that is adversarial in most views of it.

Athalye, Engstrom, Ilyas and Kwok, "Synthesizing robust adversarial examples" (2018), section 2.1, equation (2). An
image is not seen as it is but through a transformation t that is drawn from a distribution T. The attacker looks for

    minimize_δ  E_{t ~ T}[ g(t(x + δ)) + λ·‖t(x + δ) − t(x)‖₂ ]   subject to ‖δ‖_p ≤ ε, x + δ ∈ box

by projected steps along the gradient through t, with fresh draws in each step:

    ∇ ≈ 1/S Σ_s J_{t_s}(x + δ)ᵀ ∇(g + λ·‖· − t_s(x)‖₂)(t_s(x + δ))      δ ← P( δ − α·v(∇) )

What it is worth shows in views that it was not made with: ``rate`` is the share of held-out draws in which the goal is
met. A point that fools the model as it is need not fool it in any other view.

The solver :func:`robustlab.evaluation.eot` averages a *model* over fixed draws, so that any attack can
work on it; here the attack itself draws anew in each step, and success is a share. Different here: there is a budget ε
beside the penalty (the paper has the penalty alone: take the whole box, such as ``norm="linf", eps=1``); the distance
is measured in raw pixels and not in LAB; steps go along the steepest unit step of the norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.composition import boxed, gradient_through
from robustlab.attacker.live import Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult, keep_so_far
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.pgd import begin, step
from robustlab.evaluation.adaptive.random_views import View, Views
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar

__all__ = ["EotResult", "eot_attack"]

AT_ONCE = 512  # rows in one pass


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class EotResult(AttackResult):
    """Points that are adversarial in most views of them.

    Attributes:
        rate: (N,), the share of held-out views in which the goal is met; ``success`` is that it is large enough, and
            ``first_success`` is −1 or all queries, since no single view decides.
    """

    rate: Tensor


def eot_attack(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    transforms: Views | Sequence[View],
    held_out: int | Sequence[View] = 50,
    draws: int = 10,
    norm: Literal["l2", "linf"] = "linf",
    eps: float | Tensor,
    penalty: float = 0.0,
    steps: int = 40,
    step_size: float | Tensor | None = None,
    loss: LossName | LossFunction = "ce",
    target: int | Tensor | None = None,
    rate: float = 0.9,
    init: Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    trace: bool = False,
) -> EotResult:
    """One point for each image that is adversarial under a distribution of transformations.

        minimize_δ E_t[ g(t(x + δ)) + λ·‖t(x + δ) − t(x)‖₂ ]  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction at x.
        transforms: a distribution with a method ``view``, such as :class:`robustlab.evaluation.RandomViews`; or a list
            of differentiable functions of a batch, all of which are averaged in each step: the exact expectation over
            a finite family. The model sees their outcome clipped to the box.
        held_out: number of fresh draws that judge the points, at least 1, or a list of functions of a batch. Of a
            list of ``transforms`` there are no fresh ones: then the list itself judges unless another is given.
        draws: S ≥ 1 for each image and step; a list of transforms ignores it.
        norm: of the budget, ``"linf"`` or ``"l2"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        penalty: λ ≥ 0, the weight of the expected Euclidean distance between the views; 0 is none.
        steps: number of steps, at least 1, all of which are taken.
        step_size: α > 0, a number or (N,); None means 2.5·ε/steps.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`).
        target: a label, or (N,), for a targeted attack.
        rate: share of held-out views in (0, 1] from which on a sample counts as a success.
        init: perturbation δ_0, shape of x, projected onto ball and box; None is 0.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.
        trace: keep the estimated objective before each step as ``result.trace["loss"]``, (steps, N).

    Returns:
        EotResult with the last iterates. Cost for each sample: 1 query at x, S queries and gradients per step, and 1
        query per held-out view. Where a budget cannot pay a step and the judgement, the steps end.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Athalye et al. (2018), equation (2) and section 2.1.
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("draws", draws, 1, integer=True)
    checks.at_least("penalty", penalty, 0.0)
    checks.positive("rate", rate)
    checks.at_most("rate", rate, 1.0)
    ball, g, victim = get_norm(norm), attacker_loss(loss), Victim.of(victim)
    judges = _judges(transforms, held_out)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    alpha = 2.5 * eps / steps if step_size is None else checks.per_sample("step_size", step_size, x)
    if init is not None:
        checks.same_shape("init", init, x)
    with victim.session(x, y, target=target, ids=ids, loss=g) as session:
        at, box, told = session.of((~session.lost).nonzero().flatten()), (session.low, session.high), list[Tensor]()
        at.eps, at.alpha, at.noise = eps[at.rows], alpha[at.rows], session.noise(seed).take(at.rows)
        start = torch.zeros_like(at.x) if init is None else init.to(at.x)[at.rows]
        at.points = begin(ball, at, start, box)
        each = draws if isinstance(transforms, Views) else len(transforms)
        with _kept(session, at):
            for k in bar(range(steps if len(at) else 0), show=progress, label="eot_attack"):
                if not session.all_can_pay(at, each + judges - 1):
                    break
                value, grad = expected(session, at, _drawn(transforms, at, k, draws), g, penalty)
                told.append(torch.full_like(eps, torch.nan).index_put_((at.rows,), value.to(eps)))
                at.points = step(ball, at, grad, box, sparse=False)
        fresh = session.noise(derive_seed(seed, 1)).take(at.rows)
        return _judged(session, at, transforms, held_out, fresh, rate, torch.stack(told) if trace and told else None)


def expected(
    session: Session, at: Live, views: Sequence[View], g: LossFunction, penalty: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The mean of g + λ·‖t(x + δ) − t(x)‖₂ over views at ``at.points`` (n, ...), and its gradient through the views.

    All views of all samples go through the model together, in passes of at most ``AT_ONCE`` rows.
    """
    total, grad, many = torch.zeros_like(at.eps), torch.zeros_like(at.x), max(1, AT_ONCE // max(1, len(at)))
    for first in range(0, len(views), many):
        part = views[first : first + many]

        def seen(points: Tensor, part: Sequence[View] = part) -> Tensor:
            return torch.cat([view(points) for view in part])

        def apart(pictures: Tensor, part: Sequence[View] = part) -> Tensor:
            square = (pictures - boxed(seen(at.x, part), session.low, session.high)).flatten(1).square().sum(dim=1)
            return penalty * torch.where(square > 0, square, 1.0).sqrt().where(square > 0, 0.0)

        copies = session.of(at.rows.repeat(len(part)))
        answer = gradient_through(session, copies, at.points, seen, g, apart if penalty else None)
        session.settle(copies)
        total += answer.loss.reshape(len(part), -1).sum(dim=0).to(total)
        grad += answer.grad
    return total / len(views), grad / len(views)


def _drawn(transforms: Views | Sequence[View], at: Live, k: int, draws: int) -> Sequence[View]:
    if isinstance(transforms, Views):
        return [transforms.view(at.x, at.noise, (k, s)) for s in range(draws)]
    return transforms


def _judged(
    session: Session, at: Live, transforms: Views | Sequence[View], held_out: int | Sequence[View], fresh: Noise,
    rate: float, told: Tensor | None,
) -> EotResult:  # fmt: skip
    """Ask about the points, as the caller gets them, in each held-out view."""
    if isinstance(transforms, Views) and not isinstance(held_out, Sequence):
        judges: Sequence[View] = [transforms.view(at.x, fresh, (s,)) for s in range(held_out)]
    else:
        judges = held_out if isinstance(held_out, Sequence) else transforms  # type: ignore[assignment]
    hits = torch.zeros_like(at.eps)
    for view in judges if len(at) else ():
        hits += session.ask(boxed(view(at.points), session.low, session.high), at).met
    share = torch.zeros(len(session.x), dtype=hits.dtype, device=hits.device)
    share[at.rows] = hits / len(judges)
    return _wrapped(session, at, share, (share >= rate) & ~session.lost, None if told is None else {"loss": told})


def _wrapped(
    session: Session, at: Live, share: Tensor, won: Tensor, trace: dict[str, Tensor] | None = None
) -> EotResult:
    final = session.x.clone()
    final[at.rows] = at.points
    found = session._wrapped(final, won, trace)
    fields: dict[str, Any] = vars(replace(found, first_success=torch.where(won, found.queries, -1)))
    return EotResult(**fields, rate=share)


@contextmanager
def _kept(session: Session, at: Live) -> Iterator[None]:
    """Where the steps are interrupted, their error has the points so far; nobody has judged them (rate NaN)."""
    try:
        yield
    except BaseException as error:
        unknown = torch.full((len(session.x),), torch.nan, dtype=at.eps.dtype, device=at.eps.device)
        keep_so_far(error, _wrapped(session, at, unknown, torch.zeros_like(session.lost)))
        raise


def _judges(transforms: Views | Sequence[View], held_out: int | Sequence[View]) -> int:
    """How many views judge, after a look at both arguments."""
    for name, given in (("transforms", transforms), ("held_out", held_out)):
        if isinstance(given, Sequence) and (not given or not all(callable(view) for view in given)):
            raise TypeError(f"{name}: want a list of at least one function of a batch, got {given!r}")
    if not isinstance(transforms, Views | Sequence):
        raise TypeError(
            "transforms: want a list of functions, or a distribution with a method view(x, noise, draw), "
            f"got {type(transforms).__name__}"
        )
    if isinstance(held_out, Sequence):
        return len(held_out)
    checks.at_least("held_out", held_out, 1, integer=True)
    return held_out if isinstance(transforms, Views) else len(transforms)
