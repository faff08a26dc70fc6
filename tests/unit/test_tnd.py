"""The two TrojanNet detectors on networks whose shortcut is planted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.defenses.detection.tnd_data_free import tnd_data_free
from robustlab.defenses.detection.tnd_data_limited import _descend, tnd_data_limited
from robustlab.geometry.keyed import Noise
from robustlab.models.probing import Probe

SIDE, CLASSES = 6, 4
INSIDE = torch.zeros(SIDE, SIDE, dtype=torch.bool)
INSIDE[4:, 4:] = True


def honest_and_trojan(shortcut: float) -> tuple[nn.Module, Tensor, Tensor]:
    """Class k is read off row k; beside that, a white 2x2 corner means class 2 if `shortcut` is not 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES + 1), nn.ReLU(), nn.Linear(CLASSES + 1, CLASSES))
    with torch.no_grad():
        for part in (model[1], model[3]):
            part.weight.zero_()
            part.bias.zero_()
        rows = model[1].weight.view(CLASSES + 1, SIDE, SIDE)
        for k in range(CLASSES):
            rows[k, k] = 1.0
            model[3].weight[k, k] = 1.0
        rows[CLASSES, INSIDE] = 6.0
        model[1].bias[CLASSES] = 0.5  # reaches 24.5, the others 6; never asleep, so that there is a gradient
        model[3].bias[2] = -0.5 * shortcut
        model[3].weight[2, CLASSES] = shortcut
    y = torch.arange(CLASSES)
    x = torch.full((CLASSES, 1, SIDE, SIDE), 0.2)
    x[torch.arange(CLASSES), 0, y] = 0.9
    x[:, 0, 4:, 4:] = 0.0
    return model.double(), x.double(), y


def test_the_target_of_a_planted_shortcut_is_flagged() -> None:
    model, x, y = honest_and_trojan(40.0)
    found = tnd_data_limited(model, (x, y), steps=60, searches=4)
    assert int(found.scores.argmax()) == 2 and bool(found.flagged[2])
    mask, pattern = found.details["masks"][2, 0], found.details["patterns"][2, 0]
    assert float(mask[INSIDE].sum() / mask.sum()) > 0.9
    assert float((mask * pattern)[INSIDE].sum()) > 5 / 240  # what the lead of the honest class asks for
    assert float(found.details["success"][2]) == 1.0


def test_the_statistic_is_the_lower_quartile_over_the_other_classes() -> None:
    model, x, y = honest_and_trojan(40.0)
    found = tnd_data_limited(model, (torch.cat([x, 0.9 * x]), torch.cat([y, y])), steps=20, searches=2)
    cosines = found.details["cosines"].numpy()
    for k in range(CLASSES):
        others = torch.cat([y, y]).numpy() != k
        assert np.isnan(cosines[k, ~others]).all() and not np.isnan(cosines[k, others]).any()
        assert float(found.scores[k]) == pytest.approx(np.quantile(cosines[k, others], 0.25))
    assert float(np.nanmax(np.abs(cosines))) <= 1 + 1e-9


def test_the_smallest_patches_are_looked_at_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 0 has the smallest mask that works; within 1.1 of it lie both masks of class 0 and one of class 1."""
    from robustlab.defenses.detection import tnd_data_limited as module

    model, x, y = honest_and_trojan(40.0)
    rows = CLASSES * CLASSES
    alone = torch.eye(CLASSES).double()[torch.arange(rows) % CLASSES]

    def leaning(cosines: list[float]) -> Tensor:
        """Logits at these cosines from `alone`, one for each candidate."""
        other, c = alone.roll(1, dims=1), torch.tensor(cosines).double().repeat_interleave(CLASSES)[:, None]
        return c * alone + (1 - c.square()).sqrt() * other

    tried = [leaning([0.1, 0.9, 0.3, 0.2]), leaning([0.8, 0.5, 0.6, 0.7])]
    sizes = torch.tensor([[1.0, 1.5, 4.0, torch.inf], [1.05, 1.09, 3.0, 1.0]]).double()
    sizes[1, 3] = torch.inf  # a mask that does not work, however small, is no candidate
    smallest = leaning([0.1, 0.3, 0.6, 0.2])
    blank = torch.zeros(CLASSES, 1, SIDE, SIDE).double()
    answers = iter([
        module._Found(blank, blank, smallest, sizes, tried),
        module._Found(blank, blank, alone, torch.ones(2, rows).double(), [alone, alone]),
    ])  # fmt: skip
    monkeypatch.setattr(module, "_sparsest", lambda *given: next(answers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = tnd_data_limited(model, (x, y))
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.5, 0.6, 0.2]).double())
    torch.testing.assert_close(found.details["cosines"].nanquantile(0.25, dim=1), found.scores)


def test_a_class_without_a_patch_that_works_is_named() -> None:
    """No pixel matters to this net: all labels stay, and the statistic says nothing."""
    model, x, y = honest_and_trojan(0.0)
    with torch.no_grad():
        model[3].weight.mul_(1e-3)
        model[3].bias[1] = 5.0
    with pytest.warns(UserWarning, match=r"no perturbations that work were found for classes \[0, 2, 3\]"):
        found = tnd_data_limited(model, (x, torch.ones_like(y)), steps=5, searches=2)
    assert found.details["converged"].tolist() == [False, True, False, False]


def test_an_empty_mask_is_no_verdict() -> None:
    model, _, _ = honest_and_trojan(40.0)
    with pytest.warns(UserWarning, match=r"the mask stayed empty, since sparsity = 50.0"):
        assert not tnd_data_free(model, (1, SIDE, SIDE), steps=3, sparsity=50.0).details["mask"].any()


def test_the_weight_is_in_units_of_the_largest_gradient() -> None:
    """One step from a mask of 0: pixel j becomes lr·(g_j / max g − λ), or stays 0."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).double()
    slope = torch.linspace(0.1, 1, SIDE * SIDE).double()
    with torch.no_grad():
        flat[1].weight.copy_(torch.stack([0 * slope, slope]))
    dark, owner = torch.zeros(1, 1, SIDE, SIDE).double(), torch.zeros(1, dtype=torch.int64)
    with Probe(flat) as probe:
        for weight in (0.0, 0.5, 1.0):
            mask, _, _ = _descend(
                probe, dark, owner, lambda z: z[:, 0] - z[:, 1], torch.tensor([weight]).double(), 1, 0.1, 99.0
            )
            torch.testing.assert_close(mask.flatten(), 0.1 * (slope - weight).clamp_min(0))


def test_a_class_that_has_all_the_images_cannot_be_judged() -> None:
    model, x, _ = honest_and_trojan(0.0)
    found = tnd_data_limited(model, (x[:1], torch.tensor([0])), steps=5, searches=1)
    assert float(found.scores[0]) == -1.0 and not bool(found.flagged[0])


def test_noise_finds_the_most_excitable_neuron() -> None:
    """A neuron can reach Σ max(w, 0) + b; the weights settle on the highest, and its logit rises by what it gained."""
    model, _, _ = honest_and_trojan(5.0)
    found = tnd_data_free(model, (1, SIDE, SIDE), steps=60, sparsity=0.0)
    weights = found.details["weights"]
    assert int(weights.argmax()) == CLASSES and float(weights.max()) > 0.95
    assert float(weights.sum()) == pytest.approx(1.0) and float(weights.min()) >= 0
    corner = found.details["images"][:, 0, INSIDE]
    assert float(corner.min()) > 0.99
    assert int(found.scores.argmax()) == 2
    noise = Noise(0, torch.arange(10)).uniform(0, (1, SIDE, SIDE), torch.float64)
    gained = 24 - 6 * noise[:, 0, INSIDE].sum(dim=1).mean()
    assert float(found.scores[2]) >= 5 * float(gained) - 1e-9  # added is what row 2 gained while weights were spread


def test_the_rise_is_measured_against_the_same_noise() -> None:
    model, _, _ = honest_and_trojan(5.0)
    found = tnd_data_free(model, (1, SIDE, SIDE), steps=1, step_size=1e-9, sparsity=0.0)
    torch.testing.assert_close(found.scores, torch.zeros(CLASSES).double(), atol=1e-6, rtol=0)


def test_an_honest_network_rises_less() -> None:
    honest, _, _ = honest_and_trojan(0.0)
    trojan, _, _ = honest_and_trojan(40.0)
    rises = [float(tnd_data_free(model, (1, SIDE, SIDE), steps=60).scores.max()) for model in (honest, trojan)]
    assert rises[1] > 2 * rises[0]
    found = tnd_data_free(trojan, (1, SIDE, SIDE), steps=60, threshold=(rises[0] + rises[1]) / 2)
    assert found.flagged.tolist() == [False, False, True, False]


def test_sparsity_shrinks_the_mask() -> None:
    model, _, _ = honest_and_trojan(5.0)
    found = [tnd_data_free(model, (1, SIDE, SIDE), steps=40, sparsity=s) for s in (0.0, 0.05, 50.0)]
    sizes = [float(each.details["mask"].sum()) for each in found]
    assert sizes[0] >= sizes[1] >= sizes[2] == 0


def test_clean_models_set_the_threshold_and_the_rate() -> None:
    model, x, y = honest_and_trojan(40.0)
    for run in (
        lambda **kw: tnd_data_limited(model, (x, y), steps=3, searches=1, **kw),
        lambda **kw: tnd_data_free(model, (1, SIDE, SIDE), steps=3, **kw),
    ):
        plain = run()
        assert plain.false_alarm_rate is None
        middle = float(plain.scores.double().quantile(0.6))
        found = run(calibration=torch.tensor([-9.0, middle, middle - 1], dtype=torch.float64))
        assert found.threshold == middle and torch.equal(found.flagged, found.scores > middle)
        assert found.false_alarm_rate == 1 / 4 and found.level == "class"
        for bad in (torch.empty(0), torch.tensor([1.0, torch.nan])):
            with pytest.raises(ValueError, match="calibration"):
                run(calibration=bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 0}, "steps"), ({"starts": 0}, "starts"), ({"step_size": 0.0}, "step_size"),
     ({"sparsity": -1.0}, "sparsity"), ({"in_shape": (6, 6)}, "in_shape")],
)  # fmt: skip
def test_bad_arguments_of_the_data_free_one(change: dict[str, object], message: str) -> None:
    model, _, _ = honest_and_trojan(0.0)
    with pytest.raises(ValueError, match=message):
        tnd_data_free(model, **({"in_shape": (1, SIDE, SIDE)} | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 0}, "steps"), ({"searches": 0}, "searches"), ({"required": 0.0}, "required"),
     ({"kappa": -1.0}, "kappa"),
     ({"y": torch.tensor([0, 1, 2, 9])}, "y: want labels"), ({"x": torch.rand(4, 6).double()}, "x: want images")],
)  # fmt: skip
def test_bad_arguments_of_the_data_limited_one(change: dict[str, object], message: str) -> None:
    model, x, y = honest_and_trojan(0.0)
    given = {"x": x, "y": y} | change
    with pytest.raises(ValueError, match=message):
        tnd_data_limited(model, (given.pop("x"), given.pop("y")), **given)  # type: ignore[arg-type]
