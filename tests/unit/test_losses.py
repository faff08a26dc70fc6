"""The attacker's losses against their closed formulas, written here once more in numpy and with explicit loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustlab.attacker.losses import (
    ATTACKER_LOSSES,
    LossFunction,
    attacker_loss,
    best_other,
    classification_loss,
    goal_margin,
    logit_size,
    margin,
    rivals,
)
from robustlab.attacks import pgd, square

NAMES = tuple(ATTACKER_LOSSES)


def by_hand(name: str, z: list[float], y: int, t: int | None, kappa: float) -> float:
    """The table of losses.py for one sample, from the definitions."""
    top = max(z)
    p = [math.exp(v - top) for v in z]
    p = [v / sum(p) for v in p]
    if name == "ce":
        return math.log(p[y]) if t is None else -math.log(p[t])
    if name == "dlr":
        s = sorted(z, reverse=True)
        if t is None:
            return (z[y] - max(v for k, v in enumerate(z) if k != y)) / (s[0] - s[2])
        return (z[y] - z[t]) / (s[0] - (s[2] + s[3]) / 2)
    v = {"margin": z, "logprob": [math.log(q) for q in p], "prob": p}[name]
    if t is None:
        return max(v[y] - max(a for k, a in enumerate(v) if k != y) + kappa, 0)
    return max(max(a for k, a in enumerate(v) if k != t) - v[t] + kappa, 0)


@pytest.mark.slow
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_losses_match_their_formulas(name: str, targeted: bool, data: st.DataObject) -> None:
    k = data.draw(st.integers(4, 6))
    z = data.draw(st.lists(st.integers(-60, 60).map(lambda v: v / 8), min_size=k, max_size=k, unique=True))
    y, t = data.draw(st.permutations(range(k)))[:2]
    kappa = data.draw(st.sampled_from([0.0, 0.5, 3.0]))
    target = torch.tensor([t]) if targeted else None
    value = attacker_loss(name)(torch.tensor([z], dtype=torch.float64), torch.tensor([y]), target, kappa)
    assert float(value) == pytest.approx(by_hand(name, z, y, t if targeted else None, kappa), rel=1e-10, abs=1e-12)


def sample(n: int = 6, k: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(n, k, dtype=torch.float64) * 2
    y = torch.randint(k, (n,))
    return logits, y, (y + 1 + torch.randint(k - 1, (n,))) % k


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, targeted: bool) -> None:
    logits, y, t = sample()
    target = t if targeted else None
    assert torch.autograd.gradcheck(lambda z: attacker_loss(name)(z, y, target, 0.7), logits.requires_grad_(True))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [-1e6, -3.0, 1e6])
def test_adding_a_constant_to_all_logits_changes_nothing(name: str, targeted: bool, shift: float) -> None:
    logits, y, t = sample()
    z = (logits * 64).round() / 64  # shifted without rounding
    target = t if targeted else None
    loss = attacker_loss(name)
    torch.testing.assert_close(loss(z + shift, y, target, 0.5), loss(z, y, target, 0.5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_dlr_is_blind_to_scale(targeted: bool, scale: float) -> None:
    logits, y, t = sample()
    target = t if targeted else None
    dlr = attacker_loss("dlr")
    torch.testing.assert_close(dlr(logits * scale, y, target), dlr(logits, y, target), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_smaller_means_nearer_to_the_goal(name: str) -> None:
    """Raising the target's logit (or another class's) never raises the loss; losses below 0 or at 0 where it is met."""
    logits, y, t = sample(200)
    loss = attacker_loss(name)
    nearer = logits.scatter_add(1, t[:, None], torch.full((200, 1), 0.3, dtype=torch.float64))
    assert bool((loss(nearer, y, t) <= loss(logits, y, t) + 1e-12).all()) or name == "dlr"
    met = goal_margin(logits, y) > 0
    if name in ("margin", "logprob", "prob"):
        assert bool(((loss(logits, y) == 0) == (goal_margin(logits, y) >= 0)).all())
    elif name == "dlr":
        assert bool(((loss(logits, y) < 0) == met).all())


@pytest.mark.parametrize("name", ["margin", "logprob", "prob", "ce"])
def test_two_classes_and_ties(name: str) -> None:
    z = torch.tensor([[1.0, 1.0], [2.0, -2.0]], requires_grad=True)
    value = attacker_loss(name)(z, torch.tensor([0, 0]))
    (grad,) = torch.autograd.grad(value.sum(), z)
    assert bool(grad.isfinite().all() and value.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_saturated_logits_give_no_nan(name: str) -> None:
    z = torch.tensor([[1e30, 0.0, -1e30, 1.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    for target in (None, torch.tensor([1, 1])):
        value = attacker_loss(name)(z, torch.tensor([0, 0]), target)
        (grad,) = torch.autograd.grad(value.sum(), z)
        assert not bool(value.isnan().any() or grad.isnan().any())


def test_margins_by_hand() -> None:
    z = torch.tensor([[1.0, 5.0, 3.0], [-1.0, -5.0, -3.0]])
    y = torch.tensor([1, 2])
    assert best_other(z, y).tolist() == [3.0, -1.0]
    assert margin(z, y).tolist() == [2.0, -2.0]
    assert goal_margin(z, y).tolist() == [-2.0, 2.0]
    assert goal_margin(z, y, torch.tensor([0, 0])).tolist() == [-4.0, 2.0]


def test_classification_loss_is_cross_entropy() -> None:
    logits, y, _ = sample()
    z = logits.numpy()
    expected = np.log(np.exp(z).sum(1)) - z[np.arange(6), y.numpy()]
    np.testing.assert_allclose(classification_loss(logits, y).numpy(), expected)
    torch.testing.assert_close(attacker_loss("ce")(logits, y), -classification_loss(logits, y))


def test_lookup() -> None:
    def mine(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
        return logits.sum(1)

    custom = attacker_loss(mine)
    assert custom.name == "mine" and attacker_loss(custom) is custom
    assert custom(torch.ones(2, 3), torch.tensor([0, 1])).tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match=r"loss: want one of .*'dlr'.* got 'hinge'"):
        attacker_loss("hinge")
    assert (ATTACKER_LOSSES["dlr"].min_classes, ATTACKER_LOSSES["dlr"].min_classes_targeted) == (3, 4)


def test_own_loss_is_one_number_per_sample() -> None:
    """A mean would be each sample's loss: its gradient is right, and which of its points is kept is not."""
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(5, 1, 2, 2), torch.arange(5) % 3

    def mean(z: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
        return -nn.functional.cross_entropy(z, y)

    def column(z: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
        return -nn.functional.cross_entropy(z, y, reduction="none")[:, None]

    for attack in (pgd, square):
        with pytest.raises(ValueError, match=r"loss: want one number per sample, shape \(\d,\), got shape \(\)"):
            attack(model, x, y, eps=0.01, loss=mean)
        with pytest.raises(ValueError, match=r"loss: want one number per sample, shape \(\d,\), got shape \(\d, 1\)"):
            attack(model, x, y, eps=0.01, loss=column)


@pytest.mark.parametrize("loss", [lambda z, y: z[:, 0], nn.CrossEntropyLoss(reduction="none")])
def test_own_loss_takes_four_arguments(loss: LossFunction) -> None:
    with pytest.raises(TypeError, match=r"loss: want a function of \(logits, y, target, kappa\), .* got one of \("):
        attacker_loss(loss)


def test_logit_size_is_of_what_counts() -> None:
    """The larger of the two that decide, or the median; no masked class."""
    z = torch.tensor([[1.0, -2.0, 0.5, 0.1, -1e9], [0.0, 0.0, 7.0, -8.0, -torch.inf], [3.0, 4.0, -torch.inf, 0.0, 0.0]])
    assert logit_size(z, torch.tensor([0, 2, 2])).tolist() == [1.0, 7.0, 4.0]
    assert logit_size(z, torch.tensor([0, 2, 2]), torch.tensor([1, 0, 0])).tolist() == [2.0, 7.0, 4.0]


def test_rivals_leave_the_label_out_by_its_place() -> None:
    z = torch.tensor([[-torch.inf, 2.0, -torch.inf, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert rivals(z, torch.tensor([0, 2])).tolist() == [[1, 3, 2], [0, 1, 3]]
