"""Certificates of smoothed classifiers against exact radii, exact coverage, and each other."""

from __future__ import annotations

import warnings

import pytest
import torch
from scipy.stats import binom, binomtest, norm
from torch import Tensor, nn

from robustlab.data import gaussian_noise
from robustlab.defenses import pixeldp, randomized_smoothing, renyi_smoothing
from robustlab.defenses.certified.smoothing.randomized_smoothing import smoothed_prediction
from robustlab.defenses.certified.smoothing.renyi_smoothing import renyi_radius
from robustlab.defenses.certified.smoothing.votes import CHUNK, clopper_pearson, count_votes
from robustlab.geometry.keyed import derive_seed

BOTH = pytest.mark.parametrize("method", [randomized_smoothing, renyi_smoothing])


def plane(d: int = 3, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """Two classes on the sides of a plane through 0: the model, its unit normal, and points at distances 0.02 … 0.6."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(d, generator=generator, dtype=torch.float64)
    w = w / w.norm()
    model = nn.Linear(d, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.stack([-w, w]))
        model.bias.zero_()
    return model, w, torch.linspace(0.02, 0.6, 12, dtype=torch.float64)[:, None] * w


def test_the_radius_of_a_plane_is_the_distance() -> None:
    """P(class) is Φ(distance/σ) there, so that σ·Φ⁻¹ of it is the distance; the bound approaches it from below."""
    model, _, x = plane()
    found = randomized_smoothing(model, x, torch.ones(12).long(), sigma=0.3, n=20_000, batch_size=10_000)
    distance = torch.linspace(0.02, 0.6, 12, dtype=torch.float64)
    sure = found.verified
    assert bool(sure[1:].all()) and found.norm == "l2" and found.confidence == pytest.approx(0.999)
    assert bool((found.radius <= distance).all())
    assert bool((found.radius[1:] > 0.9 * distance[1:] - 0.012).all())
    p = torch.tensor(norm.cdf(distance.numpy() / 0.3))
    assert bool(((found.counts[:, 1] / 20_000 - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all())
    assert float(randomized_smoothing(model, 9 * x, sigma=0.3, n=500).radius.max()) <= 0.3 * norm.ppf(0.001**0.002)


def test_no_point_of_the_disk_has_another_class() -> None:
    """By brute force around points of a plane with curved classes; somewhere beyond the disk the class does change."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    x = torch.rand(12, 2, generator=generator, dtype=torch.float64)
    found = randomized_smoothing(model, x, sigma=0.15, n=2000)
    noise = 0.15 * torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    turn = torch.linspace(0, 2 * torch.pi, 17, dtype=torch.float64)[:-1]
    circle = torch.stack([turn.cos(), turn.sin()], dim=1)
    changed = 0
    for i in found.verified.nonzero().flatten().tolist():
        for scale in (0.5, 0.999, 2.5):
            points = x[i] + scale * found.radius[i] * circle
            with torch.no_grad():
                votes = model((points[:, None] + noise).flatten(0, 1)).argmax(dim=1).reshape(16, 4000)
            p = (votes == found.prediction[i]).double().mean(dim=1)
            if scale < 1:
                assert float(p.min()) > 0.5 - 4 * 0.5 / 4000**0.5
            else:
                changed += int(p.min() < 0.45)
    assert int(found.verified.sum()) > 6 and changed > 3


@BOTH
def test_coverage(method: object) -> None:
    """Of 3,000 certificates of a point no more are beyond its exact radius than α allows, and Cohen's not fewer."""
    model, w, _ = plane(1)
    n, alpha, repeats = 100, 0.05, 3000
    x = torch.full((repeats, 1), 0.2, dtype=torch.float64) * w
    found = method(model, x, sigma=0.25, n0=20, n=n, alpha=alpha)  # type: ignore[operator]
    too_large = int((found.radius > 0.2 + 1e-9).sum())
    assert too_large <= binom.isf(1e-6, repeats, alpha)
    if method is randomized_smoothing:
        hits = torch.arange(n + 1)
        low, _ = clopper_pearson(hits, n, alpha)
        p = norm.cdf(0.2 / 0.25)
        expected = repeats * float(binom.pmf(hits[low > p].numpy(), n, p).sum())
        assert abs(too_large - expected) < 5 * expected**0.5


def test_what_chooses_does_not_estimate() -> None:
    """At a tie the class that was chosen is ahead in its own draws, and as often behind as ahead in fresh ones."""
    model, _, _ = plane(1)
    x = torch.zeros(3000, 1, dtype=torch.float64)
    found = randomized_smoothing(model, x, sigma=1.0, n0=15, n=16, alpha=0.4)
    choice = count_votes(model, x, sigma=1.0, n=15, part=0)
    ahead = found.counts.gather(1, choice.argmax(dim=1)[:, None]).double().mean() / 16
    assert choice.amax(dim=1).double().mean() / 15 > 0.58
    assert float(ahead) == pytest.approx(0.5, abs=5 * (0.25 / 16 / 3000) ** 0.5)


def test_renyi_never_passes_cohen() -> None:
    """For all p₁ > p₂ with p₁ + p₂ ≤ 1: σ/2·(Φ⁻¹(p₁) − Φ⁻¹(p₂)) is the exact radius."""
    p1, p2 = torch.meshgrid(torch.linspace(1e-3, 1 - 1e-6, 60).double(), torch.logspace(-300, -0.31, 80).double(),
                            indexing="ij")  # fmt: skip
    legal = (p1 > p2) & (p1 + p2 <= 1)
    found = renyi_radius(p1[legal], p2[legal])
    exact = 0.5 * torch.as_tensor(norm.ppf(p1[legal].numpy()) - norm.ppf(p2[legal].numpy()))
    assert bool(found.isfinite().all()) and bool((found <= exact + 1e-12).all())
    assert bool((found[p1[legal] > p2[legal] + 0.05] > 0).all())
    assert renyi_radius(torch.tensor([0.3, 0.5]), torch.tensor([0.4, 0.5])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("p", "radius"), [(0.6, 0.202), (0.8, 0.674), (0.9, 1.032), (0.99, 1.908), (0.9999, 3.141)])
def test_renyi_at_known_values(p: float, radius: float) -> None:
    """The authors' bound with p₂ = 1 − p₁; and by brute force over the order, without logarithms."""
    one, two = torch.tensor(p).double(), 1 - torch.tensor(p).double()
    assert float(renyi_radius(one, two)) == pytest.approx(radius, abs=6e-4)
    a = torch.linspace(1.0005, 8, 200_000).double()
    mean = ((one ** (1 - a) + two ** (1 - a)) / 2) ** (1 / (1 - a))
    brute = float((-2 / a * (1 - one - two + 2 * mean).log()).amax().sqrt())
    assert float(renyi_radius(one, two)) == pytest.approx(brute, rel=1e-3)


def test_renyi_is_below_cohen_on_the_same_votes() -> None:
    model, _, x = plane()
    both = [method(model, x, sigma=0.3, n=2000) for method in (randomized_smoothing, renyi_smoothing)]
    assert torch.equal(both[0].counts, both[1].counts)
    assert bool((both[1].radius <= both[0].radius).all()) and bool((both[1].radius[4:] > 0).all())
    for k, first, second in zip(both[0].counts[:, 1].tolist(), *(one.p_lower.tolist() for one in both), strict=True):
        exact = [binomtest(k, 2000).proportion_ci(confidence_level=c, method="exact").low for c in (0.998, 0.999)]
        assert [first, second] == pytest.approx(exact)  # alpha for one bound, alpha/2 for each of two


def test_prediction_is_the_binomial_test() -> None:
    model, _, x = plane()
    near = x / 4
    found = smoothed_prediction(model, near, sigma=0.5, n=200, alpha=0.01)
    counts = count_votes(model, near, sigma=0.5, n=200, part=2)
    for votes, answer in zip(counts.tolist(), found.tolist(), strict=True):
        decided = binomtest(max(votes), sum(votes), 0.5).pvalue <= 0.01
        assert answer == (votes.index(max(votes)) if decided else -1)
    assert -1 in found.tolist() and 1 in found.tolist()
    with pytest.warns(UserWarning, match=r"^n: 10 draws cannot answer at alpha = 0.001"):
        assert smoothed_prediction(model, 99 * x, sigma=0.01, n=10).tolist() == [-1] * 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert smoothed_prediction(model, 99 * x, sigma=0.01, n=11).tolist() == [1] * 12


@BOTH
def test_votes_do_not_depend_on_the_split(method: object) -> None:
    """Nor on the batch size: each sample has draws of its own, keyed by its id."""
    model, _, x = plane()
    whole = method(model, x, sigma=0.3, n0=30, n=700, batch_size=300)  # type: ignore[operator]
    uneven = method(model, x, sigma=0.3, n0=30, n=700, batch_size=600)  # type: ignore[operator]
    assert torch.equal(whole.counts, uneven.counts)  # a pass that ends one sample's draws and begins another's
    ids = torch.arange(12)
    parts = [method(model, x[s], sigma=0.3, n0=30, n=700, ids=ids[s], batch_size=5000)  # type: ignore[operator]
             for s in (slice(0, 5), slice(5, 12))]  # fmt: skip
    assert torch.equal(whole.counts, torch.cat([part.counts for part in parts]))
    assert torch.equal(whole.radius, torch.cat([part.radius for part in parts]))
    assert not torch.equal(whole.counts, method(model, x, sigma=0.3, n0=30, n=700, seed=1).counts)  # type: ignore[operator]


def test_the_points_are_x_and_sigma_times_what_randn_draws_from_each_chunk_s_seed() -> None:
    """To the last bit, so that votes recorded by one version are those of the next."""
    for dtype in (torch.float32, torch.float64):
        x, ids, seen = torch.rand(2, 3, 5, dtype=dtype), torch.tensor([7, 4]), {}

        def note(owners: Tensor, draws: Tensor, points: Tensor, answers: Tensor, seen: dict = seen) -> None:  # type: ignore[type-arg]
            seen.update({(i, j): p.clone() for i, j, p in zip(owners.tolist(), draws.tolist(), points, strict=True)})

        model = nn.Sequential(nn.Flatten(), nn.Linear(15, 2).to(dtype))
        count_votes(model, x, sigma=0.12, n=CHUNK + 60, part=1, seed=5, ids=ids, listen=note)
        assert len(seen) == 2 * (CHUNK + 60)
        for i, id_ in enumerate(ids.tolist()):
            for chunk, size in ((0, CHUNK), (1, 60)):
                generator = torch.Generator().manual_seed(derive_seed(5, id_, 1, chunk))
                wanted = x[i] + 0.12 * torch.randn(size, 3, 5, generator=generator, dtype=dtype)
                found = torch.stack([seen[i, chunk * CHUNK + j] for j in range(size)])
                assert torch.equal(found, wanted)


def test_no_forward_pass_is_longer_than_asked() -> None:
    seen = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x[:, :2]

    x = torch.rand(3, 4)
    counts = count_votes(Counting(), x, sigma=0.3, n=260, batch_size=100)
    assert max(seen) <= 100 and sum(seen) == 3 * 260
    assert torch.equal(counts, count_votes(Counting(), x, sigma=0.3, n=260, batch_size=7000)) and seen[-1] == 3 * 260
    seen.clear()
    assert torch.equal(counts, count_votes(Counting(), x, sigma=0.3, n=260))  # chunks that a CPU's caches like
    assert max(seen) == CHUNK and sum(seen) == 3 * 260


@pytest.mark.parametrize("method", [randomized_smoothing, renyi_smoothing, pixeldp])
def test_an_empty_batch_has_an_empty_certificate(method: object) -> None:
    model, _, x = plane()
    found = method(model, x[:0], torch.zeros(0).long(), sigma=0.3)  # type: ignore[operator]
    assert found.radius.shape == found.prediction.shape == (0,)
    assert found.radius.dtype == torch.float64 and len(found.counts) == 0
    assert smoothed_prediction(model, x[:0], sigma=0.3).tolist() == []


def test_bounds_are_those_of_scipy() -> None:
    hits, n = torch.tensor([0, 1, 40, 99, 100]), 100
    low, high = clopper_pearson(hits, n, 0.01)
    for k, below, above in zip(hits.tolist(), low.tolist(), high.tolist(), strict=True):
        exact = binomtest(k, n).proportion_ci(confidence_level=0.98, method="exact")
        assert (below, above) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_at_a_bound_of_exactly_one_half_it_abstains() -> None:
    """Two draws that agree at α = ¼ leave p = ½. The authors' code certifies the radius 0 there."""
    model, _, x = plane()
    with pytest.warns(UserWarning, match="cannot certify"):
        found = randomized_smoothing(model, 99 * x, torch.ones(12).long(), sigma=0.01, n0=1, n=2, alpha=0.25)
    assert found.p_lower is not None and found.p_lower.tolist() == [0.5] * 12
    assert found.prediction is not None and found.prediction.tolist() == [-1] * 12 and not bool(found.verified.any())


def test_a_radius_is_not_rounded_up() -> None:
    """In float32 half of the numbers would be rounded upwards."""
    model, _, x = plane()
    model, x = model.float(), x.float()
    found = randomized_smoothing(model, x, sigma=0.3, n=1000)
    exact = 0.3 * torch.special.ndtri(found.p_lower)
    sure = found.verified
    assert bool((found.radius[sure].double() <= exact[sure]).all()) and int(sure.sum()) > 5


def test_an_answer_of_nan_is_no_vote() -> None:
    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.stack([x[:, 0], -x[:, 0]], dim=1)
            return torch.where(x[:, :1] > 1, torch.nan, z)

    x = torch.full((2, 1), 0.5)
    with pytest.warns(UserWarning, match="hold NaN; they count for no class"):
        found = randomized_smoothing(Sometimes(), x, sigma=0.5, n=400)
    heard = found.counts.sum(dim=1)
    assert bool((heard < 400).all()) and bool((heard > 300).all())
    share = norm.cdf(1) - norm.cdf(-1)  # between 0 and 1, the votes for class 0
    assert bool((found.counts[:, 0] / 400 < share + 0.1).all())


def test_noise_for_training_is_new_in_every_step_and_the_same_again() -> None:
    augment = gaussian_noise(0.5)
    x, ids = torch.zeros(2000, 4), torch.arange(2000)
    first = augment(x, ids=ids, seed=1)
    assert torch.equal(first, augment(x, ids=ids, seed=1)) and not torch.equal(first, augment(x, ids=ids, seed=2))
    assert float(first.std()) == pytest.approx(0.5, rel=0.03) and abs(float(first.mean())) < 0.02
    with pytest.raises(ValueError, match=r"^sigma: want"):
        gaussian_noise(0.0)


@BOTH
def test_bad_input(method: object) -> None:
    model, _, x = plane()
    for changes, message in (
        ({"n": 50, "n0": 50}, "^n: want more draws than n0 = 50"), ({"n0": 0}, "^n0: want"), ({"n": 0}, "^n: want"),
        ({"alpha": 1.0}, "^alpha: want"), ({"alpha": 0.0}, "^alpha: want"), ({"sigma": 0.0}, "^sigma: want"),
        ({"batch_size": 0}, "^batch_size: want"), ({"ids": torch.arange(3)}, "^ids: want shape"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            method(model, x, **{"sigma": 0.3, **changes})  # type: ignore[operator]
    for other in (nn.Flatten(0), nn.Linear(3, 1).double()):
        with pytest.raises(ValueError, match=r"^model: want logits \(N, K\) of at least two classes"):
            method(other, x, sigma=0.3)  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"^n: 9 draws cannot certify at alpha = 0.001 .* want at least 10"):
        method(model, x, sigma=0.3, n0=1, n=9)  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(model, x, sigma=0.3, n0=1, n=10)  # type: ignore[operator]
