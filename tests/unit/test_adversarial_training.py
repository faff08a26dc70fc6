"""Adversarial training: the inner maximum in closed form, and what crafting must leave alone."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm as standard_normal
from torch import Tensor, nn

from robustlab import data, models
from robustlab.attacker.victim import Victim
from robustlab.attacks import pgd
from robustlab.defenses import adversarial_training, robust_validation
from robustlab.defenses.training.crafting import at_worst_weights
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import get_norm
from robustlab.training.fit import cross_entropy, fit

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


def formula(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, eps: float, steps: int) -> Tensor:
    """Signed steps of 2.5·ε/K from a uniform start, kept in ball and box by two clamps; surprise of the last point."""

    def surprise(at: Tensor) -> Tensor:
        z = model(at)
        return (z.exp().sum(dim=1).log() - z[torch.arange(len(y), device=z.device), y]).mean()

    point = (x + get_norm("linf").uniform(Noise(seed, ids), 0, x, eps)).clamp(0, 1)
    for _ in range(steps):
        point = point.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(surprise(point), point)
        point = torch.minimum(torch.maximum(point + 2.5 * eps / steps * slope.sign(), x - eps), x + eps).clamp(0, 1)
    return surprise(point.detach())


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


@pytest.mark.slow
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
        ({"bounds": (0.0, torch.inf)}, "bounds: want finite ends"),
        ({"eps": 8.0}, r"eps: want at most 1, the diameter of the box in linf, got 8; did you mean 8/255\?$"),
        ({"weight_perturbation": -0.1}, "weight_perturbation"),
        ({"check_every": -1}, "check_every"),
    ):
        with pytest.raises(ValueError, match=f"^{match}" + (":" if ":" not in match else "")):
            adversarial_training(**{"eps": 0.1, **change})
    with pytest.raises(ValueError, match=r"^eps: want at most 2\.44949, the diameter of the box in l2"):
        adversarial_training(norm="l2", eps=3.0)(
            nn.Linear(6, 2), torch.rand(4, 6), torch.arange(4) % 2, ids=torch.arange(4), seed=0
        )


# The Gaussian model --------------------------------------------------------------------------------------------------


def robust_error(theta: Tensor, mu: Tensor, eps: float) -> float:
    """Of sign(θ·x) where x ~ N(y·μ, I) and an opponent moves each element by ε (Carmon et al., 2019, section 3)."""
    distance = (mu @ theta - eps * theta.abs().sum()) / theta.norm()
    return float(standard_normal.sf(float(distance)))


@pytest.mark.slow
def test_in_the_gaussian_model_training_finds_the_most_robust_direction() -> None:
    """There the best direction is μ shrunk by ε, elements below ε at 0; PGD's error is the closed form's."""
    d, n, eps, wide = 10, 3000, 0.3, (-20.0, 20.0)
    mu = torch.linspace(0.1, 1.0, d, dtype=torch.float64)
    noise = Noise(0, torch.arange(n))
    y = torch.arange(n) % 2
    x = (2 * y - 1)[:, None] * mu + noise.normal(0, (d,), torch.float64)
    errors, thetas = {}, {}
    for name, objective in (
        ("plain", cross_entropy),
        ("robust", adversarial_training(eps=eps, steps=2, step_size=eps, bounds=wide)),
    ):
        model = nn.Linear(d, 2).double()
        fit(model, (x, y), objective=objective, epochs=10, batch_size=100, lr=0.03)
        thetas[name] = (model.weight[1] - model.weight[0]).detach()
        with torch.no_grad():
            model.bias.zero_()
        errors[name] = robust_error(thetas[name], mu, eps)
        fooled = pgd(Victim(model, bounds=wide), x, y, eps=eps, steps=2, step_size=eps).success.double().mean()
        spread = 4 * (errors[name] * (1 - errors[name]) / n) ** 0.5
        assert float(fooled) == pytest.approx(errors[name], abs=spread), name
    best = robust_error((mu - eps).clamp_min(0), mu, eps)
    assert best <= errors["robust"] <= best + 0.006 and errors["plain"] > best + 0.01, (best, errors)


# One step, and its check ---------------------------------------------------------------------------------------------


def test_one_step_is_a_signed_step_of_a_quarter_more_than_epsilon_from_a_uniform_start() -> None:
    model, seen = nn.Linear(6, 2).double(), []
    model.register_forward_hook(lambda m, args, out: seen.append(args[0].detach().clone()))
    x, y, ids, eps = 0.3 + 0.4 * torch.rand(50, 6, dtype=torch.float64), torch.arange(50) % 2, torch.arange(50), 0.1
    adversarial_training(eps=eps, steps=1)(model, x, y, ids=ids, seed=4)
    uphill = (model.weight[1 - y] - model.weight[y]).detach().sign()
    start = get_norm("linf").uniform(Noise(4, ids), 0, x, eps)
    torch.testing.assert_close(seen[-1], x + (start + 1.25 * eps * uphill).clamp(-eps, eps), rtol=0, atol=1e-12)


class Valley(nn.Module):
    """Wrong only in a narrow valley beside x: one long step jumps over it, short ones end in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        margin = self.scale * (20 * (x[:, 0] - 0.55).abs() - 0.4)
        return torch.stack([margin, -margin], dim=1)


def test_the_check_tells_a_net_that_fools_one_step_from_an_honest_one() -> None:
    x, y, ids = torch.full((40, 1), 0.5), torch.zeros(40, dtype=torch.int64), torch.arange(40)
    honest = nn.Linear(1, 2)
    with torch.no_grad():
        honest.weight.zero_()
        honest.bias.copy_(torch.tensor([1.0, -1.0]))
    objective = adversarial_training(eps=0.1, steps=1, check_every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            objective(honest, x, y, ids=ids, seed=0)
    assert [(seen.crafted, seen.pgd, seen.catastrophic) for seen in objective.checks] == [(1.0, 1.0, False)] * 2
    objective(Valley(), x, y, ids=ids, seed=0)  # between two checks
    objective.set_progress(0.75)
    with pytest.warns(UserWarning, match=r"^adversarial_training: catastrophic overfitting: accuracy is \d\d%"):
        objective(Valley(), x, y, ids=ids, seed=0)
    seen = objective.checks[-1]
    assert seen.catastrophic and seen.done == 0.75 and seen.crafted > 0.6 > 0.4 > seen.pgd
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        for _ in range(2):
            objective(Valley(), x, y, ids=ids, seed=0)
    assert len(objective.checks) == 4


# Worst weights -------------------------------------------------------------------------------------------------------


def test_worst_weights_are_a_step_along_the_slope_of_each_layer_and_leave_the_model_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double().train()
    x, y, gamma = torch.rand(12, 6, dtype=torch.float64), torch.arange(12) % 3, 0.05
    state = copy.deepcopy(model.state_dict())
    loss = at_worst_weights(model, lambda net: F.cross_entropy(net(x), y), gamma)
    loss.backward()
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    walker = copy.deepcopy(twin)
    F.cross_entropy(walker(x), y).backward()
    with torch.no_grad():
        for own, there in zip(twin.parameters(), walker.parameters(), strict=True):
            if own.dim() > 1:
                own += gamma * own.norm() / there.grad.norm() * there.grad
    want = F.cross_entropy(twin(x), y)
    want.backward()
    torch.testing.assert_close(loss, want)
    for own, there in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, there.grad)
    now = model.state_dict()
    assert all(torch.equal(now[key], state[key]) for key in state if "running" not in key and "batches" not in key)
    assert int(now["1.num_batches_tracked"]) == 1, "the statistics move once"
    torch.testing.assert_close(now["1.running_mean"], twin.state_dict()["1.running_mean"])


# Validation ----------------------------------------------------------------------------------------------------------


def test_robust_validation_is_the_exact_robust_accuracy_on_an_affine_model() -> None:
    model = nn.Linear(6, 2).double()
    x, y, eps = 0.3 + 0.4 * torch.rand(200, 6, dtype=torch.float64), torch.arange(200) % 2, 0.02
    with torch.no_grad():
        z = model(x)
    room = (z[:, 1] - z[:, 0]) * (2 * y - 1) / (model.weight[1] - model.weight[0]).detach().abs().sum()
    want = float((room > eps).double().mean())
    assert 0 < want < 1 and robust_validation((x, y), eps=eps)(model) == pytest.approx(want)


def test_a_validation_split_that_is_empty_or_the_test_data_is_refused() -> None:
    d = data.load("mnist5k").subset(100, 10)
    train, held = data.hold_out(d, n=30)
    assert torch.equal(torch.cat([train[0], held[0]]), d.x_train) and torch.equal(
        torch.cat([train[1], held[1]]), d.y_train
    )
    assert len(held[1]) == 30
    for n in (0, 100):
        with pytest.raises(ValueError, match=r"^n: want at"):
            data.hold_out(d, n=n)
    with pytest.raises(TypeError, match=r"^data: want a pair held out of the training data"):
        robust_validation(d, eps=0.1)
    with pytest.raises(ValueError, match=r"^data: want as many inputs as labels, at least one"):
        robust_validation((d.x_train[:0], d.y_train[:0]), eps=0.1)
    with pytest.raises(ValueError, match=r"^x: want values in"):
        robust_validation((d.x_train + 1, d.y_train), eps=0.1)
    with pytest.raises(ValueError, match=r"^eps: "):
        robust_validation(held, eps=0.0)
