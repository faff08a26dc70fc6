"""RAB: the stack of models against one trained alone, votes against binomials, neighbors against enumeration."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom, ncx2, norm
from torch import Tensor, nn

from robustlab.defenses.certified import noisy_models as noisy
from robustlab.defenses.certified.noisy_models import noise_at_test
from robustlab.defenses.certified.rab import noisy_models, rab, vote_certificate
from robustlab.defenses.certified.rab_neighbor import bucket_edges, neighbor_probabilities, rab_neighbor
from robustlab.geometry.keyed import Noise


def rows(n: int, d: int = 3, seed: int = 0, classes: int = 2) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % classes
    x = Noise(seed, torch.arange(n)).uniform(0, (d,), torch.float64)
    return (0.7 * x + 0.3 * (y[:, None] == torch.arange(d))).clamp(0, 1), y


def network(d: int = 3, classes: int = 2, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, classes)).double()


def alone(net: nn.Module, x: Tensor, y: Tensor, *, epochs: int, lr: float, momentum: float) -> nn.Module:
    """The same training of one network by PyTorch's own optimizer, the whole data in each step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    for _ in range(epochs):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def test_each_model_of_the_stack_is_one_trained_alone_on_noise_that_stays() -> None:
    data, sigma = rows(12), 0.4
    found = noisy_models(data, network=network(), sigma=sigma, models=5, epochs=6, seed=3, chunk=2)
    for m in range(5):
        noise = sigma * Noise(3, torch.tensor([m])).normal(0, data[0].shape, torch.float64)[0]
        peer = alone(network(), data[0] + noise, data[1], epochs=6, lr=0.1, momentum=0.9)
        for name, value in peer.state_dict().items():
            torch.testing.assert_close(found.weights[name][m], value, rtol=1e-9, atol=1e-12)


def test_votes_are_those_of_each_model_on_x_and_its_own_noise() -> None:
    found = noisy_models(rows(12), network=network(), sigma=1.0, models=7, epochs=40, lr=0.5)
    x, peer = rows(9, seed=5)[0], network()
    assert len(found.votes(x).unique()) >= 4, "the models differ"
    want = torch.zeros(9, 2, dtype=torch.int64)
    for m in range(7):
        peer.load_state_dict({name: value[m] for name, value in found.weights.items()})
        want += F.one_hot(peer(x + found.test_noise[m]).argmax(dim=1), 2)
    assert torch.equal(found.votes(x, chunk=3), want)


def test_without_test_noise_the_votes_are_those_of_the_same_models_on_x_itself() -> None:
    options = {"network": network(), "sigma": 1.0, "models": 40, "epochs": 40, "lr": 0.5}
    found = noisy_models(rows(12), **options, test_noise=False)
    x, peer, want = rows(9, seed=5)[0], network(), torch.zeros(9, 2, dtype=torch.int64)
    for m in range(40):
        peer.load_state_dict({name: value[m] for name, value in found.weights.items()})
        want += F.one_hot(peer(x).argmax(dim=1), 2)
    assert torch.equal(found.votes(x), want)
    assert not torch.equal(noisy_models(rows(12), **options).votes(x), want), "noise makes a difference"
    assert torch.equal(
        rab(rows(12), x, **options, alpha=0.05, test_noise=False).radius,
        vote_certificate(want, sigma=1.0, alpha=0.05).radius,
    )


def test_an_interrupted_training_goes_on_and_the_file_of_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its third chunk of four; then four models of ten are trained, not ten."""
    file, trained, real = tmp_path / "run", [0], noisy._descend
    told: dict[str, Any] = {"network": network(), "sigma": 0.4, "models": 10, "epochs": 4, "chunk": 3, "seed": 5}

    def counted(net: nn.Module, start: Any, x: Tensor, *rest: Any) -> Any:
        if trained[0] == 6:
            raise KeyboardInterrupt
        trained[0] += len(x)
        return real(net, start, x, *rest)

    whole = noisy_models(rows(12), **told)
    monkeypatch.setattr(noisy, "_descend", counted)
    with pytest.raises(KeyboardInterrupt):
        noisy_models(rows(12), **told, resume=file)
    before, trained[0] = file.read_bytes(), 0
    changed: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("settings", rows(12), {**told, "sigma": 0.5}),
        ("data", rows(12, seed=1), told),
        ("network", rows(12), {**told, "network": network(seed=1)}),
    )
    for name, data, other in changed:
        with pytest.raises(ValueError, match=rf"^resume: want that of this run, got .* of another {name} "):
            noisy_models(data, **other, resume=file)
    assert file.read_bytes() == before and not trained[0], "nothing is lost, nothing was done"
    found = noisy_models(rows(12), **told, resume=file)
    assert trained[0] == 4 and torch.equal(found.test_noise, whole.test_noise)
    assert all(torch.equal(found.weights[name], value) for name, value in whole.weights.items())
    x, votes = rows(4)[0], rab(rows(12), rows(4)[0], **{**told, "models": 20})
    again = [rab(rows(12), x, **{**told, "models": 20}, resume=tmp_path / "rab") for _ in range(2)]
    assert all(torch.equal(one.radius, votes.radius) for one in again)
    with pytest.raises(ValueError, match=r"^resume: want a file in a folder"):
        noisy_models(rows(12), **told, resume=tmp_path / "no" / "run")


def test_minibatches_visit_all_rows_in_an_order_of_their_own() -> None:
    data = rows(12)
    whole, parts, again = (
        noisy_models(data, network=network(), sigma=0.1, models=2, epochs=2, batch_size=size, seed=1).weights["0.bias"]
        for size in (None, 5, 5)
    )
    assert torch.equal(parts, again) and not torch.allclose(whole, parts)


def test_noise_at_the_test_depends_on_the_weights_values_not_on_how_they_are_stored() -> None:
    weights = {"a": torch.tensor([[1.5, 0.0], [2.0, 4.0]]), "b": torch.tensor([3.0])}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    turned = {"b": weights["b"].double(), "a": weights["a"].T.contiguous().T}
    signed = {"a": weights["a"].clone().mul_(torch.tensor([[1.0, -1.0], [1.0, 1.0]])), "b": weights["b"]}
    moved = {"a": weights["a"] + torch.tensor([[0.0, 0.0], [0.0, 1e-6]]), "b": weights["b"]}

    def drawn(of: dict[str, Tensor]) -> Tensor:
        return noise_at_test({name: value[None] for name, value in of.items()}, torch.Size([4, 4]), 2.0)

    for same in (stored, turned, signed):
        assert torch.equal(drawn(same), drawn(weights))
    assert not torch.equal(drawn(moved), drawn(weights))
    stack = {name: torch.stack([value, moved[name], value]) for name, value in weights.items()}
    noise = noise_at_test(stack, torch.Size([4, 4]), 2.0)
    assert torch.equal(noise[0], noise[2]) and torch.equal(noise[1], drawn(moved)[0])
    many = noise_at_test({"a": torch.arange(400.0)[:, None]}, torch.Size([50]), 2.0)
    assert abs(float(many.std()) - 2) < 0.05 and abs(float(many.mean())) < 0.05


@pytest.mark.parametrize("classes", [2, 3])
def test_all_votes_for_one_class_have_the_closed_radius(classes: int) -> None:
    votes = torch.zeros(1, classes, dtype=torch.int64)
    votes[0, 1] = 1000
    # Two bounds at .001 each: σΦ⁻¹(1 − √(ln 1000/2000)) = 1.57σ for two classes.
    found = vote_certificate(votes, sigma=2.0, alpha=0.002)
    half = (torch.tensor((2 if classes == 2 else 6) / 0.002).log() / 2000).sqrt()
    assert float(found.radius) == pytest.approx(2 * norm.ppf(1 - float(half)), rel=1e-6)
    if classes == 2:
        assert float(found.radius) / 2 == pytest.approx(1.565, abs=1e-3)
    assert found.confidence == 0.998 and bool(found.verified) and found.norm == "l2" and found.method == "rab"


def test_close_votes_abstain_and_wrong_labels_are_not_certified() -> None:
    votes = torch.tensor([[520, 480], [900, 100], [900, 100]])
    found = vote_certificate(votes, torch.tensor([0, 1, 0]), sigma=1.0)
    assert found.verified.tolist() == [False, False, True]
    assert found.radius[:2].tolist() == [0.0, 0.0] and found.radius[2] > 0


@pytest.mark.parametrize("p", [0.5, 0.7, 0.93, 0.99])
def test_the_bound_is_too_high_with_probability_below_alpha(p: float) -> None:
    """Exactly, by the binomial law: of M votes at share p, the radius exceeds the true one σΦ⁻¹(p) at most in α."""
    n, alpha = 60, 0.1
    ballots = torch.arange(n + 1)
    found = vote_certificate(torch.stack([ballots, n - ballots], dim=1), sigma=1.0, alpha=alpha)
    wins = ballots > n - ballots
    true = torch.where(wins, 1.0, -1.0) * norm.ppf(p)
    law = torch.from_numpy(binom.pmf(ballots.numpy(), n, p))
    assert 0 <= float(law[found.verified & (found.radius > true)].sum()) <= alpha


def test_three_classes_are_bounded_by_the_next_and_pay_for_six_bounds() -> None:
    found = vote_certificate(torch.tensor([[9000, 300, 700]]), sigma=1.0, alpha=0.01)
    half = float((torch.tensor(600.0).log() / 20000).sqrt())
    assert float(found.radius) == pytest.approx((norm.ppf(0.9 - half) - norm.ppf(0.07 + half)) / 2, rel=1e-6)


def test_rab_certifies_what_is_plain_and_gives_the_vote_without_labels() -> None:
    data = (torch.tensor([[0.0], [1.0]]).repeat(4, 1).double(), torch.tensor([0, 1]).repeat(4))
    net = nn.Linear(1, 2).double()
    x = torch.tensor([[-0.5], [1.5]], dtype=torch.float64)
    options = {"network": net, "sigma": 0.2, "models": 60, "alpha": 0.05, "epochs": 60, "lr": 0.5}
    found = rab(data, x, torch.tensor([0, 1]), **options)
    assert bool(found.verified.all()) and bool((found.radius > 0).all()) and found.confidence == 0.95
    assert torch.equal(rab(data, x, **options).radius, found.radius)
    assert not bool(rab(data, x, torch.tensor([1, 0]), **options).verified.any())


def test_neighbors_by_enumeration_of_all_buckets() -> None:
    (x, y), sigma, buckets = rows(4, classes=3), 0.5, 5
    points = rows(2, seed=9)[0]
    edges = bucket_edges(3, sigma, buckets)
    cuts = torch.cat([torch.zeros(1), torch.from_numpy(edges), torch.tensor([torch.inf])]).double()
    want = torch.zeros(2, 3, dtype=torch.float64)
    for k, point in enumerate(points):
        away = (point - x).square().sum(dim=1) / sigma**2
        mass = [ncx2.cdf(cuts / sigma**2, 3, float(part)) for part in away]
        for taken in itertools.product(range(buckets), repeat=4):
            chance = 1.0
            for i, b in enumerate(taken):
                chance *= mass[i][b + 1] - mass[i][b]
            want[k, y[taken.index(min(taken))]] += chance  # the first of those in the lowest bucket
    got = neighbor_probabilities((x, y), points, sigma=sigma, buckets=buckets)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.sum(dim=1), torch.ones(2).double(), rtol=1e-9, atol=0)


def test_neighbors_by_simulation_of_the_same_quantized_classifier() -> None:
    (x, y), sigma, buckets, draws = rows(15, d=5), 0.3, 12, 40_000
    point = rows(1, d=5, seed=7)[0]
    noisy = x + sigma * Noise(1, torch.arange(draws)).normal(0, x.shape, torch.float64)
    edges = torch.from_numpy(bucket_edges(5, sigma, buckets))
    bucket = torch.bucketize((noisy - point).square().sum(dim=2), edges)
    seen = y[bucket.argmin(dim=1)].double().mean()  # argmin gives the first
    p = neighbor_probabilities((x, y), point, sigma=sigma, buckets=buckets)[0, 1]
    assert abs(float(seen - p)) < 4 * float((p * (1 - p) / draws).sqrt())


def test_no_poison_inside_the_radius_turns_the_neighbors_vote_nor_passes_the_theorem() -> None:
    """p_A(D + δ) ≥ Φ(Φ⁻¹(p_A) − ‖δ‖/σ), for poisons that push the winner's rows away and pull the others near."""
    (x, y), sigma = rows(10), 0.3
    x = 0.25 + 0.5 * x
    point = x[:1] + 0.02
    p = neighbor_probabilities((x, y), point, sigma=sigma)[0]
    a = int(p.argmax())
    found = rab_neighbor((x, y), point, sigma=sigma)
    assert bool(found.verified) and found.confidence == 1.0
    assert float(found.radius) == pytest.approx(sigma * norm.ppf(float(p[a])), rel=1e-6)  # the radius of two classes
    toward = torch.nn.functional.normalize(point - x, dim=1) * torch.where(y == a, -1.0, 1.0)[:, None]
    for count in (1, 3, 10):
        nearest = (point - x).norm(dim=1).argsort()[:count]
        for share in (0.5, 0.99):
            delta = torch.zeros_like(x)
            delta[nearest] = toward[nearest] / count**0.5 * share * float(found.radius)
            assert float((x + delta).min()) >= 0 and float((x + delta).max()) <= 1
            moved = neighbor_probabilities((x + delta, y), point, sigma=sigma)[0]
            assert int(moved.argmax()) == a
            lower = norm.cdf(norm.ppf(float(p[a])) - float(delta.norm()) / sigma)
            assert lower - 1e-9 <= float(moved[a]) < float(p[a]), "the poison pushes, and no farther than it may"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sigma", {"sigma": 0.0}), ("alpha", {"alpha": 0.0}), ("alpha", {"alpha": 1.0}), ("models", {"models": 15}),
        ("epochs", {"epochs": 0}), ("batch_size", {"batch_size": 0}), ("lr", {"lr": 0.0}),
        ("momentum", {"momentum": -1.0}), ("chunk", {"chunk": 0}), ("y", {"y": torch.zeros(3).long()}),
        ("x", {"x": torch.full((2, 3), torch.nan).double()}),
        ("x", {"x": rows(2)[0][:, :1]}), ("data", {"data": (rows(4)[0], torch.arange(4))}),
        ("data", {"data": (torch.rand(4, 3), torch.arange(4) % 2)}),
        ("data", {"data": (torch.full((4, 3), torch.inf).double(), torch.arange(4) % 2)}),
    ],
)  # fmt: skip
def test_bad_input_of_rab(name: str, changes: dict[str, object]) -> None:
    given = {"data": rows(4), "x": rows(2)[0], "y": rows(2)[1], "network": network(), "sigma": 0.3} | changes
    with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
        rab(given.pop("data"), given.pop("x"), given.pop("y"), **given)  # type: ignore[arg-type]


def test_the_least_number_of_models_is_named_and_enough() -> None:
    with pytest.raises(ValueError, match=r"models: want at least 16 for alpha = 0.001 and 2 classes, got 15"):
        vote_certificate(torch.tensor([[15, 0]]), sigma=1.0)
    assert bool(vote_certificate(torch.tensor([[16, 0]]), sigma=1.0).verified)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("sigma", {"sigma": -1.0}), ("buckets", {"buckets": 2}), ("data", {"data": (rows(4)[0][:0], rows(4)[1][:0])}),
     ("data", {"data": (rows(4)[0] + 1, rows(4)[1])})],
)  # fmt: skip
def test_bad_input_of_neighbors(name: str, changes: dict[str, object]) -> None:
    given = {"data": rows(4), "sigma": 0.3} | changes
    with pytest.raises(ValueError, match=f"^{name}: "):
        rab_neighbor(given.pop("data"), rows(2)[0], **given)  # type: ignore[arg-type]


def test_votes_are_counts_and_inputs_are_of_the_rows_shape() -> None:
    with pytest.raises(ValueError, match=r"^votes: want counts of at least 0, got \[-1\]"):
        vote_certificate(torch.tensor([[-1, 1001]]), sigma=1.0)
    with pytest.raises(ValueError, match=r"^x: want inputs \(N, ...\) of the rows' shape \(3,\), got \(2, 1\)"):
        rab_neighbor(rows(4), rows(2)[0][:, :1], sigma=0.3)


@pytest.mark.parametrize("x", [torch.zeros(0, 3).double()])
def test_an_empty_batch_gives_an_empty_certificate(x: Tensor) -> None:
    assert len(rab_neighbor(rows(4), x, sigma=0.3)) == 0
    assert len(rab(rows(4), x, network=network(), sigma=0.3, models=20, epochs=1)) == 0
