"""Feature collision ("Poison Frogs").

Shafahi, Huang, Najibi, Suciu, Studer, Dumitras and Goldstein, "Poison frogs! Targeted clean-label poisoning attacks on
neural networks" (2018), equation (1) and algorithm 1. A poison looks like a base image b of class t, and has the
features φ of the target image x_t. A classifier that separates classes in this feature space and learns that the poison
is of class t then takes x_t for one of class t, too:

    p = argmin_x  ½·‖φ(x) − φ(x_t)‖₂² + β/2·‖x − b‖₂²

By forward-backward splitting: a gradient step on the first term, then the proximal step of the second, in closed form:

    forward     p̂ = p − λ·∇ ½‖φ(p) − φ(x_t)‖²
    backward    p = (p̂ + λ·β·b) / (1 + λ·β)

An attacker who does not know the victim's features may collide in those of M surrogates at once. This ensembled form is
that of Zhu et al., "Transferable clean-label poisoning attacks on deep neural nets" (2019), against which they measure
the convex polytope, with its distances, relative to the target's features. They stand in the first term's place,

    s²/2M · Σ_m ‖φ⁽ᵐ⁾(x) − φ⁽ᵐ⁾(x_t)‖² / ‖φ⁽ᵐ⁾(x_t)‖²,    s² = 1/M · Σ_m ‖φ⁽ᵐ⁾(x_t)‖²

where the factor s² keeps β in its unit: for M = 1 this is the paper's own term.

Different here: the factors ½ (the minimizer is the same), with which the two formulas fit together; the backward step
also holds p in the box, where the paper leaves this open, and is still exact, since the problem splits into elements; a
step that does not lower the objective is taken back and λ is halved, for each poison alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.parts import beside
from robustlab.attacks.poisoning.clean_label import CleanLabelPoison, ball, layer_of_each, prepare, surrogates
from robustlab.data.pairs import Pairs
from robustlab.models.probing import Layer, Probe
from robustlab.progress import bar


def feature_collision(
    data: Pairs,
    x_target: Tensor,
    target: int,
    *,
    model: nn.Module | Sequence[nn.Module],
    rate: float = 0.01,
    beta: float | None = None,
    steps: int = 200,
    step_size: float = 0.01,
    watermark: float = 0.0,
    eps: float | None = None,
    layer: Layer | Sequence[Layer | None] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> CleanLabelPoison:
    """Give images of class t the features of the target image, and leave their labels alone.

        minimize over x_i  ½·‖φ(x_i) − φ(x_t)‖₂² + β/2·‖x_i − b_i‖₂²,   x_i ∈ [0, 1]^d

    With several models the first term is the mean of their relative distances, times s²; see the module.

    Args:
        data: a Dataset or a pair (x, y), inputs (N, ...) in [0, 1].
        x_target: (1, ...), the input to be misread.
        target: the label t that it is to get; poisons are made of training samples of this class.
        model: one network with logits (N, K), or several surrogates; used in evaluation mode.
        rate: fraction of the training data that is poisoned. One poison may be enough where the victim keeps φ and
            trains its last layer only; end to end, the paper needs about 50 and the watermark.
        beta: weight β > 0 of staying close to the base image; None is 0.25·(features/inputs)², the paper's scaling
            (of several models: their mean number of features).
        steps: forward-backward steps, each one forward and one backward pass of each model.
        step_size: λ > 0 of the first step.
        watermark: opacity in [0, 1) with which the target image is laid over each base image beforehand.
        eps: ℓ∞ radius about the (unmarked) base image, or None, as in the paper, for no bound.
        layer: whose output are the features φ: a name for all models, or one name or module for each. None takes the
            input of the linear layer that gives the logits; where that is not clear, the layer must be named.
        seed: of the draw of the base images; the method itself is deterministic.
        progress: show a bar in a terminal.

    Returns:
        CleanLabelPoison, with ``details``: ``rows`` (P,), ``objective`` (steps + 1, P), and the ``feature_distance``
        ‖φ⁽ᵐ⁾(x_i) − φ⁽ᵐ⁾(x_t)‖₂ of each poison in each of M models, (M, P), with ``feature_distance_before``;
        ``layers`` says which features, one for each model.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Shafahi et al. (2018), equation (1), algorithm 1, section 4.2 for the watermark; Zhu et al. (2019) for several
        surrogates.
    """
    job = prepare(data, x_target, target, rate, seed)
    nets = surrogates(model, job.x)
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("step_size", step_size)
    for name, number in (("beta", beta), ("eps", eps)):
        if number is not None:
            checks.positive(name, number)
    checks.at_least("watermark", watermark, 0.0)
    if watermark >= 1:
        raise ValueError(f"watermark: want an opacity below 1, got {watermark}")
    layers = layer_of_each(layer, nets)
    low, high = ball(job.bases, eps)
    start = ((1 - watermark) * job.bases + watermark * job.x_target).clamp(low, high)
    with torch.inference_mode(False), ExitStack() as stack:
        probes = [stack.enter_context(Probe(net, which)) for net, which in zip(nets, layers, strict=True)]
        with torch.no_grad():
            goals = [probe.features(job.x_target)[1] for probe in probes]
            before = _distances(probes, goals, job.bases)
        if beta is None:
            width = sum(goal.shape[1] for goal in goals) / len(goals)
            beta = 0.25 * (width / job.x_target.numel()) ** 2
        weights = _weights(goals)

        def objective(p: Tensor) -> tuple[Tensor, Tensor]:
            """The objective (P,), and the gradient of its first term."""
            with torch.enable_grad():
                p = p.clone().requires_grad_()
                collision = 0.5 * weights @ _distances(probes, goals, p).square()
                (grad,) = torch.autograd.grad(collision.sum(), p)
            return collision.detach() + 0.5 * beta * (p.detach() - start).square().flatten(1).sum(1), grad

        p = start
        value, grad = objective(p)
        trace = [value]
        size = torch.full_like(value, step_size)
        for _ in bar(range(steps), show=progress, label="feature_collision"):
            lam = beside(size, p)
            trial = proximal_step(p - lam * grad, start, beta, lam, low, high)
            trial_value, trial_grad = objective(trial)
            better = trial_value <= value
            keep = beside(better, p)
            p, grad = torch.where(keep, trial, p), torch.where(keep, trial_grad, grad)
            value, size = torch.where(better, trial_value, value), torch.where(better, size, size / 2)
            trace.append(value)
        with torch.no_grad():
            after = _distances(probes, goals, p)
    details = {
        "objective": torch.stack(trace), "feature_distance": after, "feature_distance_before": before,
        "layers": tuple(probe.taken for probe in probes),
    }  # fmt: skip
    return job.poisoned(p, details)


def proximal_step(
    p: Tensor, base: Tensor, beta: float, step: float | Tensor, low: float | Tensor = 0.0, high: float | Tensor = 1.0
) -> Tensor:
    """argmin_z ½·‖z − p‖² + λ·β/2·‖z − b‖² over the box [low, high]: clip( (p + λ·β·b) / (1 + λ·β) ).

    Args:
        p, base: (P, ...).
        beta, step: β and λ, numbers or shaped to broadcast.
        low, high: the box, numbers or (P, ...).
    """
    inner = (p + step * beta * base) / (1 + step * beta)
    return torch.maximum(torch.minimum(inner, torch.as_tensor(high).to(p)), torch.as_tensor(low).to(p))


def _distances(probes: Sequence[Probe], goals: Sequence[Tensor], p: Tensor) -> Tensor:
    """‖φ⁽ᵐ⁾(p) − φ⁽ᵐ⁾(x_t)‖₂ of each input in each model, (M, P)."""
    return torch.stack([(probe.features(p)[1] - goal).norm(dim=1) for probe, goal in zip(probes, goals, strict=True)])


def _weights(goals: Sequence[Tensor]) -> Tensor:
    """s²/M‖φ⁽ᵐ⁾(x_t)‖² of each model, (M,): 1 for one model. Features that are all 0 have no size to be relative to."""
    sizes = torch.stack([goal.square().sum() for goal in goals])
    return torch.where(sizes > 0, sizes.mean() / sizes, 1.0) / len(goals)
