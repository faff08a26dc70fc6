"""Projected gradient descent.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks" (2018),
section 2.1, on the budget-based formulation (3) of the survey. With the attacker's loss g, step size α and the
steepest unit step v(·) of the norm:

    δ_0 ~ uniform in the ball        δ_{k+1} = P( δ_k + α · v(−∇_x g(x + δ_k)) )

where P projects onto {‖δ‖_p ≤ ε} ∩ {x + δ ∈ box}, exactly.

Different here: the best iterate is kept for each sample, and a sample stops at its first success. ℓ1 steps are sparse
in the manner of Tramèr and Boneh, "Adversarial training and robustness for multiple perturbations" (2019): the step's
length is spread over the most promising 1 % of the elements that can still move in the box, and over as few as possible
in the second half of the run, which makes the attack exact on affine models as long as the box is out of reach.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.losses import LossFunction, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session, beside
from robustlab.attacker.victim import Victim
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import Norm, get_norm
from robustlab.progress import bar

Model = Victim | nn.Module | Callable[[Tensor], Tensor]


def pgd(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: str = "linf",
    eps: float | Tensor,
    steps: int = 40,
    step_size: float | Tensor | None = None,
    loss: str | LossFunction = "ce",
    target: int | Tensor | None = None,
    restarts: int = 1,
    init: Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    trace: bool = False,
) -> AttackResult:
    """Projected gradient descent from random starts.

        minimize_δ g(δ | x, y, θ)  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius ε > 0 in units of x; a number or (N,).
        steps: number K ≥ 1 of gradient steps in each restart.
        step_size: α > 0, a number or (N,); None means 2.5·ε/K.
        loss: attacker's loss g of survey section 2.2, minimized (:mod:`robustlab.attacker.losses`).
        target: a label, or (N,), for a targeted attack.
        restarts: number of starts; a sample that is done skips the rest.
        init: perturbation δ_0 of the first start, shape of x, projected onto the ball and the box; None draws it.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.
        trace: keep the loss g of every point tried as ``result.trace["loss"]``, (points, N): K + 1 points a start,
            fewer if all samples are done sooner; NaN for a sample that is done.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success, for each start:
        K + 1 queries and K gradients, and 1 query for the clean check. A success has 1 more, for the final check.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Madry et al. (2018), section 2.1.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("restarts", restarts, 1, integer=True)
    ball, g = get_norm(norm), attacker_loss(loss)
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.per_sample("eps", eps, x)
    alpha = 2.5 * eps / steps if step_size is None else checks.per_sample("step_size", step_size, x)
    if init is not None:
        checks.same_shape("init", init, x)
    with victim.session(x, y, target=target, ids=ids, loss=g) as session:
        search = _Search(session, ball, g, eps, alpha, trace)
        noise, rows = session.noise(seed), session.active
        for restart in bar(range(restarts), show=progress and restarts > 1, label="pgd restarts"):
            if not rows.numel():
                break
            clean = session.x[rows]
            if init is not None and restart == 0:
                delta = init.detach()[rows].to(clean)
            else:
                delta = ball.uniform(noise.take(rows), restart, clean, eps[rows])
            rows = search.run(rows, delta, steps, progress and restarts == 1)
        trace = {"loss": torch.stack(search.losses)} if search.losses else None
        return session.result(search.best, asked=True, trace=trace)


class _Search:
    """The ascent of one call: the best point of every sample so far, and the loop that improves it."""

    def __init__(self, session: Session, ball: Norm, g: LossFunction, eps: Tensor, alpha: Tensor, trace: bool) -> None:
        self.session, self.ball, self.g, self.eps, self.alpha, self.trace = session, ball, g, eps, alpha, trace
        self.best = session.x.clone()
        self.best_loss = session.x.new_full(session.x.shape[:1], torch.inf)
        self.losses: list[Tensor] = []

    def run(self, rows: Tensor, delta: Tensor, steps: int, progress: bool) -> Tensor:
        """One start from x + ``delta`` for the samples ``rows``; returns those that are still not fooled."""
        session, undone = self.session, []
        step = self._step(rows)
        points = step.start(delta)
        for k in bar(range(steps + 1), show=progress, label="pgd"):
            if not bool((paying := session.can_pay(rows)).all()):
                undone.append(rows[~paying])
                rows, points = rows[paying], points[paying]
                step = self._step(rows)
            if not rows.numel():
                break
            if k < steps:
                answer = session.gradient(points, rows, self.g)
                loss, grad = answer.loss, answer.grad
            else:
                answer = session.ask(points, rows)
                loss = self.g(answer.logits, session.y[rows], None if session.target is None else session.target[rows])
            self._keep(rows, points, loss, answer.met)
            if k == steps:
                rows = rows[~answer.met]
                break
            if bool(answer.met.any()):
                going = ~answer.met
                rows, points, grad = rows[going], points[going], grad[going]
                step = self._step(rows)
                if not rows.numel():
                    break
            points = step(points, grad, sparse_until_end=2 * k >= steps)
        return torch.cat([rows, *undone])

    def _step(self, rows: Tensor) -> _Step:
        return _Step(
            self.ball, self.session.x[rows], self.eps[rows], self.alpha[rows], (self.session.low, self.session.high)
        )

    def _keep(self, rows: Tensor, points: Tensor, loss: Tensor, met: Tensor) -> None:
        better = (met | (loss < self.best_loss[rows])).nonzero().flatten()
        chosen = rows[better]
        self.best.index_copy_(0, chosen, points.index_select(0, better))
        self.best_loss[chosen] = loss[better]
        if self.trace:
            row = self.best_loss.new_full(self.best_loss.shape, torch.nan)
            row[rows] = loss
            self.losses.append(row)


class _Step:
    """x + δ ← x + P(δ − α·v(grad)), for the samples ``clean`` in the box ``bounds``."""

    def __init__(self, ball: Norm, clean: Tensor, eps: Tensor, alpha: Tensor, bounds: tuple[float, float]) -> None:
        self.ball, self.clean, self.eps, self.alpha, self.bounds = ball, clean, eps, beside(alpha, clean), bounds
        if ball.name == "linf":  # ball ∩ box is a box, the same at every step
            self.low = (clean - beside(eps, clean)).clamp_(*bounds)
            self.high = (clean + beside(eps, clean)).clamp_(*bounds)
        else:
            self.low, self.high = bounds[0] - clean, bounds[1] - clean

    def start(self, delta: Tensor) -> Tensor:
        """x + P(δ)."""
        low, high = self.bounds[0] - self.clean, self.bounds[1] - self.clean
        return (self.clean + self.ball.project_box(delta, self.eps, low, high)).clamp_(*self.bounds)

    def __call__(self, points: Tensor, grad: Tensor, sparse_until_end: bool) -> Tensor:
        if self.ball.name == "linf":
            return grad.sign().mul_(-self.alpha).add_(points).clamp_(self.low, self.high)
        delta = points - self.clean
        if self.ball.name == "l1":
            cap = self.alpha if sparse_until_end else self.alpha / max(1, round(0.01 * delta[0].numel()))
            low, high = torch.maximum(self.low - delta, -cap), torch.minimum(self.high - delta, cap)
            delta += self.ball.linear_max(-grad, self.alpha, low, high)
        else:
            delta -= self.ball.steepest(grad).mul_(self.alpha)
        delta = self.ball.project_box(delta, self.eps, self.low, self.high)
        return delta.add_(self.clean).clamp_(*self.bounds)


def pgd_maximize(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "linf",
    eps: float | Tensor,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    loss: str | LossFunction = "ce",
    seed: int = 0,
    ids: Tensor | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """The inner maximizer of adversarial training: K steps from a random start, last iterate, nothing checked.

    The model is used in the mode it is in; parameters may require gradients, which are not computed. Arguments as in
    :func:`pgd`. Returns x_adv, the shape of x, detached. Source: Madry et al. (2018), equation (2.1).
    """
    ball, g = get_norm(norm), attacker_loss(loss)
    x = x.detach()
    radius = torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(x.shape[0])
    alpha = 2.5 * radius / steps if step_size is None else torch.as_tensor(step_size).to(radius).expand(x.shape[0])
    noise = Noise(seed, torch.arange(x.shape[0], device=x.device) if ids is None else ids.to(x.device))
    step = _Step(ball, x, radius, alpha, bounds)
    points = step.start(ball.uniform(noise, 0, x, radius))
    for k in range(steps):
        with torch.enable_grad():
            points.requires_grad_(True)
            (grad,) = torch.autograd.grad(g(model(points), y).sum(), points)
        points = step(points.detach(), grad, sparse_until_end=2 * k >= steps)
    return points
