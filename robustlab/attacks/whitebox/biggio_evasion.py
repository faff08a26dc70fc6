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
from robustlab.attacker.live import Best
from robustlab.attacker.losses import goal_margin
from robustlab.attacker.parts import beside, where
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.norms import ProperNorm, get_norm
from robustlab.geometry.projections import clip
from robustlab.models.modes import evaluating
from robustlab.progress import bar

Density = Callable[[Tensor], Tensor]
"""From points (n, ...) to the density (n,) of benign data there, differentiable."""


def biggio_evasion(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "l2",
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
        eps: the cap d_max ≥ 0 in units of x; a number or (N,).
        density: p, for example a :class:`KernelDensity` of the data that the attacker wants to be taken for; None
            leaves the term out. A module is held in evaluation mode, with frozen parameters.
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
    ball, l2, victim = get_norm(norm), get_norm("l2"), Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    step = 2.5 * eps / steps if step_size is None else checks.per_sample("step_size", step_size, x)
    with victim.session(x, y, target=target, ids=ids) as session, evaluating(density):
        fooled, lowest, live = Best(session), Best(session), session.live(eps=eps, step=step)
        live.points, history = live.x, list[Tensor]()
        for k in bar(range(steps + 1), show=progress, label="biggio_evasion"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            ask = session.gradient if k < steps else session.ask
            answer = ask(live.points, live, _margin)
            p, rise = _density(density, live.points, x.dtype)
            total = (answer.loss - lam * p).nan_to_num(torch.finfo(p.dtype).max)
            fooled.keep(live, live.points, total, answer.met)
            lowest.keep(live, live.points, total)
            if trace:
                both = eps.new_full((2, len(eps)), torch.nan)
                history.append(both.index_copy_(1, live.rows, torch.stack([answer.loss, p]).to(eps)))
            if k < steps:
                slope = answer.grad - lam * rise
                delta = live.points - live.x - l2.steepest(slope).mul_(beside(live.step, live.x))
                delta = ball.project_box(delta, live.eps, session.low - live.x, session.high - live.x)
                live.points = clip(live.x + delta, session.low, session.high)
        kept = dict(zip(("margin", "density"), torch.stack(history, dim=1), strict=True)) if history else None
        points = where(session.unmet(), lowest.points, fooled.points)
        return session.result(points, asked=True, trace=kept)


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


def _density(density: Density | None, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """p at ``points``, (n,), and its gradient; 0 without a density, which takes points of this ``dtype``."""
    if density is None:
        return points.new_zeros(len(points)), torch.zeros_like(points)
    with torch.enable_grad():
        points = points.detach().requires_grad_(True)
        p = density(points.to(dtype)).to(points)
        (grad,) = torch.autograd.grad(p.sum(), points)
    return p.detach(), grad


def _margin(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """The discriminant function: how far the goal is from being met."""
    return -goal_margin(logits, y, target)
