"""AutoZOOM: zeroth-order optimization in a space of few dimensions.

Tu, Ting, Chen, Liu, Zhang, Yi, Hsieh and Cheng, "AutoZOOM: autoencoder-based zeroth order optimization method for
attacking black-box neural networks" (2019), algorithm 1, on the penalty-based formulation (2) of the survey with scores
alone. It minimizes Carlini and Wagner's objective f, see :mod:`robustlab.attacks.softlabel.penalty`, over z of d′
elements, from which bilinear resizing or a decoder makes the perturbation. The gradient is estimated from the value at
z and one-sided differences along q directions u_i, uniform on the unit sphere,

    ĝ = d′/q Σ_i (f(z + β u_i) − f(z))/β · u_i        β = 1/d′

and Adam takes the step. Until its first success a sample asks along one direction; then Adam starts anew, and more
directions refine what was found. Every ``switch`` steps the outcome since the last time sets the next c: ten times as
large until a success, then by bisection.

Different here: the mean over directions is a mean, where the authors' code has the sum (of which Adam takes no notice);
the goal asks for a little more than κ (``spare``), so that rounding cannot undo it; all samples are asked about in one
batch, each with its own c and its own number of directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.estimators import Directions, forward
from robustlab.attacker.live import Live, closest
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacker.weight_search import first_weight, next_weight
from robustlab.attacks.softlabel.penalty import Penalty
from robustlab.attacks.softlabel.solvers import adam, forget
from robustlab.attacks.softlabel.spaces import Decoded, Resized, Space
from robustlab.geometry.norms import get_norm
from robustlab.models.modes import evaluating
from robustlab.progress import bar

_LARGEST_C = 1e10


def autozoom(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2"] = "l2",
    target: int | Tensor | None = None,
    kappa: float = 0.0,
    size: int | None = None,
    decoder: Callable[[Tensor], Tensor] | None = None,
    code: tuple[int, ...] | None = None,
    steps: int = 1000,
    q: int = 1,
    refine: int = 4,
    switch: int = 100,
    lr: float = 0.01,
    c: float = 1.0,
    beta: float | None = None,
    tanh: bool = True,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """AutoZOOM: Carlini and Wagner's ℓ2 attack on gradients estimated in few dimensions, with scores alone.

        minimize_z ‖x(z) − x‖₂² + c·max{κ − goal margin(x(z)), 0}

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: (N, ...), in the box; images (N, C, H, W) without a ``decoder``.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"``, the only one.
        target: a label, or (N,), for a targeted attack.
        kappa: confidence κ ≥ 0, in log-probabilities, that the result must have.
        size: height of the small image z, whose width is in proportion; None means half of x's, rounded up.
        decoder: in the place of a small image, a map from codes (n, *code) to perturbations (n, ...); held in
            evaluation mode.
        code: the shape of a code.
        steps: Adam steps, at most.
        q: directions before a sample's first success.
        refine: directions after it.
        switch: steps after which c is set anew.
        lr: Adam's step size, in z: of tanh's argument, or in widths of the box.
        c: first value of c.
        beta: β > 0, the step of the differences, in z; None means 1/d′, and more in half precision, which rounds such
            steps away.
        tanh: change variables by tanh; False clips to the box.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: q + 1 queries per step before the first success of a sample and
        ``refine`` + 1 after it, and 1 for the last point; no gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Tu et al. (2019), algorithm 1.
    """
    checks.one_of("norm", norm, ("l2",))
    for name, count in (("steps", steps), ("q", q), ("refine", refine), ("switch", switch)):
        checks.at_least(name, count, 1, integer=True)
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    space = _space(x, size, decoder, code)
    beta = max(1 / math.prod(space.shape), torch.finfo(x.dtype).eps ** 0.5) if beta is None else beta
    for name, number in (("lr", lr), ("c", c), ("beta", beta)):
        checks.positive(name, number)
    with (
        evaluating(decoder, device=x.device),
        victim.session(x, y, target=target, ids=ids, kappa=kappa, access="soft", first_round=q + 2) as session,
    ):
        best, live, penalty = closest(session), session.live(noise=session.noise(seed)), Penalty(session, tanh, space)
        first_weight(live, c)
        penalty.begin(live)
        live.ever = live.won = torch.zeros_like(live.y, dtype=torch.bool)
        for k in bar(range(steps + 1), show=progress, label="autozoom"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            points = penalty.points(live, live.z[:, None])
            answer = session.ask(points[:, 0], live)
            margin, won, live.aim = session.lead(answer.logits, live)
            live.total = penalty.total(live, points, margin[:, None])[:, 0]
            best.keep(live, points[:, 0], get_norm(norm).length(points[:, 0] - live.x), won)
            first = won & ~live.ever
            forget(live, first)
            live.lower = torch.where(first, 0.0, live.lower)  # a smaller c may do, too
            live.ever, live.won = live.ever | won, live.won | won
            live.keep(session.can_pay(live, torch.where(live.ever, refine, q)))
            if k == steps or not len(live):
                break
            grad = _estimate(penalty, live, k, q, refine, beta)
            live.z = live.z + adam(live, grad.nan_to_num(0.0, 0.0, 0.0), rate=lr)
            if (k + 1) % switch == 0:
                next_weight(live, live.won, ~live.won)
                live.c, live.won = live.c.clamp_max(_LARGEST_C), torch.zeros_like(live.won)
        return session.result(best.points, asked=True, revert=True)


def _space(
    x: Tensor, size: int | None, decoder: Callable[[Tensor], Tensor] | None, code: tuple[int, ...] | None
) -> Space:
    if (decoder is None) != (code is None) or (decoder is not None and size is not None):
        raise ValueError(f"decoder, code: want both, and no size, or neither, got code {code} and size {size}")
    if decoder is not None and code is not None:
        return Decoded(decoder, tuple(code))
    checks.pictures(x)
    return Resized.of_height((x.shape[2] + 1) // 2 if size is None else size, x)


def _estimate(penalty: Penalty, live: Live, k: int, q: int, refine: int, beta: float) -> Tensor:
    """ĝ of every sample, along ``q`` directions or, after a success, ``refine``."""
    directions = Directions(live.noise, k, torch.where(live.ever, refine, q), live.z, "sphere")
    return forward(penalty.values(live), live.z, directions, beta, base=live.total)
