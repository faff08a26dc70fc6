"""Colors against colorsys, and the hue and saturation attack against exhaustive search and the definition."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustlab import data
from robustlab.attacker.victim import Victim
from robustlab.attacks import semantic_hsv
from robustlab.data.color import hsv_to_rgb, rgb_to_hsv
from tests.suite.cases import noise_box
from tests.suite.models import Then, mlp
from tests.suite.test_success import Recording

SHAPE = (3, 2, 2)


def pixels(n: int = 4000, seed: int = 0) -> Tensor:
    """Random colors, and among them grays, black, white, primaries and ties of two channels."""
    colors = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)] * 3)
    return torch.cat([colors, corners]).reshape(-1, 3, 1, 1)


def through(function: object, colors: Tensor) -> np.ndarray:
    return np.array([function(*color) for color in colors[:, :, 0, 0].tolist()])  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conversions_are_colorsys(dtype: torch.dtype) -> None:
    colors = pixels().to(dtype)
    atol = 1e-12 if dtype == torch.float64 else 2e-6
    ours, theirs = rgb_to_hsv(colors)[:, :, 0, 0].double().numpy(), through(colorsys.rgb_to_hsv, colors)
    hue = np.abs(ours[:, 0] - theirs[:, 0])
    np.testing.assert_allclose(np.minimum(hue, 1 - hue), 0, atol=atol if dtype == torch.float64 else 1e-3)
    np.testing.assert_allclose(ours[:, 1:], theirs[:, 1:], rtol=0, atol=atol)
    assert (ours[:, 0] < 1).all() and (ours >= 0).all() and (ours <= 1).all()
    back = hsv_to_rgb(colors)[:, :, 0, 0].double().numpy()
    np.testing.assert_allclose(back, through(colorsys.hsv_to_rgb, colors), rtol=0, atol=atol)


def test_there_and_back() -> None:
    colors = pixels()
    torch.testing.assert_close(hsv_to_rgb(rgb_to_hsv(colors)), colors, rtol=0, atol=1e-12)
    hue = torch.tensor([1.25, 0.4, 0.7], dtype=torch.float64).reshape(1, 3, 1, 1)
    torch.testing.assert_close(hsv_to_rgb(hue), hsv_to_rgb(hue - torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)))


def test_gray_images_are_refused() -> None:
    for call in (rgb_to_hsv, hsv_to_rgb):
        with pytest.raises(ValueError, match=r"want color images \(N, 3, H, W\), got shape"):
            call(torch.rand(2, 1, 3, 3))
    with pytest.raises(ValueError, match=r"^x: want color images"):
        semantic_hsv(mlp((1, 2, 2), 3), torch.rand(2, 1, 2, 2, dtype=torch.float64))


def problem(n: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = mlp(SHAPE, 3, gain=4.0), noise_box(n, SHAPE, torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def test_every_trial_is_one_shift_of_hue_and_saturation_with_the_value_fixed() -> None:
    """Read off the queries by colorsys: the same turn for all pixels, a saturation moved by no more than i/n."""
    x = pixels(64).reshape(-1)[: 16 * 12].reshape(16, 3, 2, 2)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        constant[1].weight.zero_()
        constant[1].bias.copy_(torch.tensor([3.0, 0.0, 0.0]))
    seen, trials = Recording(constant), 20
    semantic_hsv(seen, x, trials=trials)
    assert len(seen.points) == 1 + trials
    turns = []
    for i, points in enumerate(seen.points[1:]):
        for before, after in zip(x, points, strict=True):
            old = np.array([colorsys.rgb_to_hsv(*p) for p in before.flatten(1).T.tolist()])
            new = np.array([colorsys.rgb_to_hsv(*p) for p in after.flatten(1).T.tolist()])
            np.testing.assert_allclose(new[:, 2], old[:, 2], atol=1e-12)
            inside = (new[:, 1] > 1e-9) & (new[:, 1] < 1 - 1e-9) & (old[:, 1] > 1e-9) & (old[:, 2] > 1e-9)
            if inside.sum() < 2:
                continue
            turn, gain = (new[:, 0] - old[:, 0])[inside] % 1.0, (new[:, 1] - old[:, 1])[inside]
            assert np.abs(np.exp(2j * np.pi * turn) - np.exp(2j * np.pi * turn[0])).max() < 1e-8
            assert np.ptp(gain) < 1e-9 and np.abs(gain).max() <= i / trials + 1e-9
            turns.append(turn[0])
    assert len(turns) > 150 and stats.kstest(turns, "uniform").pvalue > 1e-3


@pytest.mark.slow
def test_finds_what_a_fine_search_finds() -> None:
    """All hues and saturations on a grid of 64 × 65: the samples that one of them fools are those that fall."""
    plain, x, _ = problem()
    model = Then(plain, lambda z: z + torch.tensor([3.0, 0.0, 0.0]))  # the first class is hard to leave
    with torch.no_grad():
        y = model(x).argmax(1)
    hsv, fooled = rgb_to_hsv(x), torch.zeros_like(y, dtype=torch.bool)
    for turn in torch.linspace(0, 1, 64, dtype=torch.float64):
        for gain in torch.linspace(-1, 1, 65, dtype=torch.float64):
            shifted = torch.stack([hsv[:, 0] + turn, (hsv[:, 1] + gain).clamp(0, 1), hsv[:, 2]], dim=1)
            with torch.no_grad():
                fooled |= model(hsv_to_rgb(shifted)).argmax(1) != y
    result = semantic_hsv(model, x, y, trials=1500)
    assert 5 < int(fooled.sum()) < 40
    assert int((result.success != fooled).sum()) <= 1  # a sliver of the square may be missed by either
    assert torch.equal(result.x_adv[~result.success], x[~result.success])


def test_the_trace_makes_the_image_again() -> None:
    model, x, y = problem()
    result = semantic_hsv(model, x, y, trials=300, trace=True)
    assert result.trace is not None and bool(result.success.any())
    hsv, (turn, gain) = rgb_to_hsv(x), (result.trace[k][0][:, None, None] for k in ("hue", "saturation"))
    again = hsv_to_rgb(torch.stack([hsv[:, 0] + turn, (hsv[:, 1] + gain).clamp(0, 1), hsv[:, 2]], dim=1))
    torch.testing.assert_close(again[result.success], result.x_adv[result.success], rtol=0, atol=1e-9)


def test_small_shifts_of_saturation_come_first() -> None:
    model, x, y = problem()
    result = semantic_hsv(model, x, y, trials=300, trace=True)
    assert result.trace is not None
    when = result.first_success - 2  # the clean query, and trials are counted from 0
    won = result.success & (result.first_success > 1)
    assert bool((result.trace["saturation"][0][won].abs() <= when[won] / 300).all())


def test_labels_suffice_and_the_box_may_be_another() -> None:
    model, x, y = problem()

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model((x + 1) / 2)

    here = semantic_hsv(Victim(model, access="hard"), x, y, trials=50)
    there = semantic_hsv(Victim(Half(), bounds=(-1.0, 1.0)), 2 * x - 1, y, trials=50)
    torch.testing.assert_close((there.x_adv + 1) / 2, here.x_adv, rtol=0, atol=1e-12)
    assert here.gradients.tolist() == [0] * len(x)


def test_tinted_data_keep_the_shape_and_dye_by_class() -> None:
    base = data.load("mnist5k").subset(400, 100)
    colored = data.tinted(base, spread=0.02)
    assert colored.sample_shape == (3, 28, 28) and torch.equal(colored.y_train, base.y_train)
    hsv = rgb_to_hsv(colored.x_train)
    torch.testing.assert_close(hsv[:, 2:], base.x_train, rtol=0, atol=1e-6)
    bright = base.x_train[:, 0] > 0.5
    for i in range(50):
        off = (hsv[i, 0][bright[i]] - float(colored.y_train[i]) / 10 + 0.5) % 1 - 0.5
        assert float(off.max() - off.min()) < 1e-3 and abs(float(off.mean())) < 0.1
        assert 0.49 < float(hsv[i, 1][bright[i]].min()) < 1.0
    again, other = data.tinted(base, spread=0.02), data.tinted(base, spread=0.02, seed=1)
    assert torch.equal(again.x_test, colored.x_test) and not torch.equal(other.x_test, colored.x_test)
    with pytest.raises(ValueError, match=r"^base: want gray images"):
        data.tinted(colored)
    with pytest.raises(ValueError, match=r"^spread: want at least 0"):
        data.tinted(base, spread=-0.1)
