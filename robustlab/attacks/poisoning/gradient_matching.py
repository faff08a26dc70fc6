"""Gradient matching ("Witches' Brew").

Geiping, Fowl, Huang, Czaja, Taylor, Moeller and Goldstein, "Witches' brew: Industrial scale data poisoning via gradient
matching" (2021), equation (3) and algorithm 1. A victim trained on the poisons is to lower the attacker's loss
ℓ(f_θ(x_t), t) without knowing it. It does, to first order, if the gradients of the two losses point the same way:

    B(δ, θ) = 1 − ⟨∇_θ ℓ(f_θ(x_t), t), Σ_i ∇_θ ℓ(f_θ(x_i + δ_i), y_i)⟩ / (‖·‖·‖·‖),    ‖δ_i‖_∞ ≤ ε

over *all* parameters θ, which are those of a clean model (or several). Minimized by Adam on the sign of ∇_δ B, a second
derivative of the network, with ten times smaller steps from 3/8, 5/8 and 7/8 of the steps on, augmentation in the loop,
and several random starts, of which the one with the smallest B is returned. It never trains on a poison; so its success
shows on a retrained victim only.

Different here: the default augmentation shifts by whole pixels and does not mirror; the default step is 0.4·ε, about
what the paper's 0.1 in normalized units of CIFAR-10 comes to; restarts start uniformly in the ball; B is compared
between restarts without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from robustlab import checks
from robustlab.attacks.poisoning.clean_label import CleanLabelPoison, ball, prepare, surrogates
from robustlab.data.augment import random_shift
from robustlab.data.pairs import Pairs
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.models.modes import evaluating
from robustlab.progress import bar


def gradient_matching(
    data: Pairs,
    x_target: Tensor,
    target: int,
    *,
    model: nn.Module | Sequence[nn.Module],
    rate: float = 0.01,
    eps: float = 16 / 255,
    steps: int = 250,
    restarts: int = 8,
    step_size: float | None = None,
    augment: Callable[..., Tensor] | Literal["auto"] | None = "auto",
    seed: int = 0,
    progress: bool = False,
) -> CleanLabelPoison:
    """Make the gradient of training on the poisons point where the attacker wants to go; labels stay as they are.

        minimize over ‖δ_i‖_∞ ≤ ε   1 − cos( ∇_θ ℓ(f_θ(x_t), t), Σ_i ∇_θ ℓ(f_θ(x_i + δ_i), y_i) )

    Args:
        data: a Dataset or a pair (x, y), inputs (N, ...) in [0, 1].
        x_target: (1, ...), the input to be misread.
        target: the label t that it is to get; poisons are made of training samples of this class.
        model: a trained clean model, or several, over which B is averaged; used in evaluation mode. Twice
            differentiable in the sense of autograd (ReLU is fine).
        rate: fraction of the training data that is poisoned (default 1 %).
        eps: ℓ∞ radius ε about each base image.
        steps: steps of signed Adam (default 250).
        restarts: random starts, run side by side (default 8).
        step_size: of Adam at first; None is 0.4·eps.
        augment: ``augment(x, ids=, seed=)``, differentiable, applied to the poisons in every step; best what the victim
            trains with. ``"auto"`` is :func:`~robustlab.data.random_shift` by 2 pixels for images and nothing for
            vectors, None is nothing.
        seed: of the draw of the base images, the starts and the augmentation.
        progress: show a bar in a terminal.

    Returns:
        CleanLabelPoison, with ``details``: ``rows`` (P,), ``loss`` B of each restart at the end (restarts,), and
        ``trace`` (steps, restarts), measured under augmentation.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Geiping et al. (2021), equation (3) and algorithm 1.
    """
    job = prepare(data, x_target, target, rate, seed)
    nets = surrogates(model, job.x)
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("restarts", restarts, 1, integer=True)
    checks.positive("eps", eps)
    step_size = 0.4 * eps if step_size is None else step_size
    checks.positive("step_size", step_size)
    if augment == "auto":
        augment = random_shift(2) if job.x.dim() == 4 else None
    if augment is not None and not callable(augment):
        raise TypeError(f"augment: want a callable, 'auto' or None, got {augment!r}")

    bases, labels = job.bases, job.y[job.rows]
    low, high = ball(bases, eps)
    ids = torch.arange(restarts * len(bases), device=bases.device)
    start = Noise(seed, ids).uniform(1, bases.shape[1:], torch.float64, -eps, eps).to(bases.dtype)
    p = bases + start.reshape(restarts, *bases.shape)
    with torch.inference_mode(False), evaluating(*nets, augment):
        goals = [attacker_gradient(net, job.x_target, target) for net in nets]

        def mismatch(x: Tensor) -> Tensor:
            found = (gradient_mismatch(net, x, labels, g) for net, g in zip(nets, goals, strict=True))
            return sum(found, x.new_zeros(())) / len(nets)

        p = torch.maximum(torch.minimum(p, high), low).requires_grad_()
        adam = torch.optim.Adam([p], lr=step_size)
        trace = []
        for step in bar(range(steps), show=progress, label="gradient_matching"):
            adam.param_groups[0]["lr"] = step_size * 0.1 ** sum(8 * step >= part * steps for part in (3, 5, 7))
            with torch.enable_grad():
                x = p
                if augment is not None:
                    x = augment(p.flatten(0, 1), ids=ids, seed=derive_seed(seed, step)).reshape(p.shape)
                loss = mismatch(x)
                (slope,) = torch.autograd.grad(loss.sum(), p)
            p.grad = slope.sign()
            adam.step()
            with torch.no_grad():
                p.copy_(torch.maximum(torch.minimum(p, high), low))
            trace.append(loss.detach())
        with torch.no_grad():
            final = mismatch(p)
    return job.poisoned(p[int(final.argmin())], {"loss": final, "trace": torch.stack(trace)})


def attacker_gradient(model: nn.Module, x_target: Tensor, target: int) -> Tensor:
    """∇_θ ℓ(f_θ(x_t), t) as one normalized vector: the attacker wants the parameters to go against it."""
    label = torch.tensor([target], device=x_target.device)
    parts = _parameter_gradients(model, x_target[None], label).values()
    whole = torch.cat([part.flatten() for part in parts]).detach()
    return whole / whole.norm().clamp_min(torch.finfo(whole.dtype).tiny)


def gradient_mismatch(model: nn.Module, x: Tensor, y: Tensor, goal: Tensor) -> Tensor:
    """B = 1 − cos(goal, Σ_i ∇_θ ℓ(f_θ(x_i), y_i)) for R sets of P poisons at once: (R,), differentiable in x.

    Args:
        model: in evaluation mode.
        x: (R, P, ...).
        y: (P,) the labels.
        goal: what :func:`attacker_gradient` gives.
    """
    product, square, first = x.new_zeros(len(x)), x.new_zeros(len(x)), 0
    for part in _parameter_gradients(model, x, y).values():
        rows = part.flatten(1)
        product = product + rows @ goal[first : first + rows.shape[1]]
        square = square + rows.square().sum(dim=1)
        first += rows.shape[1]
    # a set without any gradient matches nothing: B = 1, and the root keeps a finite slope
    return 1 - product / square.clamp_min(torch.finfo(x.dtype).tiny).sqrt()


def _parameter_gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean cross-entropy of each set x[r] (P, ...) by all parameters, each (R, *shape)."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(theta: dict[str, Tensor], points: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (theta, buffers), (points,)), y)

    return vmap(grad(loss), (None, 0))(parameters, x)
