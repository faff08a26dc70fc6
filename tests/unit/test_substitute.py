"""The substitute: what it pays for, where it asks, that asking there pays, and oracles that are no networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacker.results import so_far
from robustlab.attacker.victim import Victim
from robustlab.attacks import SubstituteResult, fgsm, pgd, substitute
from robustlab.attacks.transfer.bought_labels import reservoir
from robustlab.training.fit import fit
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp

SHAPE = (1, 3, 3)
QUICK: dict[str, Any] = {"rounds": 3, "epochs": 2, "eps": 0.2, "steps": 2}


def points(n: int = 6, seed: int = 0) -> Tensor:
    return noise_box(n, SHAPE, torch.float64, seed)


class Oracle:
    """Labels of a model, and all that it was asked about."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.asked = model, list[Tensor]()

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        with torch.no_grad():
            return self.model(x).argmax(dim=1)


# What is asked, and what it costs ------------------------------------------------------------------------------------


def test_the_set_grows_as_the_papers_say_and_every_label_is_paid_once() -> None:
    """|S_0|·2^σ + κ·(R − 1 − σ) labels; beside them each sample pays for x and for the outcome."""
    oracle, x, pool = Oracle(mlp(SHAPE)), points(4), points(10, seed=1)
    told = substitute(
        Victim(oracle, access="hard"), x, pool=pool, rounds=5, doublings=2, fresh=7, epochs=1, eps=0.1, steps=1
    )
    assert [len(part) for part in oracle.asked] == [4, 10, 10, 20, 7, 7, 4]
    assert told.bought == 10 * 2**2 + 7 * (5 - 1 - 2) == len(told.labels)
    assert told.queries.tolist() == [2] * 4 and not bool(told.gradients.any())
    assert torch.equal(torch.cat(oracle.asked[1:-1]), told.points)
    assert torch.equal(mlp(SHAPE)(told.points).argmax(dim=1), told.labels)


@pytest.mark.parametrize("rounds", [1, 4])
def test_new_points_lie_where_the_substitute_grows_surest(rounds: int) -> None:
    """A linear substitute that does not learn: sign(∂F_k/∂x) is that of Σ_j F_j·(w_k − w_j), and τ turns it."""
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(3, 9, generator=generator).double(), torch.randn(3, generator=generator).double()
    net, pool, lam = Affine(weight, bias), 0.4 + 0.2 * points(5, seed=2), 0.01
    told = substitute(
        mlp(SHAPE), points(3), pool=pool, net=net, rounds=rounds, lr=1e-12, epochs=1, shift=lam, turn=2, eps=0.1
    )
    want, labels = pool, told.labels
    for rho in range(rounds - 1):
        probability = (want.flatten(1) @ weight.T + bias).softmax(dim=1)
        way = weight[labels[: len(want)]] - probability @ weight
        moved = want + (-1) ** (rho // 2) * lam * way.sign().reshape(want.shape)
        want = torch.cat([want, moved])
    torch.testing.assert_close(told.points, want, rtol=0, atol=1e-9)


def test_new_points_are_in_the_box() -> None:
    oracle = Oracle(mlp(SHAPE))
    told = substitute(Victim(oracle, access="hard"), points(), shift=5.0, **QUICK)
    assert bool(((told.points >= 0) & (told.points <= 1)).all()) and bool((told.points[-6:].round() != 0.5).all())


@pytest.mark.slow
def test_the_reservoir_is_an_even_draw() -> None:
    """Sets of 3 of 6: the 20 of them equally often (χ² with 19 degrees of freedom below its 99.9 % quantile)."""
    n, most, draws = 6, 3, 4000
    counts: dict[tuple[int, ...], int] = {}
    for draw in range(draws):
        kept = tuple(sorted(reservoir(n, most, seed=1, draw=draw).tolist()))
        assert len(set(kept)) == most
        counts[kept] = counts.get(kept, 0) + 1
    want = draws / 20
    assert len(counts) == 20 and sum((seen - want) ** 2 / want for seen in counts.values()) < 43.8
    assert reservoir(3, 5, 0, 0).tolist() == [0, 1, 2]


def test_the_reservoir_is_the_papers_loop() -> None:
    """Algorithm 1 line by line, with the same draws."""
    from robustlab.geometry.keyed import Noise

    n, most = 50, 8
    unit = Noise(4, torch.arange(n)).uniform((1, 2), (), torch.float64).tolist()
    kept = list(range(most))
    for i in range(most, n):
        r = int(unit[i] * (i + 1))
        if r < most:
            kept[r] = i
    assert reservoir(n, most, seed=4, draw=2).tolist() == kept


# What it is good for -------------------------------------------------------------------------------------------------


def problem(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """An oracle whose boundary a line does not follow, few points of the attacker's, and many to compare on."""
    net = mlp((2, 4, 4), 3, torch.float32, seed, gain=2.5)
    return net, noise_box(20, (2, 4, 4), torch.float32, seed + 10), noise_box(2000, (2, 4, 4), torch.float32, seed + 20)


def agreement(net: nn.Module, oracle: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == oracle(x).argmax(1)).double().mean())


@pytest.mark.slow
def test_augmentation_pays() -> None:
    """Against a substitute that sees S_0 alone and takes as many steps, on three oracles."""
    gains = []
    for seed in range(3):
        oracle, pool, held = problem(seed)
        told = substitute(
            oracle, held[:1], pool=pool, classes=3, rounds=5, doublings=4, epochs=30, lr=1e-2, shift=0.2, eps=0.1,
            seed=seed,
        )  # fmt: skip
        alone = substitute(
            oracle, held[:1], pool=pool, classes=3, rounds=1, epochs=30 * _steps(5), lr=1e-2, eps=0.1, seed=seed
        )
        assert told.bought == 20 * 2**4 and alone.bought == 20
        gains.append(agreement(told.net, oracle, held) - agreement(alone.net, oracle, held))
    assert min(gains) > 0 and sum(gains) > 0.1, gains


def _steps(rounds: int, batch: int = 100) -> int:
    """Steps of an epoch over all rounds of sets of 20, 40, …, in epochs of one step."""
    return sum(-(-20 * 2**k // batch) for k in range(rounds))


def test_one_round_is_an_ordinary_training_on_bought_labels() -> None:
    oracle, pool, x = mlp(SHAPE, dtype=torch.float32), points(8, 1).float(), points(2).float()
    net = mlp(SHAPE, dtype=torch.float32, seed=5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = substitute(oracle, x, pool=pool, net=net, rounds=1, epochs=4, lr=1e-2, eps=0.1, seed=3)
    from robustlab.geometry.keyed import derive_seed

    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    fit(net, (pool, oracle(pool).argmax(1)), epochs=4, lr=1e-2, seed=derive_seed(3, 0))
    assert all(torch.equal(told.net.state_dict()[name], value) for name, value in net.state_dict().items())


def test_a_perfect_substitute_is_a_white_box() -> None:
    """Where the net cannot learn but is the victim already, FGSM on it is FGSM on the victim."""
    oracle, x = mlp(SHAPE), points(8)
    y = oracle(x).argmax(1)
    told = substitute(oracle, x, y, net=oracle, rounds=1, epochs=1, lr=1e-12, eps=None, attack=partial(fgsm, eps=0.3))
    best = fgsm(oracle, x, y, eps=0.3)
    assert torch.equal(told.success, best.success) and bool(told.success.any())
    torch.testing.assert_close(told.x_adv, best.x_adv, rtol=0, atol=1e-9)
    target = (y + 1) % 3
    told = substitute(oracle, x, y, net=oracle, rounds=1, epochs=1, lr=1e-12, eps=0.3, target=target)
    with torch.no_grad():
        before, after = (F.cross_entropy(oracle(at), target, reduction="none") for at in (x, told.x_adv))
    assert bool((after < before).all()) and torch.equal(told.success, oracle(told.x_adv).argmax(1) == target)


@pytest.mark.parametrize("kind", ["forest", "svm"])
def test_oracles_that_are_no_networks(kind: str) -> None:
    """A forest and a support vector machine of scikit-learn: three classes of digits in five pixels."""
    ensemble, svm = pytest.importorskip("sklearn.ensemble"), pytest.importorskip("sklearn.svm")
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[0.2, 0.8, 0.3, 0.7, 0.5], [0.8, 0.2, 0.6, 0.3, 0.4], [0.5, 0.5, 0.9, 0.1, 0.8]])
    label = torch.arange(600) % 3
    x = (centers[label] + 0.12 * torch.randn(600, 5, generator=generator)).clamp(0, 1)
    made = ensemble.RandomForestClassifier(30, random_state=0) if kind == "forest" else svm.SVC(C=10.0)
    made.fit(x[:400].numpy(), label[:400].numpy())

    def oracle(points: Tensor) -> Tensor:
        return torch.from_numpy(made.predict(points.numpy())).long()

    right = oracle(x[400:]) == label[400:]
    x, y, pool = x[400:][right], label[400:][right], x[:30]
    told = substitute(Victim(oracle, access="hard"), x, y, pool=pool, classes=3, rounds=4, epochs=30, lr=1e-2, eps=0.25)
    assert torch.equal(told.success, oracle(told.x_adv) != y)
    noisy = (x + 0.25 * torch.randn(x.shape, generator=generator).sign()).clamp(0, 1)
    assert float(told.success.double().mean()) > float((oracle(noisy) != y).double().mean()) + 0.2


# What is lost by no accident -----------------------------------------------------------------------------------------


class Breaking:
    """Says labels until its purse is empty."""

    def __init__(self, model: nn.Module, error: BaseException, after: int) -> None:
        self.model, self.error, self.left = model, error, after

    def __call__(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        with torch.no_grad():
            return self.model(x).argmax(dim=1)


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt("no more")])
def test_an_interruption_loses_no_label(error: BaseException) -> None:
    model, x, pool = mlp(SHAPE), points(4), points(10, seed=1)
    with pytest.raises(type(error), match="no more") as caught:
        substitute(Victim(Breaking(model, error, 3), access="hard"), x, pool=pool, **QUICK)  # x, S_0, S_1 are told
    kept = so_far(caught.value)
    assert isinstance(kept, SubstituteResult) and kept.bought == 20 == len(kept.labels)
    assert torch.equal(kept.labels, model(kept.points).argmax(1)) and torch.equal(kept.x_adv, x)
    again = substitute(model, x, known=(kept.points, kept.labels), **{**QUICK, "rounds": 1})
    assert again.bought == 0 and torch.equal(again.points, kept.points)


def test_an_interruption_of_the_training_loses_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("robustlab.attacks.transfer.substitute.fit", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        substitute(mlp(SHAPE), points(4), pool=points(10, seed=1), **QUICK)
    kept = so_far(caught.value)
    assert isinstance(kept, SubstituteResult) and kept.bought == 10 and "10 labels" in caught.value.__notes__[-1]


def test_an_interruption_of_the_attack_loses_no_label() -> None:
    def stop(victim: Victim, x: Tensor, y: Tensor, **_: Any) -> Any:
        with victim.session(x, y):  # the session keeps what itself has found
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        substitute(mlp(SHAPE), points(4), rounds=1, epochs=1, eps=None, attack=stop)
    kept = so_far(caught.value)
    assert isinstance(kept, SubstituteResult) and kept.bought == 4


def test_a_label_that_the_net_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"^net: want .* says \d, got 2") as caught:
        substitute(mlp(SHAPE, 6), points(20), classes=2, **QUICK)
    kept = so_far(caught.value)
    assert isinstance(kept, SubstituteResult) and kept.bought == 20


# Edges ---------------------------------------------------------------------------------------------------------------


def test_nothing_is_bought_for_nobody() -> None:
    oracle, x = Oracle(mlp(SHAPE)), points(3)
    y = (oracle(x) + 1) % 3
    oracle.asked.clear()
    told = substitute(Victim(oracle, access="hard"), x, y, pool=points(5), **QUICK)
    assert [len(part) for part in oracle.asked] == [3] and told.bought == 0
    assert bool(told.success.all()) and torch.equal(told.x_adv, x)
    oracle.asked.clear()
    told = substitute(Victim(oracle, access="hard"), x[:0], pool=points(5), **QUICK)
    assert not oracle.asked and len(told) == 0 and told.bought == 0
    assert len(substitute(mlp(SHAPE), x[:0], **QUICK)) == 0


BAD: list[tuple[str, dict[str, Any]]] = [
    ("rounds", {"rounds": 0}), ("rounds", {"rounds": 2.5}), ("epochs", {"epochs": 0}), ("turn", {"turn": 0}),
    ("fresh", {"fresh": 0}), ("doublings", {"doublings": -1}), ("shift", {"shift": 0.0}), ("lr", {"lr": -1.0}),
    ("classes", {"classes": 1}), ("steps", {"steps": 0}), ("norm", {"norm": "l1"}), ("eps", {"eps": None}),
    ("eps", {"attack": pgd}), ("attack", {"attack": 3, "eps": None}), ("step_size", {"step_size": 0.0}),
    ("net", {"net": lambda x: x}), ("net", {"net": nn.Linear(3, 2)}), ("net", {"net": nn.Identity()}),
    ("pool", {"pool": torch.rand(4, 2).double()}), ("pool", {"pool": points(0)}), ("pool", {"pool": 2 * points()}),
    ("known", {"known": (points(2), torch.tensor([1, 12]))}),
    ("known", {"known": (points(2) - 1, torch.ones(2).long())}),
    ("y", {"y": torch.tensor([0, 1, 99, 0, 1, 2])}), ("target", {"target": 99}), ("target", {"target": "1"}),
    ("ids", {"ids": torch.arange(3)}), ("y", {"y": torch.zeros(2).long()}), ("x", {"x": 2 * points()}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), BAD, ids=lambda value: str(value)[:30])
def test_bad_arguments_raise_before_any_query(name: str, change: dict[str, Any]) -> None:
    oracle = Oracle(mlp(SHAPE))
    given = {"x": points(), "pool": points(5, 1), **QUICK, **change}
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: .*want.*got"):
        substitute(Victim(oracle, access="hard"), **given)
    assert not oracle.asked
