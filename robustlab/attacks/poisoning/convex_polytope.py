"""The convex polytope attack.

Zhu, Huang, Li, Taylor, Studer and Goldstein, "Transferable clean-label poisoning attacks on deep neural nets" (2019),
equation (2) and algorithm 1. The attacker does not know the victim's features, but has M surrogates φ⁽ᵐ⁾. In each of
them the target is to lie in the convex hull of the P poisons, a looser demand than a collision, hence one that more
feature spaces can meet at once:

    minimize over {x_j}, c⁽ᵐ⁾    1/2M · Σ_m ‖φ⁽ᵐ⁾(x_t) − Σ_j c_j⁽ᵐ⁾ φ⁽ᵐ⁾(x_j)‖² / ‖φ⁽ᵐ⁾(x_t)‖²
    subject to                   c⁽ᵐ⁾ ≥ 0,  Σ_j c_j⁽ᵐ⁾ = 1,  ‖x_j − b_j‖_∞ ≤ ε

A linear classifier that gives all poisons the label t gives it to their whole hull (where t wins by a margin that is
linear in the features). The two sets of unknowns take turns: the coefficients are solved for by projected gradient
steps on the simplex, then the images take one step of Adam.

Different here: dropout acts on the features, with one mask for target and poisons together, so that the demand on the
hull keeps its meaning; in the paper it acts inside the surrogates. The factor 1/M, which no minimizer sees. The paper
has a second form, against victims that train all their layers: it adds up the same demand over the outputs of several
layers of each surrogate. That form is not built; this one is for victims that keep their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacks.poisoning.clean_label import CleanLabelPoison, ball, layer_of_each, prepare, surrogates
from robustlab.data.pairs import Pairs
from robustlab.geometry.keyed import Noise
from robustlab.geometry.projections import onto_simplex
from robustlab.models.probing import Layer, Probe
from robustlab.progress import bar


def convex_polytope(
    data: Pairs,
    x_target: Tensor,
    target: int,
    *,
    model: nn.Module | Sequence[nn.Module],
    rate: float = 0.01,
    eps: float = 0.1,
    steps: int = 4000,
    step_size: float = 0.04,
    dropout: float = 0.2,
    inner_steps: int = 50,
    tol: float = 1e-5,
    layer: Layer | Sequence[Layer | None] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> CleanLabelPoison:
    """Enclose the target by poisons of class t in the feature space of every surrogate; labels stay as they are.

        minimize over x, c  1/2M · Σ_m ‖φ⁽ᵐ⁾(x_t) − Σ_j c_j⁽ᵐ⁾ φ⁽ᵐ⁾(x_j)‖² / ‖φ⁽ᵐ⁾(x_t)‖²,   c⁽ᵐ⁾ in the simplex

    Args:
        data: a Dataset or a pair (x, y), inputs (N, ...) in [0, 1].
        x_target: (1, ...), the input to be misread.
        target: the label t that it is to get; poisons are made of training samples of this class.
        model: one surrogate or several, in evaluation mode.
        rate: fraction of the training data that is poisoned (the paper makes 5 poisons).
        eps: ℓ∞ radius about each base image (default 0.1).
        steps: steps of Adam on the images; each solves for the coefficients first.
        step_size: of Adam, default 0.04.
        dropout: share of the features that is left out in each step, drawn anew, in [0, 1).
        inner_steps, tol: the coefficients are solved for in at most so many steps, or until none moves by more.
        layer: whose output are the features φ⁽ᵐ⁾: a name for all surrogates, or one name or module for each. None
            takes the input of the linear layer that gives the logits; where that is not clear, it must be named.
        seed: of the draw of the base images and of the dropout.
        progress: show a bar in a terminal.

    Returns:
        CleanLabelPoison, with ``details``: ``rows`` (P,), ``loss`` (steps,), and, without dropout at the end, the
        ``coefficients`` (M, P) and the relative ``residual`` of each surrogate (M,): ‖φ(x_t) − Σ_j c_j φ(x_j)‖ over
        ‖φ(x_t)‖; ``layers`` says which features, one for each surrogate.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Zhu et al. (2019), equation (2) and algorithm 1.
    """
    job = prepare(data, x_target, target, rate, seed)
    nets = surrogates(model, job.x)
    for name, value in (("steps", steps), ("inner_steps", inner_steps)):
        checks.at_least(name, value, 1, integer=True)
    for name, size in (("eps", eps), ("step_size", step_size), ("tol", tol)):
        checks.positive(name, size)
    checks.at_least("dropout", dropout, 0.0)
    if dropout >= 1:
        raise ValueError(f"dropout: want a share below 1, got {dropout}")
    low, high = ball(job.bases, eps)
    layers = layer_of_each(layer, nets)
    with torch.inference_mode(False), ExitStack() as stack:
        probes = [stack.enter_context(Probe(net, which)) for net, which in zip(nets, layers, strict=True)]
        with torch.no_grad():
            goals = [probe.features(job.x_target)[1][0] for probe in probes]
        noise = Noise(seed, torch.arange(len(nets), device=job.x.device))
        p = job.bases.clone().requires_grad_()
        c = p.new_full((len(nets), len(p)), 1 / len(p))
        adam = torch.optim.Adam([p], lr=step_size)
        trace = []
        for step in bar(range(steps), show=progress, label="convex_polytope"):
            with torch.enable_grad():
                masks = [_mask(noise, m, step, len(goal), dropout, goal) for m, goal in enumerate(goals)]
                hulls = [probe.features(p)[1] * mask for probe, mask in zip(probes, masks, strict=True)]
                points = [goal * mask for goal, mask in zip(goals, masks, strict=True)]
                c = coefficients([hull.detach() for hull in hulls], points, c, steps=inner_steps, tol=tol)
                loss = 0.5 * _residuals(hulls, points, c).square().mean()
                (p.grad,) = torch.autograd.grad(loss, p)
            adam.step()
            with torch.no_grad():
                p.copy_(torch.maximum(torch.minimum(p, high), low))
            trace.append(loss.detach())
        with torch.no_grad():
            hulls = [probe.features(p)[1] for probe in probes]
            c = coefficients(hulls, goals, c, steps=10 * inner_steps, tol=tol / 10)
            residual = _residuals(hulls, goals, c)
    layers_taken = tuple(probe.taken for probe in probes)
    return job.poisoned(
        p, {"loss": torch.stack(trace), "coefficients": c, "residual": residual, "layers": layers_taken}
    )


def coefficients(
    hulls: Sequence[Tensor], points: Sequence[Tensor], start: Tensor | None = None, *, steps: int, tol: float
) -> Tensor:
    """argmin_c ‖point − Σ_j c_j hull_j‖² over the simplex, for several problems of P coefficients at once: (M, P).

    Accelerated projected gradient steps on cᵀGc/2 − hᵀc, where G = hull·hullᵀ and h = hull·point, with the momentum
    dropped where it points uphill.

    Args:
        hulls: M tensors (P, d_m), the corners.
        points: M tensors (d_m,).
        start: (M, P) in the simplex; None is its center.
        steps: the most steps to take.
        tol: stop when no coefficient moves by more.
    """
    gram = torch.stack([hull @ hull.T for hull in hulls])
    linear = torch.stack([hull @ point for hull, point in zip(hulls, points, strict=True)])
    c = torch.full_like(linear, 1 / linear.shape[1]) if start is None else start
    curvature = torch.linalg.eigvalsh(gram)[:, -1:].clamp_min(torch.finfo(gram.dtype).tiny)
    ahead, weight = c, torch.ones_like(curvature)
    for _ in range(steps):
        slope = (gram @ ahead.unsqueeze(2)).squeeze(2) - linear
        moved = onto_simplex(ahead - slope / curvature)
        uphill = ((ahead - moved) * (moved - c)).sum(dim=1, keepdim=True) > 0
        weight = torch.where(uphill, 1.0, weight)
        heavier = (1 + (1 + 4 * weight.square()).sqrt()) / 2
        ahead = torch.where(uphill, moved, moved + (weight - 1) / heavier * (moved - c))
        shift, c, weight = (moved - c).abs().amax(), moved, heavier
        if bool(shift <= tol):
            break
    return c


def _residuals(hulls: Sequence[Tensor], points: Sequence[Tensor], c: Tensor) -> Tensor:
    """‖point − Σ_j c_j hull_j‖ / ‖point‖ of each surrogate, (M,); where the point is 0, the numerator."""
    gaps = [(point - row @ hull).norm() for hull, point, row in zip(hulls, points, c, strict=True)]
    sizes = torch.stack([point.norm() for point in points])
    return torch.stack(gaps) / torch.where(sizes > 0, sizes, 1.0)


def _mask(noise: Noise, model: int, step: int, width: int, dropout: float, like: Tensor) -> Tensor:
    """0 with probability ``dropout``, else 1/(1 − dropout), for each of a surrogate's features."""
    if not dropout:
        return torch.ones_like(like)
    row = torch.tensor([model], device=like.device)
    kept = noise.take(row).uniform(step, (width,), like.dtype)[0] >= dropout
    return kept.to(like.dtype) / (1 - dropout)
