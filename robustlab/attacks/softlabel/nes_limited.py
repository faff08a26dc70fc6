"""NES where little is shown: the scores of the top k classes alone, or the top label alone.

Ilyas, Engstrom, Athalye and Lin, "Black-box adversarial attacks with limited queries and information" (2018), sections
2.2 and 2.3 with algorithm 2. The attack is targeted and starts from an image of the target class, so that the target is
shown from the first. The ball around x in which the point must stay shrinks from that image's distance to ε, and the
target must stay in the top k. In each round, with NES's estimate m with momentum,

    try x′ = P_{r − d}(x − α sign(m)):  is the target shown?   if not, halve α; if α is at its least, halve the cut d

until one is found: x ← x′ and r ← max(r − d, ε). A d that gets small becomes 0, so that the point can still move.

    scores   loss −log p_t at the probes. A probe at which the target is not shown is left out *with its pair*: the
             mean is over whole pairs, and where none is left the round goes by the momentum alone.
    labels   loss 1 − S, where S is the share of ``samples`` points x + μ·u, u uniform on [−1, 1]^d, at which the top
             label is the target. It multiplies the queries by ``samples``. All probes of a round share the u, so that
             their differences vary less.

As in the authors' code d starts at half of the box, and at a tenth in later rounds; α is halved on a plateau. Different
here: the start is the caller's; a round without any step leaves the point, where the code stops with an error.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.attacker.estimators import Directions, Values, central
from robustlab.attacker.live import Best, Live
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Access, Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.softlabel.nes import LEAST, anneal
from robustlab.attacks.softlabel.solvers import feasible, heavy
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import clip
from robustlab.progress import bar

__all__ = ["nes_limited"]

_FIRST_CUT, _LATER_CUT, _NO_CUT = 0.5, 0.1, 2e-3  # shares of the box
_LINF = get_norm("linf")


def nes_limited(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    start: Tensor,
    target: int | Tensor,
    eps: float | Tensor,
    sees: Literal["scores", "labels"] = "scores",
    k: int = 1,
    steps: int = 500,
    q: int = 25,
    sigma: float | None = None,
    step_size: float | Tensor | None = None,
    momentum: float = 0.9,
    plateau: int = 5,
    samples: int = 50,
    spread: float | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """NES by the scores of the top k classes, or by the top label, in ℓ∞.

    Args:
        victim: a Victim, or a model with logits (N, K). With ``"labels"`` hard access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        start: images of the target class, the shape of x. A sample whose start does not show its target has failed, and
            a warning names it.
        target: a label, or (N,).
        eps: radius ε ≥ 0 in ℓ∞, in units of x; a number or (N,).
        sees: ``"scores"`` of the top ``k`` classes, or ``"labels"``, the top one.
        k: classes shown with their scores; idle with ``"labels"``.
        steps: rounds, at most.
        q: antithetic pairs in each round.
        sigma: σ > 0 in units of x; None means a 1000th of the box, more in half precision.
        step_size: the first α > 0, a number or (N,); None means a 100th of the box.
        momentum: share of the mean that is kept, in [0, 1).
        plateau: rounds without progress after which α is halved, at least 2.
        samples: points around a probe whose labels make its loss; idle with ``"scores"``.
        spread: μ > 0, how far these are from it, in units of x; None means σ.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled within ε gets its first point there, or x. Cost without success: 1
        query for the clean check and 1 for the start; for each round 2q, times ``samples`` with ``"labels"``, and those
        of the search for a step. No gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, or a budget that does not pay for one round, before any work.

    Source:
        Ilyas et al. (2018), sections 2.2 and 2.3, algorithm 2.
    """
    _check(sees, {"k": k, "steps": steps, "q": q, "samples": samples}, plateau, momentum, sigma, spread)
    victim, scores = Victim.of(victim), sees == "scores"
    checks.images(x, victim.bounds)
    checks.same_shape("start", start, x)
    checks.images(start, victim.bounds, "start")
    eps = checks.radius(eps, x, "linf", victim.bounds)
    alpha = None if step_size is None else checks.per_sample("step_size", step_size, x)
    first_round = 3 + 2 * q * (1 if scores else samples)  # the start, the probes, a step, the judge
    access: Access = "soft" if scores else "hard"
    with victim.session(x, y, target=target, ids=ids, access=access, first_round=first_round) as session:
        best, ends, width = Best(session), (session.low, session.high), session.width
        mu = session.audible(width / 1000) if sigma is None else sigma
        view = _Scores(session, k) if scores else _Labels(session, samples, mu if spread is None else spread)
        alpha = torch.full_like(eps, width / 100) if alpha is None else alpha
        live = session.live(eps=eps, rate=alpha, least=LEAST * alpha, points=start.to(x), noise=session.noise(seed))
        live.radius = torch.maximum(_LINF.length(live.points - live.x), live.eps)
        live.cut = torch.full_like(live.eps, _FIRST_CUT * width)
        live.losses = live.x.new_full((len(live), plateau), torch.nan)
        live.keep(session.can_pay(live))
        live.keep(_started(view, live) if len(live) else None)
        for i in bar(range(steps), show=progress, label="nes_limited"):
            live.keep(session.can_pay(live, 2 * q * view.cost + 2))
            if not len(live):
                break
            heard = _Heard(view.loss(live, i))
            grad = central(heard, live.points, Directions(live.noise, (0, i), q, live.x), mu, box=ends)
            _search(session, live, view, heavy(live, grad, momentum).sign())
            anneal(live, heard.mean())
            met = _judge(session, live)
            best.keep(live, live.points, torch.where(met, -torch.inf, 0.0), allowed=live.radius <= live.eps)
            live.leave(met)
        return session.result(best.points, asked=True)


class _Scores:
    """The scores of the top k: −log p_t, or NaN where the target is not among them."""

    cost = 1

    def __init__(self, session: Session, k: int) -> None:
        self.session, self.k = session, k

    def loss(self, live: Live, draw: int) -> Values:
        return self.session.values(live, self._of_target)

    def shown(self, live: Live, points: Tensor) -> Tensor:
        value: Tensor = self.session.values(live, self._of_target)(points[:, None])[:, 0]
        return value == value

    def _of_target(self, logits: Tensor, y: Tensor, target: Tensor, kappa: float = 0.0) -> Tensor:
        own = logits.gather(1, target[:, None])
        above = (logits > own).sum(dim=1)
        return F.cross_entropy(logits, target, reduction="none").masked_fill(above >= self.k, torch.nan)


class _Labels:
    """The top label: the share of points around a probe that do not have the target's."""

    def __init__(self, session: Session, samples: int, spread: float) -> None:
        self.session, self.cost, self.spread = session, samples, spread

    def loss(self, live: Live, draw: int) -> Values:
        goals, ends = self.session.goals(live), (self.session.low, self.session.high)

        def share(points: Tensor) -> Tensor:
            missed = torch.zeros(points.shape[:2], dtype=torch.float64, device=points.device)
            for s in range(self.cost):
                u = live.noise.uniform((1, draw, s), live.x.shape[1:], torch.float64, -1.0, 1.0).to(points)
                missed += ~goals(clip(points + self.spread * u[:, None], *ends))
            return missed / self.cost

        return share

    def shown(self, live: Live, points: Tensor) -> Tensor:
        return self.session.goals(live)(points[:, None])[:, 0]


class _Heard:
    """Values, and their mean over all that were asked for and heard."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.total: Tensor | float = 0.0
        self.count: Tensor | float = 0.0

    def __call__(self, points: Tensor) -> Tensor:
        value = self.values(points)
        self.total = self.total + value.nan_to_num(0.0).sum(dim=1)
        self.count = self.count + (value == value).sum(dim=1)
        return value

    def mean(self) -> Tensor:
        """(n,); NaN where nothing was heard."""
        return torch.as_tensor(self.total / self.count)


def _started(view: _Scores | _Labels, live: Live) -> Tensor:
    """Whether the target is shown at the start; a warning names where it is not."""
    shown = view.shown(live, live.points)
    if not bool(shown.all()):
        rows = live.rows[~shown].tolist()
        more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
        checks.warn(
            f"start: want images at which the target is shown, got others in rows {rows[:10]}{more}; they failed"
        )
    return shown


def _search(session: Session, live: Live, view: _Scores | _Labels, direction: Tensor) -> None:
    """Move each point as far, in a ball as small, as lets the target be shown; ``live.cut`` says by how much to try."""
    none, later = _NO_CUT * session.width, _LATER_CUT * session.width
    trying = session.of(live.rows)
    trying.at = torch.arange(len(live), device=live.rows.device)
    trying.direction, trying.points, trying.alpha, trying.first = direction, live.points, live.rate, live.rate
    trying.radius, trying.cut, trying.least, trying.goal = live.radius, live.cut, live.least, live.eps
    live.points, live.radius, live.cut = live.points.clone(), live.radius.clone(), live.cut.clone()
    while True:
        paying = session.can_pay(trying, 2)  # one of them for the judge
        trying.keep(paying)
        if not len(trying):
            break
        trying.eps = torch.maximum(trying.radius - trying.cut, trying.goal)
        ends = session.low, session.high
        moved = feasible(_LINF, trying, trying.points - beside(trying.alpha, trying.points) * trying.direction, ends)
        shown = view.shown(trying, moved)
        found = trying.at[shown]
        live.points[found], live.radius[found] = moved[shown], trying.eps[shown]
        live.cut[found] = trying.cut[shown].clamp_min(later)
        over = trying.alpha / 2 < trying.least
        cut = torch.where(over, trying.cut / 2, trying.cut)
        ended = over & (trying.cut == 0)
        trying.alpha = torch.where(over, trying.first, trying.alpha / 2)
        trying.cut = torch.where(cut < none, 0.0, cut)
        trying.keep(~shown & ~ended)


def _judge(session: Session, live: Live) -> Tensor:
    """Ask about the points inside ε: whether the goal is met there."""
    inside = live.radius <= live.eps
    met = torch.zeros_like(inside)
    if bool(inside.any()):
        _, met[inside] = session.ask_labels(live.points[inside], session.of(live.rows[inside]))
    return met


def _check(
    sees: str, counts: dict[str, int], plateau: int, momentum: float, sigma: float | None, spread: float | None
) -> None:
    checks.one_of("sees", sees, ("scores", "labels"))
    for name, value in counts.items():
        checks.at_least(name, value, 1, integer=True)
    checks.at_least("plateau", plateau, 2, integer=True)
    checks.not_negative("momentum", momentum)
    checks.below("momentum", momentum, 1)
    for name, length in (("sigma", sigma), ("spread", spread)):
        if length is not None:
            checks.positive(name, length)
