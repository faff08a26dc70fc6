"""SPROUT: its labels against SciPy's gamma distribution and known moments, and the ascent of what they share."""

from __future__ import annotations

import pytest
import scipy.special
import torch
from torch import Tensor, nn

from robustlab.defenses import sprout
from robustlab.defenses.training.dirichlet import _LogQuantile, dirichlet
from robustlab.geometry.keyed import Noise, derive_seed


def _drawn(alpha: Tensor, noise: Noise, draw: int) -> Tensor:
    """Gamma variables by SciPy's quantiles, over their sum."""
    u, v = (noise.uniform((draw, part), alpha.shape[1:], torch.float64) for part in (0, 1))
    gamma = torch.from_numpy(scipy.special.gammaincinv(alpha.numpy() + 1, u.numpy())) * v ** (1 / alpha)
    return gamma / gamma.sum(dim=1, keepdim=True)


def formula(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
    """The first call: u = 1. Both labels drawn from SciPy's quantiles, and the two cross-entropies written out."""
    noise, own = Noise(seed, ids), Noise(derive_seed(seed, 1), torch.tensor([0]))
    share = float(_drawn(torch.full((1, 2), 0.2, dtype=torch.float64), own, 0)[0, 0])
    noisy = x + 0.1 * noise.normal(0, x.shape[1:], x.dtype)
    partner = noise.bits(1, ()).argsort()
    log_p = model(share * noisy + (1 - share) * noisy[partner]).log_softmax(dim=1)
    terms = [
        -(_drawn(10 * torch.eye(3, dtype=torch.float64)[label] + 1, noise, draw) * log_p).sum(dim=1).mean()
        for draw, label in ((2, y), (3, y[partner]))
    ]
    return share * terms[0] + (1 - share) * terms[1]


def test_quantiles_of_the_gamma_distribution_are_scipys_and_so_are_their_slopes() -> None:
    generator = torch.Generator().manual_seed(0)
    a = 1 + torch.tensor([1e-3, 1.0, 20.0, 300.0]).double().repeat(500) * torch.rand(2000, generator=generator).double()
    u = torch.rand(2000, generator=generator).double()
    u[:200], u[200:400] = 10 ** (-12 * u[:200]), 1 - 10 ** (-9 * u[200:400])
    shape = a.clone().requires_grad_(True)
    t = _LogQuantile.apply(shape, u)
    (slope,) = torch.autograd.grad(t.sum(), shape)

    def log_quantile(a: Tensor) -> Tensor:
        return torch.from_numpy(scipy.special.gammaincinv(a.numpy(), u.numpy())).log()

    torch.testing.assert_close(t.detach(), log_quantile(a), rtol=0, atol=1e-8)
    by_differences = (log_quantile(a * (1 + 1e-5)) - log_quantile(a * (1 - 1e-5))) / (2e-5 * a)
    torch.testing.assert_close(slope[400:], by_differences[400:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [[1e-3, 1e-3, 0.5], [10.2, 0.2, 0.2], [1.0, 1.0, 1.0]])
def test_a_dirichlet_draw_has_its_moments_and_the_gradient_of_its_mean(alpha: list[float]) -> None:
    """Mean α_k/A; variance of its share; and ∂E[p_0]/∂α by the pathwise gradient, (δ_0k·A − α_0)/A²."""
    n, a = 20_000, torch.tensor(alpha, dtype=torch.float64)
    total = a.sum()
    shared = a.clone().requires_grad_(True)
    p = dirichlet(shared.expand(n, 3), Noise(0, torch.arange(n)), 0)
    (slope,) = torch.autograd.grad(p[:, 0].mean(), shared)
    p = p.detach()
    assert bool(p.isfinite().all()) and torch.allclose(p.sum(dim=1), torch.ones(n, dtype=torch.float64))
    mean, variance = a / total, a * (total - a) / (total**2 * (total + 1))
    assert bool(((p.mean(dim=0) - mean).abs() < 4 * (variance / n) ** 0.5).all())
    torch.testing.assert_close(p.var(dim=0), variance, rtol=0.25 if min(alpha) < 0.1 else 0.06, atol=1e-4)
    if min(alpha) > 0.1:  # below, a rare draw decides on the mean of the slopes
        want = (torch.eye(3, dtype=torch.float64)[0] * total - a[0]) / total**2
        torch.testing.assert_close(slope, want, rtol=0.05, atol=3e-3)


def test_every_third_step_is_followed_by_one_ascent_and_no_concentration_is_ever_zero() -> None:
    """A net that is sure of the label loses most where the rest of the label's mass is: u grows for its own classes'
    rivals. Where it pays to lose concentration, u stops at 0.001 and labels can still be drawn."""
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([4.0, 0.0, 0.0]))
    x, y, ids, objective = torch.rand(30, 2), torch.zeros(30, dtype=torch.int64), torch.arange(30), sprout(rate=500.0)
    seen = []
    for step in range(8):
        assert bool(objective(model, x, y, ids=ids, seed=step).isfinite())
        seen.append(objective.u.clone())
    moved = [not torch.equal(seen[i], seen[i - 1]) for i in range(1, 8)]
    assert moved == [False, False, True, False, False, True, False]
    assert float(seen[-1][0]) == pytest.approx(1e-3) and bool((seen[-1][1:] > 1).all())


def test_the_ascent_is_uphill_on_clean_inputs_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().train()
    inputs: list[tuple[Tensor, bool]] = []
    model.register_forward_hook(lambda m, args, out: inputs.append((args[0].detach().clone(), m[1].training)))
    x, y, ids = torch.rand(60, 4, dtype=torch.float64), torch.arange(60) % 3, torch.arange(60)
    objective = sprout(rate=0.05)
    for step in range(3):
        objective(model, x, y, ids=ids, seed=step)
    before, statistics = objective.u.clone(), model[1].running_mean.clone()
    objective._ascend(model, x, y, Noise(3, ids))
    assert torch.equal(inputs[-1][0], x) and not inputs[-1][1] and torch.equal(statistics, model[1].running_mean)
    log_p = model.eval()(x).log_softmax(dim=1).detach()

    def expected(u: Tensor) -> float:
        """E[CE] in closed form: the mean of the labels is α/A."""
        alpha = 10 * torch.eye(3, dtype=torch.float64)[y] + u
        return float(-(alpha / alpha.sum(dim=1, keepdim=True) * log_p).sum(dim=1).mean())

    assert expected(objective.u) > expected(before)


def test_without_noise_and_mixup_it_is_label_smoothing_in_the_mean() -> None:
    model, n = nn.Linear(4, 3).double(), 4000
    x, y = torch.rand(1, 4, dtype=torch.float64).expand(n, 4), torch.ones(n, dtype=torch.int64)
    loss = float(sprout(sigma=0.0, mixup=0.0)(model, x, y, ids=torch.arange(n), seed=0).detach())
    log_p = model(x[:1]).log_softmax(dim=1)[0].detach()
    want = float(-(torch.tensor([1.0, 11.0, 1.0], dtype=torch.float64) / 13 * log_p).sum())
    assert loss == pytest.approx(want, abs=4 * float(log_p.std()) * 0.13 / n**0.5 + 1e-3)


def test_a_state_goes_on_where_another_was() -> None:
    model = nn.Linear(4, 3)
    x, y, ids = torch.rand(9, 4), torch.arange(9) % 3, torch.arange(9)
    first, second = sprout(rate=5.0), sprout(rate=5.0)
    for step in range(3):
        first(model, x, y, ids=ids, seed=step)
    second.load_state_dict(first.state_dict())
    losses = [objective(model, x, y, ids=ids, seed=7) for objective in (first, second)]
    assert torch.equal(*losses) and torch.equal(first.u, second.u) and not torch.equal(first.u, torch.ones(3))


def test_wrong_arguments_are_named() -> None:
    for change, match in (
        ({"sigma": -1.0}, "sigma"),
        ({"mixup": -0.1}, "mixup"),
        ({"rate": 0.0}, "rate"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"bounds": (-torch.inf, 1.0)}, "bounds: want finite ends"),
    ):
        with pytest.raises(ValueError, match=f"^{match}"):
            sprout(**change)
    with pytest.raises(ValueError, match=r"^x: want values in \[0, 1\]"):
        sprout()(nn.Linear(4, 3), 2 + torch.rand(5, 4), torch.arange(5) % 3, ids=torch.arange(5), seed=0)
