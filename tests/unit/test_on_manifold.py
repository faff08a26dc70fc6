"""The search on codes, against PGD where the manifold is all of space, and against brute force where it is a curve."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import data, zoo
from robustlab.attacks import on_manifold, pgd
from robustlab.models import ClassVAE, class_vae
from robustlab.models.vae import elbo_training
from tests.suite.cases import PLAIN, noise_box
from tests.suite.models import mlp

SPACE = PLAIN["manifold"]


class Circle:
    """Points of the plane at 0.2 (class 0) and 0.3 (class 1) from the middle; the code is the angle."""

    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.atan2(x[:, 1] - 0.5, x[:, 0] - 0.5)[:, None]

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        return 0.5 + (0.2 + 0.1 * y[:, None]) * torch.cat([z.cos(), z.sin()], dim=1)


def test_on_all_of_space_it_is_pgd() -> None:
    """With the identity for a decoder and the box for bounds: the same start, the same steps, the same result."""
    model, x = mlp((6,), 3), noise_box(12, (6,), torch.float64)
    ours = on_manifold(model, x, manifold=SPACE, eps=0.15, bounds=(0.0, 1.0), steps=15, seed=4)
    counted = on_manifold(model, x, manifold=SPACE, eps=0.15, bounds=(0.0, 1.0), steps=np.int64(15), seed=4)
    assert torch.equal(ours.x_adv, counted.x_adv)
    theirs = pgd(model, x, norm="linf", eps=0.15, steps=15, seed=4)
    torch.testing.assert_close(ours.x_adv, theirs.x_adv, rtol=0, atol=1e-12)
    for field in ("success", "queries", "gradients", "first_success"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field))
    assert 0 < int(ours.success.sum()) < 12


def test_the_manifold_is_held_still() -> None:
    """Evaluation mode and frozen parameters in every call of the manifold, and all of it put back."""

    class Dropping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift, self.drop = torch.nn.Parameter(torch.zeros(())), torch.nn.Dropout(0.5)
            self.held: list[bool] = []

        def encode(self, x: Tensor, y: Tensor) -> Tensor:
            return self.decode(x, y)

        def decode(self, z: Tensor, y: Tensor) -> Tensor:
            self.held.append(not self.drop.training and not self.shift.requires_grad)
            return self.drop(z + self.shift)

    manifold, x = Dropping(), noise_box(4, (6,), torch.float64)
    ours = on_manifold(mlp((6,), 3), x, manifold=manifold, eps=0.15, steps=3)
    theirs = on_manifold(mlp((6,), 3), x, manifold=SPACE, eps=0.15, steps=3)
    assert torch.equal(ours.x_adv, theirs.x_adv) and len(manifold.held) > 3 and all(manifold.held)
    assert manifold.drop.training and manifold.shift.requires_grad and manifold.shift.grad is None


def test_a_curve_is_searched_as_brute_force_does() -> None:
    model = mlp((2,), 2, gain=6.0, seed=7)
    y = torch.arange(40) % 2
    angle = 2 * math.pi * torch.rand(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = Circle().decode(angle, y)
    right = model(x).argmax(1) == y
    x, y, angle = x[right], y[right], angle[right]
    eps = 0.5
    result = on_manifold(model, x, y, manifold=Circle(), eps=eps, steps=200)
    turns = torch.linspace(-eps, eps, 401, dtype=torch.float64)
    fooled = torch.stack([model(Circle().decode(angle + t, y)).argmax(1) != y for t in turns]).any(0)
    assert 3 < int(fooled.sum()) < len(y) - 3
    assert not bool((result.success & ~fooled).any()), "a success outside the ball"
    assert int((fooled & ~result.success).sum()) <= 2  # a start on the wrong side of a hill
    torch.testing.assert_close((result.x_adv - 0.5).norm(dim=1), (0.2 + 0.1 * y).double(), rtol=0, atol=1e-12)
    turned = (Circle().encode(result.x_adv, y) - angle)[:, 0]
    turned = (turned + math.pi) % (2 * math.pi) - math.pi
    assert float(turned.abs().max()) <= eps + 1e-9


def test_known_codes_are_used_and_bounds_kept() -> None:
    model, x = mlp((6,), 3), noise_box(8, (6,), torch.float64)
    seen = []
    manifold = SimpleNamespace(encode=None, decode=lambda z, y: (seen.append(z.detach()), z / 2)[1])
    manifold.encode = lambda x, y: pytest.fail("the codes were known")
    on_manifold(model, x, manifold=manifold, latent=2 * x, eps=0.3, bounds=(0.2, 1.5), steps=5)
    for z in seen:
        assert float(z.min()) >= 0.2 - 1e-12 and float(z.max()) <= 1.5 + 1e-12
    if len(seen[0]) == 8:
        assert float((seen[0] - (2 * x).clamp(0.2, 1.5)).abs().max()) <= 0.3 + 1e-12


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"manifold": torch.nn.Linear(2, 2)}, "manifold: want an object"),
        ({"latent": torch.rand(2, 6)}, "latent: want a tensor of 3 codes"),
        ({"bounds": (1.0, 0.0)}, "bounds: want"),
        ({"manifold": SimpleNamespace(encode=lambda x, y: x, decode=lambda z, y: z[:, :3])}, "manifold: want decode"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], error: str) -> None:
    model, x = mlp((6,), 3), noise_box(3, (6,), torch.float64)
    with pytest.raises((ValueError, TypeError), match=f"^{error}"):
        on_manifold(model, x, **{"manifold": SPACE, "eps": 0.1, **wrong})


# The shipped decoder -------------------------------------------------------------------------------------------------


def small_vae() -> ClassVAE:
    model = class_vae(latent=2, classes=3, hidden=8).double()
    assert isinstance(model, ClassVAE)
    return model


def test_logits_are_the_elbo_of_every_class() -> None:
    """Bernoulli likelihood and Gaussian KL by torch.distributions, class by class."""
    model, x = small_vae(), torch.rand(5, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        logits = model(x)
        for k in range(3):
            y = torch.full((5,), k)
            mean, log_variance = model._posterior(model.look(x), y)
            p = model.decode(mean, y)
            likelihood = (x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
            posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
            prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
            divergence = torch.distributions.kl_divergence(posterior, prior).sum(1)
            torch.testing.assert_close(logits[:, k], likelihood - divergence)
            noise = torch.zeros_like(mean)
            torch.testing.assert_close(model.elbo(x, y, noise), logits[:, k])


def test_training_raises_the_elbo() -> None:
    from robustlab.training.fit import fit

    d = data.load("mnist5k").subset(300, 50)
    model = class_vae(latent=4, hidden=32)
    history = fit(model, d, objective=elbo_training(), epochs=12, lr=1e-2)
    assert history.loss[-1] < 0.6 * history.loss[0]


def test_the_shipped_decoder_draws_what_it_is_told() -> None:
    """Another model reads the label in its drawings; and its reconstructions are near their images."""
    vae, reader, d = zoo.load("mnist_vae"), zoo.load("mnist_cnn"), data.load("mnist5k")
    assert isinstance(vae, ClassVAE)
    y = torch.arange(500) % 10
    x, z = vae.sample(y, seed=1)
    again, _ = vae.sample(y[:20], seed=1)
    torch.testing.assert_close(again, x[:20])
    with torch.no_grad():
        assert float((reader(x).argmax(1) == y).double().mean()) > 0.9
        back = vae.decode(vae.encode(d.x_test, d.y_test), d.y_test)
        assert float((reader(back).argmax(1) == d.y_test).double().mean()) > 0.95
        assert float(F.mse_loss(back, d.x_test)) < 0.5 * float(d.x_test.var())
    result = on_manifold(reader, x[:50], y[:50], manifold=vae, latent=z[:50], eps=0.5, steps=20)
    assert 0.2 < float(result.success.double().mean()) < 0.8
    assert float(result.distances["l2"][result.success].median()) > 1.0, "on the manifold, but far in pixels"


@pytest.mark.parametrize("wrong", [{"latent": 0}, {"classes": 1}, {"hidden": 1.5}])
def test_wrong_sizes(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: want an integer"):
        class_vae(**wrong)
