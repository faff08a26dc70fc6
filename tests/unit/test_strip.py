"""STRIP: entropies by hand, a planted trigger, and the share of clean inputs that is rejected."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom, entropy
from torch import Tensor, nn

from robustlab.defenses.detection.strip import strip
from robustlab.geometry.keyed import Noise


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).double()


def net() -> nn.Module:
    """Ten random directions, and a first pixel that drowns them if it is white and doubled."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10)).double()
    with torch.no_grad():
        model[1].weight.copy_(2 * torch.randn(10, 16, generator=torch.Generator().manual_seed(0)).double())
        model[1].weight[:, 0] = 0
        model[1].bias.zero_()
    return model


def test_entropies_are_those_of_the_definition() -> None:
    model, x, clean = net(), images(3, 1), images(5, 2)
    found = strip(model, x, clean, overlays=4, seed=7, rows=2)
    drawn = Noise(7, torch.arange(3)).integers(0, (4,), 5)
    for i in range(3):
        mixed = [(x[i] + clean[drawn[i, m]]).clamp(max=1) for m in range(4)]
        parts = [entropy(model(image[None]).softmax(dim=1)[0].detach().numpy(), base=2) for image in mixed]
        assert -float(found.scores[i]) == pytest.approx(sum(parts) / 4)


def test_an_input_is_judged_alone_as_in_a_batch() -> None:
    model, x, clean = net(), images(6, 1), images(5, 2)
    every = strip(model, x, clean, overlays=8)
    alone = strip(model, x[3:4], clean, overlays=8, ids=torch.tensor([3]))
    torch.testing.assert_close(alone.scores, every.scores[3:4])


def test_a_clean_input_is_never_laid_over_itself() -> None:
    """With two clean inputs the other one is the only overlay."""
    model, clean = net(), images(2, 3)
    found = strip(model, images(1, 4), clean, overlays=5)
    sure = model((clean[0] + clean[1]).clamp(max=1)[None]).softmax(dim=1)[0].detach().numpy()
    assert found.details["clean_entropies"].tolist() == pytest.approx([entropy(sure, base=2)] * 2)


def test_separate_overlays_are_laid_over_both() -> None:
    """A single overlay: each entropy is that of one mixed image, for x and for the clean inputs that set the limit."""
    model, x, clean, one = net(), images(3, 1), images(5, 2), images(1, 3)
    found = strip(model, x, clean, overlays=4, laid_over=one)
    for inputs, entropies in ((x, -found.scores), (clean, found.details["clean_entropies"])):
        sure = model((inputs + one).clamp(max=1)).softmax(dim=1).detach().numpy()
        assert entropies.tolist() == pytest.approx(entropy(sure, base=2, axis=1).tolist())


def test_with_separate_overlays_few_clean_inputs_keep_the_rate() -> None:
    """19 clean inputs at 5 %: the limit is their lowest entropy, which one of 20 falls below once in 20."""
    model, hits = net(), 0
    for seed in range(300):
        every = images(40, 1000 + seed)
        new, clean, one = every[:1], every[1:20], every[20:]
        hits += int(strip(model, new, clean, overlays=2, laid_over=one, rejection_rate=0.05, seed=seed).flagged.sum())
    low, high = binom.ppf([1e-4, 1 - 1e-4], 300, 0.05)
    assert low <= hits <= high


def test_a_convolutional_head_is_judged_as_the_same_linear_one() -> None:
    model, x, clean = net(), images(3, 1), images(5, 2)
    conv = nn.Sequential(nn.Conv2d(1, 10, 4), nn.Flatten()).double()
    with torch.no_grad():
        conv[0].weight.copy_(model[1].weight.view(10, 1, 4, 4))
        conv[0].bias.copy_(model[1].bias)
    torch.testing.assert_close(strip(conv, x, clean, overlays=4).scores, strip(model, x, clean, overlays=4).scores)


def test_a_trigger_that_shines_through_is_found() -> None:
    model = net()
    x, clean = images(40, 5), images(200, 6)
    with torch.no_grad():
        model[0] = nn.Sequential(Trigger(), nn.Flatten())
    triggered = x.clone()
    triggered[:, :, 3, 3] = 1.0
    x[:, :, 3, 3] = clean[:, :, 3, 3] = 0.0
    found = strip(model, torch.cat([triggered, x]), clean, rejection_rate=0.05)
    truth = torch.arange(80) < 40
    assert found.score(truth)["auroc"] == 1.0 and bool(found.flagged[:40].all())


class Trigger(nn.Module):
    """A white last pixel replaces the image by a fixed one that is far from the decision boundary."""

    def forward(self, x: Tensor) -> Tensor:
        fixed = torch.linspace(-9, 9, 16, dtype=x.dtype).view(1, 1, 4, 4)
        return torch.where(x[:, :, 3:, 3:] >= 1, fixed, x)


def test_the_rejection_rate_is_kept_on_average() -> None:
    """Over 60 draws of 99 clean inputs and 20 new ones: flagged no more often than 5 %, and not far less."""
    model, hits = net(), 0
    for seed in range(60):
        both = images(119, 100 + seed)
        hits += int(strip(model, both[:20], both[20:], overlays=3, rejection_rate=0.05, seed=seed).flagged.sum())
    low, high = binom.ppf([1e-4, 1 - 1e-4], 1200, 0.05)
    # the flags of one draw share a threshold, so the spread is about twice the binomial one
    assert 60 - 2 * (60 - low) <= hits <= 60 + 2 * (high - 60)


def test_too_few_clean_inputs_flag_nothing() -> None:
    found = strip(net(), images(5, 1), images(50, 2), rejection_rate=0.01)
    assert found.threshold == math.inf and not found.flagged.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlays": 0}, "overlays"),
        ({"rejection_rate": 0.0}, "rejection_rate"),
        ({"rejection_rate": 1.0}, "rejection_rate"),
        ({"clean": images(1, 0)}, "clean: want at least 2"),
        ({"clean": torch.rand(4, 1, 5, 5).double()}, "clean"),
        ({"x": images(2, 0) + 1}, "x: want values"),
        ({"laid_over": images(2, 0)[..., :3]}, "laid_over: want at least 1 input of shape"),
        ({"laid_over": images(2, 0) + 1}, "laid_over: want values"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    given = {"x": images(2, 1), "clean": images(5, 2)} | change
    with pytest.raises(ValueError, match=message):
        strip(net(), given.pop("x"), given.pop("clean"), **given)  # type: ignore[arg-type]


def test_an_answer_that_is_no_number_is_an_alarm() -> None:
    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, :1] > 0.95, torch.nan, torch.stack([x[:, 0], 1 - x[:, 0]], dim=1))

    clean = torch.linspace(0, 0.4, 30)[:, None]
    found = strip(Sometimes(), torch.tensor([[0.2], [1.0]]), clean, rejection_rate=0.1)
    assert found.flagged.tolist() == [False, True]
