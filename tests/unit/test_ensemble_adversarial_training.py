"""Ensemble adversarial training: where inputs are crafted, by R+FGSM's definition, and what is left alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.defenses import ensemble_adversarial_training
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.training.fit import fit
from tests.suite.kinds.cases import affine_net, normed_net
from tests.suite.test_no_side_effects import assert_unchanged, snapshot


def formula(
    model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, eps: float, surrogates: list[nn.Module]
) -> Tensor:
    """Half a step at random, half along the sign, on the source that the seed names; the mean of two surprises."""
    source = [*surrogates, model][derive_seed(seed, 1) % (len(surrogates) + 1)]
    start = (x + eps / 2 * Noise(seed, ids).sign(0, x.shape[1:], x.dtype)).clamp(0, 1).requires_grad_(True)
    surest = source(start).softmax(dim=1).amax(dim=1)
    (grad,) = torch.autograd.grad(-surest.log().sum(), start)
    crafted = (start.detach() + eps / 2 * grad.sign()).clamp(0, 1)
    pick = torch.arange(len(y), device=y.device), y
    return -(model(x).softmax(dim=1)[pick].log() + model(crafted).softmax(dim=1)[pick].log()).mean() / 2


def linear(seed: int) -> tuple[nn.Module, Tensor]:
    """Two classes, and the direction from the first to the second."""
    way = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return affine_net(torch.stack([-way, way]), torch.zeros(2, dtype=torch.float64)), way


def batch(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    x = 0.3 + 0.4 * torch.rand(n, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.arange(n) % 2, torch.arange(n)


@pytest.mark.parametrize("labels", ["predicted", "true"])
@pytest.mark.parametrize("random_step", [0.0, 0.5, 0.9])
def test_the_step_of_a_linear_source(labels: Any, random_step: float) -> None:
    """∇ CE(h(x'), l) has the sign of −way for l = 1 and of +way for l = 0, whatever x' is."""
    (source, way), (model, _) = linear(1), linear(2)
    x, y, ids = batch()
    objective = ensemble_adversarial_training(surrogates=[source], eps=0.1, random_step=random_step, labels=labels)
    seed = next(s for s in range(99) if derive_seed(s, 1) % 2 == 0)
    start = x + 0.1 * random_step * Noise(seed, ids).sign(0, (8,), torch.float64)
    label = y if labels == "true" else source(start).argmax(dim=1)
    want = start + 0.1 * (1 - random_step) * (1 - 2 * label.double())[:, None] * way.sign()
    torch.testing.assert_close(objective.craft(model, x, y, ids=ids, seed=seed), want, rtol=0, atol=1e-12)


def test_every_source_is_drawn_equally_often() -> None:
    """Read off the step: each of three linear sources has a direction of its own. 4σ of a share of 1/3 in 600."""
    ways = {}
    models = []
    for i in range(3):
        model, way = linear(i + 1)
        models.append(model)
        ways[tuple(way.sign().tolist())] = i
    x, y, ids = batch(1)
    objective = ensemble_adversarial_training(surrogates=models[:2], eps=0.1, random_step=0.0, labels="true")
    drawn = Counter(
        ways[tuple((objective.craft(models[2], x, y * 0, ids=ids, seed=s) - x)[0].sign().tolist())] for s in range(600)
    )
    assert set(drawn) == {0, 1, 2} and all(abs(count - 200) < 4 * (600 * 2 / 9) ** 0.5 for count in drawn.values())


def test_in_ball_and_box() -> None:
    x = torch.tensor([[0.0, 0.02, 0.5, 1.0, 0.97, 0.3, 0.0, 1.0]], dtype=torch.float64)
    objective = ensemble_adversarial_training(surrogates=[linear(1)[0]], eps=0.1)
    for seed in range(20):
        x_adv = objective.craft(linear(2)[0], x, torch.tensor([0]), ids=torch.tensor([0]), seed=seed)
        assert bool(((x_adv >= 0) & (x_adv <= 1)).all()) and float((x_adv - x).abs().max()) <= 0.1 + 1e-12


def test_nothing_of_the_surrogates_is_changed() -> None:
    """In training, too: their statistics, modes and weights stay, and no gradient is left with them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(12, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.arange(12) % 3
    surrogates = [normed_net(1).train(), normed_net(2).eval()]
    before = snapshot(nn.ModuleList(surrogates))
    model = normed_net(3)
    fit(model, (x, y), objective=ensemble_adversarial_training(surrogates=surrogates, eps=0.1), epochs=3, batch_size=4)
    assert_unchanged(before, nn.ModuleList(surrogates))
    assert all(p.grad is None for net in surrogates for p in net.parameters())


def test_it_withstands_what_is_crafted_on_others() -> None:
    """Two coordinates tell the classes: a strong one, within reach of ε, and a weak one beyond it.

    A surrogate that goes by the reachable coordinate shows where steps go; who trains on them leaves it alone.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    side = (2.0 * y - 1).double()
    noise = torch.randn(400, generator=generator, dtype=torch.float64)
    x = torch.stack([0.5 + 0.05 * side, 0.5 + 0.08 * side + 0.1 * noise], dim=1).clamp(0, 1)
    naive = affine_net(torch.tensor([[-9.0, 0.0], [9.0, 0.0]]).double(), torch.tensor([4.5, -4.5]).double())
    fooled = x - torch.stack([0.1 * side, 0 * side], dim=1)  # what one step on it makes
    shares = []
    for objective in (None, ensemble_adversarial_training(surrogates=[naive], eps=0.1, random_step=0.0)):
        model = affine_net(torch.zeros(2, 2).double(), torch.zeros(2).double())
        given = {} if objective is None else {"objective": objective}
        fit(model, (x, y), epochs=40, lr=3.0, batch_size=100, **given)
        with torch.no_grad():
            shares.append(float((model(fooled).argmax(dim=1) == y).double().mean()))
    assert shares[0] < 0.4 and shares[1] > 0.7, shares


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("surrogates", [], TypeError), ("surrogates", nn.Identity(), TypeError), ("surrogates", [F.relu], TypeError),
        ("eps", 0.0, ValueError), ("eps", 8.0, ValueError), ("random_step", 1.0, ValueError),
        ("random_step", -0.1, ValueError), ("labels", "least_likely", ValueError), ("bounds", (1.0, 0.0), ValueError),
    ],
)  # fmt: skip
def test_bad_arguments(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{name}: "):
        ensemble_adversarial_training(**{"surrogates": [nn.Identity()], "eps": 0.1, name: value})
