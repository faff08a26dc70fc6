"""What prints, cameras and solids do to a texture, against explicit formulas, SciPy and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import gaussian_filter
from torch import Tensor

from robustlab.attacks.physical import mesh
from robustlab.attacks.physical.camera import PLAIN, Camera
from robustlab.attacks.physical.optics import blur, corners, homography, light, perspective, places, project
from robustlab.attacks.physical.patch import disk
from robustlab.attacks.physical.printing import non_printability, printable_colors, printed, total_variation
from robustlab.attacks.physical.scenes import Listed, Placed, Scenes, Turned, View, Worn
from robustlab.attacks.physical.thin_plate import deformed, spline
from robustlab.geometry.keyed import Noise

D = torch.float64


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def coordinates(side: int) -> Tensor:
    """An image (1, 2, side, side) whose pixels have their own place as their color: bilinear look-ups are exact."""
    return places(side, side, torch.zeros(1, dtype=D)).permute(2, 0, 1)[None]


MATRIX = np.array([[0.9, 0.1, 0.05], [-0.08, 0.8, -0.1], [0.1, -0.07, 1.0]])


def by_matrix(matrix: np.ndarray, where: np.ndarray) -> np.ndarray:
    moved = np.concatenate([where, np.ones_like(where[..., :1])], axis=-1) @ matrix.T
    return moved[..., :2] / moved[..., 2:]


def test_homography_is_found_again() -> None:
    start = corners(torch.zeros(1, dtype=D))[None]
    end = torch.tensor(by_matrix(MATRIX, start.numpy()))
    np.testing.assert_allclose(homography(start, end)[0].numpy(), MATRIX, atol=1e-12)


def test_perspective_is_the_explicit_projection() -> None:
    """A pixel shows the place that the inverse matrix sends it to, as long as that is on the image."""
    image, square = coordinates(16), corners(torch.zeros(1, dtype=D))
    seen = perspective(image, torch.tensor(by_matrix(MATRIX, square.numpy()))[None])[0].permute(1, 2, 0).numpy()
    meant = by_matrix(np.linalg.inv(MATRIX), places(16, 16, image).numpy())
    inside = (np.abs(meant) < 1 - 1 / 16).all(axis=-1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(seen[inside], meant[inside], atol=1e-12)


def test_light_and_blur() -> None:
    images, sigma = draws(3, 2, 9, 9), torch.tensor([0.0, 0.4, 0.9], dtype=D)
    seen = blur(images, sigma)
    assert torch.equal(seen[0], images[0])
    for i in (1, 2):
        meant = gaussian_filter(images[i].numpy(), float(sigma[i]), mode="nearest", axes=(1, 2), radius=3)
        np.testing.assert_allclose(seen[i].numpy(), meant, atol=1e-12)
    lit = light(images, torch.tensor([1.0, 2.0, 0.5], dtype=D), torch.tensor([0.1, 0.0, 0.0], dtype=D))
    torch.testing.assert_close(lit, torch.stack([images[0] + 0.1, 2 * images[1], images[2] / 2]))


def test_thin_plate_spline() -> None:
    """The values at its control points; elsewhere what SciPy's solver says; an affine map is taken as it is."""
    points, values, at = draws(2, 9, 2), draws(2, 9, 3, seed=1), draws(2, 20, 2, seed=2)
    torch.testing.assert_close(spline(points, values, points), values, rtol=0, atol=1e-6)
    for i in range(2):
        other = RBFInterpolator(points[i].numpy(), values[i].numpy(), kernel="thin_plate_spline", degree=1)
        np.testing.assert_allclose(spline(points, values, at)[i].numpy(), other(at[i].numpy()), atol=1e-6)
    matrix = torch.tensor([[1.2, -0.3], [0.4, 0.8]], dtype=D)
    torch.testing.assert_close(spline(points, points @ matrix + 0.1, at), at @ matrix + 0.1)
    with pytest.raises(ValueError, match=r"^points: "):
        spline(points[:, :2], values[:, :2], at)


def test_deformed_sheet() -> None:
    """What was meant to be at a control point is seen where that point is seen."""
    seen = 0.7 * (2 * draws(1, 6, 2, seed=3) - 1)
    meant = seen + 0.1 * (draws(1, 6, 2, seed=4) - 0.5)
    pixel = places(64, 64, seen)
    out = deformed(coordinates(64), seen, meant)[0]
    for s, m in zip(seen[0], meant[0], strict=True):
        i, j = divmod(int((pixel - s).norm(dim=-1).argmin()), 64)
        assert float((out[:, i, j] - m).abs().max()) < 0.06  # a pixel is 1/32 wide


GRADIENTS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "perspective": (perspective, (draws(1, 1, 4, 4), 0.9 * corners(torch.zeros(1, dtype=D))[None] + 0.013)),
    "blur": (blur, (draws(2, 1, 5, 5), torch.tensor([0.5, 0.8], dtype=D))),
    "spline": (spline, (draws(1, 5, 2), draws(1, 5, 1, seed=1), draws(1, 4, 2, seed=2))),
    "printability": (
        lambda p: non_printability(p, draws(1, 3, 3) > 0.3, printable_colors(2).double()),
        (draws(3, 3, 3, seed=1),),
    ),
    "variation": (lambda p: total_variation(p, draws(1, 3, 3) > 0.3), (draws(3, 3, 3, seed=1),)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str) -> None:
    function, given = GRADIENTS[name]
    assert torch.autograd.gradcheck(function, tuple(part.requires_grad_(True) for part in given))


def family(name: str) -> Scenes:
    return {
        "worn": Worn(slip=0.7, turn=8.0), "placed": Placed(), "turned": Turned(mesh.sphere(3, 6)), "plain": Worn(),
    }[name]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["worn", "placed", "turned", "plain"])
def test_families(name: str) -> None:
    """Gradients by finite differences, through the whole camera; and a picture depends on its own number alone."""
    scenes, images, where = family(name), 0.3 + 0.4 * draws(3, 3, 6, 6), disk(6, draws(1))
    noise, texture = Noise(0, torch.tensor([4, 7, 9])), (0.3 + 0.4 * draws(3, 6, 6, seed=1)).requires_grad_(True)
    pictures = scenes.before(images, where, noise, 2)
    assert torch.autograd.gradcheck(pictures, (texture,))
    shown = pictures(texture.detach())
    alone = scenes.before(images[1:2], where, Noise(0, torch.tensor([7])), 2)(texture.detach())
    torch.testing.assert_close(alone, shown[1:2], rtol=0, atol=1e-12)
    assert float((scenes.before(images, where, noise, 3)(texture.detach()) - shown).abs().max()) > 1e-3
    view = scenes.views(3, seed=0)[2]
    judged = view(images, texture.detach(), where)
    assert torch.equal(judged, view(images, texture.detach(), where))
    own = scenes.before(images, where, Noise(0, torch.arange(3)), 2)(texture.detach())
    assert float((own - judged).abs().max()) > 1e-3, "an attack of this seed draws what judges it"
    for other in (texture.detach() * where, torch.where(where, texture.detach(), 0.9)):
        torch.testing.assert_close(pictures(other), shown)  # what is not in the mask is not seen


def test_worn_without_a_camera_is_pasted() -> None:
    images, texture, where = draws(2, 3, 5, 5), draws(3, 5, 5, seed=1), draws(1, 5, 5) > 0.5
    seen = Worn(camera=PLAIN).views(1)[0](images, texture, where)
    torch.testing.assert_close(seen, torch.where(where, texture, images))


def test_a_placed_patch_is_wholly_in_the_picture() -> None:
    """Of a white disk on black each picture shows its area, π/4·scale²·side², wherever it lies."""
    scenes = Placed(scale=(0.5, 0.5), turn=180.0, camera=PLAIN)
    black, white = torch.zeros(40, 1, 20, 30, dtype=D), torch.ones(1, 16, 16, dtype=D)
    seen = scenes.views(1)[0](black, white, disk(16, white)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(seen, torch.full_like(seen, np.pi / 4 * 10**2), rtol=0.06, atol=0)
    center = torch.einsum("nchw,hwk->nk", scenes.views(1)[0](black, white, disk(16, white)), places(20, 30, white))
    assert bool((center.div(seen[:, None]).std(dim=0) > 0.1).all()), "it lies at one place"


def test_listed_views_share_the_pictures_evenly() -> None:
    def filled(k: int) -> View:
        return lambda images, texture, mask: torch.full_like(images, k)

    views = [filled(k) for k in range(3)]
    images, where = draws(7, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    seen = [Listed(views).before(images, where, Noise(0, torch.arange(7)), step)(images[0]) for step in range(6)]
    assert all(sorted(torch.bincount(s[:, 0, 0, 0].long()).tolist()) == [2, 2, 3] for s in seen)
    assert len({tuple(s[:, 0, 0, 0].tolist()) for s in seen}) > 1

    def marked(k: int) -> View:
        return lambda images, texture, mask: images + k

    moved = (
        Listed([marked(k) for k in range(3)]).before(images, where, Noise(0, torch.arange(7)), 0)(images[0]) - images
    )
    assert torch.allclose(moved, moved.round()), "a picture of another image"


# A textured mesh -----------------------------------------------------------------------------------------------------


def turned(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Tensor:
    return mesh.rotation(*(torch.tensor([angle], dtype=D) for angle in (yaw, pitch, roll)))


def seen_at_4(solid: mesh.Mesh, turn: Tensor, side: int, shift: tuple[float, float] = (0.0, 0.0)) -> mesh.Seen:
    far = torch.full((len(turn),), 4.0, dtype=D)
    return mesh.seen(solid, turn, far, torch.tensor([shift], dtype=D).expand(len(turn), 2), (side, side))


def test_a_poster_is_seen_by_the_homography_of_its_corners() -> None:
    turn = turned(35.0, -20.0, 10.0)
    view = seen_at_4(mesh.sheet(), turn, 24, (0.1, -0.05))
    space = torch.tensor([[-1.0, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]], dtype=D) @ turn[0].T
    screen = 3 * torch.stack([space[:, 0], -space[:, 1]], dim=1) / (4 - space[:, 2:]) + torch.tensor(
        [0.1, -0.05], dtype=D
    )
    back = homography(screen[None], corners(space)[None])
    meant = project(back, places(24, 24, space))[0]
    covered = view.cover[0, 0] > 0
    assert torch.equal(covered, (meant.abs() <= 1).all(dim=-1)) and 0.2 < float(covered.double().mean()) < 0.8
    torch.testing.assert_close(view.where[0][covered], meant[covered], rtol=0, atol=1e-9)


def test_a_fine_ball_is_the_ball() -> None:
    """Longitude and latitude of the nearer point where the pixel's ray meets a sphere."""
    yaw = 25.0
    turn = turned(yaw)
    view = seen_at_4(mesh.sphere(24, 48), turn, 15)
    p = places(15, 15, turn)
    ray = torch.stack([p[..., 0], -p[..., 1], torch.full_like(p[..., 0], -3.0)], dim=-1)
    center = torch.tensor([0.0, 0.0, -4.0], dtype=D)
    a, b = ray.square().sum(-1), (ray @ center)
    root = b.square() - a * 15.0
    hit = root > 0.5
    point = (((b - root.clamp_min(0).sqrt()) / a)[..., None] * ray - center) @ turn[0]
    meant = torch.stack(
        [torch.atan2(point[..., 0], point[..., 2]) / np.pi, -torch.asin(point[..., 1].clamp(-1, 1)) * 2 / np.pi], -1
    )
    assert bool((view.cover[0, 0] > 0)[hit].all()) and int(hit.sum()) > 40
    torch.testing.assert_close(view.where[0][hit], meant[hit], rtol=0, atol=0.02)


def test_the_nearest_triangle_is_seen() -> None:
    far, near = mesh.sheet(), mesh.sheet()
    front = torch.tensor([0.0, 0, 0.5])
    both = mesh.Mesh(torch.cat([near.corners + front, far.corners]), torch.cat([near.uv, -far.uv]))
    alone = mesh.Mesh(near.corners + front, near.uv)
    first, second = seen_at_4(both, turned(0.0), 12), seen_at_4(alone, turned(0.0), 12)
    covered = second.cover[0, 0] > 0
    torch.testing.assert_close(first.where[0][covered], second.where[0][covered])
    away = seen_at_4(mesh.sheet(), turned(180.0), 12)
    assert not bool(away.cover.any()), "the back of a poster is seen"


def test_solids_are_closed() -> None:
    """Every pose of a ball and a box covers the middle of the picture, and the shade is that of the angle."""
    for solid in (mesh.sphere(), mesh.box()):
        turn = mesh.rotation(draws(20) * 360, draws(20, seed=1) * 360, draws(20, seed=2) * 360)
        view = seen_at_4(solid, turn, 9)
        assert bool((view.cover[:, 0, 3:6, 3:6] == 1).all()) and float(view.where.abs().max()) <= 1 + 1e-9
    tilted = seen_at_4(mesh.sheet(), turned(60.0), 9)
    covered = tilted.cover > 0
    torch.testing.assert_close(tilted.shade[covered], torch.full_like(tilted.shade[covered], 0.75))  # ½ + ½·cos 60°


# Printing ------------------------------------------------------------------------------------------------------------


def test_scores_by_their_definitions() -> None:
    texture, where, palette = draws(3, 4, 5), draws(1, 4, 5, seed=1) > 0.4, printable_colors(2).double()
    score = variation = 0.0
    for i in range(4):
        for j in range(5):
            if where[0, i, j]:
                score += float(np.prod([np.linalg.norm(texture[:, i, j] - c) for c in palette]))
            down = i < 3 and bool(where[0, i, j] & where[0, i + 1, j])
            right = j < 4 and bool(where[0, i, j] & where[0, i, j + 1])
            square = float(down and ((texture[:, i, j] - texture[:, i + 1, j]) ** 2).sum())
            square += float(right and ((texture[:, i, j] - texture[:, i, j + 1]) ** 2).sum())
            variation += square**0.5
    assert float(non_printability(texture, where, palette)) == pytest.approx(score, rel=1e-12)
    assert float(total_variation(texture, where)) == pytest.approx(variation, rel=1e-12)


def test_what_is_printed() -> None:
    texture, where, palette = draws(3, 4, 5), draws(1, 4, 5, seed=1) > 0.4, printable_colors(3).double()
    final = printed(texture, where, palette)
    assert float(non_printability(final, where, palette)) == 0 and not bool((final * ~where).any())
    assert float((final - texture).abs()[:, where[0]].max()) <= 0.2 + 1e-6  # half of a step of the palette
    assert torch.equal(printed(texture, where, None), texture * where)


WRONG: list[tuple[str, Callable[[], Any]]] = [
    ("tilt", lambda: Camera(tilt=0.6)), ("gain", lambda: Camera(gain=(1.2, 0.8))),
    ("blur", lambda: Camera(blur=(0.0, 5.0))), ("noise", lambda: Camera(noise=float("nan"))),
    ("slip", lambda: Worn(slip=-1.0)), ("turn", lambda: Worn(turn=200.0)),
    ("scale", lambda: Placed(scale=(0.5, 1.2))), ("yaw", lambda: Turned(yaw=(-400.0, 0.0))),
    ("pitch", lambda: Turned(pitch=(10.0, -10.0))), ("distance", lambda: Turned(distance=(0.5, 3.0))),
    ("shift", lambda: Turned(shift=2.0)), ("count", lambda: Worn().views(0)),
    ("corners", lambda: mesh.Mesh(torch.zeros(0, 3, 3), torch.zeros(0, 3, 2))), ("levels", lambda: printable_colors(1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make"), WRONG)
def test_limits_are_refused_by_name(name: str, make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        make()
