"""Unsupervised adversarial training: each term by hand, and where its gradient must not go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.defenses import unsupervised_adversarial_training
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.geometry.norms import get_norm
from robustlab.training.fit import fit
from tests.unit.test_adversarial_training import formula as formula_of_adversarial_training


def formula(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, eps: float, steps: int) -> Tensor:
    """Where all labels are known it is adversarial training."""
    return formula_of_adversarial_training(model, x, y, ids=ids, seed=seed, eps=eps, steps=steps)


def surprise(z: Tensor, label: int) -> Tensor:
    return z.exp().sum().log() - z[label]


def relative_entropy(p: Tensor, z: Tensor) -> Tensor:
    return (p * (p / z.softmax(dim=0)).log()).sum()


def worst(model: nn.Module, one: Tensor, name: int, seed: int, eps: float, loss) -> Tensor:
    """Ten signed steps for one sample."""
    start = get_norm("linf").uniform(Noise(seed, torch.tensor([name])), 0, one[None], eps)[0]
    point = (one + start).clamp(0, 1)
    for _ in range(10):
        point = point.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(model(point[None])[0]), point)
        point = torch.minimum(torch.maximum(point + eps / 4 * slope.sign(), one - eps), one + eps).clamp(0, 1)
    return model(point.detach()[None])[0]


@pytest.mark.parametrize("targets", ["online", "fixed", "both"])
def test_each_term_by_hand_and_no_gradient_goes_through_the_target(targets: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, ids, eps, lam = torch.rand(5, 4, dtype=torch.float64), torch.tensor([3, 1, 4, 0, 2]), 0.1, 0.7
    y, pseudo = torch.tensor([2, -1, 0, -1, -1]), torch.tensor([1, 2, 0, 0, 1])
    objective = unsupervised_adversarial_training(targets=targets, pseudo_labels=pseudo, lam=lam, eps=eps)
    loss = objective(model, x, y, ids=ids, seed=5)
    known, unknown = [], []
    for i, name in enumerate(ids.tolist()):
        target = model(x[i : i + 1])[0].softmax(dim=0).detach()
        own = int(y[i]) if y[i] >= 0 else int(pseudo[name])
        if y[i] >= 0:
            known.append(surprise(worst(model, x[i], name, 5, eps, lambda z, own=own: surprise(z, own)), own))
            continue
        term = torch.zeros((), dtype=torch.float64)
        if targets != "online":
            term = term + surprise(worst(model, x[i], name, 5, eps, lambda z, own=own: surprise(z, own)), own)
        if targets != "fixed":
            seed = 5 if targets == "online" else derive_seed(5, 1)
            away = worst(model, x[i], name, seed, eps, lambda z, target=target: relative_entropy(target, z))
            term = term + relative_entropy(target, away)
        unknown.append(term)
    want = torch.stack(known).mean() + lam * torch.stack(unknown).mean()
    torch.testing.assert_close(loss, want)
    for ours, theirs in zip(*(torch.autograd.grad(l, list(model.parameters())) for l in (loss, want)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_batch_without_labels_or_without_unlabeled_samples_has_the_other_term_alone() -> None:
    model, x, ids = nn.Linear(4, 3).double(), torch.rand(6, 4, dtype=torch.float64), torch.arange(6)
    y, nobody = torch.arange(6) % 3, torch.full((6,), -1)
    for lam in (0.5, 1.0):
        objective = unsupervised_adversarial_training(lam=lam, eps=0.1)
        labeled, unlabeled = (objective(model, x, label, ids=ids, seed=0) for label in (y, nobody))
        both = objective(model, torch.cat([x, x]), torch.cat([y, nobody]), ids=torch.cat([ids, ids]), seed=0)
        torch.testing.assert_close(both, labeled + unlabeled)
        assert float(unlabeled.detach()) > 0


def test_fixed_targets_want_labels_for_all_rows_and_online_ones_none() -> None:
    x, y, model = torch.rand(6, 4), torch.tensor([0, 1, -1, 0, -1, 1]), nn.Linear(4, 2)
    for targets in ("fixed", "both"):
        with pytest.raises(ValueError, match=r"^pseudo_labels: want labels for the 2 rows"):
            fit(model, (x, y), objective=unsupervised_adversarial_training(targets=targets, eps=0.1), epochs=1)
    fit(model, (x, y), objective=unsupervised_adversarial_training(eps=0.1, steps=1), epochs=1)
    for change, match in (({"targets": "soft"}, "targets"), ({"lam": -1.0}, "lam"), ({"steps": 0}, "steps")):
        with pytest.raises(ValueError, match=f"^{match}"):
            unsupervised_adversarial_training(**{"eps": 0.1, **change})
