"""The attacks of Carlini and Wagner.

Carlini and Wagner, "Towards evaluating the robustness of neural networks" (2017b), section VI, on the penalty-based
formulation (2) of the survey. With w instead of x + δ = (tanh(w) + 1)/2, which keeps to the box by itself, and the
margin loss g = max{κ − goal margin, 0} (f_6 of the paper), Adam minimizes over w

    ℓ2 (VI-A):  ‖δ‖₂² + c·g                   from x, for values of c that a binary search chooses
    ℓ∞ (VI-C):  Σ_i max(|δ_i| − τ, 0) + c·g   from the last success, where τ ← 0.9·min(τ, ‖δ‖∞); c doubles on failure
    ℓ0 (VI-B):  ‖δ‖₂² + c·g                   from the last success, over the elements that are not frozen: a success
                freezes at x the 0.3·√m of its m changed elements with the smallest |δ_i|·|∇_i g|; c doubles on failure

Each sample goes through a sequence of *runs* of Adam, at most ``steps`` long; the outcome of one sets c, the start and
the constraint of the next. No sample waits for another: while one begins a new run, its neighbors go on with theirs.

Different here: the goal asks for 1e-4 of the logits' size (``spare``) more than κ, so that rounding cannot undo it.
Early aborting, c, τ and the mask belong to each sample alone. Where ℓ∞ would give up, it goes on with a factor nearer
to 1 and an Adam step size that shrinks alike, since 0.9 alone leaves up to 10 % on the table; its first step size is
0.02 instead of 0.005 and its first c 1e-3 instead of 1e-5, which need fewer steps. ℓ0 counts and freezes elements,
where the paper freezes a pixel's three channels together. In all penalties δ is in widths of the box, so that c means
the same in [0, 1] and [0, 255].
"""

from __future__ import annotations

from itertools import count
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Live, closest
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacker.weight_search import next_weight
from robustlab.attacks.whitebox.cw_descent import TanhBox, adam, begin, restart, stalled
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar


def cw(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf", "l0"] = "l2",
    target: int | Tensor | None = None,
    kappa: float = 0.0,
    steps: int = 1000,
    search_steps: int = 9,
    lr: float | None = None,
    c: float = 1e-3,
    abort_early: bool = True,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Carlini and Wagner's attack in ℓ2, ℓ∞ or ℓ0.

        minimize_w penalty((x(w) − x)/width) + c·max{κ − goal margin(x(w)), 0},    x(w) = (tanh(w) + 1)/2

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"``, ``"linf"`` or ``"l0"`` (elements are counted).
        target: a label, or (N,), for a targeted attack.
        kappa: confidence κ ≥ 0, in logits, that the result must have.
        steps: Adam steps of one minimization, at most.
        search_steps: ℓ2: values of c tried. ℓ∞: how often the cut of τ, 10 % at first, is halved. Not used in ℓ0.
        lr: Adam's step size; None means 0.01 (ℓ∞: 0.02).
        c: first value of c, for a penalty on lengths in widths of the box (of its widest side).
        abort_early: end a minimization that has not improved by 0.01 % over a tenth of its steps.
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a counter in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: one query and one gradient per step.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Carlini and Wagner (2017b), sections VI-A (ℓ2), VI-B (ℓ0) and VI-C (ℓ∞).
    """
    checks.one_of("norm", norm, ("l2", "linf", "l0"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("search_steps", search_steps, 1, integer=True)
    lr = lr if lr is not None else (0.02 if norm == "linf" else 0.01)
    checks.positive("lr", lr)
    checks.positive("c", c)
    ball, victim = get_norm(norm), Victim.of(victim)
    with victim.session(x, y, target=target, ids=ids, kappa=kappa) as session:
        best, live, box = closest(session), session.live(), TanhBox(session.low, session.high)
        width = session.width
        form = _FORMS[norm](live, lr, search_steps)
        begin(live, box.inverse(live.x), c, lr)
        for _ in bar(count(), show=progress, label="cw"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            points, slope = box.point(live.w)
            if form.freezes:
                points, slope = torch.where(live.free, points, live.x), slope * live.free
            answer = session.gradient(points, live, session.shortfall(live))
            delta = (points - live.x) / width
            value, pull = form.penalty(live, delta)
            won = session.secure(answer.logits, live) & (value <= live.slack)
            best.keep(live, points, ball.length(delta), won)
            live.won |= won
            over = live.step == steps - 1
            if abort_early:
                over |= stalled(live, value + live.c * answer.loss.clamp_min(0), max(1, steps // 10))
            adam(
                live, (answer.grad * beside(live.c * (answer.loss > 0), delta)).add_(pull, alpha=1 / width).mul_(slope)
            )
            if form.stops:
                over |= won
            if bool(over.any()):
                if form.stops:
                    live.start[won] = box.inverse(points[won])
                more = form.next(live, over, delta, answer.grad)
                restart(live, over)
                live.keep(more | ~over)
        return session.result(best.points, asked=True, revert=True)


class _L2:
    """Binary search on c, always from x: up by tens until a success, then halving the interval."""

    stops = freezes = False  # whether a run ends at its first success; whether elements are frozen

    def __init__(self, live: Live, lr: float, search_steps: int) -> None:
        self.tries = search_steps
        live.runs = torch.zeros_like(live.y)

    def penalty(self, live: Live, delta: Tensor) -> tuple[Tensor, Tensor]:
        """‖δ‖₂², (n,), and its gradient."""
        return delta.flatten(1).square().sum(dim=1), 2 * delta

    def next(self, live: Live, over: Tensor, delta: Tensor, grad: Tensor) -> Tensor:
        """Set up the next run of the samples whose run is ``over``; returns a mask (n,) of those that have one."""
        next_weight(live, over & live.won, over & ~live.won)
        live.runs = live.runs + over
        return live.runs < self.tries


class _Linf:
    """Lower τ while that succeeds; on failure double c, and when c is spent, lower τ more gently."""

    stops, freezes = True, False
    cut, largest_c = 0.1, 20.0

    def __init__(self, live: Live, lr: float, search_steps: int) -> None:
        self.lr, self.finest = lr, 0.5**search_steps
        live.fine = torch.ones(len(live), dtype=live.x.dtype, device=live.x.device)  # share of ``cut`` by which τ falls
        live.radius = live.tau = torch.full_like(live.fine, torch.inf)  # the best ‖δ‖∞ so far, and τ

    def penalty(self, live: Live, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_i max(|δ_i| − τ, 0), (n,), and its gradient."""
        excess = (delta.abs() - beside(live.tau, delta)).clamp_min(0)
        return excess.flatten(1).sum(dim=1), delta.sign() * (excess > 0)

    def next(self, live: Live, over: Tensor, delta: Tensor, grad: Tensor) -> Tensor:
        """As :meth:`_L2.next`."""
        length = delta.flatten(1).abs().amax(dim=1)
        lower = over & live.won & (length < live.radius)
        failed = over & ~lower
        live.radius = torch.where(lower, length, live.radius)
        live.c = torch.where(failed, 2 * live.c, live.c)
        spent = failed & (live.c > self.largest_c)
        live.c = torch.where(spent, self.largest_c, live.c)
        live.fine = torch.where(spent, live.fine / 2, live.fine)
        live.lr = self.lr * live.fine  # finer steps for finer changes of τ
        live.tau = (1 - self.cut * live.fine) * live.radius
        # Half of the way down to τ is enough: then every success lowers the radius, and Adam's jitter loses none.
        live.slack = self.cut / 2 * live.fine * live.radius
        return (live.fine > self.finest) & (live.radius.isfinite() | (live.fine == 1))


class _L0:
    """Freeze what matters least while that succeeds; on failure double c."""

    stops = freezes = True
    largest_c = 2e6

    def __init__(self, live: Live, lr: float, search_steps: int) -> None:
        live.free = torch.ones_like(live.x, dtype=torch.bool)

    def penalty(self, live: Live, delta: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`_L2.penalty`."""
        return delta.flatten(1).square().sum(dim=1), 2 * delta

    def next(self, live: Live, over: Tensor, delta: Tensor, grad: Tensor) -> Tensor:
        """As :meth:`_L2.next`."""
        at = (over & live.won).nonzero().flatten()
        delta, weight = delta[at], (delta[at] * grad[at]).abs().flatten(1)
        changed = delta.flatten(1) != 0
        quota = (0.3 * changed.sum(dim=1, keepdim=True).sqrt()).floor().clamp_min(1)
        rank = weight.masked_fill(~changed, torch.inf).argsort(dim=1).argsort(dim=1)
        live.free[at] &= (changed & (rank >= quota)).reshape(delta.shape)
        live.c = torch.where(over & ~live.won, 2 * live.c, live.c)
        return (live.c <= self.largest_c) & live.free.flatten(1).any(dim=1)


_FORMS: dict[str, type[_L2] | type[_Linf] | type[_L0]] = {"l2": _L2, "linf": _Linf, "l0": _L0}
