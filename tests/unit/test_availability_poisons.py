"""Label flips, additions, deletions and modified features: exact counts, the best choice by brute force, no trace."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import add_delete, feature_modification, label_flipping
from robustlab.attacks.poisoning.label_flipping import other_labels


def data(n: int = 50, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 3, 3, generator=generator), torch.arange(n) % classes


def net(classes: int = 4, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(9, classes))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("chosen", [False, True])
def test_flips_are_exact_in_number_and_always_wrong(rate: float, chosen: bool) -> None:
    x, y = data()
    poisoned = label_flipping((x, y), rate=rate, model=net() if chosen else None)
    count = round(rate * 50)
    assert int((poisoned.y != y).sum()) == count == int(poisoned.is_poison.sum())
    assert torch.equal(poisoned.is_poison, poisoned.y != y) and torch.equal(poisoned.x, x)
    assert int(poisoned.y.min()) >= 0 and int(poisoned.y.max()) < 4
    assert torch.equal(poisoned.original_y, y)


def test_random_flips_are_even_over_rows_and_wrong_classes() -> None:
    x, y = data(20, 4)
    counts, labels = torch.zeros(20), torch.zeros(4)
    for seed in range(600):
        poisoned = label_flipping((x, y), rate=0.25, seed=seed)
        counts += poisoned.is_poison
        labels += (poisoned.y - y)[poisoned.is_poison].remainder(4).bincount(minlength=4)
    assert float(((counts - 150) ** 2 / (150 * 0.75)).sum()) < 50  # chi-squared, 19 degrees of freedom, p = 1e-4
    assert labels[0] == 0
    assert float(((labels[1:] - 1000) ** 2 / 1000).sum()) < 18.5  # 2 degrees of freedom
    assert torch.equal(other_labels(y, 4, 0, torch.arange(20))[3:5], other_labels(y[3:5], 4, 0, torch.tensor([3, 4])))


def test_chosen_flips_are_the_most_harmful_of_all() -> None:
    x, y = data(8, 3)
    model = net(3)
    loss = -model(x).log_softmax(dim=1).detach()
    best = -torch.inf
    for rows in combinations(range(8), 3):
        for labels in product(range(3), repeat=3):
            if all(k != y[i] for i, k in zip(rows, labels, strict=True)):
                best = max(best, sum(float(loss[i, k] - loss[i, y[i]]) for i, k in zip(rows, labels, strict=True)))
    poisoned = label_flipping((x, y), rate=3 / 8, model=model)
    gain = loss.gather(1, poisoned.y[:, None]).sum() - loss.gather(1, y[:, None]).sum()
    assert float(gain) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("from_class", [None, 2])
def test_adding(from_class: int | None) -> None:
    x, y = data()
    poisoned = add_delete((x, y), rate=0.2, from_class=from_class)
    bad = poisoned.is_poison
    assert len(poisoned) == 60 and int(bad.sum()) == 10
    assert torch.equal(poisoned.x[~bad], x[poisoned.row[~bad]]) and torch.equal(poisoned.y[~bad], y[poisoned.row[~bad]])
    assert poisoned.row[~bad].sort().values.tolist() == list(range(50)) and bool((poisoned.row[bad] == -1).all())
    sources = [int((x == row).flatten(1).all(dim=1).nonzero()[0]) for row in poisoned.x[bad]]
    assert len(set(sources)) == 10
    assert torch.equal(y[sources], poisoned.original_y[bad]) and bool((poisoned.y[bad] != y[sources]).all())
    assert from_class is None or set(y[sources].tolist()) == {from_class}


@pytest.mark.parametrize("from_class", [None, 1])
def test_deleting(from_class: int | None) -> None:
    x, y = data()
    poisoned = add_delete((x, y), rate=0.2, operation="delete", from_class=from_class)
    assert len(poisoned) == 40 and not bool(poisoned.is_poison.any())
    assert len(set(poisoned.row.tolist())) == 40
    assert torch.equal(poisoned.x, x[poisoned.row]) and torch.equal(poisoned.y, y[poisoned.row])
    if from_class is not None:
        assert int((poisoned.y == 1).sum()) == int((y == 1).sum()) - 10


@pytest.mark.parametrize("how", ["noise", "shortcut", "adversarial"])
def test_modified_features(how: str) -> None:
    x, y = data()
    model = net() if how == "adversarial" else None
    poisoned = feature_modification((x, y), rate=0.3, eps=0.1, how=how, model=model)
    bad = poisoned.is_poison
    moved = (poisoned.x - x).flatten(1)
    assert int(bad.sum()) == 15 and torch.equal(poisoned.y, y)
    assert torch.equal(poisoned.x[~bad], x[~bad]) and bool((moved[bad].abs().amax(dim=1) > 0.05).all())
    assert float(moved.abs().max()) <= 0.1 + 1e-6
    assert float(poisoned.x.min()) >= 0 and float(poisoned.x.max()) <= 1
    inside = ((x - 0.5).abs() < 0.4).flatten(1) & bad[:, None]  # clipping hides no signs there
    for a in range(50):
        for b in range(a):
            both = inside[a] & inside[b]
            same = bool((moved[a][both].sign() == moved[b][both].sign()).all())
            if how == "shortcut" and y[a] == y[b]:
                assert same, "one pattern per class"
    if model is not None:
        goal = (y + 1) % 4
        with torch.no_grad():
            before, after = (torch.nn.functional.cross_entropy(model(v)[bad], goal[bad]) for v in (x, poisoned.x))
        assert float(after) < float(before) - 0.05


def test_noise_and_shortcut_differ_between_samples_and_classes() -> None:
    x, y = torch.full((8, 1, 16, 16), 0.5), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    noise = feature_modification((x, y), rate=1.0, eps=0.1, how="noise").x.flatten(1)
    shortcut = feature_modification((x, y), rate=1.0, eps=0.1, how="shortcut").x.flatten(1)
    assert len(noise.unique(dim=0)) == 8 and len(shortcut.unique(dim=0)) == 2
    assert torch.equal(shortcut[0], shortcut[3]) and not torch.equal(shortcut[0], shortcut[4])
    assert abs(float((noise > 0.5).double().mean()) - 0.5) < 0.06


def test_seeds_and_the_caller() -> None:
    x, y = data()
    before, state, model = (x.clone(), y.clone()), torch.get_rng_state(), net().train()
    for call in (
        lambda s: label_flipping((x, y), rate=0.2, seed=s),
        lambda s: add_delete((x, y), rate=0.2, seed=s),
        lambda s: feature_modification((x, y), rate=0.2, eps=0.1, seed=s),
        lambda s: feature_modification((x, y), rate=0.2, eps=0.1, how="adversarial", model=model, seed=s),
    ):
        a, b, c = call(0), call(0), call(1)
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
        assert not (torch.equal(a.x, c.x) and torch.equal(a.y, c.y))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1]) and torch.equal(torch.get_rng_state(), state)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_bad_input() -> None:
    x, y = data()
    for rate in (0.0, -1.0, 1.5, 0.001, float("nan")):
        for call in (label_flipping, add_delete, lambda b, rate: feature_modification(b, rate=rate, eps=0.1)):
            with pytest.raises(ValueError, match="rate"):
                call((x, y), rate=rate)
    for call, match in (
        (lambda: label_flipping((x, y), rate=0.1, classes=3), "classes"),
        (lambda: label_flipping((x, y), rate=0.1, model=net(3)), "y: want labels in 0 … 2"),
        (lambda: label_flipping((x, y), rate=0.1, classes=6, model=net()), "model: want logits of shape"),
        (lambda: add_delete((x, y), rate=0.1, operation="move"), "operation"),
        (lambda: add_delete((x, y), rate=0.1, from_class=9), "from_class"),
        (lambda: add_delete((x, y), rate=0.9, from_class=0), "rate: want at most 13 samples of class 0, got"),
        (lambda: add_delete((x, y), rate=1.0, operation="delete"), "rate: want at most 49 samples, got"),
        (lambda: feature_modification((x, y), rate=0.1, eps=-1.0), "eps"),
        (lambda: feature_modification((x, y), rate=0.1, eps=0.1, how="magic"), "how"),
        (lambda: feature_modification((x, y), rate=0.1, eps=0.1, how="adversarial"), "model"),
        (
            lambda: feature_modification((x, y), rate=0.1, eps=0.1, how="adversarial", classes=6, model=net()),
            "model: want 6 classes, got 4",
        ),
        (lambda: feature_modification((x + 1, y), rate=0.1, eps=0.1), "x: want values"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="y: want integers"):
        label_flipping((x, y.float()), rate=0.1)
