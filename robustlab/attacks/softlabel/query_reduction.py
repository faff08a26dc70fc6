"""Finite differences with fewer queries: random feature groups and principal components.

Bhagoji, He, Li and Song, "Practical black-box attacks on deep neural networks using efficient query mechanisms" (2018),
sections 3.2 to 3.4, on the budget-based formulation (3) of the survey with scores alone. The gradient of the attacker's
loss is estimated by central differences along k orthogonal directions v_1 … v_k,

    groups    v_S = Σ_{j ∈ S} e_j, the d features shared out at random; every feature of S gets the mean slope of S,
              (g(x + h v_S) − g(x − h v_S)) / (2h·|S|)
    pca       v_i, a principal component of data like x;  ĝ = Σ_i (g(x + h v_i) − g(x − h v_i))/(2h) · v_i
    none      v_j = e_j, all features

and a step of ±α (ℓ2: α·ĝ/‖ĝ‖) is taken and projected: one step is the paper's FD, several are its iterative IFD. Groups
are drawn anew at each step.

Different here: no probe leaves the box, at whose ends a slope is that of the side inside; with the cross-entropy the
logarithm of the probability is differenced, where the paper divides the difference of probabilities by the probability;
a sample stops at its first success.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.estimators import Values, coordinates, difference_step
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.softlabel.solvers import feasible, steepest_descent
from robustlab.attacks.softlabel.spaces import Components, Groups, Space
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import clip
from robustlab.progress import bar

Reduction = Literal["groups", "pca", "none"]


def query_reduction(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf"] = "linf",
    eps: float | Tensor,
    reduction: Reduction = "groups",
    size: int = 8,
    components: int = 100,
    data: Tensor | None = None,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    h: float | None = None,
    loss: LossName | LossFunction = "logprob",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Projected descent on finite differences along few directions, with scores alone.

        minimize_δ g(δ | x, y)  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"`` or ``"l2"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        reduction: ``"groups"``, ``"pca"`` or ``"none"``.
        size: features in a random group.
        components: k, principal components that are used.
        data: for ``"pca"``, inputs (M, ...) like x, M > k: what the attacker has seen of the data.
        steps: number of steps.
        step_size: α > 0, a number or (N,); None means 2.5·ε/steps.
        h: step of the differences, in units of x; None chooses it by the dtype and the width of the box.
        loss: attacker's loss g, minimized: ``"logprob"`` is the paper's logit loss, ``"ce"`` its cross-entropy.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success: 2k + 1 queries
        per step, for k directions, and 1 for the clean check. A success has 1 more, for the final check. No gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Bhagoji et al. (2018), sections 3.2 (finite differences), 3.3 (iterative), 3.4 (query reduction).
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.one_of("reduction", reduction, ("groups", "pca", "none"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("size", size, 1, integer=True)
    checks.at_least("components", components, 1, integer=True)
    g, victim, ball = attacker_loss(loss), Victim.of(victim), get_norm(norm)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    alpha = 2.5 * eps / steps if step_size is None else checks.per_sample("step_size", step_size, x)
    if h is not None:
        checks.positive("h", h)
    basis = _basis(x, data, components) if reduction == "pca" else None
    d = math.prod(x.shape[1:])
    count = components if reduction == "pca" else -(-d // size) if reduction == "groups" else d
    with victim.session(x, y, target=target, ids=ids, access="soft", loss=g, first_round=2 * count + 1) as session:
        best, box = Best(session), (session.low, session.high)
        step = difference_step(x.dtype) * session.width if h is None else h
        live = session.live(eps=eps, alpha=alpha, noise=session.noise(seed))
        live.points = live.x
        for k in bar(range(steps), show=progress, label="query_reduction"):
            live.keep(session.can_pay(live, 2 * count + 1))
            if not len(live):
                break
            groups = Groups(live.noise, k, size, live.x) if reduction == "groups" else None
            grad = _gradient(session, live, session.values(live, g), groups or basis, step).nan_to_num(0.0, 0.0, 0.0)
            live.points = feasible(ball, live, live.points + steepest_descent(ball, grad, live.alpha), box)
            answer = session.ask(live.points, live, g)
            best.keep(live, live.points, answer.loss.masked_fill(answer.met, -torch.inf))
            live.leave(answer.met)
        return session.result(best.points, asked=True)


def _basis(x: Tensor, data: Tensor | None, components: int) -> Components:
    if data is None or data.shape[1:] != x.shape[1:]:
        raise ValueError(f"data: want inputs (M, {', '.join(map(str, x.shape[1:]))}) for pca, got {_shape(data)}")
    return Components(data.detach().to(x), components)


def _shape(data: Tensor | None) -> str:
    return "None" if data is None else f"shape {tuple(data.shape)}"


def _gradient(session: Session, live: Live, values: Values, space: Space | None, h: float) -> Tensor:
    """ĝ at ``live.points``, from two values along each direction of the space."""
    x, box = live.points, (session.low, session.high)
    if space is None:
        return coordinates(values, x, h=h, box=box).slope.reshape(x.shape)
    zero = x.new_zeros(len(x), *space.shape)
    slope = coordinates(lambda z: values(clip(x[:, None] + space(z), *box)), zero, h=h).slope
    if isinstance(space, Groups):  # the slope of the whole group, of which each feature gets its share
        slope = slope / _members(space, slope)
    return space(slope[:, None])[:, 0]


def _members(groups: Groups, like: Tensor) -> Tensor:
    """How many features each group has, (n, groups)."""
    return torch.zeros_like(like).scatter_add(1, groups.group, torch.ones_like(groups.group, dtype=like.dtype))
