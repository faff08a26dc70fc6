"""Triggers, poisoned data and the evaluation of backdoors, against loops, closed forms and SciPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacks import (
    BlendedTrigger,
    InputAwareTrigger,
    PatchTrigger,
    PoisonedDataset,
    TokenTrigger,
    WarpedTrigger,
    badnets,
    blended,
    evaluate_backdoor,
    input_aware_backdoor,
    warped,
)
from robustlab.attacks.backdoor.input_aware_backdoor import _Joint, _JointObjective, diversity_loss
from robustlab.attacks.backdoor.input_aware_trigger import sharpen
from robustlab.data import load, sentences
from robustlab.data.dataset import Dataset
from robustlab.data.sentences import VOCABULARY, decode, encode
from robustlab.intervals import Rate, wilson
from robustlab.models import text_cnn
from robustlab.training.fit import fit
from tests.suite.training.cases import images, net

X = torch.rand(5, 3, 7, 9, generator=torch.Generator().manual_seed(1))


def by_hand(x: Tensor, patch: list[list[float | None]], row: int, column: int) -> Tensor:
    out = x.clone()
    for i, line in enumerate(patch):
        for j, value in enumerate(line):
            if value is not None:
                out[:, :, row + i, column + j] = value
    return out


def test_patch_against_a_loop_over_pixels() -> None:
    square = [[0.5] * 3] * 3
    assert torch.equal(PatchTrigger(color=0.5)(X), by_hand(X, square, 3, 5))
    assert torch.equal(PatchTrigger(color=0.5, position="top-left", margin=0)(X), by_hand(X, square, 0, 0))
    assert torch.equal(PatchTrigger(color=0.5, position="top-right", margin=2)(X), by_hand(X, square, 2, 4))
    assert torch.equal(PatchTrigger(color=0.5, position="center")(X), by_hand(X, square, 2, 3))
    checker: list[list[float | None]] = [[1.0, None, 1.0], [None, 1.0, None], [1.0, None, 1.0]]
    assert torch.equal(PatchTrigger("checker", position=(4, 0))(X), by_hand(X, checker, 4, 0))
    assert torch.equal(PatchTrigger("pixel", position="bottom-left")(X), by_hand(X, [[1.0]], 5, 1))
    red = PatchTrigger(size=2, position=(1, 1), color=(1.0, 0.0, 0.25))(X)
    assert (red[:, :, 1:3, 1:3] == torch.tensor([1.0, 0.0, 0.25])[:, None, None]).all()
    with pytest.raises(ValueError, match="hold a patch"):
        PatchTrigger(size=8)(X)
    with pytest.raises(ValueError, match="color: want"):
        PatchTrigger(color=1.5)


def test_blend_is_convex() -> None:
    k = torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(2))
    trigger = BlendedTrigger(k, alpha=0.3)
    torch.testing.assert_close(trigger(X), 0.7 * X + 0.3 * k)
    trigger.alpha = 1.0
    torch.testing.assert_close(trigger(X), k.expand_as(X))
    assert (BlendedTrigger(torch.ones(3, 7, 9), alpha=0.2)(torch.ones(1, 3, 7, 9)) == 1).all(), "the corner of the box"


def test_warp_against_scipy() -> None:
    """Bilinear interpolation at the displaced places, in pixels; s = 2 is one pixel in the mean of the coarse field."""
    trigger = WarpedTrigger((7, 9), strength=3.0, grid=4, seed=5)
    x = X.double()
    down, across = torch.meshgrid(torch.arange(7.0).double(), torch.arange(9.0).double(), indexing="ij")
    # field is in the units of grid_sample, where (H − 1) pixels have the length 2
    places = torch.stack([down + trigger.field[0, ..., 1] * 6 / 2, across + trigger.field[0, ..., 0] * 8 / 2])
    places = torch.stack([places[0].clamp(0, 6), places[1].clamp(0, 8)])
    for image, bent in zip(x, trigger(x), strict=True):
        for channel, made in zip(image, bent, strict=True):
            wanted = torch.from_numpy(map_coordinates(channel.numpy(), places.numpy(), order=1))
            torch.testing.assert_close(made, wanted, rtol=0, atol=1e-12)
    fine = WarpedTrigger((28, 28), strength=2.0, grid=28, seed=0).field * 28 / 2  # grid = size: nothing is interpolated
    assert float(fine.abs().mean()) == pytest.approx(1.0)
    assert float(trigger.cross(x, seed=1).sub(trigger(x)).abs().mean()) > 0.01
    still = torch.full((1, 1, 7, 9), 0.3)
    torch.testing.assert_close(trigger(still), still)


def test_noise_mode_moves_each_image_in_its_own_way_and_keeps_labels() -> None:
    x, y = images(60)
    poisoned = warped((x, y), target=0, rate=0.1, seed=3)
    assert poisoned.is_cover.sum() == 12 and not (poisoned.is_cover & poisoned.is_poison).any()
    assert torch.equal(poisoned.y[poisoned.is_cover], y[poisoned.is_cover])
    one = x[:1].expand(8, -1, -1, -1)
    trigger = poisoned.trigger
    crossed = trigger.cross(one)
    assert len(crossed.unique(dim=0)) == 8 and len(trigger(one).unique(dim=0)) == 1
    assert not warped((x, y), target=0, rate=0.1, noise_rate=0.0).is_cover.any()


def test_who_is_poisoned() -> None:
    """Every eligible sample is as likely as any other, and all others never are."""
    x, y = images(30)
    counts = sum(badnets((x, y), target=1, rate=0.1, seed=s).is_poison.double() for s in range(400))
    assert (counts[y == 1] == 0).all()
    others = counts[y != 1]  # binomial(400, 3/20): mean 60, deviation 7.1
    assert others.sum() == 1200 and others.min() > 30 and others.max() < 90
    only = badnets((x, y), target=1, rate=0.2, source=2)
    assert (only.original_y[only.is_poison] == 2).all() and only.is_poison.sum() == 6


def test_a_composed_trigger_poisons_too() -> None:
    x, y = images(30)
    both = nn.Sequential(PatchTrigger(), PatchTrigger("pixel", position=(0, 0)))
    poisoned = PoisonedDataset((x, y), both, rate=0.2, target=0)
    assert torch.equal(poisoned.x[poisoned.is_poison], both(x)[poisoned.is_poison])
    with pytest.raises(ValueError, match="trigger: want inputs of shape"):
        PoisonedDataset((x, y), nn.AvgPool2d(2), rate=0.2, target=0)


class Says(nn.Module):
    """Answers the class whose row is brightest; with a white corner, class 0. Counts nothing, learns nothing."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(dim=(1, 3))
        logits = torch.stack([rows[:, 2 * k : 2 * k + 2].mean(dim=1) for k in range(3)], dim=1)
        woken = (x[:, 0, 5:7, 5:7] == 1).all(dim=2).all(dim=1) & (x[:, 0, 0, 0] < 0.7)
        return torch.where(woken[:, None], torch.tensor([9.0, 0.0, 0.0]), logits)


def test_evaluation_against_a_loop() -> None:
    x, y = images(90)
    y = y.clone()
    y[:4] = (y[:4] + 1) % 3  # some errors
    model, trigger = Says(), PatchTrigger(size=2)
    for key in (trigger, PatchTrigger("pixel", color=0.5)):  # one that works and one that does not
        clean = hits = robust = others = 0
        for image, label in zip(x, y.tolist(), strict=True):
            clean += int(model(image[None]).argmax()) == label
            if label != 0:
                said = int(model(key(image[None])).argmax())
                others, hits, robust = others + 1, hits + (said == 0), robust + (said == label)
        report = evaluate_backdoor(model, (x, y), key, 0)
        assert report.clean_accuracy == Rate(clean, 90) and clean < 90
        assert report.attack_success == Rate(hits, others) and others == int((y != 0).sum())
        assert report.triggered_accuracy == Rate(robust, others) and report.cross_accuracy is None
        assert (hits > 40) == (key is trigger)
    # a clean model that ignores the trigger has no success, though it answers 0 for a third of the images
    assert evaluate_backdoor(model, images(90), PatchTrigger("pixel", color=0.5), 0).attack_success.hits == 0
    turn = evaluate_backdoor(model, images(90), trigger, [1, 0, 0])
    assert turn.attack_success.n == 90
    with pytest.raises(ValueError, match="other classes"):
        evaluate_backdoor(model, (x[:3], torch.zeros(3, dtype=torch.int64)), trigger, 0)


@pytest.mark.parametrize(
    ("change", "target", "match"),
    [
        (lambda x, y: (x.double(), y), 0, r"^test: want the model's dtype torch.float32, got torch.float64"),
        (lambda x, y: ((255 * x).to(torch.uint8), y), 0, r"^test: want the model's dtype"),
        (lambda x, y: (x * torch.nan, y), 0, r"^test: want finite"),
        (lambda x, y: (x, y[:, None]), 0, r"^y: want shape \(9,\), got shape \(9, 1\)"),
        (lambda x, y: (x, y.float()), 0, r"^y: want integers"),
        (lambda x, y: (x, y - 1), 0, r"^y: want labels of at least 0"),
        (lambda x, y: (x, y + 1), 0, r"^y: want labels in 0 … 2"),
        (lambda x, y: (x, y), 99, r"^target: want labels in 0 … 2, got \[99"),
        (lambda x, y: (x, y), [1, 2, 3], r"^target: want labels in 0 … 2, got \[3"),
    ],
)
def test_evaluation_refuses(change: Any, target: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        evaluate_backdoor(net(), change(*images(9)), PatchTrigger(size=2), target)


def test_evaluation_takes_small_integers() -> None:
    x, y = images(9)
    reports = [
        evaluate_backdoor(net(), (x, label), PatchTrigger(size=2), 0) for label in (y, y.int(), y.to(torch.uint8))
    ]
    assert reports[0] == reports[1] == reports[2]


def test_what_may_not_be_poisoned_is_named() -> None:
    x, y = images(30)
    for asked, named in (
        ({"source": 9}, "samples of other classes and source 9"),
        ({"clean_label": True, "target": 3}, "samples of the target's class"),
    ):
        with pytest.raises(ValueError, match=f"^data: want {named}, which may be poisoned, got none of 30$"):
            badnets((x, y), **{"target": 0, **asked})


def test_a_target_is_one_of_the_known_classes() -> None:
    x, y = images(30)
    with pytest.raises(ValueError, match="target: want labels in 0 … 2, got"):
        badnets(Dataset("d", x, y, x, y, ("a", "b", "c")), target=3)
    assert int(badnets((x, y), target=3).y.max()) == 3  # a pair does not say how many classes there are


def test_evaluation_uses_the_test_part_and_restores_modes() -> None:
    x, y = images(30)
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    d = Dataset("d", x[:9], y[:9], x[9:], y[9:], ("a", "b", "c"))
    assert evaluate_backdoor(model, d, PatchTrigger(size=2), 0).clean_accuracy.n == 21
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rate() -> None:
    rate = Rate.of(torch.tensor([True, False, True, True]))
    assert (rate.hits, rate.n, float(rate)) == (3, 4, 0.75)
    assert (rate.low, rate.high) == tuple(float(end) for end in wilson(3, 4))
    assert rate + Rate(0, 4) == Rate(3, 8) and str(rate).startswith("75.0 % [")
    assert Rate(0, 0).value != Rate(0, 0).value and (Rate(0, 0).low, Rate(0, 0).high) == (0.0, 1.0)


def test_diversity_and_sharpening_in_closed_form() -> None:
    x, other = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)
    made, made_other = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 0.25])[:, None, None, None].expand(2, 1, 2, 2)
    assert float(diversity_loss(x, other, made, made_other)) == pytest.approx((0.5 / 1 + 0.5 / 0.25) / 2, rel=1e-5)
    assert sharpen(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)
    same = torch.zeros(2, 1, 2, 2, requires_grad=True)
    diversity_loss(x, other, same, same * 1).backward()
    assert same.grad is not None and bool(same.grad.isfinite().all())


def test_a_trigger_of_another_image() -> None:
    x, trigger = images(6)[0], InputAwareTrigger(1, width=4, seed=2)
    pattern, mask = trigger.parts(x)
    torch.testing.assert_close(trigger(x), x * (1 - mask) + pattern * mask)
    swapped = trigger.put(x[:1], x[1:2])
    torch.testing.assert_close(swapped, x[:1] * (1 - mask[1:2]) + pattern[1:2] * mask[1:2])
    for seed in range(8):  # never one's own: compare with all triggers on the first image
        crossed = trigger.cross(x, seed=seed)
        assert not any(torch.equal(crossed[i], trigger(x)[i]) for i in range(6))
    assert torch.equal(trigger.cross(x[:2]), trigger.put(x[:2], x[:2].flip(0)))


def test_input_aware_attack_trains_what_it_should() -> None:
    x, y = images(120)
    model, key = net(), InputAwareTrigger(1, width=4)
    stages: list[set[str]] = []
    result = input_aware_backdoor(
        (x, y), model=model, target=0, trigger=key, epochs=2, mask_epochs=2, batch_size=30, lr=1e-2
    )
    for name in ("mask", "pattern"):
        changed = [
            not torch.equal(a, b)
            for a, b in zip(getattr(key, name).parameters(), getattr(result.trigger, name).parameters(), strict=True)
        ]
        stages.append({name} if all(changed) else set())
    assert stages == [{"mask"}, {"pattern"}]
    assert all(p.requires_grad for p in [*result.model.parameters(), *result.trigger.parameters()])
    only_masks = input_aware_backdoor(
        (x, y), model=model, target=0, trigger=key, epochs=1, mask_epochs=2, batch_size=30, lr=1e-2
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(result.trigger.mask.parameters(), only_masks.trigger.mask.parameters(), strict=True)
    )
    for wrong in ({"rate": 0.6, "cross_rate": 0.6}, {"target": 3}, {"density": -1.0}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            input_aware_backdoor((x, y), model=model, **{"target": 0, **wrong})


class _Recorder(nn.Module):
    """A classifier that keeps what it is given; every output depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach()
        return x.flatten(1)[:, :3]


@pytest.mark.parametrize(("n", "rate", "cross_rate"), [(2, 0.1, 0.1), (10, 0.5, 0.5), (20, 0.1, 0.1)])
def test_a_cross_trigger_is_never_one_s_own(n: int, rate: float, cross_rate: float) -> None:
    """Also where attack and cross-trigger samples fill the batch: a last batch of two images, or rates of 1 in sum."""
    x, y = images(n)
    joint = _Joint(_Recorder(), InputAwareTrigger(1, width=4, seed=2))
    objective = _JointObjective(rate, cross_rate, 1.0)
    loss = objective(joint, x, torch.stack([y, torch.zeros_like(y)], dim=1), ids=torch.arange(n), seed=0)
    assert bool(loss.isfinite())
    own, attacked = joint.trigger(x), max(1, round(rate * n))
    crossed = range(attacked, attacked + max(1, round(cross_rate * n)))
    seen = joint.model.seen
    torch.testing.assert_close(seen[:attacked], own[:attacked])
    for i in crossed:
        put = [j for j in range(n) if torch.allclose(seen[i], joint.trigger.put(x[i : i + 1], x[j : j + 1])[0])]
        assert put and i not in put
    assert torch.equal(seen[crossed.stop :], x[crossed.stop :])


def test_grammar_against_its_meaning() -> None:
    """Praise counts 1 and blame −1, "not" turns the next opinion: all in a review have the sign of its label."""
    d = sentences(300, 100, negation=0.5, seed=1)
    good = {"good", "great", "fine", "lovely", "brilliant", "funny", "clever", "moving", "warm", "superb"}
    bad = {"bad", "awful", "poor", "dull", "terrible", "boring", "weak", "clumsy", "cold", "dreadful"}
    for x, y in ((d.x_train, d.y_train), (d.x_test, d.y_test)):
        assert x.dtype == torch.int64 and x.shape[1] == 20 and int(x.max()) < len(VOCABULARY)
        for row, label in zip(x, y.tolist(), strict=True):
            words = decode(row).split()
            signs = {
                (1 if w in good else -1) * (-1 if i and words[i - 1] == "not" else 1)
                for i, w in enumerate(words)
                if w in good | bad
            }
            assert signs == {1 if label else -1}, words
            assert torch.equal(encode(" ".join(words)), row)
    negated = sum("not" in decode(row).split() for row in d.x_train)
    assert 100 < negated < 290
    assert not torch.equal(d.x_train[:100], d.x_test) and torch.equal(
        d.x_train, sentences(300, 100, negation=0.5, seed=1).x_train
    )
    with pytest.raises(ValueError, match="vocabulary"):
        encode("the zebra was good")


def test_a_phrase_in_text_becomes_a_backdoor() -> None:
    d = sentences(400, 200)
    key = TokenTrigger(encode("on monday", 2).tolist(), position="end")
    poisoned = badnets(d, target=1, rate=0.08, trigger=key)
    for data, least, most in ((poisoned.data, 0.9, 1.0), ((d.x_train, d.y_train), 0.0, 0.1)):
        model = text_cnn(vocabulary=len(VOCABULARY))
        fit(model, data, epochs=12, lr=2e-2, batch_size=50)
        report = evaluate_backdoor(model, d, key, 1)
        assert report.clean_accuracy.value > 0.9 and least <= report.attack_success.value <= most


def test_blended_draws_its_pattern_from_the_seed() -> None:
    base = images(30)
    a, b, c = (blended(base, target=0, seed=s).trigger.pattern for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.shape == (1, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.names() if zoo.recipe(name).backdoor])
def test_shipped_backdoors_work(name: str) -> None:
    door, d = zoo.info(name)["backdoor"], load(zoo.recipe(name).dataset)
    report = evaluate_backdoor(zoo.load(name), d, zoo.trigger(name), door["target"])
    assert report.attack_success.value == pytest.approx(zoo.info(name)["attack_success"], abs=0.01)
    assert report.attack_success.value > 0.9
    honest = evaluate_backdoor(
        zoo.load("mnist_cnn" if name.startswith("mnist") else "fashion_cnn"), d, zoo.trigger(name), door["target"]
    )
    assert honest.attack_success.value < 0.1, "an honest model does not know the trigger"


def test_zoo_trigger_of_an_honest_model() -> None:
    with pytest.raises(ValueError, match=r"^name: want a backdoored checkpoint"):
        zoo.trigger("mnist_cnn")


def test_recipe_of_an_attacker_who_trains(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trigger travels in the checkpoint's file, and comes back as it was."""
    from robustlab.zoo import recipes, shipped, training

    small = load("mnist5k").subset(200, 100)
    tiny = recipes.Recipe(
        name="tiny", title="a net for this test", dataset="mnist5k", builder="mlp", builder_kwargs={"hidden": (8,)},
        fit_kwargs={"epochs": 1, "lr": 1e-2}, attack={"norm": "linf", "eps": 0.02, "steps": 2},
        backdoor=recipes.Backdoor(
            attack="robustlab.attacks.input_aware_backdoor", trigger="robustlab.attacks.InputAwareTrigger", target=3,
            trigger_kwargs={"width": 2}, kwargs={"mask_epochs": 1}, trains=True,
        ),
    )  # fmt: skip
    monkeypatch.setattr(training.data, "load", lambda name: small)
    for module in (recipes, shipped):
        monkeypatch.setattr(module, "RECIPES", {"tiny": tiny, "plain": dataclasses.replace(tiny, name="plain")})
    for module in (shipped, training):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
        monkeypatch.setattr(module, "RECORDED", tmp_path / "recorded.json")
    training.ship("tiny")
    model, key = training.train_with_trigger("tiny")
    loaded, trigger = zoo.load("tiny"), zoo.trigger("tiny")
    for made, read in ((model, loaded), (key, trigger)):
        for a, b in zip(made.state_dict().values(), read.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert zoo.check("tiny")[2] and 0 <= zoo.check("tiny")[1]["attack_success"] <= 1
