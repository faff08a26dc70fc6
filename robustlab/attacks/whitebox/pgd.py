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

A point drawn uniformly from an ℓ2 ball of many dimensions lies almost on its surface, which is no good start where
steps are few: with ``init=torch.zeros_like(x)``, 40 steps fool 1 to 3 more of 100 digits on our nets.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.domain import Bound
from robustlab.attacker.few_channels import FewChannels
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import Norm, ProperNorm, get_norm
from robustlab.geometry.projections import clip, clip_
from robustlab.progress import bar


def pgd(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    steps: int = 40,
    step_size: float | Tensor | None = None,
    loss: LossName | LossFunction = "ce",
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
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        steps: number K ≥ 1 of gradient steps in each restart.
        step_size: α > 0, a number or (N,); None means 2.5·ε/K.
        loss: attacker's loss g of survey section 2.2, minimized (:mod:`robustlab.attacker.losses`).
        target: a label, or (N,), for a targeted attack.
        restarts: number of starts; a sample that is done skips the rest.
        init: perturbation δ_0 of the first start, shape of x, projected onto the ball and the box; None draws it.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.
        trace: keep the loss g of every point tried as ``result.trace["loss"]``, (points, N): K + 1 points per start,
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
    ball, g, victim = get_norm(norm), attacker_loss(loss), Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    alpha = 2.5 * eps / steps if step_size is None else checks.per_sample("step_size", step_size, x)
    if init is not None:
        checks.same_shape("init", init, x)
        init = init.to(x.device)  # eps and labels are moved there, too
    with victim.session(x, y, target=target, ids=ids, loss=g) as session:
        best, box, losses = Best(session), (session.low, session.high), list[Tensor]()
        for restart in range(restarts):
            live = session.live(
                session.unmet() if restart else None, eps=eps, alpha=alpha, noise=session.noise(seed), init=init
            )
            own = init is not None and restart == 0
            delta = live.init.to(live.x) if own else ball.uniform(live.noise, restart, live.x, live.eps)
            live.points = begin(ball, live, delta, box)
            for k in bar(range(steps + 1), show=progress, label="pgd"):
                live.keep(session.can_pay(live))
                if not len(live):
                    break
                answer = session.gradient(live.points, live, g) if k < steps else session.ask(live.points, live, g)
                best.keep(live, live.points, answer.loss.masked_fill(answer.met, -torch.inf))
                if trace:
                    losses.append(torch.full_like(eps, torch.nan).index_put_((live.rows,), answer.loss))
                if k < steps:
                    live.points = step(ball, live, answer.grad, box, sparse=2 * k >= steps)
                live.leave(answer.met)
        return session.result(best.points, asked=True, trace={"loss": torch.stack(losses)} if losses else None)


def begin(ball: Norm, at: Live | SimpleNamespace, delta: Tensor, box: tuple[Bound, Bound]) -> Tensor:
    """x + P(δ) for samples ``at.x`` of radius ``at.eps``; notes as ``at.low`` and ``at.high`` what bounds each step.

    α stands beside the elements of a sample from here on.
    """
    at.alpha = beside(at.alpha, at.x)
    at.low, at.high = box[0] - at.x, box[1] - at.x
    points = clip(at.x + ball.project_box(delta, at.eps, at.low, at.high), *box)
    if ball.name == "linf":  # ball ∩ box is a box, the same at every step
        radius = beside(at.eps, at.x)
        at.low, at.high = clip(at.x - radius, *box), clip(at.x + radius, *box)
    return points


def step(ball: Norm, at: Live | SimpleNamespace, grad: Tensor, box: tuple[Bound, Bound], *, sparse: bool) -> Tensor:
    """x + P(δ − α·v(grad)) from ``at.points``; ``sparse``: ℓ1 moves as few elements as possible."""
    if ball.name == "linf":
        sign = grad.sign()
        return clip_(torch.addcmul(at.points, sign, at.alpha, value=-1, out=sign), at.low, at.high)
    delta = at.points - at.x
    if ball.name == "l1":
        cap = at.alpha if sparse else at.alpha / max(1, round(0.01 * delta[0].numel()))
        low, high = torch.maximum(at.low - delta, -cap), torch.minimum(at.high - delta, cap)
        delta += ball.linear_max(-grad, at.alpha, low, high)
    else:
        rate = (-at.alpha / beside(ball.length(grad), grad)).nan_to_num_(0.0, 0.0, 0.0)  # 0 without a slope
        delta.addcmul_(grad, rate)
    delta = ball.project_box(delta, at.eps, at.low, at.high)
    return clip_(delta.add_(at.x), *box)


def pgd_maximize(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    loss: LossName | LossFunction = "ce",
    seed: int = 0,
    ids: Tensor | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    init: Tensor | None = None,
) -> Tensor:
    """The inner maximizer of adversarial training: K steps from a random start, last iterate, nothing checked.

    The model is used in the mode it is in; parameters may require gradients, which are not computed. Arguments as in
    :func:`pgd`. Returns x_adv, the shape of x, detached. Source: Madry et al. (2018), equation (2.1).
    """
    ball, g, x = get_norm(norm), attacker_loss(loss), x.detach()
    radius = torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(x.shape[0])
    alpha = 2.5 * radius / steps if step_size is None else torch.as_tensor(step_size).to(radius).expand(x.shape[0])
    noise = Noise(seed, torch.arange(x.shape[0], device=x.device) if ids is None else ids.to(x.device))
    at = SimpleNamespace(x=x, eps=radius, alpha=alpha)
    at.points = begin(ball, at, ball.uniform(noise, 0, x, radius) if init is None else init, bounds)
    quick = FewChannels() if x.device.type == "cpu" else nullcontext()
    for k in range(steps):
        with torch.enable_grad(), quick:
            at.points.requires_grad_(True)
            (grad,) = torch.autograd.grad(g(model(at.points), y).sum(), at.points)
        at.points = at.points.detach()
        at.points = step(ball, at, grad, bounds, sparse=2 * k >= steps)
    return at.points
