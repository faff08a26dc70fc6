"""Zeroth-order optimization attack (ZOO).

Chen, Zhang, Sharma, Yi and Hsieh, "ZOO: zeroth order optimization based black-box attacks to deep neural networks
without training substitute models" (2017), algorithms 1 to 3, on the penalty-based formulation (2) of the survey with
scores alone. It minimizes Carlini and Wagner's objective, see :mod:`robustlab.attacks.softlabel.penalty`, by coordinate
descent: each step takes a batch of B coordinates, asks on both sides of each,

    ĝ_j = (f(z + h e_j) − f(z − h e_j))/(2h)        ĥ_j = (f(z + h e_j) − 2f(z) + f(z − h e_j))/h²

and moves them by Adam, in which each coordinate counts its own steps (algorithm 2), or by −η·ĝ_j/ĥ_j, −η·ĝ_j where ĥ_j
is not positive (algorithm 3). Adam starts anew at the first success. A binary search chooses c.

*Attack space* (section 3.3): z may be a small image, which is made large bilinearly; the steps at which it gets larger
are given, and Adam starts anew there. *Importance sampling* (section 3.5): coordinates are drawn by probabilities
proportional to the largest |z| in their region of the image, which are computed afresh every so many steps.

Different here: h is ε^⅓ of the machine, 6e-6 in float64 and 5e-3 in float32, where the paper's 1e-4 would lose percents
of the gradient to rounding; for second differences it is ε^¼, 1e-4 and 2e-2. The goal asks for a little more than κ
(``spare``), so that rounding cannot undo it. All samples are asked about in one batch; early aborting and c belong to
each sample alone. Every row that is evaluated counts, 2B + 1 per step; the published counts are of coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.attacker.estimators import coordinates, difference_step
from robustlab.attacker.live import Live, closest
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacker.weight_search import first_weight, next_weight
from robustlab.attacks.softlabel.penalty import Penalty
from robustlab.attacks.softlabel.solvers import adam, forget, newton
from robustlab.attacks.softlabel.spaces import Resized
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar


def zoo(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2"] = "l2",
    target: int | Tensor | None = None,
    kappa: float = 0.0,
    steps: int = 1000,
    search_steps: int = 9,
    batch: int = 128,
    solver: Literal["adam", "newton"] = "adam",
    lr: float = 0.01,
    c: float = 0.01,
    h: float | None = None,
    tanh: bool = True,
    sizes: Sequence[int] = (),
    switches: Sequence[int] = (),
    refresh: int | None = None,
    region: int = 8,
    abort_early: bool = True,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """ZOO: Carlini and Wagner's ℓ2 attack by coordinate descent on estimated slopes, with scores alone.

        minimize_z ‖x(z) − x‖₂² + c·max{κ − goal margin(x(z)), 0}

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: (N, ...), in the box; images (N, C, H, W) for ``sizes`` and ``refresh``.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"``, the only one.
        target: a label, or (N,), for a targeted attack.
        kappa: confidence κ ≥ 0, in log-probabilities, that the result must have.
        steps: steps of coordinate descent for one c, at most.
        search_steps: values of c tried.
        batch: B, coordinates in a step, at most as many as there are.
        solver: ``"adam"`` or ``"newton"``.
        lr: η, in z: of tanh's argument, or in widths of the box.
        c: first value of c.
        h: step of the differences, in z; None chooses it by the dtype.
        tanh: change variables by tanh; False clips to the box, which the paper does for large images.
        sizes: heights of the small image that z is, one after the other, such as (32, 64, 128); its width is in
            proportion. Empty: z has all elements of x.
        switches: the steps of a run at which z gets the next size, one fewer than ``sizes``, growing.
        refresh: importance sampling, with probabilities computed afresh after so many steps; None draws uniformly.
        region: height and width of the regions of importance sampling, in elements of z.
        abort_early: end a run whose objective has not improved by 0.01 % over a tenth of its steps.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: 2B + 1 queries per step and 1 per run; no gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Chen et al. (2017), algorithms 1 to 3.
    """
    checks.one_of("norm", norm, ("l2",))
    checks.one_of("solver", solver, ("adam", "newton"))
    for name, count in (("steps", steps), ("search_steps", search_steps), ("batch", batch), ("region", region)):
        checks.at_least(name, count, 1, integer=True)
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    if h is None:
        h = difference_step(x.dtype) if solver == "adam" else torch.finfo(x.dtype).eps ** 0.25
    for name, number in (("lr", lr), ("c", c), ("h", h)):
        checks.positive(name, number)
    stages = _stages(x, sizes, switches, steps)
    if refresh is not None:
        checks.at_least("refresh", refresh, 1, integer=True)
        checks.pictures(x)
    first = 2 + 2 * min(batch, _elements(x, stages[0]))  # beside a batch the points before and after its step
    with victim.session(x, y, target=target, ids=ids, kappa=kappa, access="soft", first_round=first) as session:
        best, whole, penalty, ball = closest(session), session.live(), Penalty(session, tanh), get_norm(norm)
        first_weight(whole, c)
        for run in bar(range(search_steps), show=progress, label="zoo"):
            found, live = closest(session), session.live(noise=session.noise(seed))
            live.c, live.previous = whole.c, torch.full_like(whole.c, torch.inf)
            live.won = torch.zeros_like(live.y, dtype=torch.bool)
            for k in range(steps + 1):
                if k in stages:
                    stage = stages[k]
                    _enter(live, penalty, stage, begin=k == 0)
                if refresh is not None and k % refresh == 0:
                    live.chance = _chances(live.z, region)
                live.keep(session.can_pay(live))
                if not len(live):
                    break
                points = penalty.points(live, live.z[:, None])
                answer = session.ask(points[:, 0], live)
                margin, won, live.aim = session.lead(answer.logits, live)
                for keeper in (best, found):
                    keeper.keep(live, points[:, 0], ball.length(points[:, 0] - live.x), won)
                live.total = penalty.total(live, points, margin[:, None])[:, 0]
                if solver == "adam":
                    forget(live, won & ~live.won)
                live.won = live.won | won
                count = min(batch, _elements(x, stage))
                live.keep(_going(session, live, k, steps if abort_early else 0, 2 * count))
                if k == steps or not len(live):
                    break
                index = _drawn(live, (run, k), count)
                slope, bend = coordinates(
                    penalty.values(live), live.z, index, h=h, base=live.total if solver == "newton" else None
                )
                slope = slope.nan_to_num(0.0, 0.0, 0.0)  # the model may say NaN
                move = adam(live, slope, rate=lr, index=index, like=live.z) if bend is None else newton(slope, bend, lr)
                live.z = live.z.flatten(1).scatter_add(1, index, move).reshape(live.z.shape)
            tried = found.value.isfinite()
            next_weight(whole, tried, ~tried)
        return session.result(best.points, asked=True, revert=True)


def _stages(x: Tensor, sizes: Sequence[int], switches: Sequence[int], steps: int) -> dict[int, Resized | None]:
    """The space that z enters at each of some steps of a run; None is all of a sample."""
    if not sizes:
        if switches:
            raise ValueError(f"switches: want none without sizes, got {list(switches)}")
        return {0: None}
    at = [0, *switches]
    if len(at) != len(sizes) or sorted(set(at)) != at:
        raise ValueError(f"switches: want {len(sizes) - 1} growing steps above 0, got {list(switches)}")
    return {k: Resized.of_height(size, x, "sizes") for k, size in zip(at, sizes, strict=True)}


def _elements(x: Tensor, space: Resized | None) -> int:
    return math.prod(x.shape[1:] if space is None else space.shape)


def _enter(live: Live, penalty: Penalty, space: Resized | None, *, begin: bool) -> None:
    """z in its first space, 0; or as it is, made larger. Adam starts anew."""
    penalty.space = space
    if begin or space is None:
        penalty.begin(live)
        return
    larger = Resized(live.z.shape[2], live.z.shape[3], live.z.new_empty(1, *space.shape))
    live.z = larger(live.z[:, None])[:, 0]
    for name in ("first", "second", "times"):
        vars(live).pop(name, None)


def _chances(z: Tensor, region: int) -> Tensor:
    """Each coordinate's chance to be drawn, (n, d), up to a factor: the largest |z| of its region; equal for z = 0.

    Source: Chen et al. (2017), section 3.5.
    """
    size = z.shape[2:]
    top = F.max_pool2d(z.abs(), region, ceil_mode=True) if max(size) > 1 else z.abs()
    chance = top.repeat_interleave(region, dim=2)[:, :, : size[0]].repeat_interleave(region, dim=3)[..., : size[1]]
    chance = chance.flatten(1)
    return torch.where(chance.any(dim=1, keepdim=True), chance, 1.0)


def _drawn(live: Live, draw: tuple[int, int], count: int) -> Tensor:
    """``count`` coordinates for each sample, no two alike: uniformly, or by ``live.chance``.

    The smallest of exponential times with rates p_j are a draw without replacement with chances p_j; what has chance 0
    comes last.
    """
    d = live.z.shape[1:].numel()
    if count == d:
        return torch.arange(d, device=live.z.device).expand(len(live), d)
    times = live.noise.exponential(draw, (d,), torch.float64).log()
    if "chance" in vars(live):
        times -= live.chance.double().clamp_min(1e-300).log()
    return times.topk(count, dim=1, largest=False).indices


def _going(session: Session, live: Live, k: int, steps: int, cost: int) -> Tensor:
    """Which samples can pay a batch and, looked at ten times in so many ``steps``, have improved by 0.01 %."""
    going, period = torch.ones_like(live.won), max(1, steps // 10)
    if steps and k > 0 and k % period == 0:
        going, live.previous = ~(live.total > 0.9999 * live.previous), live.total
    paying = session.can_pay(live, cost)
    return going if paying is None else going & paying
