"""Small honest methods, one or two of a kind: each keeps every promise of its kind's suite, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import beta
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.estimators import Directions, forward
from robustlab.attacker.results import Certificate, PhysicalResult, UniversalResult
from robustlab.attacker.victim import Victim
from robustlab.data.pairs import read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import get_norm, measure
from robustlab.models.modes import evaluating
from robustlab.training.resuming import with_arguments


class Asked:
    """The logits of a held model, and how many rows were asked for."""

    def __init__(self, model: Any) -> None:
        self.model, self.queries, self.gradients = model, 0, 0

    def __call__(self, points: Tensor) -> Tensor:
        self.queries += 1
        return self.model(points)


@contextmanager
def asking(victim: Any, x: Any, y: Any, target: Any) -> Iterator[tuple[Asked, Tensor, Tensor | None]]:
    """The checks that all attacks share, and the model held still."""
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    weight = next(victim.model.parameters())
    if weight.dtype != x.dtype:
        raise TypeError(f"x: want the model's dtype {weight.dtype}, got {x.dtype}")
    label = None if y is None else checks.labels("y", y, x)
    with torch.no_grad(), evaluating(victim.model):
        yield Asked(victim.model), x.detach(), label


def universal_result(ask: Asked, x: Tensor, delta: Tensor, clean: Tensor, target: int | None) -> UniversalResult:
    now = ask((x + delta).clamp(0, 1)).argmax(dim=1) if len(x) else clean
    success = now == target if target is not None else now != clean
    n = torch.ones(len(x), dtype=torch.int64, device=x.device)
    lengths = {name: value[0] for name, value in measure(delta[None]).items()}
    return UniversalResult(delta, success, lengths, n * ask.queries, n * ask.gradients)


def in_classes(logits: Tensor, y: Tensor | None, target: int | None) -> None:
    for name, label in (("y", y), ("target", None if target is None else torch.tensor([target]))):
        if label is not None:
            checks.in_classes(name, label, logits.shape[1])


def common_gradient(
    victim: Any, x: Tensor, y: Tensor | None = None, *, norm: str = "linf", eps: float, target: int | None = None,
    steps: int = 10,
) -> UniversalResult:  # fmt: skip
    """Steepest steps on the mean cross-entropy of all images at x + δ, projected: a universal PGD."""
    ball = get_norm(norm)
    checks.not_negative("eps", eps)
    with asking(victim, x, y, target) as (ask, x, y):
        delta = torch.zeros_like(x[:1]) if len(x) else x.new_zeros(1, *x.shape[1:])
        if not len(x):
            return universal_result(ask, x, delta[0], x.new_zeros(0).long(), target)
        logits = ask(x)
        in_classes(logits, y, target)
        clean = logits.argmax(dim=1)
        goal, sign = (clean, 1.0) if target is None else (torch.full_like(clean, target), -1.0)
        radius = delta.new_tensor([eps])
        for _ in range(steps):
            with torch.enable_grad():
                point = delta.requires_grad_(True)
                loss = sign * F.cross_entropy(ask((x + point).clamp(0, 1)), goal)
                (grad,) = torch.autograd.grad(loss, point)
            ask.gradients += 1
            delta = ball.project(delta.detach() + ball.steepest(grad) * 2.5 * eps / steps, radius)
        return universal_result(ask, x, delta[0], clean, target)


def random_directions(
    victim: Any, x: Tensor, y: Tensor | None = None, *, norm: str = "linf", eps: float, tries: int = 60, seed: int = 0
) -> UniversalResult:
    """Accepts random steps of δ that fool no fewer and lower the mean margin: scores alone."""
    ball = get_norm(norm)
    checks.not_negative("eps", eps)
    with asking(victim, x, y, None) as (ask, x, y):
        delta = x.new_zeros(1, *x.shape[1:])
        if not len(x):
            return universal_result(ask, x, delta[0], x.new_zeros(0).long(), None)
        logits = ask(x)
        in_classes(logits, y, None)
        clean = logits.argmax(dim=1)

        def worth(candidate: Tensor) -> float:
            z = ask((x + candidate).clamp(0, 1))
            own = z.gather(1, clean[:, None])[:, 0]
            return float((z.scatter(1, clean[:, None], -torch.inf).amax(dim=1) - own).mean())

        best, noise = worth(delta), Noise(seed, torch.zeros(1, dtype=torch.int64, device=x.device))
        for k in range(tries):
            step = noise.normal(k, x.shape[1:], x.dtype)
            step = step.sign() if norm == "linf" else step
            step = step * eps / ball.length(step).clamp_min(1e-12)
            candidate = ball.project(delta + step * (0.5 if k else 1.0), delta.new_tensor([eps]))
            value = worth(candidate)
            if value > best:
                best, delta = value, candidate
        return universal_result(ask, x, delta[0], clean, None)


def sphere_gradient(
    values: Callable[[Tensor], Tensor], x: Tensor, *, q: int = 3, mu: float = 1e-2, seed: int = 0
) -> Tensor:
    """Forward differences along q random directions of the unit sphere."""
    noise, one = Noise(seed, torch.zeros(1, dtype=torch.int64, device=x.device)), x.detach()[None]
    return forward(lambda points: values(points[0])[None], one, Directions(noise, 0, q, one, "sphere"), mu)[0]


@dataclass(frozen=True)
class Solved:
    """Where a solver ended, and what it spent."""

    x: Tensor
    queries: int


def coordinate_descent(
    values: Callable[[Tensor], Tensor], x: Tensor, *, steps: int = 60, mu: float = 1e-3, seed: int = 0
) -> Solved:
    """Newton's step along one random coordinate at a time, from three values."""
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("mu", mu)
    point = x.detach().clone()
    order = Noise(seed, torch.arange(steps, device=x.device)).permutation(0, len(x))[:, 0]
    for i in order.tolist():
        step = torch.zeros_like(point)
        step[i] = mu
        low, here, high = values(torch.stack([point - step, point, point + step]))
        slope, bend = (high - low) / (2 * mu), (high - 2 * here + low) / mu**2
        point[i] -= slope / bend.clamp_min(1e-3)
    return Solved(point, 3 * steps)


@with_arguments
def gaussian_noise(*, sigma: float = 0.1) -> Callable[..., Tensor]:
    """Cross-entropy at x + σ·noise, the noise drawn for each sample's id."""
    checks.positive("sigma", sigma)

    def loss(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        return F.cross_entropy(model(x + sigma * Noise(seed, ids).normal(0, x.shape[1:], x.dtype)), y)

    loss.takes_labels = True  # type: ignore[attr-defined]
    return loss


def smoothed_majority(
    model: nn.Module, x: Tensor, y: Tensor | None = None, *, sigma: float = 0.25, n: int = 300, alpha: float = 0.01,
    seed: int = 0, ids: Tensor | None = None,
) -> Certificate:  # fmt: skip
    """Randomized smoothing: n draws choose the class, n more bound its probability (Clopper-Pearson), σ·Φ⁻¹(p)."""
    checks.positive("sigma", sigma)
    checks.at_least("n", n, 1, integer=True)
    checks.positive("alpha", alpha)
    checks.below("alpha", alpha, 1)
    with asking(model, x, y, None) as (ask, x, y):
        radius = x.new_zeros(len(x))
        ids = torch.arange(len(x)) if ids is None else ids
        noise = Noise(seed, ids.to(x.device))
        votes = []
        for part in range(2 if len(x) else 0):
            draws = x[:, None] + sigma * noise.normal(part, (n, *x.shape[1:]), x.dtype)
            logits = ask(draws.flatten(0, 1))
            votes.append(logits.argmax(dim=1).reshape(len(x), n))
        if votes:
            in_classes(logits, y, None)
            chosen = votes[0].mode(dim=1).values
            count = (votes[1] == chosen[:, None]).sum(dim=1).cpu().numpy()
            p = torch.tensor(beta.ppf(alpha, count, n - count + 1), dtype=x.dtype).nan_to_num(0.0).to(x.device)
            certain = (p > 0.5) & (torch.ones_like(p, dtype=torch.bool) if y is None else chosen == y)
            radius = torch.where(certain, sigma * torch.special.ndtri(p.clamp(0.5, 1 - 1e-12)), 0.0)
    return certificate(radius, radius > 0, "l2", "smoothed_majority", 1 - alpha)


def lipschitz_radius(model: nn.Module, x: Tensor, y: Tensor | None = None) -> Certificate:
    """The margin over the product of the layers' spectral norms times √2: deterministic, and loose."""
    with asking(model, x, y, None) as (ask, x, y):
        bound = 1.0
        for module in model.modules():
            if isinstance(module, nn.Linear):
                bound *= float(torch.linalg.matrix_norm(module.weight, 2))
        if not len(x):
            return certificate(x.new_zeros(0), torch.zeros(0, dtype=torch.bool), "l2", "lipschitz_radius", 1.0)
        logits = ask(x)
        in_classes(logits, y, None)
        top = logits.topk(2, dim=1)
        right = torch.ones(len(x), dtype=torch.bool, device=x.device) if y is None else top.indices[:, 0] == y
        radius = torch.where(right, (top.values[:, 0] - top.values[:, 1]) / (2**0.5 * bound), 0.0)
        radius = torch.where(radius > 1e-9, radius, 0.0)
    return certificate(radius, radius > 0, "l2", "lipschitz_radius", 1.0)


def certificate(radius: Tensor, sure: Tensor, norm: str, method: str, confidence: float) -> Certificate:
    return Certificate(
        verified=sure, falsified=torch.zeros_like(sure), radius=radius, norm=norm, method=method, confidence=confidence
    )


@dataclass(frozen=True)
class Reprogrammed:
    """One program for all inputs, and how well the model then does another task."""

    program: Tensor
    accuracy: float


def reprogram(model: nn.Module, data: Any, *, steps: int = 20, lr: float = 0.1, seed: int = 0) -> Reprogrammed:
    """Adversarial reprogramming in small: a shared addition to the inputs, learnt by signed steps."""
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("lr", lr)
    x, y = read_labeled(data)
    noise = Noise(seed, torch.zeros(1, dtype=torch.int64, device=x.device))
    program = 0.01 * noise.normal(0, x.shape[1:], x.dtype)
    weight = next(model.parameters())
    if weight.dtype != x.dtype:
        raise TypeError(f"data: want the model's dtype {weight.dtype}, got {x.dtype}")
    with evaluating(model):
        checks.in_classes("y", y, model(x[:1]).shape[1])
        for _ in range(steps):
            with torch.enable_grad():
                point = program.requires_grad_(True)
                (grad,) = torch.autograd.grad(F.cross_entropy(model((x + point).clamp(0, 1)), y), point)
            program = program.detach() - lr * grad.sign()
        with torch.no_grad():
            right = model((x + program).clamp(0, 1)).argmax(dim=1) == y
    return Reprogrammed(program[0], float(right.double().mean()))


@dataclass(frozen=True)
class Explained:
    """The elements of each input without which the label changes."""

    kept: Tensor
    success: Tensor


def smallest_part(model: nn.Module, x: Tensor, *, order: str = "large") -> Explained:
    """The largest elements of each input that suffice for its label: a pertinent positive by counting."""
    checks.one_of("order", order, ("large", "small"))
    with asking(model, x, None, None) as (ask, x, _):
        flat, n = x.flatten(1), x[0].numel()
        label = ask(x).argmax(dim=1)
        ranks = flat.argsort(dim=1, descending=order == "large").argsort(dim=1)
        kept, success = flat.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for count in range(n, 0, -1):
            part = torch.where(ranks < count, flat, 0.0)
            same = ask(part.reshape(x.shape)).argmax(dim=1) == label
            kept, success = torch.where(same[:, None], part, kept), success | same
    return Explained(kept.reshape(x.shape), success)


def _scene_checks(x: Any, mask: Tensor, colors: Tensor, scenes: Any, held_out: Any) -> None:
    checks.pictures(x)
    if mask.shape != (1, *x.shape[2:]) or not bool(mask.any()):
        raise ValueError(f"mask: want bool (1, H, W) with something to paint, got shape {tuple(mask.shape)}")
    if colors.dim() != 2 or colors.shape[1] != x.shape[1] or not bool(((colors >= 0) & (colors <= 1)).all()):
        raise ValueError(f"colors: want (P, C) in [0, 1], got shape {tuple(colors.shape)}")
    if not scenes:
        raise ValueError("scenes: want at least one, got none")
    if not len(held_out[0]) or not held_out[1]:
        raise ValueError("held_out: want images and scenes, got none")


def _another_class(logits: Tensor, target: int | None) -> None:
    if target is not None and bool((logits.argmax(dim=1) == target).all()):
        raise ValueError(f"target: want a class that not all images are taken for, got {target}")


def _printed(color: Tensor, colors: Tensor, mask: Tensor) -> Tensor:
    """Each painted pixel (C, H, W) in the nearest color of the palette."""
    rows = color.flatten(1).T
    nearest = colors[torch.cdist(rows, colors).argmin(dim=1)]
    return nearest.T.reshape(color.shape) * mask


def _judged(ask: Asked, x: Tensor, texture: Tensor, mask: Tensor, held_out: Any, target: int | None) -> PhysicalResult:
    images, scenes = held_out
    n = torch.ones(len(x), dtype=torch.int64, device=x.device)
    queries, gradients = n * ask.queries, n * ask.gradients
    seen = torch.stack([ask(scene(images, texture, mask)).argmax(dim=1) for scene in scenes], dim=1)
    success = seen == target if target is not None else seen != ask(images).argmax(dim=1)[:, None]
    return PhysicalResult(texture, mask.clone(), success, queries, gradients)


def printed_patch(
    victim: Any, x: Tensor, y: Tensor | None = None, *, scenes: Any, held_out: Any, mask: Tensor, colors: Tensor,
    target: int | None = None, steps: int = 12,
) -> PhysicalResult:  # fmt: skip
    """Signed steps on the mean loss over scenes (EOT), then printed in the nearest colors."""
    with asking(victim, x, y, target) as (ask, x, y):
        _scene_checks(x, mask, colors, scenes, held_out)
        logits = ask(x)
        in_classes(logits, y, target)
        _another_class(logits, target)
        goal = logits.argmax(dim=1) if target is None else torch.full_like(logits.argmax(dim=1), target)
        color = torch.full_like(x[0], 0.5)
        for k in range(steps):
            with torch.enable_grad():
                point = color.requires_grad_(True)
                loss = F.cross_entropy(ask(scenes[k % len(scenes)](x, point, mask)), goal)
                (grad,) = torch.autograd.grad(loss, point)
            ask.gradients += 1
            color = (color.detach() + (1 if target is None else -1) * 0.1 * grad.sign()).clamp(0, 1)
        return _judged(ask, x, _printed(color, colors.to(x), mask), mask, held_out, target)


def random_sticker(
    victim: Any, x: Tensor, y: Tensor | None = None, *, scenes: Any, held_out: Any, mask: Tensor, colors: Tensor,
    target: int | None = None,
) -> PhysicalResult:  # fmt: skip
    """The one color of the palette that reaches the goal most often when the whole mask is painted with it."""
    with asking(victim, x, y, target) as (ask, x, y):
        _scene_checks(x, mask, colors, scenes, held_out)
        logits = ask(x)
        in_classes(logits, y, target)
        _another_class(logits, target)
        clean, best, texture = logits.argmax(dim=1), -1.0, torch.zeros_like(x[0])
        for color in colors.to(x):
            painted = color[:, None, None] * mask
            seen = torch.stack([ask(scene(x, painted, mask)).argmax(dim=1) for scene in scenes])
            rate = float((seen == target if target is not None else seen != clean).double().mean())
            if rate > best:
                best, texture = rate, painted
        return _judged(ask, x, texture, mask, held_out, target)
