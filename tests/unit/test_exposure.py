"""Exposure against enumeration and closed forms; the skew-normal distribution against SciPy."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import product

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from robustlab.attacks import Canary, exposure, log_perplexity
from robustlab.attacks.poisoning.skew_normal import SkewNormal, fit_skew_normal
from robustlab.data import encode, notes
from robustlab.data.notes import ALPHABET
from robustlab.models import character_gru


class Table(nn.Module):
    """Each character has a probability of its own, whatever stands before it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        drawn = torch.randn(len(ALPHABET), generator=torch.Generator().manual_seed(seed))
        self.logits = nn.Parameter(drawn.double())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits.expand(*tokens.shape, -1)


def test_canary_counts_and_fills() -> None:
    canary = Canary("pin ?? or ?", "b0c", symbols="abc0")
    assert canary.size == 64 and canary.text == "pin b0 or c"
    texts = [canary.filling(i) for i in range(64)]
    assert texts == [f"pin {a}{b} or {c}" for a, b, c in product("abc0", repeat=3)]
    assert texts[canary.index] == canary.text
    for wrong in ({"secret": "12"}, {"secret": "1x3"}, {"secret": "123", "symbols": "1233"}):
        with pytest.raises(ValueError, match=r"secret|symbols"):
            Canary(**{"form": "a ???", **wrong})


def test_log_perplexity_is_the_sum_of_the_characters_bits() -> None:
    model = character_gru(hidden=8).double()
    texts = ["room 1 is free", "ab"]
    tokens = encode(texts)
    found = log_perplexity(model, tokens)
    for row, value in zip(tokens, found, strict=True):
        bits = 0.0
        for t in range(1, len(row)):  # one prefix at a time: the model sees nothing of what follows
            bits -= math.log2(model(row[None, :t])[0, -1].softmax(0)[row[t]].item())
        assert float(value) == pytest.approx(bits, rel=1e-9)
    assert model.training, "the mode is put back"


@pytest.mark.parametrize("secret", ["000", "407", "999"])
def test_exact_exposure_is_that_of_the_sorted_list(secret: str) -> None:
    model = Table()
    canary = Canary("code ???", secret)
    cost = -model.logits.detach().log_softmax(0)[[ALPHABET.index(c) for c in "0123456789"]]
    every = map("".join, product("0123456789", repeat=3))
    totals = {digits: sum(float(cost[int(c)]) for c in digits) for digits in every}
    first = 1 + sum(value < totals[secret] - 1e-9 for value in totals.values())
    last = sum(value <= totals[secret] + 1e-9 for value in totals.values())  # the same digits in another order: ties
    found = exposure(model, canary, encode=encode, batch_size=300)
    assert first <= found.rank <= last <= first + 5 and found.size == 1000
    assert found.value == pytest.approx(math.log2(1000) - math.log2(found.rank))


def test_least_and_most_perplexing() -> None:
    model = Table()
    order = sorted("0123456789", key=lambda c: -model.logits[ALPHABET.index(c)].item())
    assert exposure(model, Canary("?", order[0]), encode=encode).value == pytest.approx(math.log2(10))
    assert exposure(model, Canary("?", order[-1]), encode=encode).value == pytest.approx(0.0)


def test_a_model_to_which_all_fillings_are_alike_exposes_nothing() -> None:
    model = Table()
    with torch.no_grad():
        model.logits.zero_()
    for method in ("exact", "sampled"):
        assert exposure(model, Canary("??", "42"), encode=encode, method=method, samples=50).value == 0


@pytest.mark.parametrize("error", [-1e-7, 1e-7])
def test_a_secret_does_not_lose_to_itself_in_another_batch(error: float) -> None:
    """Networks round differently for one text than for many. The rank must not count the secret for that."""

    class Rounding(Table):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * (1 + error / len(tokens))

    model = Rounding()
    best = max("0123456789", key=lambda c: model.logits[ALPHABET.index(c)].item())
    found = exposure(model, Canary("?", best), encode=encode)
    assert found.rank == 1 and found.value == pytest.approx(math.log2(10))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [100, 1000, 30_000])
def test_estimates_are_near_the_exact_exposure(rank: int) -> None:
    """Five independent characters, each with nearly normal bits: their sum is nearly normal."""
    model = Table()
    with torch.no_grad():
        for i, c in enumerate("0123456789"):
            model.logits[ALPHABET.index(c)] = -0.4 * torch.special.ndtri(torch.tensor((i + 0.5) / 10))
    cost = -model.logits.detach().log_softmax(0)[[ALPHABET.index(c) for c in "0123456789"]] / math.log(2)
    digits = torch.cartesian_prod(*[torch.arange(10)] * 5)
    secret = "".join(map(str, digits[cost[digits].sum(dim=1).argsort()[rank - 1]].tolist()))
    canary = Canary("?????", secret)
    exact = exposure(model, canary, encode=encode)
    assert exact.value == pytest.approx(math.log2(1e5 / rank), abs=0.5)  # up to ties
    fitted = exposure(model, canary, encode=encode, method="skew_normal", samples=2000)
    assert fitted.value == pytest.approx(exact.value, abs=1.5 if rank == 100 else 0.5) and math.isnan(fitted.rank)
    sampled = exposure(model, canary, encode=encode, method="sampled", samples=2000)
    assert sampled.value <= math.log2(2001)
    if rank >= 1000:  # expected count among 2,000: 20 and more
        assert sampled.value == pytest.approx(exact.value, abs=1.0)


def test_a_secret_that_a_model_was_told_often_is_exposed() -> None:
    model = character_gru(hidden=8)
    canary = Canary("?", "7")
    with torch.no_grad():
        model.out.bias[ALPHABET.index("7")] = 20.0
    assert exposure(model, canary, encode=encode).value == pytest.approx(math.log2(10))


@pytest.mark.parametrize("shape", [-6.0, -1.0, 0.0, 0.8, 5.0])
def test_skew_normal_equals_scipy(shape: float) -> None:
    ours, theirs = SkewNormal(3.0, 2.0, shape), scipy.stats.skewnorm(shape, loc=3.0, scale=2.0)
    x = torch.linspace(-9, 12, 40, dtype=torch.float64)
    torch.testing.assert_close(ours.log_density(x), torch.from_numpy(theirs.logpdf(x.numpy())), rtol=1e-9, atol=1e-9)
    expected = torch.from_numpy(theirs.logcdf(x.numpy()))
    sound = expected > -150  # below that SciPy's own integral gives way
    torch.testing.assert_close(ours.log_cdf(x)[sound], expected[sound], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [-3.0, 0.7, 4.0])
def test_no_neighbor_of_the_fit_is_likelier(shape: float) -> None:
    """By our own density, for a sample of any size of numbers."""
    sample = torch.from_numpy(scipy.stats.skewnorm.rvs(shape, loc=30, scale=4, size=1500, random_state=1))
    found = fit_skew_normal(sample)
    best = float(found.log_density(sample).mean())
    assert best >= float(SkewNormal(30.0, 4.0, shape).log_density(sample).mean())
    for step in product((-0.01, 0.0, 0.01), repeat=3):
        other = SkewNormal(*(value + by for value, by in zip(astuple(found), step, strict=True)))
        assert float(other.log_density(sample).mean()) <= best + 1e-9
    small = fit_skew_normal(1e-6 * sample - 5)
    expected = (1e-6 * found.location - 5, 1e-6 * found.scale, found.shape)
    assert astuple(small) == pytest.approx(expected, rel=1e-3)


def test_notes() -> None:
    texts = notes(300, seed=1)
    assert texts == notes(300, seed=1) and texts[:50] == notes(50, seed=1) and texts != notes(300, seed=2)
    assert not any(mark in text for text in texts for mark in "#%")
    numbers = [word for text in texts for word in text.split() if word.isdigit()]
    assert len(numbers) == 300 and {len(n) for n in numbers} == {4}
    tokens = encode(texts)
    assert "".join(ALPHABET[t] for t in tokens[5].tolist()).strip("\n") == texts[5]
    assert bool((tokens[:, 0] == 0).all()) and bool((tokens[:, -1] == 0).all())


def test_bad_input() -> None:
    model, canary = Table(), Canary("?", "7")
    for kwargs, match in (
        ({"method": "guess"}, "method"),
        ({"samples": 3}, "samples"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=match):
            exposure(model, canary, encode=encode, **kwargs)
    with pytest.raises(ValueError, match="method: want 'sampled'"):
        exposure(model, Canary("?" * 9, "123456789"), encode=encode)
    with pytest.raises(TypeError, match="language_model"):
        exposure(lambda t: t, canary, encode=encode)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="texts: want characters"):
        encode(["A"])
    with pytest.raises(ValueError, match="length"):
        encode(["abc"], length=4)
    for x in (torch.ones(5), torch.rand(2)):
        with pytest.raises(ValueError, match="x: want at least 3"):
            fit_skew_normal(x)
