"""Training on the semidefinite certificate: its loss by explicit matrices, its multipliers, and what it gains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.defenses import sdp_training
from robustlab.training.fit import fit
from robustlab.verification import trace
from robustlab.verification.duals.one_hidden import parts_of
from robustlab.verification.duals.sdp_certificate import multipliers
from tests.unit.test_ibp_training import as_matrix, clean_surprise


def quadratic_form(W: Tensor, v: Tensor) -> Tensor:
    """The matrix of y = (1, t, s) ↦ 2·tᵀWᵀ(v ⊙ (1 + s)/2)·½, entry by entry, for slopes between 0 and 1."""
    m, d = W.shape
    M = torch.zeros(1 + d + m, 1 + d + m, dtype=W.dtype, device=W.device)
    for i in range(d):
        for j in range(m):
            M[1 + i, 1 + d + j] = M[1 + d + j, 1 + i] = W[j, i] * v[j] / 2
        M[0, 1 + i] = M[1 + i, 0] = (W[:, i] * v).sum() / 2
    return M


def formula(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, weight: float = 0.002) -> Tensor:
    """On a net affine–softplus–affine, by all eigenvalues, each ordered pair by itself; c = 0 at first."""
    W, _ = as_matrix(model[:2], tuple(x.shape[1:]), x)
    last, total = model[-1], torch.zeros((), dtype=x.dtype, device=x.device)
    for i in range(last.weight.shape[0]):
        for j in range(last.weight.shape[0]):
            if i != j:
                M = 2 * quadratic_form(W, last.weight[i] - last.weight[j])
                total = total + len(M) * torch.linalg.eigvalsh(M)[-1].clamp_min(0) / 4
    return clean_surprise(model, x, y) + weight * total


def net(seed: int = 0, sizes: tuple[int, int, int] = (4, 8, 3)) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:])).double()


def batch(n: int = 20) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, (x[:, 0] > 0.5).long() + (x[:, 1] > 0.5).long()


def test_the_form_is_the_verifiers() -> None:
    model = net()
    C = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    ours = quadratic_form(model[0].weight, (C @ model[2].weight)[0])
    torch.testing.assert_close(parts_of(trace(model, batch()[0])).coupling(C)[0], ours)


def test_the_loss_with_multipliers_that_have_moved() -> None:
    """The letter of the paper at the c of the last step, and a bound of the slope for it: weak duality."""
    model, x = net(), batch()[0]
    objective = sdp_training(weight=1.0, iterations=40, lr=0.05)
    values = []
    for _ in range(60):
        objective.set_progress(0.5)
        values.append(float(objective.regularizer(model, x).detach()))
    assert objective.c is not None and objective.unit is not None and bool((objective.c != 0).any())
    c, total, pairs = objective.c * objective.unit, 0.0, [(0, 1), (0, 2), (1, 2)]
    for k, (i, j) in enumerate(pairs):
        M = 2 * quadratic_form(model[0].weight, model[2].weight[i] - model[2].weight[j]).detach()
        top = torch.linalg.eigvalsh(M - torch.diag(c[k]))[-1].clamp_min(0)
        total += 2 * float(len(M) * top + c[k].clamp_min(0).sum()) / 4
    assert values[-1] == pytest.approx(total, rel=1e-6)
    assert min(values) < 0.98 * values[0], "the multipliers' steps make the dual smaller"


def test_a_few_iterations_lie_below() -> None:
    """A Ritz value is no certificate: with few products the regularizer is too small, with all it is exact."""
    model, x = net(1, (4, 30, 3)), batch()[0]
    pairs, last = [(0, 1), (0, 2), (1, 2)], model[2].weight
    forms = [2 * quadratic_form(model[0].weight, last[i] - last[j]).detach() for i, j in pairs]
    exact = sum(2 * len(M) * float(torch.linalg.eigvalsh(M)[-1]) / 4 for M in forms)
    found = [float(sdp_training(iterations=k).regularizer(model, x).detach()) for k in (1, 2, 4, 35)]
    assert found[0] < found[1] < found[2] <= found[3] * (1 + 1e-9)
    assert found[0] < 0.9 * exact and found[3] == pytest.approx(exact, rel=1e-8)


@pytest.mark.slow
def test_the_certified_slope_falls() -> None:
    """What the certificate says of the change in a ball is smaller than after plain training, on nets of two seeds."""
    x, y = batch(200)
    C = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    for seed in range(2):
        slope = []
        for how in ({}, {"objective": sdp_training(weight=0.002)}):
            model = net(seed, (4, 16, 3))
            fit(model, (x, y), epochs=15, batch_size=50, lr=0.02, **how)  # type: ignore[arg-type]
            kappa = multipliers(parts_of(trace(model, x)).coupling(C).detach(), steps=20)
            slope.append(float(kappa.sum()))
        assert slope[1] < 0.8 * slope[0], slope


def test_an_interrupted_training_goes_on(tmp_path: object) -> None:
    """The multipliers and eigenvectors are stored with the rest."""
    x, y = batch(60)
    whole = net()
    fit(whole, (x, y), objective=sdp_training(), epochs=4, batch_size=20)
    broken, file = net(), tmp_path / "state"  # type: ignore[operator]

    class Stopped(Exception):
        pass

    def stop(epoch: int, model: nn.Module) -> None:
        if epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fit(broken, (x, y), objective=sdp_training(), epochs=4, batch_size=20, on_epoch=stop, resume=file)
    resumed = net()
    fit(resumed, (x, y), objective=sdp_training(), epochs=4, batch_size=20, on_epoch=lambda *_: None, resume=file)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_wrong_arguments_are_named() -> None:
    for change in ({"weight": -1.0}, {"iterations": 0}, {"iterations": 1.5}, {"lr": 0.0}):
        with pytest.raises((TypeError, ValueError), match=f"^{next(iter(change))}"):
            sdp_training(**change)  # type: ignore[arg-type]
    deep = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with pytest.raises(ValueError, match=r"model: want one hidden layer, got a second one"):
        fit(deep, batch(), objective=sdp_training(), epochs=1)
