"""What every verifier must keep: soundness first, then the manners that all methods share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import pgd
from robustlab.geometry.norms import linear_distance
from robustlab.verification import trace
from tests.suite.models import Affine
from tests.suite.product import one_of
from tests.suite.verification.cases import (
    CASES,
    EPS,
    ONE_HIDDEN,
    PIECEWISE_LINEAR,
    Case,
    over_all,
    points_of_ball,
    problem,
    relu_net,
)


def verified(certificate: object) -> torch.Tensor:
    """On the CPU, where points and attacks are compared with it."""
    return certificate.verified.cpu()  # type: ignore[attr-defined]


def check_certificates(
    case: Case, model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float, seed: int
) -> torch.Tensor:
    """None is broken by points of the ball, many of them its corners, or by PGD; which samples are verified."""
    sure = verified(case.run(model, x, y, eps))
    points = points_of_ball(case.norm, x, eps, 150, seed)
    with torch.no_grad():
        kept = (model(points.flatten(0, 1)).argmax(dim=1).reshape(150, -1) == y).all(dim=0)
    assert not bool((sure & ~kept.cpu()).any())
    found = pgd(Victim(model), x, y, norm=case.norm, eps=eps, steps=15).success
    assert not bool((sure & found.cpu()).any())
    return sure


def check_no_certificate_is_broken(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    for seed in range(3):
        model, x, y = problem(case, 8, dtype, seed, device=device)
        for factor in (1.0, 3.0):
            check_certificates(case, model, x, y, factor * EPS[case.norm], seed)


@pytest.mark.slow
@one_of(CASES, dtype=(torch.float64, torch.float32))
def test_no_certificate_is_broken(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    check_no_certificate_is_broken(case, device, dtype)


@pytest.mark.slow
@one_of(CASES, net=("residual", "tanh"))
def test_no_certificate_of_another_net_is_broken(case: Case, net: str, device: torch.device) -> None:
    """Some are verified at the smaller radius. Verifiers that know piecewise linear nets alone say so."""
    model, x, y = problem(case, 6, net=net, device=device)
    if net == "tanh" and case.row.key in PIECEWISE_LINEAR:
        with pytest.raises(ValueError, match=r"Smooth.* at node"):
            case.run(model, x, y, EPS[case.norm])
        return
    if net == "residual" and case.row.key in ONE_HIDDEN:
        with pytest.raises(ValueError, match=r"model: want one hidden layer, .* at node"):
            case.run(model, x, y, EPS[case.norm])
        return
    sure = [check_certificates(case, model, x, y, factor * EPS[case.norm], seed=0) for factor in (0.2, 1.0)]
    assert bool(sure[0].any())


@pytest.mark.slow
@over_all
def test_something_is_verified_and_something_is_not(case: Case) -> None:
    model, x, y = problem(case, 12)
    certificate = case.run(model, x, y, EPS[case.norm] / 25)
    assert int(certificate.verified.sum()) > 0
    certificate = case.run(model, x[:4], y[:4], 12 * EPS[case.norm])
    assert int(certificate.verified.sum()) < 4


@over_all
def test_form_of_the_certificate(case: Case) -> None:
    model, x, y = problem(case)
    wrong = (y + 1) % 3
    labels = torch.cat([y[:3], wrong[3:]])
    certificate = case.run(model, x, labels, EPS[case.norm])
    assert set(certificate.status) <= {"verified", "falsified", "unknown"} and len(certificate.status) == 6
    assert (certificate.norm, certificate.method, certificate.confidence) == (case.norm, case.row.key, 1.0)
    assert certificate.radius.shape == (6,) and certificate.radius.dtype == x.dtype
    assert bool((certificate.radius[~verified(certificate)] == 0).all())
    assert certificate.status[3:] == ["falsified"] * 3  # x itself is a counterexample
    assert certificate.counterexample is not None
    replayed = certificate.counterexample[3:]
    assert bool((model(replayed).argmax(dim=1) != labels[3:]).all())


@over_all
def test_affine_models_are_exact(case: Case) -> None:
    """The distance to the nearest of the hyperplanes z_y = z_j, with no wall of the box in reach."""
    generator = torch.Generator().manual_seed(1)
    d = torch.Size(case.shape).numel()
    x = 0.45 + 0.1 * torch.rand(6, *case.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, d, generator=generator, dtype=torch.float64)
    model = Affine(weight, -weight @ torch.full((d,), 0.5, dtype=torch.float64))
    z = model(x)
    y = z.argmax(dim=1)
    distance = torch.stack(
        [linear_distance(z.gather(1, y[:, None])[:, 0] - z[:, j], weight[y] - weight[j], case.norm) for j in range(3)]
    ).T.scatter(1, y[:, None], torch.inf)  # fmt: skip
    nearest = distance.amin(dim=1).detach()
    # Farther planes lie beyond the box; nearer ones are ties to a complete verifier.
    near = (nearest < 0.25) & (nearest > 0.002)
    assert int(near.sum()) >= 2
    assert bool(verified(case.run(model, x[near], y[near], 0.999 * nearest[near])).all())
    assert not bool(verified(case.run(model, x[near], y[near], 1.001 * nearest[near])).any())


@over_all
@pytest.mark.slow
def test_each_sample_stands_alone(case: Case) -> None:
    """With one eps a sample, in another order, or by itself."""
    model, x, y = problem(case)
    eps = EPS[case.norm] * torch.tensor([0.02, 0.1, 0.3, 0.6, 1.0, 2.0], dtype=torch.float64)
    together = case.run(model, x, y, eps)
    back = case.run(model, x.flip(0), y.flip(0), eps.flip(0))
    assert back.status[::-1] == together.status
    alone = [case.run(model, x[i : i + 1], y[i : i + 1], float(eps[i])).status[0] for i in range(6)]
    assert alone == together.status
    torch.testing.assert_close(together.radius, torch.where(verified(together), eps, 0.0))


@over_all
def test_nothing_of_the_callers_is_changed(case: Case) -> None:
    model, x, y = problem(case, 3)
    model.train()
    first = next(model.parameters())
    first.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copy, state = x.clone(), torch.get_rng_state()
    case.run(model, x, y, EPS[case.norm])
    assert torch.equal(x, copy) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not first.requires_grad and all(p.requires_grad for p in list(model.parameters())[1:])
    assert all(p.grad is None for p in model.parameters())


@over_all
def test_empty_batch(case: Case) -> None:
    model, x, y = problem(case, 2)
    certificate = case.run(model, x[:0], y[:0], EPS[case.norm])
    assert certificate.status == [] and certificate.radius.shape == (0,)


@over_all
def test_bad_input(case: Case) -> None:
    model, x, y = problem(case, 2)
    for eps in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="eps"):
            case.run(model, x, y, eps)
    with pytest.raises(ValueError, match="eps"):
        case.run(model, x, y, torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="x: want values"):
        case.run(model, x + 2, y, 0.1)
    with pytest.raises(ValueError, match=r"x: want numbers, got NaN in rows \[0, 1\]"):
        case.run(model, torch.full_like(x, torch.nan), y, 0.1)
    with pytest.raises(TypeError, match="dtype"):
        case.run(model, x.float(), y, 0.1)
    with pytest.raises(ValueError, match="y: want labels in 0"):
        case.run(model, x, y * 0 + 3, 0.1)
    with pytest.raises((ValueError, TypeError), match="y: want"):
        case.run(model, x, y[:1], 0.1)
    with pytest.raises((ValueError, TypeError), match="norm"):
        case.verifier(model, x, y, norm="l0", eps=0.1)


@over_all
def test_an_unknown_operator_is_named(case: Case) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumprod(x.flatten(1), dim=1)

    x = torch.rand(2, *case.shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"node 'cumprod'.*cumprod"):
        case.run(Odd().double(), x, torch.zeros(2, dtype=torch.int64), 0.1)


def test_the_suite_sees_an_unsound_verifier() -> None:
    """A verifier that certifies half the radius it is asked about is caught."""
    honest = next(case for case in CASES if str(case) == "crown-linf")

    def liar(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, norm: str, eps: float) -> object:
        return honest.verifier(model, x, y, norm=norm, eps=eps / 40)

    with pytest.raises(AssertionError):
        check_no_certificate_is_broken(Case(honest.row, liar, "linf"), torch.device("cpu"))  # type: ignore[arg-type]


def test_train_mode_is_read_as_eval_mode() -> None:
    """Batch norm and dropout are what they are in evaluation mode, whatever the mode."""
    model = nn.Sequential(relu_net((5,)), nn.BatchNorm1d(3), nn.Dropout(0.9)).double()
    model[1].running_mean.normal_()
    x = torch.rand(4, 5, dtype=torch.float64)
    y = model.eval()(x).argmax(dim=1)
    crown = next(case for case in CASES if str(case) == "crown-linf")
    in_eval = crown.run(model, x, y, 0.01)
    assert crown.run(model.train(), x, y, 0.01).status == in_eval.status
    assert not in_eval.falsified.any()


def test_branches_on_the_mode_are_read_in_evaluation() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(-x if self.training else x)

    model, x = Noisy().double().train(), torch.rand(4, 5, dtype=torch.float64)
    torch.testing.assert_close(trace(model, x)(x), model.layer(x))
    assert model.training and model.layer.training
