"""The largest slopes of a margin at random points of a ball, as CLEVER collects them.

On an affine model every slope is ‖w_y − w_t‖₂, wherever it is measured. On a bowl it grows with the distance from the
middle, and the model notes the points that it was asked about: they must lie in the ball and in the box, and of a point
that is uniform in a ball of d dimensions the share (distance / radius)ᵈ is uniform in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.teaching.check.finding import Wrong, blame, require_shape, require_unchanged
from robustlab.teaching.check.gradient_attacks import Watched
from robustlab.teaching.handout import linear_network

Maxima = Callable[[nn.Module, Tensor, int, int, float, int, int], Any]
"""(model, x (1, C, H, W), y, t, radius, batches, samples) → (batches,)."""
BATCHES, SAMPLES, CLASSES = 20, 50, 3


def slope_maxima(function: Maxima, *, shape: tuple[int, int, int] = (1, 2, 2), seed: int = 0, hints: int = 1) -> None:
    """Check CLEVER's maxima in an ℓ2 ball: prints one line where all holds.

    Args:
        function: called as ``function(model, x, y, t, radius, batches, samples)`` with one input x (1, *shape) in
            [0, 1] and two classes; returns, for each batch of points that are uniform in the ball of the radius around
            x and then cut at the box [0, 1], the largest ‖∇(z_y − z_t)‖₂, (batches,).
        shape: of the input (default 1 × 2 × 2).
        seed: of the models and inputs (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 + 0.05 * torch.rand(1, *shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(CLASSES, x.numel(), generator=generator, dtype=torch.float64)
    try:
        _everywhere_the_same(function, weight, x)
        _in_the_ball(function, x, 0.4)
        _in_the_box(function, x.round(), 0.4)
    except Wrong as wrong:
        raise wrong.shown_as("slope_maxima", hints) from None
    print(f"slope_maxima: holds, on an affine model and on a bowl, for {BATCHES} batches of {SAMPLES} points")


class Bowl(nn.Module):
    """z₁ − z₀ = 1 − ‖x − c‖², whose slope at x is 2·‖x − c‖; the other logits stand still."""

    def __init__(self, center: Tensor) -> None:
        super().__init__()
        self.center = center

    def forward(self, x: Tensor) -> Tensor:
        """Three logits."""
        height = 1 - (x - self.center).flatten(1).square().sum(dim=1)
        return torch.stack([0 * height, height, 0 * height], dim=1)

    def slope(self, x: Tensor) -> Tensor:
        """‖∇(z₁ − z₀)‖₂ at each point."""
        return 2 * (x - self.center).flatten(1).norm(dim=1)


def _asked(function: Maxima, model: nn.Module, x: Tensor, y: int, t: int, radius: float) -> tuple[Tensor, Tensor]:
    """The maxima, and the points that the model was asked about."""
    watched, given = Watched(model).eval(), x.clone()
    out = function(watched, given, y, t, radius, BATCHES, SAMPLES)
    require_unchanged(given, x)
    watched.require_eval()
    maxima = require_shape(
        out,
        (BATCHES,),
        "one maximum per batch",
        "The Weibull law is fitted to the maxima of the batches, not to all slopes.",
        "slope.reshape(batches, samples).amax(dim=1).",
    )
    return maxima.double(), torch.cat([points.reshape(-1, *x.shape[1:]) for points in watched.points])


def _everywhere_the_same(function: Maxima, weight: Tensor, x: Tensor) -> None:
    out, points = _asked(function, linear_network(weight), x, 0, 2, 0.1)
    rise = weight[0] - weight[2]
    if torch.allclose(out, rise.norm().expand_as(out), rtol=1e-6):
        return
    seen = f"on an affine model the slope is {float(rise.norm()):.4g} everywhere, the result {float(out[0]):.4g}"
    slips = (
        (rise.norm(p=1), "the ℓ1 length of the gradient", "In the ℓ2 ball the slope is the ℓ2 length."),
        (rise.norm(p=torch.inf), "the ℓ∞ length of the gradient", "In the ℓ2 ball the slope is the ℓ2 length."),
        (weight[0].norm(), "the gradient of one logit", "What shrinks to 0 is the difference of two logits."),
        (weight[2].norm(), "the gradient of one logit", "What shrinks to 0 is the difference of two logits."),
        (rise.norm() / len(points), "the gradient of a mean over the points", "Sum the margins of the points."),
        (rise.norm() / SAMPLES, "the gradient of a mean over the points", "Sum the margins of the points."),
        (rise.norm().square(), "the square of the length", "Take the root."),
    )
    blame(seen, slips, lambda length: torch.allclose(out, length.expand_as(out), rtol=1e-6))
    raise Wrong(
        seen,
        "another slope than that of z_y − z_t",
        "One gradient per point: differentiate the sum over points of z_y − z_t.",
        "torch.autograd.grad((z[:, y] - z[:, t]).sum(), points)[0].flatten(1).norm(dim=1).",
    )


def _in_the_ball(function: Maxima, x: Tensor, radius: float) -> None:
    bowl = Bowl(x - 0.3)
    out, points = _asked(function, bowl, x, 1, 0, radius)
    away = (points - x).flatten(1).norm(dim=1) / radius
    if float(away.max()) > 1 + 1e-6:
        raise Wrong(
            f"a point is {float(away.max()):.3g} radii away from x",
            "points outside of the ball",
            "A cube of random numbers has corners beyond the ball.",
            "A direction of length 1, times radius · u^(1/d).",
        )
    away = away[away > 1e-9]  # x itself may be asked about
    if len(away) < BATCHES * SAMPLES:
        raise Wrong(
            f"{len(away)} points were asked about, want {BATCHES * SAMPLES}",
            "too few points",
            "Every batch has points of its own.",
        )
    share = away.pow(x.numel()).mean()
    if abs(float(share) - 0.5) > 6 * (1 / 12 / len(away)) ** 0.5:
        far = "far from" if share > 0.5 else "near"
        raise Wrong(
            f"the points lie {far} x: the mean of (distance / radius)ᵈ is {float(share):.2g}, want about 0.5",
            "not uniform in the ball",
            "A ball of d dimensions has most of its volume near its surface, and nothing on it.",
            "A length of radius · u^(1/d) with u uniform, or d of the d + 2 coordinates of a point on a sphere.",
        )
    slopes = bowl.slope(points)
    if abs(float(out.max() - slopes.max())) > 1e-6 or bool((out < slopes.quantile(0.5)).any()):
        raise Wrong(
            f"of slopes up to {float(slopes.max()):.4g} the largest maximum is {float(out.max()):.4g}",
            "not the largest slope of each batch",
            "A mean says nothing about the steepest place.",
            "slope.reshape(batches, samples).amax(dim=1).",
        )


def _in_the_box(function: Maxima, x: Tensor, radius: float) -> None:
    _, points = _asked(function, Bowl(x - 0.3), x, 1, 0, radius)
    over = max(float(-points.min()), float(points.max() - 1))
    if over > 1e-9:
        raise Wrong(
            f"the model was asked about a point {over:.2g} outside of the box",
            "no clamp to [0, 1]",
            "Where x lies at an end of the box, half of the ball is no image.",
            "(x + step).clamp(0, 1).",
        )
