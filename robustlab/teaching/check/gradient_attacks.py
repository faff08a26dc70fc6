"""FGSM and PGD in the ℓ∞ ball, held to closed forms.

On an affine model with two classes the loss of class y grows along one direction, so its maximum over ball ∩ box is
the corner x + ε·sign(w_other − w_y), clipped to the box. On a model with one peak the best point is the peak, which an
attack with steps of size α passes again and again, and of whose two sides it must keep the better one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustlab.teaching.check.finding import (
    Wrong,
    lengths,
    of_the_batch,
    require_answer,
    require_in_box,
    require_unchanged,
)
from robustlab.teaching.handout import linear_network, peak_network

Attack = Callable[[nn.Module, Tensor, Tensor, float, int, float], Tensor]
"""(model, x, y, eps, steps, step_size) → x_adv."""
EPS, STEPS, ALPHA = 0.1, 12, 0.03
ROUNDING = 1e-6


def pgd(
    attack: Attack,
    *,
    best: bool = True,
    stops: bool = False,
    images: bool = False,
    seed: int = 0,
    hints: int = 1,
) -> None:
    """Check PGD in the ℓ∞ ball: prints one line where all holds.

    Args:
        attack: called as ``attack(model, x, y, eps, steps, step_size)`` with a model in eval mode that returns logits,
            x (N, ...) in [0, 1] of any shape, y (N,), and three numbers; returns x_adv. It makes ``steps`` steps along
            the sign of the gradient of the cross-entropy, from x or from a random start in the ball.
        best: whether it must return, for each sample, the best of its points; False allows the last.
        stops: whether it may leave a sample once it is misclassified (default False). Then no point of a ball is.
        images: whether all inputs are images (N, C, H, W); by default they have one to three dimensions per sample.
        seed: of the models and inputs (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    height = -0.5 if stops else 1.0

    def sized(*shape: int) -> tuple[int, ...]:
        return (*shape, *[1] * (3 - len(shape))) if images else shape

    try:
        for number, shape in enumerate([sized(3), sized(1, 4, 4), sized(2, 3, 3)]):
            case = corner_case(shape, seed=seed + number, safe=stops)
            _corner(attack, case, STEPS)
        _alone(attack, corner_case(sized(2, 3), seed=seed + 3, safe=stops))
        _number_of_steps(attack, corner_case(sized(2, 3), seed=seed + 3, safe=stops))
        _peaks(attack, seed + 4, best, sized(1), sized(12), height)
    except Wrong as wrong:
        raise wrong.shown_as("pgd", hints) from None
    print("pgd: holds, on affine models of three shapes, sample by sample, and on models with a peak")


def fgsm(attack: Callable[[nn.Module, Tensor, Tensor, float], Tensor], *, seed: int = 0, hints: int = 1) -> None:
    """Check FGSM: ``attack(model, x, y, eps)`` as in :func:`pgd`, of one step of length ε that stays in the box.

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """

    def one_step(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, step_size: float) -> Tensor:
        return attack(model, x, y, eps)

    try:
        for number, shape in enumerate([(3,), (1, 4, 4)]):
            _corner(one_step, corner_case(shape, seed=seed + number), 1)
        _alone(one_step, corner_case((2, 3), seed=seed + 2))
    except Wrong as wrong:
        raise wrong.shown_as("fgsm", hints) from None
    print("fgsm: holds, on affine models of two shapes and sample by sample")


@dataclass
class Case:
    """A model, inputs, and the point at which the loss of y is largest."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    uphill: Tensor
    expected: Tensor


def corner_case(
    shape: tuple[int, ...],
    *,
    seed: int,
    count: int = 5,
    eps: float = EPS,
    dtype: torch.dtype = torch.float64,
    safe: bool = False,
) -> Case:
    """An affine model with two classes, inputs on both sides and at the ends of the box, and the best corner.

    Where it is ``safe``, all inputs are of class 0, and so is every point of their balls.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *shape, generator=generator, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)
    d = x[0].numel()
    weight = torch.randn(2, d, generator=generator, dtype=dtype)
    gap = weight[1] - weight[0]
    weight[1] += 0.2 * gap.sign()  # no element with hardly a slope
    y = torch.zeros(count, dtype=torch.int64) if safe else torch.arange(count) % 2
    uphill = (weight[1 - y] - weight[y]).sign().reshape(x.shape)
    expected = (x + eps * uphill).clamp(0, 1)
    most = (expected.flatten(1) @ (weight[1] - weight[0])).max() + 0.5
    bias = torch.stack([most, torch.zeros_like(most)]) if safe else None
    return Case(linear_network(weight, bias), x, y, uphill, expected)


class Watched(nn.Module):
    """A model that notes where it was asked, and in which mode; inputs have as many elements as ``like``, if given."""

    def __init__(self, model: nn.Module, like: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.points, self.trained = model, list[Tensor](), False
        self.like = like
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits."""
        if self.like is not None and x.shape[1:].numel() != self.like.shape[1:].numel():
            raise Wrong(
                f"the model was asked about points of shape {tuple(x.shape)}, and x has shape {tuple(self.like.shape)}",
                "a number per sample is spread over dimensions that x does not have",
                "Inputs may have one, two or three dimensions per sample.",
                "mask.reshape(-1, *[1] * (x.dim() - 1)) in place of mask[:, None, None, None].",
            )
        self.points.append(x.detach().clone())
        self.trained |= self.training
        logits: Tensor = self.model(x)
        return logits

    def require_eval(self) -> None:
        """Raises :class:`Wrong` if an attack has put the model into training mode."""
        if self.trained or self.training:
            raise Wrong(
                "the model was asked in training mode",
                "model.train() instead of model.eval()",
                "Dropout and batch normalization act differently in training, so the attack would meet another model.",
                "The model comes in eval mode: leave it there.",
            )


def _ask(attack: Attack, case: Case, steps: int, alpha: float = ALPHA, eps: float = EPS) -> tuple[Tensor, Watched]:
    """The answer on copies of the case, if what was handed over is as it was."""
    watched, x, y = Watched(case.model, case.x).eval(), case.x.clone(), case.y.clone()
    out = require_answer(attack(watched, x, y, eps, steps, alpha), case.x)
    require_unchanged(x, case.x)
    watched.require_eval()
    return out, watched


def _corner(attack: Attack, case: Case, steps: int) -> None:
    """Raises what explains an answer that is not the best corner."""
    alpha = ALPHA if steps > 1 else EPS
    out, watched = _ask(attack, case, steps, alpha)
    if torch.allclose(out, case.expected, atol=ROUNDING, rtol=0):
        return
    delta = out - case.x
    for explain in (_units, _outside_the_ball, _outside_the_box):  # first: a start may leave the box by chance
        explain(delta, out, case, alpha)
    one_by_one = torch.cat([_ask(attack, _row(case, i), steps, alpha)[0] for i in range(len(case.x))])
    if torch.allclose(one_by_one, case.expected, atol=ROUNDING, rtol=0):
        raise _of_the_batch()
    short = float((EPS - lengths(delta, "linf")).amax())
    if short > ROUNDING and len(watched.points) < steps:
        raise Wrong(
            f"after {len(watched.points)} questions to the model for {steps} steps, a sample is {short:.2g} short of ε",
            "the loop ends early",
            "All steps are made, also when a sample is fooled already: what counts is the largest loss.",
        )
    _nothing_moved(delta, case, [points for points in watched.points if points.shape == case.x.shape])
    for explain in (_downhill, _other_labels, _not_the_sign):
        explain(delta, out, case, alpha)
    raise Wrong(
        f"on an affine model the result differs from the best corner of the ball by {_gap(out, case):.2g}",
        "the point is not the best of the ball",
        "On an affine model the loss is largest at x + ε·sign(gradient), clipped to [0, 1].",
        f"Is step_size used as given? {steps} steps of {alpha} reach every corner of the ball of radius {EPS}.",
    )


def _gap(out: Tensor, case: Case) -> float:
    return float((out - case.expected).abs().max())


def _row(case: Case, i: int) -> Case:
    return Case(case.model, case.x[i : i + 1], case.y[i : i + 1], case.uphill[i : i + 1], case.expected[i : i + 1])


def _units(delta: Tensor, out: Tensor, case: Case, alpha: float) -> None:
    largest = float(delta.abs().max())
    if (0 < largest < 1.05 * EPS / 255) or float(out.max()) > 1.5 + EPS * STEPS:
        raise Wrong(
            f"the largest change of a pixel is {largest:.2g}, ε is {EPS}",
            "pixels in 0…255 units",
            "Here pixels lie in [0, 1], and so do ε and the step size.",
            "Neither divide by 255 nor multiply by it.",
        )


def _outside_the_ball(delta: Tensor, out: Tensor, case: Case, alpha: float) -> None:
    length = float(lengths(delta, "linf").max())
    if length <= EPS + ROUNDING:
        return
    if length <= EPS + alpha + ROUNDING:
        raise Wrong(
            f"the result leaves the ball: ‖δ‖∞ is {length:.3g}, ε is {EPS}, and one step is {alpha}",
            "project after the step, not before",
            "What is returned must be a point that was projected.",
            "In each turn: gradient, step, then clamp δ to [−ε, ε], then x + δ to [0, 1].",
        )
    raise Wrong(
        f"the result leaves the ball: ‖δ‖∞ is {length:.3g}, ε is {EPS}",
        "no projection onto the ball around x",
        "The ball is around the clean x, not around the current point.",
        "After each step: delta = (point - x).clamp(-eps, eps).",
    )


def _outside_the_box(delta: Tensor, out: Tensor, case: Case, alpha: float) -> None:
    require_in_box(out, ROUNDING, "After the projection onto the ball: (x + delta).clamp(0, 1).")


def _downhill(delta: Tensor, out: Tensor, case: Case, alpha: float) -> None:
    if torch.allclose(out, (case.x - EPS * case.uphill).clamp(0, 1), atol=ROUNDING, rtol=0):
        raise Wrong(
            "the result is the point of the ball where the loss is smallest",
            "sign lost: the loss goes down",
            "An attack climbs the loss of the true class; training descends it.",
            "Add step_size * grad.sign() where the loss is the cross-entropy of y.",
        )


def _nothing_moved(delta: Tensor, case: Case, asked: list[Tensor]) -> None:
    """The result is x: the points on the way were worse, or better ones were not kept, or no step was made."""
    if bool(delta.any()):
        return
    climbed = [float(((points - case.x) * case.uphill).sum()) for points in asked]
    if min(climbed, default=0) < -ROUNDING:
        raise Wrong(
            "the result is x, since on all other points that the model was asked about the loss is smaller",
            "sign lost: the loss goes down",
            "An attack climbs the loss of the true class; training descends it.",
            "Add step_size * grad.sign() where the loss is the cross-entropy of y.",
        )
    if max(climbed, default=0) > ROUNDING:
        raise Wrong(
            "the result is x, though the model was asked about points with a larger loss",
            "the points on the way are not kept, or that of the smallest loss is",
            "What counts is the point whose loss is largest.",
            "better = loss > best_loss; best[better] = point[better]; best_loss[better] = loss[better].",
        )
    raise Wrong(
        "the result is x",
        "nothing moved",
        "Is the new point kept, and the gradient taken with respect to it?",
        "loss = cross_entropy(model(point), y); (grad,) = torch.autograd.grad(loss, point).",
    )


def _other_labels(delta: Tensor, out: Tensor, case: Case, alpha: float) -> None:
    """Right where the model reads y, and the opposite corner where it does not."""
    wrong = case.model(case.x).argmax(dim=1) != case.y
    there = torch.where(wrong.reshape(-1, *[1] * (out.dim() - 1)), -case.uphill, case.uphill)
    if bool(wrong.any()) and torch.allclose(out, (case.x + EPS * there).clamp(0, 1), atol=ROUNDING, rtol=0):
        raise Wrong(
            "samples that the model reads as y go uphill, those that it misreads go downhill",
            "the model's own prediction in place of y",
            "The label is the one that was handed over.",
            "cross_entropy(model(point), y), with no argmax.",
        )


def _not_the_sign(delta: Tensor, out: Tensor, case: Case, alpha: float) -> None:
    """Uphill everywhere, but some elements farther than others that had room as well."""
    free = (case.expected - case.x).abs() > EPS - ROUNDING
    moved = (delta * case.uphill)[free]
    if float(moved.min()) < -ROUNDING:
        return
    length = lengths(delta, "l2")
    if float(length.max()) <= EPS + ROUNDING and float(length.median()) > 0.95 * EPS:
        raise Wrong(
            f"‖δ‖₂ is at most ε = {EPS}, ‖δ‖∞ should reach it",
            "the ball of ℓ2 instead of ℓ∞",
            "In ℓ∞ each pixel may change by ε, whatever the others do.",
            "The projection is an elementwise clamp; no length is needed.",
        )
    if float(moved.max() - moved.min()) > 1e-3 * EPS:
        raise Wrong(
            "some pixels moved less than others though all had room",
            "the step is the gradient, not its sign",
            "The steepest direction of the ℓ∞ ball has all elements at ±1.",
            "Use grad.sign().",
        )


def _of_the_batch() -> Wrong:
    return of_the_batch(
        "Look for max(), mean(), norm(), all() or any() over the whole batch.",
        "Best losses, lengths and stops are vectors of one number per sample: "
        'cross_entropy(..., reduction="none"), x.flatten(1).norm(dim=1).',
    )


def _alone(attack: Attack, case: Case) -> None:
    """Raises where a sample that is fooled already changes what happens to its neighbor."""
    steps = STEPS
    fooled = case.model(case.x).argmax(dim=1) != case.y
    order = fooled.argsort(descending=True)
    mixed = Case(case.model, case.x[order], case.y[order], case.uphill[order], case.expected[order])
    together = _ask(attack, mixed, steps)[0]
    one_by_one = torch.cat([_ask(attack, _row(mixed, i), steps)[0] for i in range(len(order))])
    for out in (together, one_by_one):
        _outside_the_box(out - mixed.x, out, mixed, ALPHA)
    if not torch.allclose(together, one_by_one, atol=ROUNDING, rtol=0):
        raise _of_the_batch()


def _number_of_steps(attack: Attack, case: Case) -> None:
    """Raises where an attack that starts at x goes one step less far than it should, or one farther.

    Three steps do not reach the end of the ball. After a random start the elements have gone different ways, and
    nothing is said.
    """
    steps, alpha = 3, EPS / 5
    out = _ask(attack, case, steps, alpha)[0]
    moved = ((out - case.x) * case.uphill)[(case.expected - case.x).abs() > EPS - ROUNDING]
    if float(moved.max() - moved.min()) > ROUNDING:
        return
    made = float(moved.mean()) / alpha
    if abs(made - (steps - 1)) < 1e-3:
        raise Wrong(
            f"where {steps} steps of {alpha:g} lead uphill, the result is {steps - 1} of them away from x",
            "a step too few, or the last point is not looked at",
            "range(steps) makes all steps, range(1, steps) one less.",
            "If the best point is kept, the loss is computed once more after the last step.",
        )
    if abs(made - (steps + 1)) < 1e-3:
        raise Wrong(
            f"where {steps} steps of {alpha:g} lead uphill, the result is {steps + 1} of them away from x",
            "a step too many",
            "A loop that looks at the points 0 to steps makes its last step in the turn before.",
            "Keep the point first and step afterwards; what the last turn of range(steps + 1) moves is not used.",
        )


def peak_case(
    shape: tuple[int, ...], *, seed: int, count: int, eps: float, alpha: float, height: float = 1.0
) -> tuple[Case, Tensor]:
    """A model with one peak inside every sample's ball; and by how much its loss may fall short there, (N,).

    Below a height of 0 no point is misclassified.

    With one pixel, the better one of two neighboring points lies within α/2 of the peak. With several, that of each
    pixel is within α.
    """
    generator = torch.Generator().manual_seed(seed)
    center = 0.4 + 0.2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    slope = 1 + torch.rand(shape, generator=generator, dtype=torch.float64)
    offset = (0.2 + 0.6 * torch.rand(count, *shape, generator=generator, dtype=torch.float64)) * eps
    x = center + offset * torch.where(torch.rand(offset.shape, generator=generator) < 0.5, -1, 1)
    y = torch.zeros(count, dtype=torch.int64)
    slack = float(slope.sum()) * alpha * (0.5 if center.numel() == 1 else 1.0)
    expected = center.expand_as(x)
    return Case(peak_network(center, slope, height), x, y, expected - x, expected), torch.full((count,), slack)


def lead(model: nn.Module, points: Tensor) -> Tensor:
    """z₁ − z₀ at each point, (N,)."""
    with torch.no_grad():
        z = model(points)
    lead: Tensor = z[:, 1] - z[:, 0]
    return lead


def _peaks(attack: Attack, seed: int, best: bool, one: tuple[int, ...], many: tuple[int, ...], height: float) -> None:
    """Raises where a better point was seen than is returned, or where the peak is never found."""
    for steps in (20, 21) if best else ():
        case, slack = peak_case(one, seed=seed, count=16, eps=0.1, alpha=0.03, height=height)
        out = _ask(attack, case, steps)[0]
        if bool((height - lead(case.model, out) <= slack + 1e-4).all()):
            continue
        one_by_one = torch.cat([_ask(attack, _row(case, i), steps)[0] for i in range(len(out))])
        if bool((height - lead(case.model, one_by_one) <= slack + 1e-4).all()):
            raise _of_the_batch()
        raise Wrong(
            "a point with a larger loss than that of the result was passed on the way",
            "last iterate, not the best",
            "With a fixed step size the attack steps over a peak again and again.",
            "Keep the best loss of each sample and the point where it was; ask at the last point, too.",
            "better = loss > best_loss; best[better] = point[better]; best_loss[better] = loss[better].",
        )
    case, slack = peak_case(many, seed=seed + 1, count=8, eps=0.1, alpha=0.0025, height=height)
    out, watched = _ask(attack, case, 80, 0.0025)
    if not bool((height - lead(case.model, out) > slack + 1e-4).any()):
        return
    if _accumulates(watched, case):
        raise Wrong(
            "a step follows the sum of all gradients so far",
            "gradients add up from step to step",
            "backward() adds to what is in .grad already.",
            "Take torch.autograd.grad(loss, point), or set the gradient to zero in each step.",
        )
    raise Wrong(
        "on a model with one peak inside the ball, the result is not near the peak",
        "a step does not follow the gradient at the current point",
        "Compute the gradient anew at each point.",
        "The point must be a leaf that requires gradients in each step: point.detach().requires_grad_().",
    )


def _accumulates(watched: Watched, case: Case) -> bool:
    """Whether steps follow the sum of gradients where the last gradient says otherwise, and turn around at times."""
    total, differed, agreed, turned = torch.zeros_like(case.x), 0, 0, False
    points = [points for points in watched.points if points.shape == case.x.shape]
    for here, there in pairwise(points):
        point = here.clone().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(case.model(point), case.y, reduction="sum"), point)
        total += grad
        moved = (there - here).sign()
        differ = (total.sign() * grad.sign() < 0) & (moved != 0)  # at the ball's surface nothing moves
        differed += int(differ.sum())
        agreed += int((moved == total.sign())[differ].sum())
        turned |= bool((moved * (points[1] - points[0]) < 0).any())
    return turned and agreed > 0.9 * differed > 0
