"""The counter-based generator: its keys, its independence of everything else, its distributions.

Statistical tests have a false-alarm rate of 1e-3; their seeds are fixed, so they pass or fail for good.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from robustlab.geometry.keyed import Noise, _mix, _mix_integer, _put_normal, _put_unit, derive_seed

QUICK = (("quick_uniform", ()), ("quick_normal", ()))
SEEDS = (0, 1, -1, 2**40, -(2**63), 2**64 + 3)


def test_rows_depend_on_their_id_alone() -> None:
    full = Noise(5, torch.arange(10))
    ids = torch.tensor([7, 2, 2, 9])
    part = Noise(5, ids)
    for name, args in (("uniform", ()), ("normal", ()), ("sign", ()), ("exponential", ()), ("integers", (17,)), *QUICK):
        whole = getattr(full, name)((3, 1), (2, 4), *args)
        assert torch.equal(getattr(part, name)((3, 1), (2, 4), *args), whole[ids])
        assert torch.equal(getattr(full.take(ids), name)((3, 1), (2, 4), *args), whole[ids])
    assert torch.equal(part.permutation(0, 6), full.permutation(0, 6)[ids])


def test_prefix_property() -> None:
    """The first k numbers of a longer draw are the shorter draw, which torch.randn does not promise."""
    noise = Noise(1, torch.arange(3))
    long = noise.normal(4, (1000,))
    for k in (1, 15, 16, 17, 999):
        assert torch.equal(noise.normal(4, (k,)), long[:, :k])
    assert torch.equal(noise.normal(4, (10, 100)).flatten(1), long)
    quick = noise.quick_normal(4, (1000,))
    for k in (1, 2, 17):
        assert torch.equal(noise.quick_normal(4, (k,)), quick[:, :k])


def hashed(k: np.ndarray) -> torch.Tensor:
    """Hashes with the upper 52 bits k."""
    return torch.from_numpy((k.astype(np.uint64) << np.uint64(12)).view(np.int64))


def test_uniform_numbers_are_the_middles_of_52_bits() -> None:
    k = np.array([0, 1, 2**51 - 1, 2**51, 2**52 - 2, 2**52 - 1, *np.random.default_rng(0).integers(0, 2**52, 1000)])
    unit = torch.empty(len(k), dtype=torch.float64)
    _put_unit(hashed(k) | 0xFFF, unit)  # the lower bits play no part
    assert unit.tolist() == [(2 * int(number) + 1) / 2**53 for number in k]


def test_long_draws_of_normals_are_ndtri_to_the_last_bit() -> None:
    """Also where the number lies between two of float32, so that an error of 1e-16 decides which it becomes."""
    noise = Noise(2, torch.arange(3))
    long = noise.normal((4, 1), (100, 1000))
    assert torch.equal(long, torch.special.ndtri(noise._unit((4, 1), (100, 1000))).float())
    assert torch.equal(long[1:2], noise.take(torch.tensor([1])).normal((4, 1), (100, 1000)))
    above = np.linspace(-3, 3, 4001).astype(np.float32)
    middle = (above.astype(np.float64) + np.nextafter(above, np.float32(9)).astype(np.float64)) / 2
    k = (stats.norm.cdf(middle) * 2**52).astype(np.int64)
    mixed = hashed((k[:, None] + np.arange(-20, 21)).flatten())
    unit, drawn = torch.empty(len(mixed), dtype=torch.float64), torch.empty(len(mixed))
    _put_unit(mixed, unit)
    _put_normal(mixed, drawn)
    exact = torch.special.ndtri(unit).float()
    assert torch.equal(drawn, exact)
    other = (torch.erfinv(2 * unit - 1) * 2**0.5).float()
    assert not torch.equal(other, exact), "numbers on which the two functions disagree"


def test_quick_numbers_are_finite_and_not_paired() -> None:
    """Two come from one hash: their correlation is that of chance. The ends of the interval are never drawn."""
    pairs = Noise(1, torch.arange(200)).quick_normal(4, (5000, 2)).double().flatten(0, 1)
    assert bool(pairs.isfinite().all()) and abs(float(pairs.prod(dim=1).mean())) < 3.3e-3  # 3.3 σ of 10⁶
    assert abs(float(pairs.square().prod(dim=1).mean()) - 1) < 3.3 * 2.9e-3
    uniform = Noise(1, torch.arange(200)).quick_uniform(4, (10_000,))
    assert float(uniform.abs().max()) < 1


def test_quick_numbers_are_the_same_in_both_dtypes() -> None:
    noise = Noise(1, torch.arange(30))
    for name, _ in QUICK:
        for draw, shape in ((3, (7,)), ((0, 2), (40, 101))):
            single, double = (getattr(noise, name)(draw, shape, dtype) for dtype in (torch.float32, torch.float64))
            assert single.dtype == torch.float32 and double.dtype == torch.float64
            assert torch.equal(single.double(), double)


def test_moments_of_quick_normals() -> None:
    """Of a million, within 3.3 standard errors: E z = 0, E z² = 1, E z³ = 0, E z⁴ = 3; neighbors do not correlate."""
    z = Noise(4, torch.arange(100)).quick_normal((1, 5), (10_000,), torch.float64)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(z.pow(power).mean()) - mean) < 3.3 * (variance / z.numel()) ** 0.5
    for lag in (1, 2, 3):
        products = z[:, lag:] * z[:, :-lag]
        assert abs(float(products.mean())) < 3.3 / products.numel() ** 0.5
    rows = z[1:] * z[:-1]  # products of two samples
    assert abs(float(rows.mean())) < 3.3 / rows.numel() ** 0.5


def test_order_and_number_of_draws_do_not_matter() -> None:
    noise = Noise(1, torch.arange(3))
    first, second = noise.uniform(0, (5,)), noise.uniform(1, (5,))
    assert torch.equal(noise.uniform(1, (5,)), second)
    assert torch.equal(noise.uniform(0, (5,)), first)
    assert torch.equal(noise.uniform((0,), (5,)), first)
    assert torch.equal(Noise(1, torch.arange(3)).uniform(1, (5,)), second)


def test_float32_is_float64_rounded() -> None:
    noise = Noise(1, torch.arange(4))
    torch.testing.assert_close(noise.normal(0, (50,)), noise.normal(0, (50,), torch.float64).float(), rtol=0, atol=0)


def test_devices_agree(device: torch.device) -> None:
    here, there = Noise(3, torch.arange(5)), Noise(3, torch.arange(5), device)
    assert torch.equal(here.bits((1, 2), (100,)), there.bits((1, 2), (100,)).cpu())
    assert torch.equal(here.uniform(0, (100,)), there.uniform(0, (100,)).cpu())
    torch.testing.assert_close(here.normal(0, (100,)), there.normal(0, (100,)).cpu())
    assert there.uniform(0, (2,)).device.type == device.type


def test_global_state_is_neither_read_nor_moved() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = Noise(0, torch.arange(2)).normal(0, (3,))
    derive_seed(1, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    torch.manual_seed(99)
    assert torch.equal(Noise(0, torch.arange(2)).normal(0, (3,)), first)


@pytest.mark.parametrize("seed", SEEDS)
def test_distributions(seed: int) -> None:
    noise = Noise(seed, torch.arange(40))
    for draw in (0, -1, (3, 5)):
        u = noise.uniform(draw, (500,), torch.float64).flatten().numpy()
        assert u.min() > 0 and u.max() < 1
        assert stats.kstest(u, "uniform").pvalue > 1e-3
        assert stats.kstest(noise.normal(draw, (500,), torch.float64).flatten().numpy(), "norm").pvalue > 1e-3
        assert stats.kstest(noise.exponential(draw, (500,), torch.float64).flatten().numpy(), "expon").pvalue > 1e-3
        quick = noise.quick_uniform(draw, (500,))
        assert quick.dtype == torch.float32 and stats.kstest(quick.flatten(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
        assert stats.kstest(noise.quick_normal(draw, (500,)).flatten(), "norm").pvalue > 1e-3
        counts = torch.bincount(noise.integers(draw, (500,), 7).flatten(), minlength=7)
        assert counts.shape == (7,) and stats.chisquare(counts.numpy()).pvalue > 1e-3
        plus = int((noise.sign(draw, (500,)) > 0).sum())
        assert stats.binomtest(plus, 20000).pvalue > 1e-3
    wide = noise.uniform(0, (500,), torch.float64, -2.0, 3.0).flatten().numpy()
    assert stats.kstest(wide, stats.uniform(-2, 5).cdf).pvalue > 1e-3


def test_all_bits_are_fair() -> None:
    bits = Noise(0, torch.arange(50)).bits(0, (400,)).flatten()
    assert bool((bits >= 0).all())
    for k in range(63):
        ones = int(((bits >> k) & 1).sum())
        assert stats.binomtest(ones, bits.numel()).pvalue > 1e-5  # 63 tests


def test_permutations_are_permutations_and_fair() -> None:
    order = Noise(0, torch.arange(6000)).permutation(0, 3)
    assert torch.equal(order.sort(dim=1).values, torch.arange(3).expand(6000, 3))
    code = order @ torch.tensor([9, 3, 1])
    assert stats.chisquare(np.unique(code.numpy(), return_counts=True)[1]).pvalue > 1e-3


def test_neighboring_keys_are_uncorrelated() -> None:
    """Seeds, ids and draws that differ by one, small and negative ones too, give unrelated numbers."""
    n = 4000
    streams = {}
    for seed, one_id, draw in itertools.product((-1, 0, 1, 2), (-1, 0, 1, 2), (-1, 0, 1, (0, 0), (0, 1), (1, 0))):
        streams[seed, one_id, draw] = Noise(seed, torch.tensor([one_id])).normal(draw, (n,), torch.float64)[0]
    values = torch.stack(list(streams.values()))
    correlation = torch.corrcoef(values) - torch.eye(len(values), dtype=torch.float64)
    pairs = len(values) * (len(values) - 1) / 2
    assert float(correlation.abs().max()) < stats.norm.isf(1e-3 / pairs / 2) / n**0.5
    # The same numbers at another place would not show as a correlation.
    assert torch.unique(values).numel() == values.numel()


def test_lagged_correlation_is_zero() -> None:
    values = Noise(0, torch.tensor([0])).normal(0, (20000,), torch.float64)[0]
    for lag in range(1, 20):
        r = float((values[lag:] * values[:-lag]).mean())
        assert abs(r) < stats.norm.isf(1e-3 / 40) / 20000**0.5


def test_low_precision_stays_below_one() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        u = Noise(0, torch.arange(100)).uniform(0, (2000,), dtype)
        assert u.dtype == dtype and float(u.max()) < 1


def test_derived_seeds_differ() -> None:
    seeds = {derive_seed(s, e, k) for s, e, k in itertools.product((-1, 0, 1, 2), range(10), range(10))}
    assert len(seeds) == 400
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(1, 2) != derive_seed(2, 1) != derive_seed(2, 1, 0)
    short = [derive_seed(a) for a in range(-2, 5)] + [derive_seed(a, b) for a in range(-2, 5) for b in range(-2, 5)]
    assert len(set(short)) == 7 + 49
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)


def test_integers_are_mixed_as_tensors_are() -> None:
    values = [0, 1, -1, 2**62, -(2**63), 2**63 - 1, *torch.arange(-50, 50).mul(0x5DEECE66D1234567).tolist()]
    mixed = _mix(torch.tensor(values)).tolist()
    assert [_mix_integer(value) for value in values] == [value % 2**64 for value in mixed]
    assert derive_seed(2**64 + 3, -1) == derive_seed(3, 2**64 - 1)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="ids: want a vector of integers"):
        Noise(0, torch.zeros(3))
    with pytest.raises(ValueError, match="ids"):
        Noise(0, torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="high: want at least 1, got 0"):
        Noise(0, torch.arange(2)).integers(0, (1,), 0)


def test_empty() -> None:
    noise = Noise(0, torch.arange(0))
    assert noise.normal(0, (2, 3)).shape == (0, 2, 3) and len(noise) == 0


def test_draws_in_turn_are_those_drawn_alone() -> None:
    """Of few numbers several draws are made at once, which samples that leave, leaps and returns must not disturb."""
    ids = torch.tensor([7, 3, 11])
    noise, kept = Noise(5, ids), torch.tensor([0, 2])
    for step in (0, 1, 2, 3, 2, 9, 10, 11):
        alone = Noise(5, ids).uniform((4, step), (2, 3), torch.float64)
        assert torch.equal(noise.uniform((4, step), (2, 3), torch.float64, 0.0, 1.0), alone)
        noise.uniform((4, step), (2, 3), torch.float64, -1.0, 1.0)  # in place on what it drew
    rest = noise.take(kept)
    for step in (12, 13, 80):
        assert torch.equal(rest.uniform((4, step), (2, 3)), Noise(5, ids[kept]).uniform((4, step), (2, 3)))
    assert torch.equal(rest.uniform((5, 80), (2, 3)), Noise(5, ids[kept]).uniform((5, 80), (2, 3)))


@pytest.mark.parametrize("shape", [(3,), (100, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_sample_may_have_a_draw_of_its_own(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    noise, number = Noise(3, torch.arange(20, 26)), torch.tensor([0, 4, 4, 1, 0, 2**40])
    for name in ("uniform", "normal", "exponential", "sign", "quick_normal"):
        drawn = getattr(noise, name)((2, number), shape, dtype)
        for i, k in enumerate(number.tolist()):
            assert torch.equal(drawn[i], getattr(Noise(3, torch.tensor([20 + i])), name)((2, k), shape, dtype)[0])


def test_many_numbers_are_those_of_each_sample() -> None:
    """More than the block in which they are made."""
    ids, shape = torch.arange(5), (1 << 15,)
    rows = torch.cat([Noise(2, ids[i : i + 1]).uniform(0, shape) for i in range(5)])
    assert torch.equal(Noise(2, ids).uniform(0, shape), rows)
