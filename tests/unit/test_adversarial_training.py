"""Adversarial training: the inner maximum in closed form, and what crafting must leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlab import data, models
from robustlab.attacks import pgd
from robustlab.defenses import adversarial_training
from robustlab.training.fit import cross_entropy, fit

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


@pytest.mark.parametrize("norm", DUAL)
def test_on_two_affine_classes_the_loss_is_the_exact_worst_case(norm: str) -> None:
    """There the margin falls by exactly ε·‖w_1 − w_0‖ in the dual norm, as long as the box is not reached."""
    model = nn.Linear(6, 2).double()
    x = 0.4 + 0.2 * torch.rand(20, 6, dtype=torch.float64)
    y, eps = torch.arange(20) % 2, 0.1
    loss = adversarial_training(norm=norm, eps=eps, steps=40, step_size=eps)(model, x, y, ids=torch.arange(20), seed=0)
    with torch.no_grad():
        logits = model(x)
        margin = (logits[:, 1] - logits[:, 0]) * (2 * y - 1)
        worst = F.softplus(-(margin - eps * (model.weight[1] - model.weight[0]).norm(DUAL[norm]))).mean()
    assert loss.item() == pytest.approx(worst.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_crafted_input_stays_in_ball_and_box_and_depends_on_seed_and_id() -> None:
    model, seen = nn.Linear(6, 2), []
    model.register_forward_hook(lambda m, args, out: seen.append(args[0].detach().clone()))
    x, y = torch.rand(8, 6), torch.arange(8) % 2

    def crafted(rows: torch.Tensor, seed: int) -> torch.Tensor:
        adversarial_training(eps=0.2, steps=1, step_size=0.01)(model, x[rows], y[rows], ids=rows, seed=seed)
        return seen[-1]

    everything = torch.arange(8)
    first = crafted(everything, 0)
    assert (first - x).abs().max() <= 0.2 + 1e-6 and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, crafted(everything, 0)) and not torch.equal(first, crafted(everything, 1))
    assert torch.allclose(first[3:5], crafted(everything[3:5], 0), atol=1e-6)


def test_epsilon_grows_over_the_warmup() -> None:
    model, seen = nn.Linear(6, 2), []
    model.register_forward_hook(lambda m, args, out: seen.append(args[0].detach().clone()))
    x, y, ids = torch.full((4, 6), 0.5), torch.arange(4) % 2, torch.arange(4)
    objective = adversarial_training(eps=0.2, steps=20, warmup=0.5)
    for done, eps in ((0.0, 0.0), (0.25, 0.1), (0.5, 0.2), (0.9, 0.2)):
        objective.set_progress(done)
        objective(model, x, y, ids=ids, seed=0)
        assert (seen[-1] - x).abs().max().item() == pytest.approx(eps, abs=1e-6)
    plain = adversarial_training(eps=0.2, steps=20)
    plain.set_progress(0.0)
    plain(model, x, y, ids=ids, seed=0)
    assert (seen[-1] - x).abs().max().item() == pytest.approx(0.2, abs=1e-6)


def test_crafting_leaves_modes_parameters_and_batch_norm_alone() -> None:
    x, y, ids = torch.rand(12, 1, 28, 28), torch.arange(12) % 10, torch.arange(12)
    counted = {}
    for mode in ("eval", "train"):
        model = models.resnet_tiny(channels=(4, 8))
        model.train()
        model[-1].weight.requires_grad_(False)
        modes = [m.training for m in model.modules()]
        adversarial_training(eps=0.1, steps=3, craft_mode=mode)(model, x, y, ids=ids, seed=0).backward()
        assert [m.training for m in model.modules()] == modes
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == [f"{[*model._modules][-1]}.weight"]
        counted[mode] = int(model.stem[1].num_batches_tracked)
    assert counted == {"eval": 1, "train": 4}, "in eval mode the training forward alone moves the statistics"


def test_it_makes_a_model_more_robust() -> None:
    d = data.load("mnist5k").subset(1000, 200)
    robust = {}
    for name, objective in (("plain", cross_entropy), ("adversarial", adversarial_training(eps=0.05, steps=3))):
        model = models.mlp(hidden=(32,))
        fit(model, d, objective=objective, epochs=15, batch_size=50, lr=5e-3)
        robust[name] = 1 - pgd(model, d.x_test, d.y_test, eps=0.05, steps=10).success.float().mean().item()
    assert robust["adversarial"] > robust["plain"] + 0.1


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_data_outside_the_box_are_refused_instead_of_clipped(warmup: float) -> None:
    x, y = 2 * torch.rand(12, 6) - 1, torch.arange(12) % 2
    with pytest.raises(ValueError, match=r"^x: want values in \[0, 1\], got values in"):
        fit(nn.Linear(6, 2), (x, y), objective=adversarial_training(eps=0.1, steps=1, warmup=warmup), epochs=1)
    fit(nn.Linear(6, 2), (x, y), objective=adversarial_training(eps=0.1, steps=1, bounds=(-1.0, 1.0)), epochs=1)


def test_wrong_arguments_are_named() -> None:
    for change, match in (
        ({"norm": "l3"}, "norm"),
        ({"eps": 0.0}, "eps"),
        ({"steps": 0}, "steps"),
        ({"step_size": -1.0}, "step_size"),
        ({"warmup": 1.5}, "warmup"),
        ({"warmup": -0.5}, "warmup"),
        ({"craft_mode": "both"}, "craft_mode"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
    ):
        with pytest.raises(ValueError, match=f"^{match}:"):
            adversarial_training(**{"eps": 0.1, **change})
