"""Gradient descent with a density term: the first gradient-based evasion attack.

Biggio, Corona, Maiorca, Nelson, Šrndić, Laskov, Giacinto and Roli, "Evasion attacks against machine learning at test
time" (2013), section 2.2 and algorithm 1. The attacker lowers the discriminant function g, and stays where benign data
are dense:

    minimize F(x') = g(x') − λ · p(x')  subject to d(x', x) ≤ d_max,      p(x') = 1/n · Σ_i k( (x' − x_i) / h )

with descent steps on F and a projection onto the ball whenever a step leaves it. With λ = 0 the attack may drift to
points where g is low although no data are near, and get stuck there.

Different here: g is the margin of the logits, z_y − max_{k≠y} z_k (targeted: max_{k≠t} z_k − z_t), which is the
discriminant function for two classes; the projection is onto ball ∩ box, exactly; steps have the same length instead of
a length in proportion to the gradient; and they are counted, not stopped at a tolerance. The paper's attack does not
stop at the boundary, and neither does this one: what is returned is the point of smallest F among those that fool the
model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import goal_margin
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar

Density = Callable[[Tensor], Tensor]
"""From points (n, ...) to the density (n,) of benign data there, differentiable."""


def biggio_evasion(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: str = "l2",
    eps: float | Tensor,
    density: Density | None = None,
    lam: float = 1.0,
    steps: int = 50,
    step_size: float | Tensor | None = None,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    trace: bool = False,
) -> AttackResult:
    """Descend on the discriminant function minus λ times the density of benign data.

        minimize_δ g(x + δ) − λ · p(x + δ)  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"``, ``"l1"`` or ``"linf"``, the distance that is capped.
        eps: the cap d_max > 0 in units of x; a number or (N,).
        density: p, for example a :class:`KernelDensity` of the data that the attacker wants to be taken for; None
            leaves the term out.
        lam: weight λ ≥ 0 of the density, in logits per unit of p.
        steps: number of steps.
        step_size: ℓ2 length of a step > 0, a number or (N,); None means 2.5·ε/steps. A step of ℓ2 length s is up to
            s·√d long in ℓ1, and may be as short as s/√d in ℓ∞.
        target: a label, or (N,), for a targeted attack.
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a bar in a terminal.
        trace: keep every point's g and p as ``result.trace["margin"]`` and ``["density"]``, (steps + 1, N).

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest F. Cost: steps + 1 queries and ``steps``
        gradients, 1 query for the clean check, and 1 more for the final check of a success.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Biggio et al. (2013), equation (2) and algorithm 1.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.at_least("lam", lam, 0.0)
    checks.at_least("steps", steps, 1, integer=True)
    ball, victim = get_norm(norm), Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.per_sample("eps", eps, x)
    step = 2.5 * eps / steps if step_size is None else checks.per_sample("step_size", step_size, x)
    with victim.session(x, y, target=target, ids=ids) as session:
        best, lowest = session.x.clone(), session.x.new_full(session.x.shape[:1], torch.inf)
        won = torch.zeros_like(session.y, dtype=torch.bool)
        rows, points = session.active, session.x[session.active]
        history: list[tuple[Tensor, Tensor]] = []
        for k in bar(range(steps + 1), show=progress, label="biggio_evasion"):
            paying = session.can_pay(rows)
            rows, points = rows[paying], points[paying]
            if not rows.numel():
                break
            value, p, met, slope = _objective(session, points, rows, density, lam, slope=k < steps)
            total = value - lam * p
            better = (met & ~won[rows]) | ((met == won[rows]) & (total < lowest[rows]))
            chosen = rows[better]
            best[chosen], lowest[chosen], won[chosen] = points[better], total[better], met[better]
            if trace:
                history.append((_filled(session, rows, value), _filled(session, rows, p)))
            if k < steps:
                clean = session.x[rows]
                size = beside(step[rows], clean)
                delta = points - clean - size * get_norm("l2").steepest(slope)
                delta = ball.project_box(delta, eps[rows], session.low - clean, session.high - clean)
                points = (clean + delta).clamp(session.low, session.high)
        kept = None
        if history:
            kept = {"margin": torch.stack([h[0] for h in history]), "density": torch.stack([h[1] for h in history])}
        return session.result(best, asked=True, trace=kept)


class KernelDensity:
    """A kernel density estimate p(x) = 1/n · Σ_i k((x − x_i)/h), up to its constant: p is at most 1.

    Args:
        data: (n, ...), the samples x_i.
        bandwidth: h > 0, in units of the data.
        kernel: ``"gauss"``, exp(−‖u‖₂²/2), or ``"laplace"``, exp(−‖u‖₁).
        chunk: points compared with all the data at a time; bounds the memory.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Biggio et al. (2013), section 2.2.
    """

    def __init__(self, data: Tensor, bandwidth: float, *, kernel: str = "gauss", chunk: int = 256) -> None:
        checks.positive("bandwidth", bandwidth)
        checks.one_of("kernel", kernel, ("gauss", "laplace"))
        checks.at_least("chunk", chunk, 1, integer=True)
        if not isinstance(data, Tensor) or not data.is_floating_point() or data.dim() < 2 or not len(data):
            raise ValueError(
                f"data: want floats of shape (n, ...) with n at least 1, got {getattr(data, 'shape', data)}"
            )
        self.data, self.bandwidth, self.kernel, self.chunk = data.detach().flatten(1), bandwidth, kernel, chunk

    def __call__(self, points: Tensor) -> Tensor:
        """p at ``points`` (N, ...), (N,); differentiable."""
        rows, data = points.flatten(1), self.data.to(points)
        if not len(rows):
            return rows.sum(dim=1)
        return torch.cat([self._kernel(part, data).mean(dim=1) for part in rows.split(self.chunk)])

    def _kernel(self, rows: Tensor, data: Tensor) -> Tensor:
        if self.kernel == "laplace":
            return torch.exp(-torch.cdist(rows, data, p=1) / self.bandwidth)
        square = (rows.square().sum(1, keepdim=True) - 2 * rows @ data.T + data.square().sum(1)).clamp_min(0)
        return torch.exp(-square / (2 * self.bandwidth**2))


def _objective(
    session: Session, points: Tensor, rows: Tensor, density: Density | None, lam: float, slope: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """g, p and whether the goal is met at ``points``; and the gradient of g − λ·p, if asked for."""
    if not slope:
        answer = session.ask(points, rows)
        value = -session.goal_margin(answer.logits, rows)
        return value, value.new_zeros(value.shape) if density is None else density(points), answer.met, points
    answer = session.gradient(points, rows, _margin)
    if density is None:
        return answer.loss, torch.zeros_like(answer.loss), answer.met, answer.grad
    with torch.enable_grad():
        points = points.detach().requires_grad_(True)
        p = density(points)
        (grad,) = torch.autograd.grad(p.sum(), points)
    return answer.loss, p.detach(), answer.met, answer.grad - lam * grad


def _margin(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """The discriminant function: how far the goal is from being met."""
    return -goal_margin(logits, y, target)


def _filled(session: Session, rows: Tensor, values: Tensor) -> Tensor:
    """(N,) with NaN for the samples that are not among ``rows``."""
    return session.x.new_full(session.x.shape[:1], torch.nan).index_copy(0, rows, values.to(session.x))
