"""More checks that chapters hold their cells from scratch to: right makes pass, each slip gets its cause."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch.nn.functional import cross_entropy

from robustlab.geometry.keyed import Noise
from robustlab.teaching import check
from robustlab.teaching.check.backdoor_rates import rates_case
from robustlab.teaching.check.exact_minimum import by_patterns, minimum_case, relaxed
from robustlab.teaching.check.shrinkage import best_of_five
from robustlab.teaching.check.trimmed_fit import poisoned_table, ridge
from robustlab.teaching.check.worst_of import worst_case
from tests.every import every
from tests.planted import cause_of, run

MINIMUM = """
def minimum(W1, b1, W2, b2, lo, hi):
    mid, half = W1 @ (lo + hi) / 2 + b1, abs(W1) @ (hi - lo) / 2
    l, u = np.minimum(mid - half, 0), np.maximum(mid + half, 0)
    I, O = np.eye(len(b1)), np.zeros((len(b1),) * 2)
    rows = np.vstack([np.hstack([W1, -I, O]), np.hstack([-W1, I, -np.diag(l)]), np.hstack([0 * W1, I, -np.diag(u)])])
    limits = optimize.LinearConstraint(rows, ub=np.concatenate([-b1, b1 - l, 0 * b1]))
    bits = [0] * (len(lo) + len(b1)) + [1] * len(b1)
    bounds = optimize.Bounds([*lo, *(0 * u), *(0 * u)], [*hi, *u, *(0 * u + 1)])
    cost = np.concatenate([0 * lo, W2, 0 * b1])
    return b2 + optimize.milp(cost, constraints=limits, integrality=bits, bounds=bounds).fun
"""
CUT, LOOSE = "not sound: the search leaves out a part of the box", "sound, and not complete: the result is a bound"
MINIMUM_SLIPS = [
    ("sign lost", "W2, 0 * b1])\n    return b2 +", "-W2, 0 * b1])\n    return b2 -"),
    ("the last bias is lost", "return b2 + ", "return "),
    ("the bits are not whole", "[1] * len(b1)", "[0] * len(b1)"),
    ("no ReLU", "    I, O", "    return corners(W1, b1, W2, b2, lo, hi, relu=False)\n    I, O"),
    (
        "every neuron is taken at its worst alone",
        "    I, O",
        "    return np.minimum(W2 * l, W2 * u).sum() + b2\n    I, O",
    ),
    ("corners alone are looked at", "    I, O", "    return corners(W1, b1, W2, b2, lo, hi)\n    I, O"),
    (CUT, "abs(W1) @ (hi - lo) / 2", "abs(W1) @ (hi - lo) / 4"),
    (CUT, "Bounds([*lo,", "Bounds([*np.maximum(lo, 0),"),
    (CUT, "return b2 + ", "return 0.1 + b2 + "),
    (LOOSE, "return b2 + ", "return b2 - 0.1 + "),
    ("no program had a solution, or none was solved", "return b2 + ", "return np.inf + b2 + "),
    ("not a number", ".fun", ".x, b2"),
]


def corners(W1: Any, b1: Any, W2: Any, b2: float, lo: Any, hi: Any, relu: bool = True) -> float:
    points = np.array(np.meshgrid(*zip(lo, hi, strict=True))).reshape(len(lo), -1).T
    hidden = points @ W1.T + b1
    return float(((np.maximum(hidden, 0) if relu else hidden) @ W2).min()) + b2


def minimum(*replaced: tuple[str, str]) -> Any:
    """The source of the minimum, with parts that are replaced; cuts at 0 follow the interval ends of the slip."""
    return run(MINIMUM, *replaced, np=np, optimize=optimize, corners=corners)["minimum"]


@pytest.mark.slow
@every("seed", [0, 1, 50])
def test_a_right_minimum_passes(seed: int) -> None:
    check.exact_minimum(minimum(), seed=seed)


@pytest.mark.slow
@every("cause, old, new", MINIMUM_SLIPS)
def test_each_slip_of_a_minimum_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.exact_minimum, minimum((old, new))) == cause


@pytest.mark.slow
def test_the_minimum_by_patterns_is_below_every_point_and_above_the_relaxation() -> None:
    for seed in range(10):
        network, lo, hi = minimum_case(3, 5, 0.0, seed)
        W1, b1, W2, b2 = network
        points = np.random.default_rng(seed).uniform(lo, hi, size=(20000, 3))
        least = float((np.maximum(points @ W1.T + b1, 0) @ W2).min()) + b2
        exact = by_patterns(network, lo, hi)
        assert relaxed(network, lo, hi) - 1e-9 <= exact <= least < exact + 0.3


RATES = """
def rates(model, images, labels, target):
    clean = (model(images).argmax(dim=1) == labels).double().mean()
    other = labels != target
    woken = model(stamp(images[other])).argmax(dim=1)
    return float(clean), float((woken == target).double().mean())
"""
RATE_SLIPS = [
    ("images of the target class count", "labels != target", "labels == labels"),
    ("any error counts as success", "woken == target", "woken != labels[other]"),
    ("the trigger is not on the images", "stamp(images[other])", "images[other]"),
    ("only images count that are read rightly without the trigger", "labels != target",
     "(labels != target) & (model(images).argmax(dim=1) == labels)"),
    ("the two rates are exchanged", "float(clean), float((woken == target).double().mean())",
     "float((woken == target).double().mean()), float(clean)"),
    ("percent, not shares", "return float(clean), float(", "return 100 * float(clean), 100 * float("),
    ("the accuracy is that on stamped images", "(model(images)", "(model(stamp(images))"),
    ("the success is a share of something else", "labels != target", "labels == target"),
    ("the accuracy is a share of something else", "== labels).double", "== labels)[labels != target].double"),
    ("x was changed in place", "    other =", "    images[:] = stamp(images)\n    other ="),
    ("no pair", "return float(clean), ", "return "),
]  # fmt: skip


def stamp(images: torch.Tensor) -> torch.Tensor:
    out = images.clone()
    out[:, :, -4:-1, -4:-1] = 1.0
    return out


def rates(*replaced: tuple[str, str]) -> Any:
    return run(RATES, *replaced, stamp=stamp)["rates"]


@every("seed", [0, 7, 30])
def test_right_rates_pass(seed: int) -> None:
    check.backdoor_rates(rates(), stamp, seed=seed)
    check.backdoor_rates(run(RATES, stamp=lambda x: 1 - x)["rates"], lambda x: 1 - x, seed=seed)


def test_percent_is_named_in_single_precision_too() -> None:
    old = "return float(clean), float((woken == target).double().mean())"
    new = "return 100 * float(clean.float()), 100 * float((woken == target).float().mean())"
    assert cause_of(check.backdoor_rates, rates((old, new)), stamp) == "percent, not shares"


@every("cause, old, new", RATE_SLIPS)
def test_each_slip_of_the_rates_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.backdoor_rates, rates((old, new)), stamp) == cause


def test_the_model_of_the_rates_has_a_backdoor_that_sometimes_works() -> None:
    for target in range(3):
        model, x, y = rates_case(stamp, (1, 8, 8), target=target, seed=target)
        plain, woken = model(x).argmax(dim=1), model(stamp(x)).argmax(dim=1)
        assert 0.4 < float((plain == y).double().mean()) < 0.95
        assert 0.4 < float((woken == target).double().mean()) < 0.9 > 0.4 + float((plain == target).double().mean())


SHRINK = """
def shrink(b, x, beta):
    down, up = (b - beta).clamp(max=1), (b + beta).clamp(min=0)
    inner = torch.where(b - x < -beta, up, x)
    return torch.where(b - x > beta, down, inner)
"""
SHRINK_SLIPS = [
    ("no clamp to [0, 1]", ".clamp(max=1)", ""),
    ("no clamp to [0, 1]", "(b - beta).clamp(max=1), (b + beta).clamp(min=0)", "b - beta, b + beta"),
    ("it shrinks toward 0, not toward x", "    down", "    x = 0 * x\n    down"),
    ("a hard threshold: what is kept is not shrunk", "(b - beta).clamp(max=1), (b + beta).clamp(min=0)",
     "b.clamp(max=1), b.clamp(min=0)"),
    ("the threshold is 2β, not β", "    down", "    beta = 2 * beta\n    down"),
    ("the threshold is β/2, not β", "    down", "    beta = beta / 2\n    down"),
    ("it moves away from x: signs are exchanged", "(b - beta).clamp(max=1), (b + beta).clamp(min=0)",
     "(b + beta).clamp(max=1), (b - beta).clamp(min=0)"),
    ("nothing moves", "b - x > beta, down, inner", "b - x > beta, x, x"),
    ("nothing is shrunk", "    down", "    beta = 0.0\n    down"),
    ("another function than the minimizer", "(b - beta)", "(b - beta / 3)"),
    ("wrong shape", "return torch.where(b - x > beta, down, inner)",
     "return torch.where(b - x > beta, down, inner)[0]"),
    ("x was changed in place", "    down", "    x += 0.01\n    down"),
]  # fmt: skip


@every("seed", [0, 11])
def test_a_right_shrinkage_passes(seed: int) -> None:
    check.shrinkage(run(SHRINK)["shrink"], seed=seed)


@every("cause, old, new", SHRINK_SLIPS)
def test_each_slip_of_shrinkage_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.shrinkage, run(SHRINK, (old, new))["shrink"]) == cause


@pytest.mark.slow
def test_the_best_of_five_points_is_the_best_of_a_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, generator=generator, dtype=torch.float64)
    b = x + torch.randn(40, generator=generator, dtype=torch.float64)
    grid = torch.linspace(0, 1, 100001, dtype=torch.float64)[:, None]
    for beta in (0.0, 0.2, 0.7):
        value = 0.5 * (grid - b).square() + beta * (grid - x).abs()
        assert torch.allclose(best_of_five(b, x, beta), grid[value.argmin(dim=0), 0], atol=2e-5)


MAXIMA = """
def maxima(model, x, y, t, radius, batches, samples):
    d, n = x.numel(), batches * samples
    u = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    length = torch.rand(n, 1, generator=torch.Generator().manual_seed(1), dtype=x.dtype) ** (1 / d)
    step = radius * length * u / u.norm(dim=1, keepdim=True)
    points = (x + step.reshape(-1, *x.shape[1:])).clamp(0, 1).requires_grad_()
    z = model(points)
    slope = torch.autograd.grad((z[:, y] - z[:, t]).sum(), points)[0].flatten(1).norm(dim=1)
    return slope.reshape(batches, samples).amax(dim=1)
"""
NOT_UNIFORM = "not uniform in the ball"
MAXIMA_SLIPS = [
    ("the ℓ1 length of the gradient", ".flatten(1).norm(dim=1)", ".flatten(1).norm(p=1, dim=1)"),
    ("the ℓ∞ length of the gradient", ".flatten(1).norm(dim=1)", ".flatten(1).abs().amax(dim=1)"),
    ("the gradient of one logit", "z[:, y] - z[:, t]", "z[:, y]"),
    ("the gradient of one logit", "z[:, y] - z[:, t]", "z[:, t]"),
    ("the gradient of a mean over the points", ".sum(), points", ".mean(), points"),
    ("the square of the length", ".norm(dim=1)\n    return", ".square().sum(dim=1)\n    return"),
    ("another slope than that of z_y − z_t", "z[:, y] - z[:, t]", "z[:, y] + z[:, t]"),
    ("points outside of the ball", "radius * length * u", "2 * radius * length * u"),
    (NOT_UNIFORM, "length * u", "u"),
    (NOT_UNIFORM, " ** (1 / d)", ""),
    (
        "too few points",
        "    d, n =",
        "    if batches > 1:\n        return maxima(model, x, y, t, radius, 1, samples).expand(batches)\n    d, n =",
    ),
    ("not the largest slope of each batch", ".amax(dim=1)", ".mean(dim=1)"),
    ("no clamp to [0, 1]", ".clamp(0, 1)", ""),
    ("wrong shape", "reshape(batches, samples).amax(dim=1)", "reshape(batches, samples).amax(dim=0)"),
    ("x was changed in place", "    z =", "    x += 0.01\n    z ="),
]


@every("seed", [0, 3, 40])
def test_right_maxima_pass(seed: int) -> None:
    check.slope_maxima(run(MAXIMA)["maxima"], seed=seed)


def test_points_of_a_sphere_of_two_more_dimensions_pass() -> None:
    sphere = """
    v = torch.randn(n, d + 2, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    step = radius * (v / v.norm(dim=1, keepdim=True))[:, :d]
    points"""
    check.slope_maxima(run(MAXIMA, ("\n    points", sphere))["maxima"])


@every("cause, old, new", MAXIMA_SLIPS)
def test_each_slip_of_the_maxima_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.slope_maxima, run(MAXIMA, (old, new))["maxima"]) == cause


PAINT = """
def paint(slope, clean, mask, steps, lr):
    texture = clean.clone()
    adam = torch.optim.Adam([texture], lr=lr)
    for k in range(steps):
        texture.grad = slope(texture, mask, k)
        adam.step()
        texture.clamp_(0, 1)
    return texture * mask
"""
PAINT_SLIPS = [
    ("no clamp to [0, 1] in the loop", "        texture.clamp_(0, 1)\n    return texture",
     "    return texture.clamp(0, 1)"),
    ("the same scenes in every step", "slope(texture, mask, k)", "slope(texture, mask, 0)"),
    ("the loss is climbed, not descended", "slope(texture, mask, k)", "-slope(texture, mask, k)"),
    ("nothing is painted", "adam.step()", "pass"),
    ("too few steps, or steps that shrink", "range(steps)", "range(steps // 40)"),
    ("the slope is not that at the texture of the step", "slope(texture,", "slope(clean,"),
    ("wrong shape of the texture", "slope(texture,", "slope(texture[None],"),
    ("x was changed in place", "clean.clone()", "clean"),
    ("wrong shape", "return texture * mask", "return (texture * mask)[:1]"),
]  # fmt: skip


@pytest.mark.slow
@every("seed", [0, 3])
def test_a_right_painter_passes(seed: int) -> None:
    check.texture(run(PAINT)["paint"], seed=seed)
    step = "texture -= lr / (1 + k / 20) * slope(texture, mask, k).sign()"
    check.texture(run(PAINT, ("texture.grad = slope(texture, mask, k)\n        adam.step()", step))["paint"], seed=seed)


@pytest.mark.slow
@every("cause, old, new", PAINT_SLIPS)
def test_each_slip_of_a_painter_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.texture, run(PAINT, (old, new))["paint"]) == cause


TRIM = """
def trim(x, y, n, lam):
    kept = torch.arange(len(x))
    while True:
        model = ridge(x[kept], y[kept], lam)
        before, residuals = kept, (model(x) - y).square()
        kept = residuals.argsort(stable=True)[:n].sort().values
        if torch.equal(kept, before):
            return model
"""
TRIM_SLIPS = [
    ("nothing is trimmed", "if torch.equal(kept, before):", "if True:"),
    ("one round alone", "if torch.equal(kept, before):\n            return model",
     "if True:\n            return ridge(x[kept], y[kept], lam)"),
    ("n rows are dropped, not kept", "[:n]", "[:len(x) - n]"),
    ("the rows with the largest residuals are kept", "if torch.equal(kept, before):\n            return model",
     "if True:\n            i = residuals.argsort(descending=True)[:n]\n            return ridge(x[i], y[i], lam)"),
    ("the bias is penalized", "y[kept], lam)", "y[kept], lam, bias_too=True)"),
    ("λ is 0 times what it should be", "y[kept], lam)", "y[kept], 0.0)"),
    ("λ is 2 times what it should be", "y[kept], lam)", "y[kept], 2 * lam)"),
    ("λ is 30 times what it should be", "y[kept], lam)", "y[kept], 30 * lam)"),
    ("the rounds end early, or the fit is another one", "y[kept], lam)", "y[kept].clamp(-1, 1), lam)"),
    ("no model", "return model", "return kept"),
    ("x was changed in place", "    while True:", "    x[0] += 1\n    while True:"),
]  # fmt: skip


@every("seed", [0, 30])
def test_a_right_trim_passes(seed: int) -> None:
    check.trimmed_fit(run(TRIM, ridge=ridge)["trim"], seed=seed)


@every("cause, old, new", TRIM_SLIPS)
def test_each_slip_of_trim_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.trimmed_fit, run(TRIM, (old, new), ridge=ridge)["trim"]) == cause


def test_the_ridge_of_the_check_is_where_the_loss_is_flat() -> None:
    x, y = poisoned_table(0)
    at = ridge(x, y, 0.1)
    b = float(at(torch.zeros(1, 3, dtype=x.dtype)))
    parts = torch.cat([at(torch.eye(3, dtype=x.dtype)) - b, torch.tensor([b], dtype=x.dtype)]).requires_grad_()
    loss = (x @ parts[:3] + parts[3] - y).square().mean() + 0.05 * parts[:3].square().sum()
    assert float(torch.autograd.grad(loss, parts)[0].abs().max()) < 1e-9


WORST = """
def worst_of(k, model, x, y, ids):
    worst = cross_entropy(model(x), y, reduction="none")
    fooled = torch.zeros_like(y, dtype=torch.bool)
    for j in range(k):
        steps = Noise(0, ids).uniform(j, (2,), x.dtype, -2, 2).long().tolist()
        moved = torch.stack([image.roll(step, dims=(1, 2)) for image, step in zip(x, steps)])
        logits = model(moved)
        fooled |= logits.argmax(dim=1) != y
        loss = cross_entropy(logits, y, reduction="none")
        worst = worst.maximum(loss)
    return fooled, worst
"""
WORST_SLIPS = [
    ("the last draw, not the worst", "worst = worst.maximum(loss)", "worst = loss"),
    ("the smallest loss, not the largest", "worst.maximum(loss)", "worst.minimum(loss)"),
    ("the mean of the draws, not the worst", "worst.maximum(loss)", "worst + (loss - worst) / (j + 2)"),
    ("the image itself is left out", "    for j", "    worst = torch.full_like(worst, -9)\n    for j"),
    ("batch-dependent: one maximum over all images", "worst.maximum(loss)",
     "worst.max().maximum(loss.max()).expand_as(y)"),
    ("batch-dependent: the draw is chosen for all images together", "worst.maximum(loss)",
     "loss if loss.mean() > worst.mean() else worst"),
    ("not the largest loss of each image", "worst.maximum(loss)", "worst.maximum(0.9 * loss)"),
    ("the last draw decides", "fooled |= logits", "fooled = logits"),
    ("not whether any draw is misread", "fooled |= logits.argmax(dim=1) != y", "fooled |= loss_of(logits, y) > 3"),
    ("another number of draws than k", "range(k)", "range(k - 1)"),
    ("nothing is transformed", "model(moved)", "model(x)"),
    ("one draw, k times", "uniform(j,", "uniform(0,"),
    ("one draw for the whole batch", "Noise(0, ids)", "Noise(0, 0 * ids)"),
    ("batch-dependent: draws depend on the place in the batch", "Noise(0, ids)", "Noise(0, torch.arange(len(ids)))"),
    ("batches that are not like x", "model(moved)", "model(torch.cat([moved, moved[:4]]))[:9]"),
    ("wrong shape", "return fooled, worst", "return fooled.any(), worst"),
    ("x was changed in place", "    for j", "    x += 0.1\n    for j"),
]  # fmt: skip


def worst(*replaced: tuple[str, str]) -> Any:
    def loss_of(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(z, y, reduction="none")

    return run(WORST, *replaced, Noise=Noise, cross_entropy=cross_entropy, loss_of=loss_of)["worst_of"]


@every("seed", [0, 7])
def test_a_right_worst_passes(seed: int) -> None:
    check.worst_of(worst(), seed=seed)


@every("cause, old, new", WORST_SLIPS)
def test_each_slip_of_the_worst_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.worst_of, worst((old, new))) == cause


def test_some_images_are_fooled_and_some_are_not() -> None:
    model, x, y = worst_case(0)
    fooled, _ = worst()(6, model, x, y, torch.arange(len(x)))
    assert 0 < int(fooled.sum()) < len(x)


def test_hints_come_one_after_the_other() -> None:
    relaxed_bits = minimum(("[1] * len(b1)", "[0] * len(b1)"))
    said = []
    for hints in (1, 2):
        with pytest.raises(check.Wrong) as wrong:
            check.exact_minimum(relaxed_bits, hints=hints)
        said.append(str(wrong.value))
    assert "Hint 1 of 2" in said[0] and "hints=2" in said[0] and "Hint 2" not in said[0]
    assert "Hint 2 of 2" in said[1] and "One more" not in said[1]
