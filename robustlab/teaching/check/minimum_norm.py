"""The affine optimum, DeepFool and a bisection, held to closed forms.

On an affine model the boundary between the classes y and k is a hyperplane. With lead_k = z_y − z_k, s_k = w_k − w_y
and the dual of the length, the nearest point across any boundary is at the distance

    min_k lead_k / dual(s_k)

so that no check has to know the point itself. DeepFool is there after one step. A bend in the model, out of some
samples' way, shows whether each sample stops on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from robustlab.teaching.check.finding import (
    Wrong,
    lengths,
    of_the_batch,
    require_answer,
    require_in_box,
    require_unchanged,
)
from robustlab.teaching.check.gradient_attacks import Watched
from robustlab.teaching.check.onto_sets import BALLS, ConvexSet
from robustlab.teaching.handout import linear_network, relu_network

Optimum = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(weight (K, d), bias (K,), x (N, ...), y (N,)) → the nearest points on a boundary."""
Minimal = Callable[[nn.Module, Tensor, Tensor, int, float], Tensor]
"""(model, x, y, steps, overshoot) → x_adv."""
Bisection = Callable[[nn.Module, Tensor, Tensor, Tensor, float], Tensor]
"""(model, x, y, direction (N, ...), far) → x_adv."""
Named = Literal["l1", "l2", "linf"]
STEPS, OVERSHOOT, FAR = 30, 0.02, 4.0


def affine_optimum(
    optimum: Optimum,
    ball: Named | ConvexSet = "l2",
    *,
    shape: tuple[int, ...] = (2, 4, 4),
    seed: int = 0,
    hints: int = 1,
) -> None:
    """Check the closed form of the nearest point across a boundary of z = W·x + b: prints one line where it holds.

    Args:
        optimum: called as ``optimum(weight, bias, x, y)`` with W (K, d), b (K,), x (N, *shape) and y (N,); returns
            points like x on the nearest boundary of class y, and x where another class leads already. There is no box.
        ball: what is short: a norm by its name, or a length of your own with its dual (default ``"l2"``).
        shape: of one input (default 2 × 4 × 4).
        seed: of the models and inputs (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    measure = BALLS[ball] if isinstance(ball, str) else ball
    try:
        for number, classes in enumerate((2, 6)):
            model, x, y = affine_case(shape, classes, seed=seed + number)
            weight, bias = affine_parts(model)

            def ask(rows: Tensor, labels: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
                given = rows.clone()
                out = require_answer(optimum(weight.clone(), bias.clone(), given, labels.clone()), rows)
                require_unchanged(given, rows)
                return out

            _nearest(ask, model, x, y, measure, overshoot=0.0)
    except Wrong as wrong:
        raise wrong.shown_as("affine_optimum", hints) from None
    print("affine_optimum: holds, for two and six classes, and where another class leads already")


def deepfool(
    attack: Minimal,
    ball: Named | ConvexSet = "l2",
    *,
    shape: tuple[int, ...] = (2, 4, 4),
    seed: int = 0,
    hints: int = 1,
) -> None:
    """Check DeepFool: prints one line where all holds.

    Args:
        attack: called as ``attack(model, x, y, steps, overshoot)`` with a model in eval mode that returns logits,
            x (N, *shape) in [0, 1] and y (N,); returns x + (1 + overshoot)·δ in [0, 1], where δ adds up the steps to
            the nearest linearized boundary until the sample is misclassified, and x where it is already.
        ball: what is short: a norm by its name, or a length of your own with its dual (default ``"l2"``).
        shape, seed, hints: as in :func:`affine_optimum`.

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    measure = BALLS[ball] if isinstance(ball, str) else ball
    try:
        for number, classes in enumerate((2, 6)):
            model, x, y = affine_case(shape, classes, seed=seed + number)
            _nearest(_asked(attack, model), model, x, y, measure, overshoot=OVERSHOOT)
        _in_the_box(attack, shape, seed + 2)
        _stops(attack, shape, seed + 3)
    except Wrong as wrong:
        raise wrong.shown_as("deepfool", hints) from None
    print(
        "deepfool: holds, on affine models, at the ends of the box, and where some samples need more steps than others"
    )


def bisection(search: Bisection, *, shape: tuple[int, ...] = (2, 4, 4), seed: int = 0, hints: int = 1) -> None:
    """Check a bisection along one direction per sample: prints one line where all holds.

    Args:
        search: called as ``search(model, x, y, direction, far)``; returns the first misclassified point of
            x + t·direction, 0 ≤ t ≤ far, up to far / 1000, on the misclassified side. Where the point at t = far is
            classified as y, or x is misclassified already, it returns x. There is no box.
        shape, seed, hints: as in :func:`affine_optimum`.

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        model, x, y, direction, crossing = crossing_case(shape, seed=seed)

        def ask(rows: slice) -> Tensor:
            return _asked(lambda m, a, b, steps, eta: search(m, a, b, direction[rows].clone(), FAR), model)(
                x[rows], y[rows]
            )

        _crossed(ask, model, x, y, direction, crossing)
    except Wrong as wrong:
        raise wrong.shown_as("bisection", hints) from None
    print("bisection: holds, on the misclassified side, for samples with and without a crossing")


def affine_case(
    shape: tuple[int, ...], classes: int, *, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """An affine model, inputs far from the ends of the box, and labels, of which the first is not the model's.

    The weights of the classes have lengths between 1 and 4, so that the runner-up is often not behind the nearest
    boundary.
    """
    generator = torch.Generator().manual_seed(seed)
    d = int(torch.tensor(shape).prod())
    size = torch.logspace(0, 2, classes, base=2.0, dtype=dtype)[torch.randperm(classes, generator=generator)]
    weight = torch.randn(classes, d, generator=generator, dtype=dtype) * size[:, None]
    model = linear_network(weight, -0.5 * weight.sum(dim=1))
    x = 0.5 + 0.03 * torch.randn(24, *shape, generator=generator, dtype=dtype).clamp(-3, 3)
    y = model(x).argmax(dim=1).detach()
    y[0] = (y[0] + 1) % classes
    return model, x, y


def affine_parts(model: nn.Sequential) -> tuple[Tensor, Tensor]:
    """W and b of :func:`affine_case`'s model, detached."""
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach(), layer.bias.detach()


def optimum_distances(model: nn.Sequential, x: Tensor, y: Tensor, ball: ConvexSet) -> Tensor:
    """The distance from x to the boundary with each class of an affine model, (N, K): inf for y, 0 where it leads."""
    z, weight = model(x).detach().double(), affine_parts(model)[0].double()
    slopes = (weight[None] - weight[y][:, None]).flatten(0, 1).reshape(-1, *x.shape[1:])
    sizes = ball.dual(slopes).reshape(z.shape)
    leads = (z.gather(1, y[:, None]) - z).clamp_min(0)
    distances = torch.where(sizes > 0, leads / sizes, torch.where(leads > 0, torch.inf, 0.0))
    return distances.scatter(1, y[:, None], torch.inf)


def margins(model: nn.Module, points: Tensor, y: Tensor) -> Tensor:
    """z_y − max of the others, (N,): negative where misclassified."""
    with torch.no_grad():
        z: Tensor = model(points)
    return z.gather(1, y[:, None]).squeeze(1) - z.scatter(1, y[:, None], -torch.inf).amax(dim=1)


def bend_case(
    shape: tuple[int, ...], *, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A model with one bend, x and y: samples of class 1 are on the boundary after one step, those of class 0 are not.

    With u = a·x − middle, z₀ − z₁ = 0.06·‖a‖ + u + 0.9·relu(−u − 0.05·‖a‖): it falls ten times more slowly beyond the
    bend, and is zero at u = −0.15·‖a‖.
    """
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(int(torch.tensor(shape).prod()), generator=generator, dtype=dtype)
    middle, size = 0.5 * a.sum(), a.norm()
    first = torch.stack([a, -a, -a]), torch.stack([-middle, middle, middle - 0.05 * size])
    fall = torch.tensor([1.0, -1.0, 0.9], dtype=dtype)
    second = torch.stack([fall, torch.zeros_like(fall)]), torch.stack([0.06 * size, 0 * size])
    y = torch.arange(16) % 2
    x = 0.5 + 0.01 * torch.randn(16, *shape, generator=generator, dtype=dtype).clamp(-3, 3)
    x = x - 0.22 * (a / size).reshape(shape) * y.to(dtype).reshape(-1, *[1] * len(shape))
    return relu_network([first, second]), x, y


def crossing_case(
    shape: tuple[int, ...], *, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[nn.Sequential, Tensor, Tensor, Tensor, Tensor]:
    """An affine model, x, y, directions, and the t at which each sample crosses: 0 if at once, inf if not up to FAR."""
    model, x, y = affine_case(shape, 2, seed=seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    weight = affine_parts(model)[0]
    gain = (weight[1 - y] - weight[y]).reshape(x.shape)
    slope = gain + 0.5 * torch.randn(x.shape, generator=generator, dtype=dtype) * gain.abs().mean()
    towards = (slope * gain).flatten(1).sum(dim=1)
    lead = margins(model, x, y)
    aims = 0.05 * FAR + 1.1 * FAR * torch.rand(len(x), generator=generator, dtype=dtype)
    # Near both ends, and where no scan in even steps stops: on the boundary itself rounding would decide.
    aims[1], aims[2], aims[3] = 0.0203142 * FAR, 0.9003142 * FAR, 2 * FAR
    direction = slope * (lead / aims / towards).reshape(-1, *[1] * len(shape))
    crossing = torch.where(lead > 0, torch.where(aims <= FAR, aims, torch.inf), 0.0)
    return model, x, y, direction, crossing


def _asked(attack: Minimal, model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The answer of an attack on copies of its inputs, if these are as they were, and the model too."""

    def ask(x: Tensor, y: Tensor) -> Tensor:
        watched, given = Watched(model).eval(), x.clone()
        out = require_answer(attack(watched, given, y.clone(), STEPS, OVERSHOOT), x)
        require_unchanged(given, x)
        watched.require_eval()
        return out

    return ask


def _nearest(
    ask: Callable[[Tensor, Tensor], Tensor],
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: ConvexSet,
    *,
    overshoot: float,
) -> None:
    """Raises what explains an answer that is not (1 + overshoot) times as far as the nearest boundary, across it."""
    out = ask(x, y)
    each = optimum_distances(model, x, y, ball)
    best, scale = each.amin(dim=1), margins(model, x, y).abs().amax()
    if _right(out, model, x, y, ball, overshoot):
        return
    if _right(torch.cat([ask(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]), model, x, y, ball, overshoot):
        raise _of_the_batch()
    went = ball.length(out - x)
    if bool((went[best == 0] > 1e-6).any()):
        raise Wrong(
            "a sample that is misclassified already was moved",
            "no check of the samples that are wrong at the start",
            "The smallest perturbation of a misclassified sample is zero.",
            "Where z_y is not the largest logit, return x.",
        )
    rest, before = margins(model, out, y), margins(model, x, y)
    right = best > 0
    if bool((rest > before + 1e-6 * scale).any()):
        raise Wrong(
            "after the step the class y leads by more than before",
            "sign lost: the step leads away from the boundary",
            "The lead of y over k falls along w_k − w_y.",
            "δ goes along the gradient of z_k − z_y.",
        )
    if bool((went[right] <= 1e-3 * best[right]).any()):
        raise Wrong(
            "a sample is where it was",
            "nothing moved, or δ was returned in place of x + δ",
            "Return x + δ.",
            "Is the new point kept?",
        )
    _not_the_shortest(out, model, x, y, ball, overshoot)
    if bool((rest[right] > 1e-6 * scale).any()):
        raise Wrong(
            f"after the step the class y still leads by {float((rest / before)[right].max()):.0%} of what it did",
            "the step ends before the boundary",
            "A step of length t along the steepest direction v changes the lead by t·dual(w_k − w_y).",
            "Its length is lead / dual(slope), with the dual of your length, not the length itself.",
        )
    if overshoot and bool((went[right] < best[right] * (1 + 0.1 * overshoot)).any()):
        raise Wrong(
            "a result stands on the boundary, which rounding decides",
            "no overshoot",
            "DeepFool returns x + (1 + overshoot)·δ.",
        )
    raise Wrong(
        f"a result is {float((went / best)[right].max()):.3g} times as far away as the nearest boundary",
        "the step goes beyond the boundary" + (" by more than the overshoot" if overshoot else ""),
        "A step of length t along the steepest direction v changes the lead by t·dual(w_k − w_y).",
        "With a bias in the model, the lead is a difference of logits, not ⟨w_y − w_k, x⟩.",
    )


def _right(out: Tensor, model: nn.Sequential, x: Tensor, y: Tensor, ball: ConvexSet, overshoot: float) -> bool:
    best, margin = optimum_distances(model, x, y, ball).amin(dim=1), margins(model, out, y)
    share = ball.length(out - x) / best.clamp_min(1e-12)
    scale = margins(model, x, y).abs().amax()
    near = (share >= 1 + 0.9 * overshoot - 1e-5) & (share <= 1 + 1.3 * overshoot + 1e-5)
    ends = margin < 0 if overshoot else margin.abs() <= 1e-5 * scale
    return bool(torch.where(best > 0, near & ends, ball.length(out - x) <= 1e-9).all())


def _not_the_shortest(
    out: Tensor, model: nn.Sequential, x: Tensor, y: Tensor, ball: ConvexSet, overshoot: float
) -> None:
    """Raises where the boundary is another than the nearest, or the direction is not the steepest."""
    each, went = optimum_distances(model, x, y, ball), ball.length(out - x)
    best = each.amin(dim=1)
    far = (best > 0) & (went > best * (1 + 1.5 * overshoot + 1e-4))
    if not bool(far.any()):
        return
    z = model(x).detach()
    second = z.scatter(1, y[:, None], -torch.inf).argmax(dim=1, keepdim=True)
    if bool(((went / each.gather(1, second).squeeze(1) - 1 - overshoot).abs() <= 0.3 * overshoot + 1e-4)[far].all()):
        raise Wrong(
            "a result lies across the boundary to the runner-up, and another boundary is nearer",
            "the class with the second largest logit, not that behind the nearest boundary",
            "A small lead over a class does not mean that its boundary is near: the slope counts as well.",
            "Compute lead_k / dual(w_k − w_y) for all k, and take the smallest.",
        )
    weight = affine_parts(model)[0]
    slopes, delta = weight[None] - weight[y][:, None], (out - x).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(slopes, delta[:, None], dim=2).amax(dim=1)
    if ball is not BALLS["l2"] and bool((cosine[far] > 0.9999).all()):
        raise Wrong(
            "the step goes along the gradient, and a shorter one reaches the boundary",
            "the direction that is steepest in ℓ2, not in your length",
            "The steepest direction v has length(v) = 1 and ⟨g, v⟩ = dual(g).",
            "Write down where equality holds in ⟨g, v⟩ ≤ dual(g)·length(v).",
        )
    to = slopes[torch.arange(len(x)), each.argmin(dim=1)]
    steep = (to * delta).sum(dim=1) / (ball.dual(to.reshape(x.shape)) * went)
    if bool((margins(model, out, y)[far] <= 0).all()) and not bool((steep[far] > 0.999).all()):
        raise Wrong(
            f"a result is {float((went / best)[far].max()):.3g} times as far away as the nearest boundary",
            "a longer way than needed: another boundary, or not the steepest direction",
            "Compute lead_k / dual(w_k − w_y) for all k, and take the smallest.",
            "Is ⟨g, v⟩ = dual(g) for your direction v of length 1?",
        )


def _in_the_box(attack: Minimal, shape: tuple[int, ...], seed: int) -> None:
    """Raises where a result leaves the box, from inputs at its ends."""
    model, x, y = affine_case(shape, 3, seed=seed)
    x = torch.where(x > 0.5, 1.0, 0.0).to(x)
    y = model(x).argmax(dim=1)
    out = _asked(attack, model)(x, y)
    require_in_box(out, 1e-9, "Clamp x + (1 + overshoot)·δ, before the model is asked.")


def _stops(attack: Minimal, shape: tuple[int, ...], seed: int) -> None:
    """Raises where a bend is not followed, or where a sample goes on after it is misclassified."""
    model, x, y = bend_case(shape, seed=seed)
    ask = _asked(attack, model)
    out, far = ask(x, y), margins(model, x, y) > 0
    one_by_one = torch.cat([ask(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    if bool((margins(model, out, y)[far] >= 0).any()):
        raise Wrong(
            "on a model with a bend a sample is not misclassified, although its slope never vanishes",
            "the model is linearized once only",
            "Beyond a bend the slope is another, so that the boundary is not where it seemed.",
            "In each step: logits and gradients at x + δ, then δ grows by a step.",
        )
    if not torch.allclose(out, one_by_one, atol=1e-6, rtol=0):
        raise _of_the_batch()


def _crossed(
    ask: Callable[[slice], Tensor], model: nn.Module, x: Tensor, y: Tensor, direction: Tensor, crossing: Tensor
) -> None:
    """Raises what explains an answer that is not just across."""

    def off(out: Tensor) -> tuple[Tensor, Tensor]:
        t = ((out - x) * direction).flatten(1).sum(dim=1) / direction.flatten(1).square().sum(dim=1)
        aside = lengths(out - x - t.reshape(-1, *[1] * (x.dim() - 1)) * direction, "linf")
        return t, aside

    def right(out: Tensor) -> bool:
        t, aside = off(out)
        good = ((t - crossing).abs() <= 1.5e-3 * FAR) & (margins(model, out, y) < 0) & (aside < 1e-6)
        still = lengths(out - x, "linf") <= 1e-9
        return bool(torch.where(crossing.isfinite() & (crossing > 0), good, still).all())

    out = ask(slice(None))
    if right(out):
        return
    if right(torch.cat([ask(slice(i, i + 1)) for i in range(len(x))])):
        raise _of_the_batch()
    t, aside = off(out)
    met = crossing.isfinite() & (crossing > 0)
    if bool((aside > 1e-6).any()):
        raise Wrong("a result is not on the line", "off the line", "Return x + t·direction, with one t per sample.")
    if bool((t.abs()[~met] > 1e-9).any()):
        raise Wrong(
            "a sample was moved that is misclassified already, or is not at t = far",
            "no care for the samples without a crossing",
            "Ask the model at t = 0 and at t = far first.",
            "torch.where(crosses, x + t·direction, x).",
        )
    if bool(((t - crossing).abs()[met] > 1.5e-3 * FAR).any()):
        raise Wrong(
            f"a crossing is missed by {float((t - crossing).abs()[met].max()):.2g}",
            "the interval is still long, or the wrong half is kept",
            "Each question halves the interval: ten make it a thousandth.",
            "Where the middle is misclassified, it is the new upper end.",
        )
    raise Wrong(
        "a result is classified as y",
        "the safe side of the interval was returned",
        "Return the upper end, at which the model was wrong.",
    )


def _of_the_batch() -> Wrong:
    return of_the_batch(
        "Look for min(), any(), all() over the whole batch, and for samples that go on after they are misclassified.",
        "Stops, steps and the nearest class are one per sample: freeze a sample once it is misclassified.",
    )
