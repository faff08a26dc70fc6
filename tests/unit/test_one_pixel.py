"""The one-pixel attack beyond the shared suite: brute force on 4×4 images, draws, pixels and queries."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import one_pixel
from robustlab.attacks.softlabel.one_pixel import _best, _images, _others
from robustlab.geometry.keyed import Noise
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp

SMALL = {"population": 400, "generations": 25}


def log_odds(logits: Tensor, y: int) -> Tensor:
    """log p_y − log(1 − p_y), from probabilities."""
    p = logits.double().softmax(dim=1)
    return (p[:, y] / (p.sum(1) - p[:, y])).log()


def every_pixel(image: Tensor, values: Tensor) -> Tensor:
    """All images that differ from ``image`` (1, H, W) in one pixel, which takes one of ``values``."""
    tried = []
    for i, j in itertools.product(range(image.shape[1]), range(image.shape[2])):
        for value in values:
            other = image.clone()
            other[:, i, j] = value
            tried.append(other)
    return torch.stack(tried)


def test_brute_force_on_4x4_images() -> None:
    """Where one pixel suffices it is found, where none does the least probable label is."""
    model, x = mlp((1, 4, 4), 3), noise_box(24, (1, 4, 4), torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
        result = one_pixel(model, x, y, **SMALL)
        possible = 0
        for i in range(len(x)):
            tried = model(every_pixel(x[i], torch.linspace(0, 1, 101)))
            reachable = bool((tried.argmax(1) != y[i]).any())
            possible += reachable
            assert bool(result.success[i]) == reachable
            if not reachable:
                ours = log_odds(model(result.x_adv[i : i + 1]), int(y[i]))
                assert float(ours) <= float(log_odds(tried, int(y[i])).min()) + 1e-2
    assert 3 <= possible <= 21, "both outcomes must occur"


def test_brute_force_of_a_target() -> None:
    model, x = mlp((1, 4, 4), 3, seed=1), noise_box(16, (1, 4, 4), torch.float64, seed=2)
    with torch.no_grad():
        y = model(x).argmax(1)
        target = (y + 1) % 3
        result = one_pixel(model, x, y, target=target, **SMALL)
        reachable = []
        for i in range(16):
            tried = model(every_pixel(x[i], torch.linspace(0, 1, 101)))
            reachable.append(bool((tried.argmax(1) == target[i]).any()))
            ours, t = model(result.x_adv[i : i + 1]), int(target[i])
            assert reachable[-1] or float(log_odds(ours, t)) >= float(log_odds(tried, t).max()) - 1e-2
    assert result.success.tolist() == reachable and 1 <= sum(reachable) <= 15


@pytest.mark.parametrize("pixels", [2, 3])
def test_several_pixels_with_two_channels_on_an_affine_model(pixels: int) -> None:
    """Gains add up there: the best pixels are those whose gain, over both channels, is largest."""
    generator = torch.Generator().manual_seed(pixels)
    model = Affine(torch.randn(2, 32, generator=generator, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    x = noise_box(10, (2, 4, 4), torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
        w = (model.weight[1 - y] - model.weight[y]).reshape(-1, 2, 4, 4)
        gain = torch.where(w > 0, w * (1 - x), -w * x).sum(1).flatten(1)  # both channels to the end of the box
        z = model(x)
        lead = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1)
        least = lead - gain.topk(pixels, dim=1).values.sum(1)
        result = one_pixel(model, x, y, pixels=pixels, population=400, generations=60)
        z = model(result.x_adv)
        ours = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1)
    assert bool((ours >= least - 1e-9).all())
    clear = least.abs() > 0.1
    assert torch.equal(result.success[clear], (least < 0)[clear])
    failed = ~result.success
    assert bool(((lead - ours) >= 0.9 * (lead - least))[failed].all()), "far from the best places and values"


@pytest.mark.parametrize("pixels", [1, 4])
def test_no_more_pixels_than_asked_for(pixels: int) -> None:
    model, x = mlp((3, 5, 4), 3), noise_box(6, (3, 5, 4), torch.float64)
    result = one_pixel(model, x, None, pixels=pixels, population=20, generations=5)
    changed = (result.x_adv != x).any(dim=1).flatten(1).sum(1)
    assert bool((changed <= pixels).all()) and bool((changed[~result.success] >= 1).all())


def test_rows_and_columns_of_an_oblong_image() -> None:
    """The one pixel that matters lies in the last column, beyond the number of rows."""
    x = torch.full((1, 1, 3, 9), 0.5, dtype=torch.float64)
    weight = torch.zeros(2, 27, dtype=torch.float64)
    weight[1, 17] = 4.0  # row 1, column 8
    model = Affine(weight, torch.tensor([2.5, 0.0], dtype=torch.float64))
    result = one_pixel(model, x, torch.tensor([0]), **SMALL)
    assert bool(result.success) and (result.x_adv != x).nonzero().tolist() == [[0, 0, 1, 8]]


def test_queries_of_a_failure() -> None:
    model = Affine(torch.zeros(2, 16, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64))
    x = noise_box(3, (1, 4, 4), torch.float64)
    result = one_pixel(model, x, population=10, generations=4)
    assert result.queries.tolist() == [1 + 10 * 5] * 3 and not bool(result.gradients.any())


def test_more_generations_never_hurt() -> None:
    model, x = mlp((1, 4, 4), 3), noise_box(6, (1, 4, 4), torch.float64)
    walled = nn.Sequential(model, _Plus(torch.tensor([40.0, 0.0, 0.0], dtype=torch.float64)))
    y, before = torch.zeros(6, dtype=torch.int64), torch.full((6,), torch.inf, dtype=torch.float64)
    for generations in (1, 5, 20):
        result = one_pixel(walled, x, y, population=20, generations=generations)
        assert not bool(result.success.any())
        with torch.no_grad():
            z = model(result.x_adv)  # log odds of 40 would be lost in p; the wall only shifts them
        now = z[:, 0] - z[:, 1:].logsumexp(1)
        assert bool((now <= before + 1e-6).all())
        before = now


def test_parents_differ_from_each_other_and_the_child() -> None:
    others = _others(Noise(0, torch.arange(5)), 1, 7)
    everyone = torch.cat([others, torch.arange(7).expand(5, 7)[..., None]], dim=2)
    assert bool((everyone.sort(dim=2).values.diff(dim=2) > 0).all())
    assert int(others.min()) == 0 and int(others.max()) == 6


def test_a_success_is_kept_before_a_less_probable_label() -> None:
    """With three classes the least probable label may still be the largest."""
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    with Victim(mlp((1, 2, 2))).session(x, torch.tensor([0])) as session:
        genes = torch.tensor([[[[0, 0, 0.1]], [[0, 1, 0.2]], [[1, 0, 0.3]]]], dtype=torch.float64)
        fitness = torch.tensor([[0.0, -1.0, 1.0]], dtype=torch.float64)
        for met, found in ((True, [0, 0, 0.3, 0]), (False, [0, 0.2, 0, 0])):
            top, _ = _best(genes, fitness, torch.tensor([[False, False, met]]))
            assert _images(session, x, top).flatten().tolist() == found


def test_many_questions_are_counted_one_by_one() -> None:
    """The first success is the third of five points of sample 1, on top of its one clean query."""
    model = Affine(
        torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64), torch.tensor([0.5, 0.0], dtype=torch.float64)
    )
    x = torch.zeros(2, 2, dtype=torch.float64)
    with Victim(model, access="soft").session(x, torch.tensor([0, 0]), access="soft") as session:
        points = torch.zeros(2, 5, 2, dtype=torch.float64)
        points[1, 2:, 0] = 1.0
        answer = session.ask_many(points, session.live())
        assert answer.logits.shape == (2, 5, 2)
        assert answer.met.tolist() == [[False] * 5, [False, False, True, True, True]]
        assert session.queries.tolist() == [6, 6] and session.first_success.tolist() == [-1, 4]


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^x: want images"):
        one_pixel(mlp((6,)), torch.rand(2, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^population: want at least 4"):
        one_pixel(mlp((1, 2, 2)), torch.rand(2, 1, 2, 2, dtype=torch.float64), population=3)


class _Plus(nn.Module):
    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.by = by

    def forward(self, z: Tensor) -> Tensor:
        return z + self.by
