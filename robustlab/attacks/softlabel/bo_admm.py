"""Alternating direction method of multipliers with Bayesian optimization (BO-ADMM).

Zhao, Liu, Chen, Hoang, Xu, Kailkhura and Lin, "On the design of black-box adversarial examples by leveraging
gradient-free optimization and operator splitting method" (2019), the second solver of its section 4. The problem is
split as for :func:`robustlab.attacks.zo_admm`, with the black box f = max{κ − goal margin, 0} and the length D:

    minimize_{δ, z} f(x + δ) + γ·D(z)  subject to δ = z, x + z ∈ box

The step in δ, which alone asks the model, has h(δ) = f(x + δ) + ρ/2 ‖δ − (z − u)‖² to make small, and no gradient of f
is estimated for it. All that was heard of f so far is fitted by a Gaussian process with the Matérn kernel

    k(δ, δ′) = c (1 + √5 r + 5/3 r²) e^{−√5 r},   r = ‖δ − δ′‖/ℓ

whose c and ℓ make it most likely. At every δ it gives a mean m(δ) and a deviation s(δ) of h, and what is asked about
next is where the expected improvement on h⁺, the smallest h so far, is largest:

    EI(δ) = E max{h⁺ − h(δ), 0} = (h⁺ − m) Φ(v) + s φ(v),   v = (h⁺ − m)/s
    δ ← the point of smallest h among all that were asked about, argmax EI the last of them
    u ← u + δ − z
    z ← Π_box( prox_{γD/ρ}(δ + u) )

Different here: the process models f, and the quadratic, which is known, is added to its mean, so that what was heard
for one z − u serves all others; δ is the best point heard, not the last, which may have been asked about to learn; all
questions are in the box, that about z counts, and z is data too, as is f(x), which the clean check has told. ℓ is one
for all elements of a sample: the few points that are heard do not tell more.

The Gaussian process is that of scikit-learn, an optional dependency: ``pip install "robustlab[bayes]"``. It is fitted
to each sample by itself in each round, some 40 ms on one core, which pays where the model is slow or far away.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Best, Live, closest
from robustlab.attacker.losses import goal_margin
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.softlabel.improvement import TRIED, most_promising
from robustlab.attacks.softlabel.solvers import prox
from robustlab.attacks.softlabel.zo_admm import Length
from robustlab.geometry.norms import Norm, get_norm
from robustlab.geometry.projections import clip
from robustlab.progress import bar


def bo_admm(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l1", "l2", "linf"] = "l2",
    target: int | Tensor | None = None,
    kappa: float = 0.0,
    steps: int = 50,
    first: int = 10,
    reach: float = 0.2,
    gamma: float = 0.1,
    rho: float = 1.0,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """BO-ADMM: splits the black box from the length and the box, and models the black box by a Gaussian process.

        minimize_δ max{κ − goal margin(x + δ), 0} + γ·D(δ)  subject to x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: of which D is made: ``"l2"`` (squared), ``"l1"`` or ``"linf"``.
        target: a label, or (N,), for a targeted attack.
        kappa: confidence κ ≥ 0, in log-probabilities, that the result must have.
        steps: rounds.
        first: random points that are asked about before the first round, at least 1.
        reach: these are drawn from the cube [−reach, reach]^d around x, clipped to the box; in widths of the box.
        gamma: γ > 0, the weight of the length, in widths of the box.
        rho: ρ > 0, the weight of ‖δ − z‖².
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult, the nearest success of all that was asked about; where there is none, x. Cost: ``first`` queries
        and 2 per round, 1 for the clean check and 1 for the final check of a success; no gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.
        ImportError: if scikit-learn is not installed.

    Source:
        Zhao et al. (2019), section 4, BO-ADMM; Jones, Schonlau and Welch (1998) for the expected improvement.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("first", first, 1, integer=True)
    for name, value in (("reach", reach), ("gamma", gamma), ("rho", rho)):
        checks.positive(name, value)
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError('bo_admm: scikit-learn is not installed: pip install "robustlab[bayes]"')
    victim, ball = Victim.of(victim), get_norm(norm)
    checks.images(x, victim.bounds)
    length: Length = "l2 squared" if norm == "l2" else norm
    with victim.session(x, y, target=target, ids=ids, kappa=kappa, access="soft", first_round=first + 2) as session:
        heard = _Heard(session, closest(session), session.live(noise=session.noise(seed)))
        live, box, width = heard.live, (session.low, session.high), session.width
        live.dual = live.z = torch.zeros_like(live.x)
        live.keep(session.can_pay(live, first + 2))
        if len(live):
            cube = reach * live.noise.uniform((0, 0), (first, *x.shape[1:]), torch.float64, -1.0, 1.0).to(live.x)
            heard.ask(clip(live.x[:, None] + width * cube, *box), ball)
        for k in bar(range(1, steps + 1), show=progress, label="bo_admm"):
            live.keep(session.can_pay(live, 2))
            if not len(live):
                break
            goal = live.z - live.dual
            heard.ask(clip(live.x + width * _most_promising(heard, goal, rho, k, reach), *box)[:, None], ball)
            delta = heard.lowest(goal, rho)
            live.dual = live.dual + delta - live.z
            points = clip(live.x + width * prox(length, delta + live.dual, gamma / rho), *box)
            live.z = (points - live.x) / width
            heard.ask(points[:, None], ball)
        return session.result(heard.best.points, asked=True, revert=True)


class _Heard:
    """All that was asked about live samples: δ as ``live.deltas`` (n, m, ...), margins as ``live.margins`` (n, m)."""

    def __init__(self, session: Session, best: Best, live: Live) -> None:
        self.session, self.best, self.live = session, best, live
        live.deltas = live.x.new_zeros(len(live), 1, *live.x.shape[1:])
        live.margins = live.x.new_zeros(len(live), 1)
        live.aim = live.x.new_zeros(len(live))
        if session.clean is not None:  # there is an x
            self._note(session.clean[live.rows])
            live.margins = live.margins[:, 1:]

    def ask(self, points: Tensor, ball: Norm) -> None:
        """m points of each sample, (n, m, ...)."""
        session, live = self.session, self.live
        logits = session.ask_many(points, live).logits
        for j in range(points.shape[1]):
            won = session.secure(logits[:, j], live)
            self.best.keep(live, points[:, j], ball.length(points[:, j] - live.x), won)
            self._note(logits[:, j])
        live.deltas = torch.cat([live.deltas, (points - live.x[:, None]) / session.width], dim=1)

    def _note(self, logits: Tensor) -> None:
        live = self.live
        live.margins = torch.cat([live.margins, goal_margin(logits, live.y, live.target)[:, None]], dim=1)
        live.aim = self.session.kappa + self.session.beyond(logits, live)

    def shortfall(self) -> Tensor:
        """f, (n, m) in float64. Where nothing was heard, the worst that was."""
        f = (self.live.aim[:, None].double() - self.live.margins.double()).clamp_min(0)
        worst = f.nan_to_num(0.0, 0.0, 0.0).amax(dim=1, keepdim=True)
        return torch.where(f.isfinite(), f, worst)

    def objective(self, goal: Tensor, rho: float) -> Tensor:
        """h, (n, m) in float64."""
        away = (self.live.deltas - goal[:, None]).flatten(2).double()
        return self.shortfall() + rho / 2 * away.square().sum(dim=2)

    def lowest(self, goal: Tensor, rho: float) -> Tensor:
        """The δ of smallest h, (n, ...)."""
        index = self.objective(goal, rho).argmin(dim=1)
        return self.live.deltas[torch.arange(len(index), device=index.device), index]


def _most_promising(heard: _Heard, goal: Tensor, rho: float, k: int, reach: float) -> Tensor:
    """argmax EI of each sample, (n, ...)."""
    live, box, width = heard.live, (heard.session.low, heard.session.high), heard.session.width
    low, high = (((torch.as_tensor(end).to(live.x) - live.x) / width).flatten(1) for end in box)
    unit = live.noise.uniform((k, 0), (TRIED, live.x[0].numel() + 1), torch.float64, -1.0, 1.0)
    spread = reach * 2.0 ** (-10 * unit[..., :1].abs()) * unit[..., 1:]  # all sizes down to a thousandth
    deltas = live.deltas.flatten(2)
    found = most_promising(deltas, heard.shortfall(), goal.flatten(1), rho, spread, low, high)
    return found.to(live.x).reshape(live.x.shape)
