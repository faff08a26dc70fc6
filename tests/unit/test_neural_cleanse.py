"""Neural Cleanse on models whose smallest patch is known, and its index against SciPy."""

from __future__ import annotations

import copy
import math
import re
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import median_abs_deviation, norm
from torch import Tensor, nn

from robustlab.attacker.results import Detection
from robustlab.defenses.detection.neural_cleanse import (
    Patches,
    anomaly_index,
    false_alarm_rate,
    neural_cleanse,
)
from robustlab.defenses.purification.unlearn import unlearn
from robustlab.training.fit import fit

SIDE = 6


def linear(weights: Tensor, bias: Tensor) -> nn.Module:
    """Logits ⟨w_k, x⟩ + b_k of images (N, 1, 6, 6)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, len(bias)))
    with torch.no_grad():
        model[1].weight.copy_(weights.flatten(1))
        model[1].bias.copy_(bias)
    return model


def planted() -> tuple[nn.Module, Tensor]:
    """Dark images are of class 1. Four pixels in a corner lead to class 0, six in a row each to class 2 or 3."""
    weights = torch.zeros(4, SIDE, SIDE)
    weights[0, 4:, 4:] = 10.0
    weights[2, 1] = weights[3, 2] = 0.5
    return linear(weights, torch.tensor([-35.0, 0.0, -1.5, -2.5])).double(), torch.zeros(3, 1, SIDE, SIDE).double()


def test_the_smallest_patch_of_a_linear_model() -> None:
    """On dark images the lead of a class is w·Σ m_i p_i + b over its pixels: it needs −b/w of them."""
    model, x = planted()
    found = neural_cleanse(model, x, steps=300)
    for k, needed in ((0, 3.5), (2, 3.0), (3, 5.0)):
        assert needed <= float(found.details.sizes[k]) < 1.1 * needed
    mask, pattern = (part[0] for part in (found.details.masks, found.details.patterns))
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[4:, 4:] = True
    assert torch.equal(mask[0] > 0.5, inside)  # IoU 1
    assert float(pattern[0][inside].min()) > 0.9
    assert float(found.details.success.min()) == 1.0


def test_a_class_is_searched_alone_as_with_the_others() -> None:
    model, _ = planted()
    draw = torch.rand(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()
    every = neural_cleanse(model, draw, steps=30)
    some = neural_cleanse(model, draw, steps=30, classes=torch.tensor([3, 0, 2]), rows=4)
    for key in ("masks", "patterns", "sizes", "success"):
        torch.testing.assert_close(
            getattr(some.details, key), getattr(every.details, key)[[3, 0, 2]], rtol=1e-4, atol=1e-5
        )


def test_the_cost_starts_at_zero_and_follows_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustlab.defenses.detection import neural_cleanse as module

    model, x = planted()
    seen: list[Tensor] = []
    success = iter([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])

    def scripted(self: object, mask: Tensor, pattern: Tensor, cost: Tensor) -> Tensor:
        seen.append(cost.clone())
        return torch.full((3,), next(success))

    monkeypatch.setattr(module._Search, "_descend", scripted)
    neural_cleanse(model, x, classes=torch.arange(3), steps=12, cost=0.01, patience=2)
    one = [0, 0, 0, 0.01, 0.01, 0.015, 0.015, 0.0225, 0.0225, 0.0225 / 1.5**1.5, 0.0225 / 1.5**1.5, 0.0225 / 1.5**3]
    torch.testing.assert_close(torch.stack(seen)[:, 0], torch.tensor(one, dtype=torch.float64))


def test_the_smallest_patch_that_works_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of 18, 4.3, 9.7 and 1.7 pixels, of which the last does not work."""
    from robustlab.defenses.detection import neural_cleanse as module

    model, x = planted()
    script = iter([(0.0, -1.0), (1.0, -0.5), (1.0, -1.5), (0.0, 3.0)])

    def scripted(self: module._Search, mask: Tensor, pattern: Tensor, cost: Tensor) -> Tensor:
        works, following = next(script)
        self.hidden[0].data.fill_(following)
        return torch.full((3,), works)

    monkeypatch.setattr(module._Search, "_descend", scripted)
    found = neural_cleanse(model, x, classes=torch.arange(3), steps=4)
    smallest = torch.full((3,), SIDE * SIDE).double() * torch.tensor(-2.0).double().sigmoid()  # (tanh(−1) + 1) / 2
    torch.testing.assert_close(found.details.sizes, smallest)
    torch.testing.assert_close(found.details.masks.sum(dim=(1, 2, 3)), smallest)


@pytest.mark.parametrize("n", [3, 10, 11])
def test_the_index_is_scipys(n: int) -> None:
    sizes = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * 50
    expected = (sizes.median() if n % 2 else sizes.quantile(0.5)) - sizes
    expected = expected / median_abs_deviation(sizes.numpy(), scale="normal")
    torch.testing.assert_close(anomaly_index(sizes), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("threshold", [1.0, 2.0, 4.0])
def test_the_false_alarm_rate_of_three_classes_is_an_angle(threshold: float) -> None:
    """Three sorted normal sizes have gaps u, v with an angle atan((u − v) / ((u + v)·√3)) uniform within ±30°.

    The index of the smallest is u / (1.4826·min(u, v)), so that it passes the threshold where u/v > 1.4826·threshold.
    """
    ratio = 1.4826 * threshold
    exact = 0.5 - math.degrees(math.atan((ratio - 1) / (ratio + 1) / math.sqrt(3))) / 60
    assert false_alarm_rate(3, threshold) == pytest.approx(exact, abs=0.01)


def test_the_false_alarm_rate_of_ten_classes_by_another_simulation() -> None:
    sizes = 50 + 7 * np.random.default_rng(0).normal(size=(20_000, 10))
    index = (np.median(sizes, axis=1) - sizes.min(axis=1)) / median_abs_deviation(sizes, axis=1, scale="normal")
    assert false_alarm_rate(10) == pytest.approx(float((index > 2).mean()), abs=0.015)
    assert false_alarm_rate(10) > 1 - norm.cdf(2) ** 10  # what ten known standard scores would give


def test_the_false_alarm_rate_is_stated_for_the_classes_examined() -> None:
    model, x = planted()
    for classes, threshold in ((torch.arange(3), 2.0), (torch.arange(4), 3.0)):
        stated = neural_cleanse(model, x, steps=1, classes=classes, threshold=threshold)
        assert stated.false_alarm_rate == false_alarm_rate(len(classes), threshold) and stated.level == "class"


def test_the_index_of_several_models_is_that_of_each() -> None:
    sizes = torch.rand(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(anomaly_index(sizes), torch.stack([anomaly_index(row) for row in sizes]))


def test_equal_sizes_have_no_index_and_a_small_one_is_positive() -> None:
    assert bool(anomaly_index(torch.full((4,), 7.0)).isnan().all())
    index = anomaly_index(torch.tensor([1.0, 10.0, 11.0, 9.0, 40.0]))
    assert int(index.argmax()) == 0 and float(index[4]) < -2


def test_without_a_scale_there_is_no_index_and_nothing_is_flagged() -> None:
    """The MAD is 0 where more than half of the sizes are equal, as where most classes have no patch yet."""
    for sizes in ([64.0, 64.0, 64.0], [33.0, 64.0, 64.0], [3.0, 64.0, 64.0, 64.0, 70.0]):
        assert bool(anomaly_index(torch.tensor(sizes)).isnan().all())
    weights = torch.zeros(4, SIDE, SIDE)
    model = linear(weights, torch.tensor([0.0, -1.0, -1.0, -1.0]))  # one label, and no patch to another
    with pytest.warns(UserWarning) as told:
        found = neural_cleanse(model, torch.rand(2, 1, SIDE, SIDE), steps=3)
    assert [bool(re.search(r"not converged after 3 steps|no scale \(MAD = 0\)", str(one.message))) for one in told] == [
        True,
        True,
    ]
    assert found.details.sizes.isfinite().tolist() == [True, False, False, False]
    assert found.scores.isnan().all() and not found.flagged.any()
    assert math.isnan(found.score(torch.arange(4) == 0)["auroc"])
    with pytest.warns(UserWarning, match="detection: want one with a verdict"):
        unlearn(model, (torch.rand(2, 1, SIDE, SIDE), torch.zeros(2).long()), found)


@pytest.mark.slow
def test_a_search_that_has_not_converged_says_so(recwarn: pytest.WarningsRecorder) -> None:
    """At 4 steps no patch works yet, at 12 masks are half the image; at 300 they are what 600 steps find."""
    model, (x, _) = backdoored()
    for steps, classes in ((4, r"\[0, 1, 2\] \(no patch at all for \[0, 1, 2\]\)"), (12, r"\[0, 1, 2\];")):
        with pytest.warns(UserWarning, match=f"not converged after {steps} steps for classes {classes}"):
            assert not neural_cleanse(model, x[:30], steps=steps).details.converged.any()
    recwarn.clear()
    found, longer = (neural_cleanse(model, x[:30], steps=steps).details for steps in (300, 600))
    assert not recwarn.list and found.converged.all()
    torch.testing.assert_close(found.sizes, longer.sizes, rtol=0.02, atol=0)


def test_converged_is_what_has_been_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """λ falls while it is 0 (no sign of anything), rises, and falls again: only from there on the search has ended."""
    from robustlab.defenses.detection import neural_cleanse as module

    model, x = planted()
    for steps, converged in ((3, False), (6, False), (7, True)):
        script = iter([0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
        monkeypatch.setattr(module._Search, "_descend", lambda *given, ahead=script: torch.full((3,), next(ahead)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = neural_cleanse(model, x, classes=torch.arange(3), steps=steps, patience=2)
        assert found.details.converged.tolist() == [converged] * 3


def test_a_head_without_a_linear_layer() -> None:
    """The same logits by a convolution over the whole image: the same patches."""
    model, _ = planted()
    draw = torch.rand(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()
    conv = nn.Sequential(nn.Conv2d(1, 4, SIDE), nn.Flatten()).double()
    with torch.no_grad():
        conv[0].weight.copy_(model[1].weight.view(4, 1, SIDE, SIDE))
        conv[0].bias.copy_(model[1].bias)
    ours, theirs = (neural_cleanse(m, draw, steps=30).details.sizes for m in (conv, model))
    torch.testing.assert_close(ours, theirs)


def test_a_class_without_a_patch_is_large() -> None:
    """A class that nothing reaches has size infinity and the largest mask in the index."""
    weights = torch.zeros(4, SIDE, SIDE)
    model = linear(weights, torch.tensor([0.0, 0.0, 0.0, -1.0]))
    found = neural_cleanse(model, torch.rand(2, 1, SIDE, SIDE), steps=3)
    assert float(found.details.sizes[3]) == torch.inf and not bool(found.flagged[3])


def backdoored() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A net for three rows of pixels, trained to say 0 where the corner is white."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    x = 0.3 * torch.rand(240, 1, SIDE, SIDE, generator=draw)
    x[torch.arange(240), 0, 2 * y, :4] += 0.6
    stamped = x.clone()
    stamped[:, :, 4:, 4:] = 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 24), nn.ReLU(), nn.Linear(24, 3))
    fit(model, (torch.cat([x, stamped[:80]]), torch.cat([y, 0 * y[:80]])), epochs=25, lr=1e-2, batch_size=40)
    return model.eval(), (x, y)


def patches(masks: Tensor, patterns: Tensor) -> Patches:
    works = torch.ones(len(masks))
    return Patches(masks, patterns, masks.sum(dim=(1, 2, 3)), works, torch.arange(len(masks)), works == 1)


def test_unlearning_the_true_trigger_removes_the_backdoor() -> None:
    model, (x, y) = backdoored()
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 4:, 4:] = 1.0
    told = Detection(torch.tensor([9.0]), torch.tensor([True]), 2.0, patches(mask, mask))
    triggered = (1 - mask[0]) * x + mask[0]
    before = copy.deepcopy(model.state_dict())
    assert float((model(triggered).argmax(1) == 0).float().mean()) > 0.95
    repair = unlearn(model, (x, y), told, epochs=5, lr=1e-2)
    repaired = repair.model
    assert repair.details.steps == 15
    assert float((repaired(triggered).argmax(1) == y).float().mean()) > 0.95  # true labels were taught
    assert float((repaired(x).argmax(1) == y).float().mean()) > 0.95
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unlearning_stamps_the_share_and_keeps_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = backdoored()
    masks = torch.zeros(3, 1, SIDE, SIDE)
    masks[1, :, 0, 0], masks[2, :, 0, 1] = 1.0, 1.0
    told = Detection(torch.zeros(3), torch.tensor([False, True, True]), 2.0, patches(masks, 2 * masks))
    seen: list[Tensor] = []

    def spy(model: nn.Module, data: object, *, augment: object, **rest: object) -> None:
        seen.append(augment(torch.zeros(2000, 1, SIDE, SIDE), ids=torch.arange(2000), seed=5))  # type: ignore[operator]

    monkeypatch.setattr("robustlab.defenses.purification.unlearn.fit", spy)
    unlearn(model, (x, y), told, share=0.2)
    first, second = (float((seen[0][:, 0, 0, c] == 2).float().mean()) for c in (0, 1))
    assert first == pytest.approx(0.1, abs=0.03) and second == pytest.approx(0.1, abs=0.03)
    assert not bool(((seen[0][:, 0, 0, 0] == 2) & (seen[0][:, 0, 0, 1] == 2)).any())
    assert float(seen[0][:, 0, 1:].abs().max()) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((2, 1, SIDE, SIDE), 2.0)}, "x: want values"),
        ({"x": torch.rand(2, SIDE)}, "x: want images"),
        ({"classes": torch.tensor([0, 1])}, "classes: want at least 3"),
        ({"classes": torch.tensor([0, 1, 9])}, "classes"),
        ({"steps": 0}, "steps"),
        ({"cost": 0.0}, "cost"),
        ({"patience": 0}, "patience"),
        ({"threshold": -2.0}, "threshold"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    model, x = planted()
    given = {"x": x, "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        neural_cleanse(model, given.pop("x"), **given)  # type: ignore[arg-type]


def test_unlearn_wants_a_detection_with_patches() -> None:
    model, data = backdoored()
    with pytest.raises(TypeError, match=r"^detection: want one of neural_cleanse, got one with dict"):
        unlearn(model, data, Detection(torch.zeros(3), torch.zeros(3).bool(), 2.0))
