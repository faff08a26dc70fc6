"""The checks that students run: each diagnosis is that of the mutant which causes it, and right answers pass."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlab.geometry.norms import get_norm
from robustlab.teaching import check
from robustlab.teaching.check.gradient_attacks import corner_case, lead, peak_case
from robustlab.teaching.check.onto_sets import BALLS, shortfall
from tests.every import every
from tests.planted import cause_of, run

PGD = """
def attack(model, x, y, eps, steps, step_size):
    delta = START
    best, best_loss = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype)
    point = (x + delta).clamp(0, 1)
    for k in range(steps + 1):
        point = point.detach().requires_grad_()
        loss = F.cross_entropy(model(point), y, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), point)
        loss = loss.detach()
        better = loss > best_loss
        best[better], best_loss[better] = point.detach()[better], loss[better]
        if k == steps:
            break
        delta = point.detach() + step_size * grad.sign() - x
        delta = delta.clamp(-eps, eps)
        point = (x + delta).clamp(0, 1)
    return best
"""
STARTS = "torch.zeros_like(x)", "eps * (2 * torch.rand_like(x) - 1)"

# cause → what to replace by what
PGD_MUTANTS = {
    "no return": ("    return best", "    return None"),
    "not a tensor": ("    return best", "    return best, best_loss"),
    "wrong shape": ("    return best", "    return best.flatten(1).unsqueeze(1)"),
    "dtype changed": ("    return best", "    return best.float()"),
    "a division by zero": ("    return best", "    return best * (best - best) / (best - best)"),
    "x was changed in place": ("    delta = START", "    delta = START\n    x += 0.01"),
    "model.train() instead of model.eval()": ("    delta = START", "    delta = START\n    model.train()"),
    "pixels in 0…255 units": (
        "    delta = START",
        "    eps, step_size = eps / 255, step_size / 255\n    delta = START",
    ),
    "project after the step, not before": (
        "        point = (x + delta).clamp(0, 1)\n    return best",
        "        point = (x + delta + step_size * grad.sign()).clamp(0, 1)\n    return best",
    ),
    "no projection onto the ball around x": ("        delta = delta.clamp(-eps, eps)\n", ""),
    "no clamp to [0, 1]": (
        "        point = (x + delta).clamp(0, 1)\n    return",
        "        point = x + delta\n    return",
    ),
    "sign lost: the loss goes down": ("loss = F.cross", "loss = -F.cross"),
    "the model's own prediction in place of y": (
        "    delta = START",
        "    y = model(x).argmax(dim=1)\n    delta = START",
    ),
    "the points on the way are not kept, or that of the smallest loss is": (
        "        better = loss > best_loss",
        "        better = loss < best_loss.abs()",
    ),
    "a step too few, or the last point is not looked at": ("        if k == steps:", "        if k == steps - 1:"),
    "a step too many": ("    delta = START", "    steps += 1\n    delta = START"),
    "a number per sample is spread over dimensions that x does not have": (
        "        delta = delta.clamp(-eps, eps)\n",
        "        delta = delta.clamp(-eps, eps) * (loss < 99)[:, None, None, None]\n",
    ),
    "nothing moved": ("        point = (x + delta).clamp(0, 1)\n    return best", "    return best"),
    "the ball of ℓ2 instead of ℓ∞": (
        "delta.clamp(-eps, eps)",
        "delta * (eps / delta.flatten(1).norm(dim=1)).clamp(max=1).reshape(-1, *[1] * (x.dim() - 1))",
    ),
    "the step is the gradient, not its sign": ("grad.sign()", "grad * 0.05"),
    "batch-dependent: samples share something that each should have alone": (
        "better = loss > best_loss",
        "better = (loss.mean() > best_loss.mean()).expand(len(x))",
    ),
    "the loop ends early": ("        if k == steps:", "        if k == 3:"),
    "the point is not the best of the ball": (
        "    delta = START",
        "    step_size *= 0.1\n    delta = START",
    ),
    "last iterate, not the best": ("    return best", "    return point.detach()"),
    "gradients add up from step to step": (
        "        (grad,) = torch.autograd.grad(loss.sum(), point)",
        "        total = torch.autograd.grad(loss.sum(), point)[0] + (0 if k == 0 else total)\n        grad = total",
    ),
    "a step does not follow the gradient at the current point": (
        "        (grad,) = torch.autograd.grad(loss.sum(), point)",
        "        grad = torch.autograd.grad(loss.sum(), point)[0] if k == 0 else grad",
    ),
}


def function(source: str, *replaced: tuple[str, str]) -> Callable[..., Any]:
    """The last function of a source, after replacements that must all find their text."""
    found: Callable[..., Any] = run(source, *replaced, F=torch.nn.functional)["attack"]
    return found


@pytest.mark.slow
@every("start", STARTS)
def test_a_right_pgd_passes(start: str) -> None:
    for seed in range(0, 50, 10):
        check.pgd(function(PGD, ("START", start)), seed=seed)


@pytest.mark.slow
@every("name", PGD_MUTANTS)
def test_each_mutant_of_pgd_is_named(name: str) -> None:
    mutant = function(PGD, PGD_MUTANTS[name], ("START", STARTS[0]))
    for seed in (0, 10):
        assert cause_of(check.pgd, mutant, seed=seed) == name


def test_a_step_down_is_named_where_the_best_point_is_x() -> None:
    down = function(PGD, ("step_size * grad", "-step_size * grad"), ("START", STARTS[0]))
    assert cause_of(check.pgd, down) == "sign lost: the loss goes down"


def test_a_random_start_outside_of_the_box_is_not_called_batch_dependent() -> None:
    """Whether it is the best point, and so is returned, is chance, in a batch and alone."""
    start = ("    point = (x + delta).clamp(0, 1)\n    for", "    point = x + delta\n    for")
    outside = function(PGD, start, ("START", STARTS[1]))
    causes = []
    for seed in range(20):
        torch.manual_seed(seed)
        try:
            check.pgd(outside, seed=seed)
        except check.Wrong as wrong:
            causes.append(wrong.cause)
    assert len(causes) > 5 and set(causes) == {"no clamp to [0, 1]"}


def test_other_right_ways_pass() -> None:
    """The library's loop without its early stop, and one sample after the other."""

    def one_by_one(model: Any, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
        right = function(PGD, ("START", STARTS[1]))
        return torch.cat([right(model, x[i : i + 1], y[i : i + 1], *rest) for i in range(len(x))])

    check.pgd(one_by_one)
    last = function(PGD, ("START", STARTS[0]), PGD_MUTANTS["last iterate, not the best"])
    check.pgd(last, best=False)


def test_hints_come_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    last = function(PGD, ("START", STARTS[0]), PGD_MUTANTS["last iterate, not the best"])
    shown = []
    for hints in (1, 2, 3, 9):
        with pytest.raises(check.Wrong) as wrong:
            check.pgd(last, hints=hints)
        shown.append(str(wrong.value))
    assert [text.count("Hint ") for text in shown] == [1, 2, 3, 3]
    assert [f"hints={n + 1}" in text for n, text in enumerate(shown, 1)] == [True, True, False, False]
    assert all(text.startswith("pgd: a point with a larger loss") for text in shown)
    assert capsys.readouterr().out == ""


def test_honest_steps_use_most_of_the_slack_at_a_peak() -> None:
    """So the bound holds for every right PGD, and the last of two neighbors may not satisfy it."""
    case, slack = peak_case((1,), seed=3, count=200, eps=0.1, alpha=0.03)
    point = case.x.clone()
    seen = []
    for _ in range(30):
        seen.append(1.0 - lead(case.model, point))
        point = point + 0.03 * (case.expected - point).sign()
    best, last = torch.stack(seen).amin(dim=0), seen[-1]
    assert bool((best <= slack + 1e-9).all()) and float((best / slack).max()) > 0.9
    assert 0.2 < float((last > slack).double().mean()) < 0.8


FGSM = """
def attack(model, x, y, eps):
    point = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
    return (x + eps * grad.sign()).clamp(0, 1)
"""


def test_fgsm() -> None:
    check.fgsm(function(FGSM))
    assert cause_of(check.fgsm, function(FGSM, ("x + eps", "x - eps"))) == "sign lost: the loss goes down"
    assert cause_of(check.fgsm, function(FGSM, (".clamp(0, 1)", ""))) == "no clamp to [0, 1]"
    assert cause_of(check.fgsm, function(FGSM, ("eps * grad", "eps / 255 * grad"))) == "pixels in 0…255 units"
    assert cause_of(check.fgsm, function(FGSM, ("grad.sign()", "grad / grad.norm()"))) != ""
    of_the_caller = function(FGSM, ("x.clone().requires_grad_()", "x.requires_grad_()"))
    assert cause_of(check.fgsm, of_the_caller) == "x.requires_grad was set on the caller's tensor"


def test_projections_of_the_library_pass() -> None:
    for norm in ("l1", "l2", "linf"):
        check.projection(get_norm(norm).project, norm)  # type: ignore[arg-type]


def column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def scaled(delta: Tensor, eps: Tensor, order: float) -> Tensor:
    return delta * column((eps / torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)).clamp(max=1))


def test_each_mutant_of_a_projection_is_named() -> None:
    exact, size = get_norm("l1").project, get_norm("l1").length
    mutants: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "it always scales to the surface": lambda d, e: d * column(e / size(d)),
        "a point of the set, not the nearest": lambda d, e: scaled(d, e, 1),
        "the length is not that of this set": lambda d, e: scaled(d, e, 2),
        "the projection stops short of the set": lambda d, e: exact(d, torch.where(e < size(d), 1.01 * e, e)),
        "δ was changed in place": lambda d, e: d.mul_(0.5),
        "no return": lambda d, e: None,
        "what lies inside is changed, too": lambda d, e: (d.abs() - column(e)).clamp_min(0) * d.sign(),
        "signs lost": lambda d, e: torch.where(column(e >= size(d)), d, exact(d, e).abs()),
        "batch-dependent: samples share something that each should have alone": lambda d, e: torch.where(
            column(e >= size(d)), d, exact(d, e.amin().expand_as(e))
        ),
    }
    for name, mutant in mutants.items():
        assert cause_of(check.projection, mutant, "l1") == name
    for inside_too, cause in (
        (lambda d, e: d * (column(e) / d.norm()).clamp(max=1), "batch-dependent"),  # one length for all
        (lambda d, e: d * column((e / get_norm("l2").length(d) ** 2).clamp(max=1)), "what lies inside is changed, too"),
    ):
        assert cause_of(check.projection, inside_too, "l2").startswith(cause)


def test_the_shortfall_bounds_the_distance_to_the_projection() -> None:
    """For points of the set that are not the nearest, against the exact projection."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    for norm in ("l1", "l2", "linf"):
        ball, eps = BALLS[norm], BALLS[norm].length(delta) * 0.5
        nearest = get_norm(norm).project(delta, eps)
        other = get_norm(norm).project(nearest + 0.3 * torch.randn(delta.shape, generator=generator), eps)
        assert float(shortfall(ball, delta, nearest, eps).max()) < 1e-6
        bound = shortfall(ball, delta, other, eps) * delta.norm(dim=1)
        distance = (other - nearest).norm(dim=1)
        assert bool((distance <= bound + 1e-9).all()) and float(distance.min()) > 1e-3


@pytest.mark.slow
def test_the_library_does_not_load_it() -> None:
    code = "import sys, robustlab, robustlab.attacks; print([m for m in sys.modules if 'teaching' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pgd_may_stop_and_may_take_images_alone() -> None:
    """Who leaves a sample once it is misclassified, or reads three dimensions per sample, is right where it is said."""
    stop = (
        "delta.clamp(-eps, eps)\n",
        "delta.clamp(-eps, eps)\n        out = model(point).argmax(dim=1) != y\n"
        "        delta[out] = (point.detach() - x)[out]\n",
    )
    stopping = function(PGD, ("START", STARTS[0]), stop)
    check.pgd(stopping, stops=True)
    with pytest.raises(check.Wrong):
        check.pgd(stopping)

    def of_images(model: Any, x: Tensor, *rest: Any) -> Any:
        assert x.dim() == 4
        return function(PGD, ("START", STARTS[0]))(model, x, *rest)

    check.pgd(of_images, images=True)
    for name in ("no clamp to [0, 1]", "last iterate, not the best", "sign lost: the loss goes down"):
        with pytest.raises(check.Wrong) as wrong:
            check.pgd(function(PGD, PGD_MUTANTS[name], ("START", STARTS[0])), stops=True, images=True)
        assert wrong.value.cause == name


def test_no_point_of_a_safe_ball_is_misclassified() -> None:
    for shape in ((3,), (2, 3, 3)):
        safe = corner_case(shape, seed=5, count=20, safe=True)
        below, _ = peak_case(shape, seed=5, count=20, eps=0.1, alpha=0.01, height=-0.5)
        for case in (safe, below):
            generator = torch.Generator().manual_seed(1)
            share = 2 * torch.rand(300, *case.x.shape, generator=generator, dtype=case.x.dtype) - 1
            tried = torch.cat([(case.x + 0.1 * share).clamp(0, 1), case.expected[None]]).flatten(0, 1)
            assert bool((lead(case.model, tried) < 0).all())
            assert float(lead(case.model, case.expected).max()) > -1
