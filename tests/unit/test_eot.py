"""EOT: the exact expectation on families that can be enumerated, and a random defense that falls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacks import pgd
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.data import load
from robustlab.defenses.broken import RandomResize
from robustlab.evaluation import eot
from robustlab.evaluation.adaptive.eot import log_likelihood

SHIFTS = (-2, 0, 1, 3)


def shift(x: Tensor, by: int) -> Tensor:
    return torch.roll(x, by, dims=1)


def random_shift(x: Tensor) -> Tensor:
    """One of the shifts for the whole batch, each equally likely."""
    return shift(x, SHIFTS[int(torch.randint(len(SHIFTS), ()))])


def small_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def points(n: int = 4) -> Tensor:
    return torch.rand(n, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of Σ log_likelihood of y."""
    point = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(log_likelihood(model(point), y).sum(), point)
    return grad


def test_a_family_is_averaged_exactly() -> None:
    net, x = small_net(), points()
    family = [lambda t, by=by: shift(t, by) for by in SHIFTS]
    logits = torch.stack([net(shift(x, by)) for by in SHIFTS])
    expected = {
        "logits": logits.mean(0),
        "logprobs": logits.log_softmax(2).mean(0),
        "probs": logits.softmax(2).mean(0).log(),
    }
    for average, value in expected.items():
        torch.testing.assert_close(eot(net, family, average=average)(x), value, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("average", ["logprobs", "logits"])
def test_the_gradient_is_unbiased(average: str) -> None:
    """Over 300 seeds the mean gradient is the exact one, within 4.5 standard errors in each of 32 coordinates."""
    net, x, y = small_net(), points(), torch.tensor([0, 1, 2, 0])
    exact = gradient(eot(net, [lambda t, by=by: shift(t, by) for by in SHIFTS], average=average), x, y)
    runs = torch.stack([gradient(eot(net, random_shift, samples=2, seed=s, average=average), x, y) for s in range(300)])
    if average == "logits":  # the loss reads one averaged logit, so it is linear in the draws as well
        assert runs.std(0).max() > 0
    error = (runs.mean(0) - exact).abs() / (runs.std(0) / len(runs) ** 0.5)
    assert error.max() < 4.5


@pytest.mark.slow
def test_many_draws_approach_the_expectation() -> None:
    net, x = small_net(), points()
    exact = eot(net, [lambda t, by=by: shift(t, by) for by in SHIFTS])(x)
    few, many = ((eot(net, random_shift, samples=s, seed=5)(x) - exact).abs().max() for s in (4, 1000))
    assert many < 0.3 * few


def test_the_expected_log_likelihood_is_the_papers_objective() -> None:
    net, x, y = small_net(), points(), torch.tensor([0, 1, 2, 0])
    model = eot(net, [lambda t, by=by: shift(t, by) for by in SHIFTS], average="logprobs")
    by_hand = -torch.stack([F.cross_entropy(net(shift(x, by)), y, reduction="none") for by in SHIFTS]).mean(0)
    torch.testing.assert_close(log_likelihood(model(x), y), by_hand)
    torch.testing.assert_close(
        log_likelihood(model(x), y, target=(y + 1) % 3), -model(x).gather(1, (y[:, None] + 1) % 3)[:, 0]
    )
    assert (F.cross_entropy(model(x), y, reduction="none") < -by_hand).all()  # not so the cross-entropy


def test_draws_follow_from_the_seed_alone() -> None:
    net, x = small_net(), points(16)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = eot(net, random_shift, samples=3, seed=7)(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    again = eot(net, random_shift, samples=3, seed=7)
    assert torch.equal(again(x), first) and torch.equal(again(x), first)
    assert not torch.equal(eot(net, random_shift, samples=3, seed=8)(x), first)
    torch.testing.assert_close(again(x[3:4]), first[3:4])  # one draw for the batch: rows know nothing of each other


def test_a_model_that_is_random_itself() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] + torch.randn(3)

    x = points()
    model = eot(Noisy(), samples=800, average="logits")
    torch.testing.assert_close(model(x), x[:, :3], rtol=0, atol=0.16)


@pytest.mark.slow
def test_random_resizing_falls_to_the_undefended_level() -> None:
    data = load("mnist5k")
    x, y = data.x_test[:60], data.y_test[:60]
    net, resize = zoo.load("mnist_cnn").requires_grad_(False), RandomResize()
    defense = nn.Sequential(resize, net)

    def expected_accuracy(points: Tensor) -> float:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(10**6)
            return float(torch.stack([(defense(points).argmax(1) == y).float() for _ in range(20)]).mean())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = pgd(defense, x, y, eps=0.2, steps=20).x_adv
    adaptive = pgd_maximize(eot(defense, samples=6, seed=3), x, y, eps=0.2, steps=20)
    assert expected_accuracy(x) > 0.85 and expected_accuracy(plain) > 0.3
    assert expected_accuracy(adaptive) < 0.06


def test_wrong_arguments_are_named() -> None:
    net = small_net()
    for arguments, match in (
        ({"transforms": []}, r"^transforms: want at least one, got none"),
        ({"transforms": [1]}, r"^transforms: want callables, got int"),
        ({"transforms": 1}, r"^transforms: want callables, got int"),
        ({"samples": 0}, r"^samples: want at least 1"),
        ({"average": "labels"}, r"^average: want one of"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            eot(net, **arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^model: want a callable"):
        eot(3)  # type: ignore[arg-type]
