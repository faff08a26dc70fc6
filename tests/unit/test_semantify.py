"""Semantify: the changes against colorsys, SciPy and torch; tubes against samples; certificates against dense grids."""

from __future__ import annotations

import colorsys
import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from robustlab.graph.forms import Forms
from robustlab.models import build
from robustlab.verification import semantify
from robustlab.verification.complete.branch_and_bound import branch_and_bound
from robustlab.verification.propagation.certify import bounds
from robustlab.verification.propagation.region import Box
from robustlab.verification.semantic.change import Change
from robustlab.verification.semantic.colors import BrightnessContrast, Hue, Lightness, Piecewise, Saturation
from robustlab.verification.semantic.motion import Occlusion, Rotation, Shift, Translation

RANGES: dict[Change, tuple[tuple[float, ...], tuple[float, ...]]] = {
    Hue(): ((-0.4,), (0.55,)),
    Saturation(): ((-1.0,), (1.0,)),
    Lightness(): ((-0.8,), (0.9,)),
    BrightnessContrast(): ((-0.3, -0.5), (0.4, 1.5)),
    Rotation(): ((-10.0,), (23.1,)),
    Rotation(fill=0.7): ((80.0,), (95.0,)),
    Shift(): ((-0.8, 0.3), (1.1, 0.9)),
}
PIECEWISE = [change for change in RANGES if isinstance(change, Piecewise)]
each_change = pytest.mark.parametrize("change", RANGES, ids=repr)


def photos(n: int = 3, side: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise, with a black, a white and a gray pixel, pure colors, and ties among channels."""
    x = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    special = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0.2, 0.7, 0.2)]
    for k, color in enumerate(special):
        x[:, :, k // side, k % side] = torch.tensor(color, dtype=torch.float64)
    return x.to(dtype)


def ends(change: Change, x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (x.new_tensor(end).expand(len(x), -1) for end in RANGES[change])
    return low, high


def net(seed: int = 0, side: int = 6, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * ((side + 1) // 2) ** 2, 3)
        )
        last = model[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():  # each class wins somewhere
            last.bias -= model(torch.rand(200, 3, side, side)).median(dim=0).values
    return model.to(dtype).eval()


def by_colorsys(change: Change, rgb: tuple[float, float, float], theta: float) -> tuple[float, float, float]:
    hue, lightness, saturation = colorsys.rgb_to_hls(*rgb)
    if isinstance(change, Hue):
        hue = (hue + theta) % 1.0
    elif isinstance(change, Lightness):
        lightness = min(max(lightness + theta, 0), 1)
    else:
        saturation = min(max(saturation + theta, 0), 1)
    return colorsys.hls_to_rgb(hue, lightness, saturation)


@pytest.mark.parametrize("change", PIECEWISE, ids=repr)
def test_colors_are_those_of_colorsys_and_so_is_the_network_of_relus(change: Piecewise) -> None:
    """Everywhere, knots included: the network's own bends are among the parameters."""
    x = photos()
    (low,), (high,) = RANGES[change]
    for row in range(len(x)):
        image = x[row : row + 1]
        layers = change.layers(image, low, high)
        bends = -layers[0].bias.detach().unique()[::7]
        thetas = torch.cat([torch.linspace(low, high, 41, dtype=x.dtype), bends.clamp(low, high)])[:, None]
        made = change.images(image.expand(len(thetas), -1, -1, -1), thetas)
        torch.testing.assert_close(layers(thetas), made, rtol=0, atol=1e-12)
        for k in range(0, len(thetas), 5):
            for i, j in ((0, 0), (0, 1), (0, 2), (0, 3), (0, 5), (1, 1), (3, 4), (5, 5)):
                want = by_colorsys(change, tuple(image[0, :, i, j].tolist()), float(thetas[k]))
                assert made[k, :, i, j].tolist() == pytest.approx(want, abs=1e-12)


def test_brightness_and_contrast_are_a_network_of_relus_on_two_parameters() -> None:
    """Equal to the formula pixel by pixel, clipped at both ends; and what it proves holds on a grid."""
    x, model = photos(1, side=3), net(side=3)
    layers = BrightnessContrast().layers(x)
    thetas = torch.cartesian_prod(torch.linspace(-1, 1, 9), torch.linspace(-1, 4, 11)).to(x)
    made = layers(thetas)
    for (brightness, contrast), image in zip(thetas.tolist(), made, strict=True):
        for value, pixel in zip(image.flatten().tolist(), x.flatten().tolist(), strict=True):
            assert value == pytest.approx(min(max((1 + contrast) * pixel + brightness, 0.0), 1.0), abs=1e-12)
    assert bool((made == 0).any() & (made == 1).any())
    whole, (low, high) = nn.Sequential(*layers, *model), RANGES[BrightnessContrast()]
    box = bounds(whole, Box(x.new_tensor([low]), x.new_tensor([high])))
    inside = model(BrightnessContrast().images(x.expand(99, -1, -1, -1), thetas.clamp(*x.new_tensor([low, high]))))
    assert bool((inside >= box.lower - 1e-9).all() & (inside <= box.upper + 1e-9).all())


def test_rotation_and_shift_are_those_of_scipy_and_torch() -> None:
    x = photos(2, side=7)
    for theta in (-33.0, 12.5, 90.0):
        made = Rotation(fill=0.3).images(x, x.new_full((2, 1), theta))
        grid = np.stack(np.meshgrid(np.arange(7) - 3.0, np.arange(7) - 3.0, indexing="ij"))
        turn = math.radians(-theta)
        where = (
            np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) @ grid.reshape(2, -1) + 3
        )
        flat = [ndimage.map_coordinates(np.pad(c, 1, constant_values=0.3), where + 1, order=1, mode="nearest")
                for c in x.flatten(0, 1).numpy()]  # fmt: skip
        torch.testing.assert_close(made.flatten(2), torch.tensor(np.stack(flat)).reshape(2, 3, 49), rtol=0, atol=1e-12)
    torch.testing.assert_close(Rotation().images(x, x.new_full((2, 1), 90.0)), x.rot90(1, (2, 3)), rtol=0, atol=1e-12)
    moved = Translation(2).images(x, x.new_tensor([[1, -2]]).expand(2, -1))
    torch.testing.assert_close(moved, nn.functional.pad(x, (0, 2, 1, 0))[:, :, :7, 2:])
    half = Shift().images(x, x.new_tensor([[0.5, 0.0]]).expand(2, -1))
    torch.testing.assert_close(half[:, :, 1:], (x[:, :, 1:] + x[:, :, :-1]) / 2)


@pytest.mark.slow
@each_change
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_changed_image_leaves_its_tube(change: Change, dtype: torch.dtype) -> None:
    """A thousand parameters, the ends and the knots among them; and a form's minimum is below all of its values."""
    x = photos(dtype=dtype)
    low, high = ends(change, x)
    tube = change.tube(x, low, high)
    share = torch.rand(1000, low.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    share[:2] = torch.tensor([[0.0], [1.0]])
    coef = torch.randn(2 * len(x), *x.shape[1:], generator=torch.Generator().manual_seed(2), dtype=dtype)
    forms = Forms(coef, torch.arange(len(x)).repeat_interleave(2))
    least = torch.full((len(coef),), torch.inf, dtype=dtype)
    for t in share:
        theta = low + (high - low) * t
        image = change.images(x, theta)
        plane = (tube.slope * theta[:, :, None, None, None]).sum(1)
        assert bool((image >= tube.lower).all() & (image <= tube.upper).all())
        assert bool((image >= plane + tube.below).all() & (image <= plane + tube.above).all())
        least = least.minimum(forms.dot(forms.pick(image)))
    found = tube.minimum(forms)
    slack = 0 if dtype == torch.float64 else 1e-4
    assert bool((found <= least + slack).all())
    assert bool((found >= tube.select(torch.arange(len(x))).minimum(forms)).all())


@each_change
def test_tubes_are_as_narrow_as_they_can_be(change: Change) -> None:
    """Bounds of pixels are reached, but for the rectangles of a rotation; and a short interval has a thin tube."""
    x = photos(1)
    low, high = ends(change, x)
    share = torch.linspace(0, 1, 2001 if low.shape[1] == 1 else 45, dtype=x.dtype)
    steps = torch.cartesian_prod(*[share] * low.shape[1]).reshape(-1, low.shape[1])
    images = change.images(x.expand(len(steps), -1, -1, -1), low + (high - low) * steps)
    tube = change.tube(x, low, high)
    loose = 0.25 if isinstance(change, Rotation) else 0.03
    assert float((images.amin(0) - tube.lower).max()) < loose and float((tube.upper - images.amax(0)).max()) < loose
    thin = change.tube(x, low, low + 1e-6)
    assert float((thin.above - thin.below).max()) < 1e-4


@pytest.mark.slow
@each_change
def test_no_certificate_is_broken_by_a_dense_grid_and_some_are_given(change: Change) -> None:
    given = 0
    for seed, scale in product(range(3), (0.3, 0.03)):
        model, x = net(seed), photos()
        low, high = (tuple(scale * end for end in one) for one in RANGES[change])
        found = semantify(model, x, change=change, low=low, high=high, splits=3)
        share = torch.linspace(0, 1, 301 if len(low) == 1 else 25, dtype=x.dtype)
        steps = torch.cartesian_prod(*[share] * len(low)).reshape(-1, len(low))
        thetas = x.new_tensor(low) + (x.new_tensor(high) - x.new_tensor(low)) * steps
        for row in range(len(x)):
            images = change.images(x[row : row + 1].expand(len(thetas), -1, -1, -1), thetas)
            stays = bool((model(images).argmax(1) == model(x[row : row + 1]).argmax(1)).all())
            assert stays or not found.verified[row]
            if found.falsified[row]:
                assert found.counterexample is not None and not stays
                assert model(found.counterexample[row : row + 1]).argmax() != model(x[row : row + 1]).argmax()
            given += int(found.verified[row])
    assert given > 0


@pytest.mark.slow
def test_on_a_linear_model_splitting_reaches_the_exact_answer() -> None:
    """The least margin over the angle, from a grid; at 256 parts the certificate misses it by little."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 2)).double()
    x, change = photos(4), Hue()
    grid = torch.linspace(-0.5, 0.5, 4001, dtype=x.dtype)[:, None]
    with torch.no_grad():
        exact = torch.stack([
            (model(change.images(one[None].expand(len(grid), -1, -1, -1), grid)) @ x.new_tensor([1.0, -1.0])).min()
            for one in x
        ])  # fmt: skip
    C = x.new_tensor([[[1.0, -1.0]]]).expand(4, -1, -1)
    tubes = [[change.tube(x, x.new_full((4, 1), -0.5 + k / parts), x.new_full((4, 1), -0.5 + (k + 1) / parts))
              for k in range(parts)] for parts in (1, 8, 64, 256)]  # fmt: skip
    lowest = torch.stack(
        [torch.stack([bounds(model, tube, C).lower[:, 0] for tube in some]).amin(0) for some in tubes]
    ).detach()
    assert bool((lowest <= exact + 1e-12).all())
    assert bool((lowest.diff(dim=0) >= 0).all()) and float((exact - lowest[3]).max()) < 0.004


def test_a_complete_verifier_through_the_relus_agrees() -> None:
    """The change as layers before the network: what branch and bound decides on the parameter, no tube contradicts."""
    decided = 0
    for seed in range(3):
        model, x = net(seed, side=3), photos(2, side=3)
        for row in range(len(x)):
            image, low, high = x[row : row + 1], -0.2, 0.3
            whole = nn.Sequential(*Hue().layers(image, low, high), *model)
            y = model(image).argmax(1)
            center = x.new_full((1, 1), (low + high) / 2)
            exact = branch_and_bound(whole, center, y, norm="linf", eps=(high - low) / 2, box=(-1.0, 1.0), timeout=20)
            found = semantify(model, image, y, change=Hue(), low=low, high=high, splits=40)
            assert not bool(found.verified & exact.falsified) and not bool(found.falsified & exact.verified)
            decided += int(found.verified | found.falsified)
            box = bounds(whole, Box(x.new_full((1, 1), low), x.new_full((1, 1), high)))
            inside = whole(torch.linspace(low, high, 200, dtype=x.dtype)[:, None])
            assert bool((inside >= box.lower - 1e-9).all() & (inside <= box.upper + 1e-9).all())
    assert decided >= 5


def test_finitely_many_images_are_all_tried() -> None:
    model, x = net(1), photos(8)
    y = model(x).argmax(1)
    for change, count in ((Translation(2), 25), (Occlusion(4, 1.0), 10)):
        found = semantify(model, x, change=change)
        assert found.pieces is not None and found.pieces.shape == (8, count) and not bool(found.unknown.any())
        assert bool(found.pieces[:, 0].all()), "no move and no square keep the label"
        assert torch.equal(found.radius, torch.where(found.verified, torch.inf, 0.0).to(x))
        for row in range(8):
            if isinstance(change, Translation):
                moved = [nn.functional.pad(x[row], (2, 2, 2, 2))[:, 2 - a : 8 - a, 2 - b : 8 - b]
                         for a in range(-2, 3) for b in range(-2, 3)]  # fmt: skip
            else:
                moved = [x[row]]
                for a in range(3):
                    for b in range(3):
                        covered = x[row].clone()
                        covered[:, a : a + 4, b : b + 4] = 1.0
                        moved.append(covered)
            stays = model(torch.stack(moved)).argmax(1) == y[row]
            assert bool(stays.all()) == bool(found.verified[row]) and int(stays.sum()) == int(found.pieces[row].sum())
        assert bool(found.falsified.any()) and found.counterexample is not None
        wrong = found.falsified
        assert bool((model(found.counterexample[wrong]).argmax(1) != y[wrong]).all())


def test_the_arc_is_the_run_of_verified_parts_around_zero() -> None:
    model, x = net(2), photos(6)
    found = semantify(model, x, change=Hue(), low=-0.5, high=0.5, splits=16)
    arc = found.arc()
    assert found.pieces is not None and bool((arc[:, 0] <= 0).all() & (arc[:, 1] >= 0).all())
    for (down, up), parts in zip(arc.tolist(), found.pieces.tolist(), strict=True):
        right, left = parts[8:], parts[7::-1]
        assert up == [*right, False].index(False) / 16 and down == -[*left, False].index(False) / 16
    assert 0 < float((arc[:, 1] - arc[:, 0]).mean()) < 1
    for k in range(16):
        part = semantify(model, x, change=Hue(), low=-0.5 + k / 16, high=-0.5 + (k + 1) / 16)
        assert bool((part.pieces[:, 0] == found.pieces[:, k]).all())
    whole = semantify(model, x, change=Hue(), low=0.0, high=0.02, splits=1)
    assert bool((whole.radius == 0).all()) and whole.arc().shape == (6, 2)


def test_a_color_net_of_the_house_in_single_precision() -> None:
    model, x = build("small_cnn", in_shape=(3, 12, 12), seed=0).eval(), photos(2, side=12, dtype=torch.float32)
    found = semantify(model, x, change=Hue(), low=-0.002, high=0.002)
    assert bool(found.verified.all()) and found.radius.dtype == torch.float32
    assert len(semantify(model, x[:0], change=Hue(), low=-0.1, high=0.1)) == 0
    assert bool((semantify(model, x, change=Hue(), low=0.0, high=0.0).radius == 0).all())


@pytest.mark.parametrize(
    ("change", "low", "high", "extra", "message"),
    [
        (Hue(), -0.7, 0.7, {}, "at most 1.0 of hue"),
        (Hue(), -1.5, -1.2, {}, r"want hue in \[-1.0, 1.0\]"),
        (Lightness(), 0.2, 0.1, {}, "low ≤ high for lightness"),
        (Lightness(), 0.0, math.nan, {}, "finite"),
        (BrightnessContrast(), 0.0, 0.1, {}, "one number for each of brightness, contrast"),
        (BrightnessContrast(), (0.0, -2.0), (0.1, 0.0), {}, "want contrast in"),
        (Rotation(subdivisions=1), -40.0, 40.0, {}, "subdivisions: a pixel's source moves"),
        (Hue(), None, 0.1, {}, "low, high: want the range"),
        (Translation(1), 0.0, 1.0, {}, "low, high: want none"),
        (Occlusion(9), None, None, {}, "size: want at most 6"),
        (Hue(), -0.1, 0.1, {"splits": 0}, "splits"),
        (Hue(), -0.1, 0.1, {"method": "best"}, "method"),
    ],
)
def test_bad_arguments_are_named(change: Change, low: object, high: object, extra: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        semantify(net(), photos(), change=change, low=low, high=high, **extra)


def test_gray_images_numbers_outside_the_box_and_other_things_are_refused() -> None:
    gray = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    with pytest.raises(ValueError, match=r"want color images \(N, 3, H, W\)"):
        semantify(gray, photos()[:, :1], change=Hue(), low=0.0, high=0.1)
    assert len(semantify(gray, photos()[:, :1], change=Rotation(), low=-1.0, high=1.0)) == 3
    with pytest.raises(ValueError, match="x"):
        semantify(net(), photos() + 0.5, change=Hue(), low=0.0, high=0.1)
    with pytest.raises(TypeError, match="change: want a change"):
        semantify(net(), photos(), change="hue", low=0.0, high=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pixels"):
        Translation(-1)


def test_the_source_of_a_pixel_stays_in_its_rectangle_also_where_it_turns_back() -> None:
    x = photos(1, side=7)
    for middle in range(-180, 181, 15):
        low, high = x.new_full((1, 1), middle - 4.0), x.new_full((1, 1), middle + 3.0)
        top, bottom, left, right = Rotation().rectangle(x, low, high)
        for theta in torch.linspace(float(low), float(high), 71, dtype=x.dtype):
            row, column = Rotation().source(x, theta.reshape(1, 1))
            assert bool((top <= row + 1e-12).all() & (row <= bottom + 1e-12).all())
            assert bool((left <= column + 1e-12).all() & (column <= right + 1e-12).all())
        assert float((bottom - top).max()) <= 7 * math.radians(7), "and the rectangle is no longer than the arc"
