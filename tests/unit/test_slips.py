"""What is likely meant: legal calls that are hardly intended warn once and name the fix; illegal ones name it too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.domain import Box
from robustlab.attacker.victim import Victim
from robustlab.attacks import (
    apgd,
    cw,
    ddn,
    fab,
    feature_collision,
    feature_modification,
    fgsm,
    fmn,
    gradient_matching,
    pgd,
    sigma_zero,
    square,
)
from robustlab.attacks.poisoning.evaluate_poisoning import poisoning_control
from robustlab.defenses import adversarial_training, robust_validation
from robustlab.evaluation import Claim, checklist
from robustlab.training.fit import cross_entropy, fit
from robustlab.verification import certify, verify
from tests.suite.cases import noise_box
from tests.suite.models import Then, mlp

SHAPE = (3, 8, 8)
Attack = Callable[..., Any]


def problem(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = mlp(shape, 3, dtype), noise_box(4, shape, dtype)
    return model, x, model(x).argmax(1)


def warned(call: Callable[[], object]) -> list[str]:
    """What a call warns of, every time that it does."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in told]


# The box -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [cw, ddn, fmn, fab, sigma_zero])
def test_an_infinite_box_is_refused(attack: Attack) -> None:
    model, x, y = problem()
    for box in ((-torch.inf, torch.inf), (0.0, torch.inf), (torch.zeros(3, 1, 1), torch.full((3, 1, 1), torch.inf))):
        with pytest.raises(ValueError, match=r"^bounds: want finite ends, .* got \("):
            attack(Victim(model, bounds=box), x, y)


@pytest.mark.parametrize(
    ("dtype", "wide", "fits"),
    [(torch.float32, 1e20, 1e19), (torch.bfloat16, 1e20, 1e19), (torch.float16, 300.0, 255.0)],
)
def test_a_box_whose_lengths_overflow_is_refused(dtype: torch.dtype, wide: float, fits: float) -> None:
    x = noise_box(2, (3,), dtype)
    with pytest.raises(ValueError, match=r"^bounds: want ends whose squared distance (b?float\d\d) can hold, got"):
        Box(0.0, wide).check(x)
    with pytest.raises(ValueError, match=r"^bounds: want ends whose squared"):
        Box(torch.zeros(3), torch.tensor([1.0, wide, 1.0])).check(x)
    Box(0.0, fits).check(x)


def test_a_box_much_wider_than_x() -> None:
    model, x, y = problem()
    (told,) = warned(lambda: ddn(Victim(model, bounds=(-500.0, 500.0)), x, y, steps=2))
    assert told.startswith("bounds: the box is 1000 wide, but x spans only [0, 1]") and "the range of valid" in told
    assert not warned(lambda: ddn(Victim(model, bounds=(-50.0, 50.0)), x, y, steps=2))
    black = torch.zeros_like(x)
    assert not warned(lambda: ddn(Victim(model, bounds=(0.0, 255.0)), black, model(black).argmax(1), steps=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_normalized_data_are_inside_the_normalized_box(dtype: torch.dtype, as_tensors: bool) -> None:
    """MNIST's 0 and 1, normalized in float32, pass the ends as Python computes them by a unit in the last place."""
    x = ((noise_box(4, (1, 4, 4), dtype) - 0.1307) / 0.3081).contiguous()
    low, high = (0 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081
    if dtype == torch.float32:
        assert float(x.max()) > float(torch.tensor(high)), "the test is too gentle"
    bounds = (
        (torch.full((1, 1, 1), low, dtype=dtype), torch.full((1, 1, 1), high, dtype=dtype))
        if as_tensors
        else (low, high)
    )
    victim = Victim(mlp((1, 4, 4), 3, dtype), bounds=bounds)
    result = pgd(victim, x, eps=0.3, steps=3)
    ends = Box(*bounds).ends(x)
    assert bool(((result.x_adv >= ends[0]) & (result.x_adv <= ends[1])).all())
    again = pgd(victim, result.x_adv, eps=0.3, steps=3)
    assert bool(again.x_adv.isfinite().all())
    with pytest.raises(ValueError, match=r"^x: want values in"):
        pgd(victim, x * (1 + 1e-6), eps=0.3)


def test_a_result_is_inside_its_own_box() -> None:
    """The end 0.3 is not one that float32 can hold."""
    model, x, y = problem(dtype=torch.float32)
    victim = Victim(model, bounds=(0.0, 0.3))
    result = pgd(victim, 0.3 * x, y, eps=0.2, steps=3)
    assert float(result.x_adv.max()) == float(torch.tensor(0.3))
    pgd(victim, result.x_adv, eps=0.2, steps=3)


# Inputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: 255 * x, r"want values in \[0, 1\], got values in \[0.0, 255.0\]; if these are bytes, say x / 255"),
        (
            lambda x: 1.001 * x / x.max(),
            r"want values in \[0, 1\], .*; if resizing or rounding has overshot, say x.clamp\(0, 1\);",
        ),
        (
            lambda x: x / x.max() - 0.02,
            r"want values in \[0, 1\], .*; if resizing or rounding has overshot, say x.clamp",
        ),
        (lambda x: 2 * x - 1, r"want values in \[0, 1\], .*; Victim\(model, bounds=\(-1, 1\)\) takes them as they are"),
        (lambda x: (x - 0.1307) / 0.3081, r"want values in \[0, 1\], .* Victim\(model, bounds=\(low, high\)\) takes"),
        (lambda x: x.index_fill(0, torch.tensor([1, 2]), torch.nan), r"want numbers, got NaN in rows \[1, 2\]"),
    ],
    ids=["bytes", "above", "below", "around 0", "normalized", "NaN"],
)
def test_inputs_outside_the_box(change: Callable[[Tensor], Tensor], message: str) -> None:
    model, x, _ = problem()
    with pytest.raises(ValueError, match="^x: " + message):
        pgd(model, change(x), eps=0.1)


def test_the_advice_names_what_the_caller_can_give() -> None:
    """Trainers take bounds=, verifiers box=, and who has only [0, 1] advises no other range."""
    model, x, y = problem()
    bytes_ = 255 * x
    with pytest.raises(ValueError, match=r"say x / 255; bounds=\(0, 255\) takes them as they are$"):
        adversarial_training(eps=0.1)(model, bytes_, y, ids=torch.arange(4), seed=0)
    with pytest.raises(ValueError, match=r"say x / 255; bounds=\(0, 255\) takes them as they are$"):
        robust_validation((bytes_, y), eps=0.1)
    with pytest.raises(ValueError, match=r"say x / 255; box=\(0, 255\) takes them as they are$"):
        verify(model, bytes_, y, eps=0.1)
    with pytest.raises(ValueError, match=r"say x / 255$"):
        feature_modification((bytes_, y), rate=1.0, eps=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [pgd, square])
def test_channels_at_the_end(attack: Attack) -> None:
    """A net that only flattens takes them in silence: a warning; for a convolution an error in words of images."""
    x = noise_box(3, (8, 8, 3), torch.float64)
    (told,) = warned(lambda: attack(mlp((8, 8, 3), 3), x, eps=0.1))
    assert told.startswith(
        "x: want images (N, C, H, W), got shape (3, 8, 8, 3); if that is (N, H, W, C), say x.permute"
    )
    convolves = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(3)).double()
    convolves(x.permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"^x: want images \(N, C, H, W\), got shape \(3, 8, 8, 3\); .*x.permute"):
        attack(convolves, x, eps=0.1)
    assert not warned(lambda: attack(convolves, x.permute(0, 3, 1, 2), eps=0.1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bool])
def test_one_hot_labels(dtype: torch.dtype) -> None:
    model, x, y = problem()
    one_hot = nn.functional.one_hot(y, 3).to(dtype)
    with pytest.raises((TypeError, ValueError), match=r"^y: want .*; if these are one-hot, say y.argmax\(1\)"):
        pgd(model, x, one_hot, eps=0.1)


# The model's answer --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_probabilities_taken_for_logits(dtype: torch.dtype) -> None:
    model, x, y = problem(dtype=dtype)
    softmax = Then(model, lambda z: z.softmax(dim=1))
    for attack in (pgd, square):
        (told,) = warned(lambda: attack(softmax, x, y, eps=0.1))  # noqa: B023
        assert told.startswith("model: its outputs sum to one") and 'Victim(model, output="probs")' in told
        assert not warned(lambda: attack(Victim(softmax, output="probs"), x, y, eps=0.1))  # noqa: B023
        assert not warned(lambda: attack(model, x, y, eps=0.1))  # noqa: B023


@pytest.mark.parametrize("objective", [cross_entropy, adversarial_training(eps=0.1)])
def test_training_on_probabilities(objective: Any) -> None:
    """The cross-entropy of probabilities is bounded, and its gradient vanishes where the model is sure."""
    model, x, y = problem()
    softmax = Then(model, lambda z: z.softmax(dim=1))
    (told,) = warned(lambda: fit(softmax, (x, y), objective=objective, epochs=1))
    assert told.startswith("model: its outputs sum to one") and "leave the softmax out" in told
    assert not warned(lambda: fit(model, (x, y), objective=objective, epochs=1))


# Radii ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("attack", [fgsm, apgd, pgd, fab])
def test_radii_wider_than_the_box(attack: Attack) -> None:
    model, x, y = problem()
    (told,) = warned(lambda: attack(model, x, y, eps=8))
    assert told == ("eps: a ball of radius 8 in linf holds the whole box, whose diameter is 1; did you mean 8/255?")
    for norm, whole in (("l2", 192**0.5), ("l1", 192.0), ("linf", 1.0)):
        assert len(warned(lambda: attack(model, x, y, norm=norm, eps=1.01 * whole))) == 1  # noqa: B023
        assert not warned(lambda: attack(model, x, y, norm=norm, eps=whole))  # noqa: B023
    bytes_ = Then(model, lambda z: z)
    (told,) = warned(lambda: attack(Victim(bytes_, bounds=(0.0, 255.0)), 255 * x, y, eps=256.0))
    assert told.endswith("whose diameter is 255; radii are in units of x")
    some = torch.tensor([0.1, 0.1, 0.1, 4.0], dtype=torch.float64)
    assert len(warned(lambda: attack(model, x, y, eps=some))) == 1


ELSEWHERE: dict[str, Callable[[nn.Module, Tensor, Tensor, float], object]] = {
    "crown": lambda model, x, y, eps: certify(model, x, y, eps=eps),
    "ibp": lambda model, x, y, eps: certify(model, x, y, eps=eps, method="ibp"),
    "complete": lambda model, x, y, eps: verify(model, x, y, eps=eps, timeout=1.0),
    "feature_modification": lambda model, x, y, eps: feature_modification((x, y), rate=0.5, eps=eps),
    "gradient_matching": lambda model, x, y, eps: gradient_matching(
        (x, torch.arange(4) % 2), x[:1], 0, rate=0.5, eps=eps, model=model, steps=1, restarts=1, augment=None
    ),
    "feature_collision": lambda model, x, y, eps: feature_collision(
        (x, torch.arange(4) % 2), x[:1], 0, rate=0.5, eps=eps, model=model, steps=1
    ),
    "control": lambda model, x, y, eps: poisoning_control(
        (x, torch.arange(4) % 2), x[:1], 0, rate=0.5, eps=eps, kind="noise"
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_radii_wider_than_the_box_elsewhere(name: str) -> None:
    """Verifiers would say of no sample that it is safe, and poisons would be noise: in silence."""
    model, x, y = problem()
    (told,) = warned(lambda: ELSEWHERE[name](model, x, y, 8.0))
    assert told == ("eps: a ball of radius 8 in linf holds the whole box, whose diameter is 1; did you mean 8/255?")
    assert not warned(lambda: ELSEWHERE[name](model, x, y, 1.0))


@pytest.mark.filterwarnings("ignore:eps")
@pytest.mark.parametrize("attack", [fgsm, apgd, square])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_ball_that_holds_the_box_is_the_box(attack: Attack, norm: str) -> None:
    """Radii whose squares overflow give what one beyond the box's diameter gives."""
    model, x, y = problem(dtype=torch.float32)
    few = {"queries": 30} if attack is square else {}
    large, huge = (attack(model, x, y, norm=norm, eps=eps, **few) for eps in (20.0, 3e38))
    assert torch.equal(large.x_adv, huge.x_adv) and bool(large.success.any())


def test_warnings_point_at_the_caller() -> None:
    model, x, y = problem()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fgsm(model, x, y, eps=8)
        pgd(Then(model, lambda z: z.softmax(dim=1)), x, y, eps=0.1)
    assert [one.filename for one in told] == [__file__] * 2
    with pytest.warns(UserWarning, match="^here$") as at_home:
        checks.warn("here")
    assert at_home[0].filename == __file__


def test_who_judges_scores_is_not_warned_of_them() -> None:
    """The checklist reports on saturated outputs itself; a model of two constant scores 1 and 0 has none."""
    model, x, y = problem()
    softmax = Then(model, lambda z: z.softmax(dim=1))
    told = warned(lambda: checklist(softmax, x, y, claim=Claim(eps=0.1), steps=4, queries=4))
    assert not [one for one in told if one.startswith("model")]
    step = Then(model, lambda z: nn.functional.one_hot(z.argmax(1), 3).double() + 0 * z)
    assert not warned(lambda: square(step, x, y, eps=0.1, queries=4))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3, 1, 1)])
def test_an_end_per_channel_in_another_shape_is_told_its_own(shape: tuple[int, ...]) -> None:
    x, ends = torch.rand(2, 3, 5, 5), (torch.zeros(shape), torch.ones(shape))
    with pytest.raises(ValueError, match=r"^bounds: want .* got .*; for one per channel say end\.reshape\(3, 1, 1\)$"):
        pgd(Victim(mlp((3, 5, 5), 3, torch.float32), bounds=ends), x, eps=0.1)
    with pytest.raises(ValueError, match=r"^bounds: want ends that broadcast .*, got \(4,\)$"):
        pgd(Victim(mlp((3, 5, 5), 3, torch.float32), bounds=(torch.zeros(4), torch.ones(4))), x, eps=0.1)
