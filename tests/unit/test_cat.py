"""CAT: radii against the exact margins of an affine model, labels against the moments of their distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.defenses import cat
from robustlab.defenses.training.cat import soft_labels
from robustlab.geometry.keyed import Noise


def formula(
    model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, eps: float, steps: int, eta: float = 0.005
) -> Tensor:
    """The first visit: all radii are 0, so the ball has radius η; a label is softened by 10·η where it is withstood."""
    rows, classes = torch.arange(len(y), device=y.device), 3
    point, log = x, torch.Tensor.log_softmax
    for _ in range(steps):
        point = point.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(-log(model(point), 1)[rows, y].sum(), point)
        point = torch.minimum(torch.maximum(point + 2.5 * eta / steps * slope.sign(), x - eta), x + eta).clamp(0, 1)
    z = model(point.detach())
    weight = 10 * eta * (z.argmax(dim=1) == y).to(z)[:, None]
    drawn = Noise(seed, ids).exponential(1, (classes,), z.dtype)
    target = (1 - weight) * torch.eye(classes).to(z)[y] + weight * drawn / drawn.sum(dim=1, keepdim=True)
    return -(target * log(z, 1)).sum(dim=1).mean()


def test_radii_grow_to_the_largest_multiple_of_eta_that_the_sample_withstands() -> None:
    """On two affine classes that is known: the margin over ‖w_1 − w_0‖₁. Batches come in other orders each time."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(6, 2).double()
    x = 0.3 + 0.4 * torch.rand(40, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.rand(2, 6, generator=generator) - 0.5)
        model.bias.copy_(-(x @ model.weight.T).mean(dim=0))  # the boundary runs through the middle of the inputs
        z = model(x)
    y = z.argmax(dim=1)
    y[:5] = 1 - y[:5]  # these are wrong as they are
    room = (z[:, 1] - z[:, 0]) * (2 * y - 1) / (model.weight[1] - model.weight[0]).detach().abs().sum()
    eps, eta = 0.1, 0.004
    objective = cat(eps=eps, eta=eta, smoothing=5.0, steps=3)
    for visit in range(26):
        for ids in torch.randperm(40, generator=generator).split(15):
            objective(model, x[ids], y[ids], ids=ids, seed=visit)
    want = torch.floor(room / eta).clamp_min(0) * eta
    torch.testing.assert_close(objective.radius, want.clamp_max(eps), rtol=0, atol=1e-9)
    between = (objective.radius > 0) & (objective.radius < eps)
    assert int(between.sum()) > 20 and bool((objective.radius == eps).any()) and bool((objective.radius == 0).any())


def test_labels_have_the_moments_of_their_distribution() -> None:
    """(1 − w)·onehot + w·Dirichlet(1): mean w/K beside the label, variance w²·(K − 1)/(K²·(K + 1))."""
    n, k, w = 20_000, 4, 0.3
    y = torch.full((n,), 2)
    drawn = soft_labels(y, torch.full((n,), w, dtype=torch.float64), Noise(1, torch.arange(n)), 0, k)
    assert torch.allclose(drawn.sum(dim=1), torch.ones(n, dtype=torch.float64)) and bool((drawn >= 0).all())
    mean = torch.full((k,), w / k, dtype=torch.float64)
    mean[2] += 1 - w
    variance = w**2 * (k - 1) / (k**2 * (k + 1))
    assert bool(((drawn.mean(dim=0) - mean).abs() < 4 * (variance / n) ** 0.5).all())
    torch.testing.assert_close(drawn.var(dim=0), torch.full((k,), variance, dtype=torch.float64), rtol=0.06, atol=0)
    sharp = soft_labels(y[:3], torch.zeros(3), Noise(1, torch.arange(3)), 0, k)
    assert torch.equal(sharp, torch.eye(k)[y[:3]])


def test_the_margin_of_the_mixed_loss_is_not_constant() -> None:
    """It adds max(max_{k≠y} z_k − z_y, −κ): here by hand, with one sample below −κ and one that is wrong."""
    model = nn.Linear(1, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([12.0, 0.0, 1.0]))
    x, y, ids = torch.full((2, 1), 0.5), torch.tensor([0, 1]), torch.arange(2)
    plain, mixed = (cat(eps=0.1, loss=loss)(model, x, y, ids=ids, seed=0).item() for loss in ("ce", "mixed"))
    assert mixed - plain == pytest.approx((-10.0 + 12.0) / 2, abs=1e-4)


def test_a_state_goes_on_where_another_was() -> None:
    model = nn.Linear(6, 2)
    x, ids = torch.rand(9, 6), torch.arange(9)
    y = model(x).argmax(dim=1)
    first, second = cat(eps=0.1), cat(eps=0.1)
    first(model, x, y, ids=ids, seed=0)
    assert bool((first.radius > 0).any())
    second.load_state_dict(first.state_dict())
    losses = [objective(model, x, y, ids=ids, seed=1) for objective in (first, second)]
    assert torch.equal(*losses) and torch.equal(first.radius, second.radius)
    assert not torch.equal(losses[0], cat(eps=0.1)(model, x, y, ids=ids, seed=1))


def test_wrong_arguments_are_named() -> None:
    for change, match in (
        ({"eta": 0.0}, "eta: want finite and above 0"),
        ({"smoothing": 20.0}, "smoothing: want at most 1/eps = 10"),
        ({"smoothing": -1.0}, "smoothing"),
        ({"loss": "margin"}, "loss"),
        ({"kappa": -1.0}, "kappa"),
        ({"eps": 3.0}, "eps"),
    ):
        with pytest.raises(ValueError, match=f"^{match}"):
            cat(**{"eps": 0.1, **change})
