"""Gradient matching: its loss against autograd set by set, zero at the perfect poison, its second derivative."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacks import gradient_matching
from robustlab.attacks.poisoning.gradient_matching import attacker_gradient, gradient_mismatch
from robustlab.data import random_shift


def net(act: type[nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(1, 3, 3, stride=2)
        return nn.Sequential(conv, nn.BatchNorm2d(3), act(), nn.Flatten(), nn.Linear(27, 3)).to(dtype).eval()


def images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_loss_is_one_minus_the_cosine_over_the_whole_gradient() -> None:
    model, x, y, x_target = net(nn.ReLU), images(4, 5), torch.tensor([1, 1, 0, 1, 2]), images(1, seed=1)

    def whole_gradient(points: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(points), labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    goal = whole_gradient(x_target, torch.tensor([2]))
    slow = torch.stack([1 - F.cosine_similarity(goal, whole_gradient(points, y), dim=0) for points in x])
    torch.testing.assert_close(gradient_mismatch(model, x, y, attacker_gradient(model, x_target, 2)), slow)


def test_it_is_zero_when_the_poison_is_the_target_with_the_adversarial_label() -> None:
    model, x_target = net(), images(1, seed=1)
    goal = attacker_gradient(model, x_target, 2)
    perfect, wrong = x_target[None], torch.tensor([2])
    assert abs(float(gradient_mismatch(model, perfect, wrong, goal))) < 1e-12
    assert float(gradient_mismatch(model, perfect, torch.tensor([0]), goal)) > 0.5
    assert float(gradient_mismatch(model, images(1, 1, seed=3), wrong, goal)) > 1e-3


@pytest.mark.slow
def test_its_derivative_through_two_backward_passes() -> None:
    model, y = net(nn.Softplus), torch.tensor([1])
    goal = attacker_gradient(model, images(1, seed=1), 2)
    x = images(2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda points: gradient_mismatch(model, points, y, goal), (x,))


def test_it_can_be_differentiated_through_the_augmentation() -> None:
    model, y = net(nn.Softplus), torch.tensor([1])
    goal, augment = attacker_gradient(model, images(1, seed=1), 2), random_shift(2)

    def loss(points: Tensor) -> Tensor:
        return gradient_mismatch(model, augment(points, ids=torch.arange(1), seed=5)[None], y, goal)

    assert torch.autograd.gradcheck(loss, (images(1).requires_grad_(),))


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return images(60, dtype=dtype), torch.arange(60) % 3, images(1, dtype=dtype, seed=1)


def test_restarts_are_chosen_by_the_attackers_loss() -> None:
    x, y, x_target = data()
    found = gradient_matching((x, y), x_target, 2, model=net(), rate=0.1, eps=0.1, steps=4, restarts=5)
    loss = found.details["loss"]
    assert loss.shape == (5,) and len(loss.unique()) == 5
    goal = attacker_gradient(net(), x_target, 2)
    here = gradient_mismatch(net(), found.x[found.is_poison][None], y[found.is_poison], goal)
    torch.testing.assert_close(here[0], loss.min())


def test_more_steps_match_better() -> None:
    x, y, x_target = data()
    kwargs = {"rate": 0.1, "eps": 0.1, "restarts": 2}
    few = gradient_matching((x, y), x_target, 2, model=net(), steps=1, augment=None, **kwargs)
    many = gradient_matching((x, y), x_target, 2, model=net(), steps=40, augment=None, **kwargs)
    assert float(many.details["loss"].max()) < 0.6 * float(few.details["loss"].min())
    moving = gradient_matching((x, y), x_target, 2, model=net(), steps=60, **kwargs).details["trace"].mean(dim=1)
    assert float(moving[-20:].mean()) < float(moving[:10].mean())  # under random shifts


def test_step_sizes_fall_at_three_five_and_seven_eighths() -> None:
    """With a sign for a gradient, Adam's first step is the step size itself; later decays bound what is still moved."""
    x, y, x_target = data()
    kwargs = {"rate": 0.1, "eps": 0.4, "restarts": 1, "augment": None, "step_size": 1e-3}
    runs = [gradient_matching((x, y), x_target, 2, model=net(), steps=s, **kwargs).x for s in (1, 8)]
    moved = (runs[1] - runs[0]).abs().max()
    # full steps 0, 1, 2; a tenth at 3, 4; a hundredth at 5, 6; a thousandth at 7
    assert 1.9e-3 < float(moved) <= 1e-3 * (2 + 0.2 + 0.02 + 0.001) * (1 + 1e-3)


def test_several_models_are_averaged() -> None:
    x, y, x_target = data()
    models = [net(seed=0), net(seed=1)]
    found = gradient_matching((x, y), x_target, 2, model=models, rate=0.1, steps=3, restarts=1)
    points, labels = found.x[found.is_poison][None], y[found.is_poison]
    parts = [gradient_mismatch(m, points, labels, attacker_gradient(m, x_target, 2)) for m in models]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, found.details["loss"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_budget_box_labels_and_callers_things(dtype: torch.dtype) -> None:
    x, y, x_target = data(dtype)
    x[y == 2] *= 0.05
    before, model = x.clone(), net(nn.ReLU, dtype).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.random.get_rng_state()
    first = gradient_matching((x, y), x_target, 2, model=model, rate=0.1, steps=10, restarts=2)
    again = gradient_matching((x, y), x_target, 2, model=model, rate=0.1, steps=10, restarts=2)
    assert torch.equal(first.x, again.x) and torch.equal(rng, torch.random.get_rng_state())
    moved = (first.x - x).abs()
    assert first.x.dtype == dtype and 0.9 * 16 / 255 < float(moved.max()) <= 16 / 255 * (1 + 1e-6)
    assert float(first.x.min()) >= 0 and float(first.x.max()) <= 1 and float(moved[~first.is_poison].max()) == 0
    assert torch.equal(first.y, y) and bool((y[first.is_poison] == 2).all()) and int(first.is_poison.sum()) == 6
    assert torch.equal(x, before) and all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("wrong", [{"eps": -1.0}, {"steps": 0}, {"restarts": 0}, {"augment": 3}, {"model": None}])
def test_bad_arguments(wrong: dict) -> None:
    x, y, x_target = data()
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        gradient_matching((x, y), **{"model": net(), "x_target": x_target, "target": 1, "rate": 0.1, **wrong})
