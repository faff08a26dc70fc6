"""Physical attacks: only the mask is painted, in colors that can be printed, and it works where it was never tried.

A physical attack is a function (victim, x, y=None, *, scenes, held_out, target=None, mask=None, colors=None, seed, …) →
PhysicalResult. A scene is what a camera sees: scene(images, texture, mask) → images (N, C, H, W), differentiable in the
texture; ``scenes`` are those that the texture may be made on, ``held_out`` = (images, scenes) those that judge it.
A method with an argument ``iou`` is about detectors: its model says boxes, and its goal is that nobody is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.attacker.results import PhysicalResult
from robustlab.teaching.catalogue import Row
from tests.suite.cases import Case as AttackCase
from tests.suite.kinds.cases import check_manners, of_kind, refused
from tests.suite.kinds.specimens import printed_patch, random_sticker
from tests.suite.models import Counting, seeded
from tests.suite.product import one_of

SHAPE, CLASSES = (3, 6, 6), 3
Scene = Callable[[Tensor, Tensor, Tensor], Tensor]
# The eight colors of a plain printer.
COLORS = torch.cartesian_prod(*[torch.tensor([0.1, 0.9], dtype=torch.float64)] * 3)


@dataclass(frozen=True)
class Case:
    """One physical attack, untargeted or targeted."""

    row: Row
    attack: Any
    targeted: bool

    def __str__(self) -> str:
        return f"{self.row.key}{'-targeted' if self.targeted else ''}"

    takes = AttackCase.takes

    @property
    def boxes(self) -> bool:
        """Whether the model says boxes."""
        return self.takes("iou")

    def run(self, model: Any, x: Tensor, y: Tensor | None = None, **changes: Any) -> PhysicalResult:
        known: dict[str, Any] = {
            "scenes": scenes(4), "held_out": held_out(x), "mask": mask(x.device), "colors": COLORS.to(x),
        }  # fmt: skip
        args = {name: value for name, value in known.items() if self.takes(name)}
        if self.targeted:
            args["target"] = 2
        return self.attack(model, x, y, **{**args, **self.row.quick, **changes})


def _cases() -> list[Case]:
    return [
        Case(case.row, case.function, targeted)
        for case in of_kind("physical", printed_patch, random_sticker)
        for targeted in ((False, True) if case.row.targeted or case.row.cite == "none" else (False,))
    ]


CASES = _cases()


def mask(device: torch.device) -> Tensor:
    """A square of 4×4 in the middle."""
    square = torch.zeros(1, *SHAPE[1:], dtype=torch.bool)
    square[:, 1:5, 1:5] = True
    return square.to(device)


def scenes(count: int, seed: int = 0) -> list[Scene]:
    """The object before the image, in light and shade, one pixel to a side."""

    def scene(k: int) -> Scene:
        generator = torch.Generator().manual_seed(1000 * seed + k)
        light = float(torch.rand((), generator=generator)) * 0.4 + 0.8
        shift = int(torch.randint(-1, 2, (), generator=generator))

        def see(images: Tensor, texture: Tensor, where: Tensor) -> Tensor:
            whole = torch.where(where, texture.to(images), images)
            return (whole.roll(shift, dims=-1) * light).clamp(0, 1)

        return see

    return [scene(k) for k in range(count)]


def pictures(device: torch.device, n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64).to(device, dtype)


def held_out(x: Tensor) -> tuple[Tensor, list[Scene]]:
    return pictures(x.device, 8, 7, x.dtype), scenes(5, seed=3)


class Finder(nn.Module):
    """Somebody who fills the picture, found unless colors say otherwise; and a tiny box, of which it is never sure."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(torch.Size(SHAPE).numel(), 1)
        with torch.no_grad():
            self.head.weight.copy_(0.1 * torch.tensor([[-1.0, 0.6, 0.4]]).repeat_interleave(36, dim=1))
            self.head.bias.fill_(0.9)
        side = float(SHAPE[1])
        self.register_buffer("places", torch.tensor([[0.0, 0.0, side, side], [0.0, 0.0, 1.0, 1.0]]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        score = self.head(x.flatten(1)).sigmoid()
        return self.places.expand(len(x), -1, -1), torch.cat([score, torch.full_like(score, 0.4)], dim=1)


def problem(case: Case, device: torch.device, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Mostly class 0, or somebody who is found; colors lead elsewhere."""
    if case.boxes:
        return seeded(Finder).to(device, dtype), pictures(device, 6, 0, dtype)

    def build() -> nn.Module:
        head = nn.Linear(torch.Size(SHAPE).numel(), CLASSES)
        with torch.no_grad():
            color = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.6, -0.4], [-0.6, 1.0, -0.4]])
            head.weight.copy_(0.02 * head.weight + 0.1 * color.repeat_interleave(36, dim=1))
            head.bias.copy_(torch.tensor([0.7, 0.0, 0.0]))
        return nn.Sequential(nn.Flatten(), head).to(dtype)

    return seeded(build).to(device), pictures(device, 6, 0, dtype)


def reached(case: Case, model: nn.Module, images: Tensor, views: list[Scene], texture: Tensor, where: Tensor) -> Tensor:
    """(N, T): the goal under each scene, from the definition; untargeted, against the clean prediction."""
    with torch.no_grad():
        if case.boxes:  # the second box overlaps nobody
            return torch.stack([model(view(images, texture, where))[1][:, 0] <= 0.5 for view in views], dim=1)
        clean = model(images).argmax(dim=1)
        seen = [model(view(images, texture, where)).argmax(dim=1) for view in views]
    return torch.stack([now == 2 if case.targeted else now != clean for now in seen], dim=1)


def check_texture(case: Case, device: torch.device, dtype: torch.dtype = torch.float64) -> None:
    """Shapes; nothing outside the mask; each painted pixel has a color of the palette, or at least one of [0, 1]."""
    model, x = problem(case, device, dtype)
    result = case.run(model, x)
    assert isinstance(result, PhysicalResult)
    where, texture = result.mask, result.texture
    assert texture.dim() == 3 and texture.shape[0] == SHAPE[0] and texture.device == x.device
    assert texture.dtype == x.dtype and not texture.requires_grad
    assert where.dtype == torch.bool and where.shape == (1, *texture.shape[1:]) and bool(where.any())
    assert bool((texture >= 0).all() & (texture <= 1).all()), "no colors"
    assert bool((texture * ~where == 0).all()), "painted outside the mask"
    if case.takes("mask"):
        assert torch.equal(where, mask(device)), "another mask than was given"
    if case.takes("colors"):
        painted = texture[:, where[0]].T.double()
        nearest = torch.cdist(painted, COLORS.to(device)).amin(dim=1)
        assert float(nearest.max()) <= 1e-6, "colors that cannot be printed"


def check_held_out_success(case: Case, device: torch.device) -> None:
    """Success is what the caller sees on held-out images in held-out scenes; and far above plain gray."""
    model, x = problem(case, device)
    images, views = held_out(x)
    result = case.run(model, x)
    seen = reached(case, model, images, views, result.texture, result.mask)
    assert result.success.dtype == torch.bool and result.success.shape == seen.shape
    assert torch.equal(result.success, seen), "success is not what the model says in the held-out scenes"
    fresh = reached(case, model, pictures(device, 20, 11), scenes(6, seed=5), result.texture, result.mask)
    gray = torch.full_like(result.texture, 0.5) * result.mask
    control = reached(case, model, images, views, gray, result.mask)
    rate, new, plain = (float(part.double().mean()) for part in (seen, fresh, control))
    assert rate >= plain + 0.2 and new >= plain + 0.2, (
        f"reached {rate:.0%}, in new scenes {new:.0%}, by gray {plain:.0%}"
    )


def check_made_on_its_own_scenes(case: Case, device: torch.device) -> None:
    """The texture does not depend on what judges it."""
    model, x = problem(case, device)
    images, views = held_out(x)
    plain = case.run(model, x)
    inverted = [lambda i, texture, where, see=see: see(i, 1 - texture, where) for see in views[:4]]
    other = case.run(model, x, held_out=(images.flip(0)[:3], inverted))
    assert torch.equal(plain.texture, other.texture), "what judges the texture was used to make it"


def check_physical_counts(case: Case, device: torch.device) -> None:
    """Questions about the images that it was made on; those of the judgement are no part of them."""
    model, x = problem(case, device)
    images, views = held_out(x)
    seen = Counting(model)
    result = case.run(seen, x)
    judged = len(images) * (len(views) + (0 if case.targeted else 1))
    assert result.queries.shape == result.gradients.shape == (len(x),)
    assert int(result.queries.sum()) == seen.forwards - judged, "queries"
    assert int(result.gradients.sum()) == seen.backwards, "gradients"
    assert seen.low >= 0 and seen.high <= 1, "a question outside the box"


def check_physical_manners(case: Case, device: torch.device) -> None:
    model, x = problem(case, device)
    images, views = held_out(x)
    palette, where = COLORS.to(x), mask(device)
    given = {name: v for name, v in {"mask": where, "colors": palette}.items() if case.takes(name)}
    check_manners(
        lambda: case.run(model, x, held_out=(images, views), **given), [model], [x, images, palette, where]
    )  # fmt: skip


def check_physical_bad_input(case: Case, device: torch.device) -> None:
    model, x = problem(case, device)
    images, views = held_out(x)
    hole = x.clone().index_fill_(0, torch.tensor([1], device=device), torch.nan)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("x", {"x": hole}), ("x", {"x": x * 255}), ("x", {"x": x.flatten(1)}), ("held_out", {"held_out": (images, [])}),
        ("held_out", {"held_out": (images[:0], views)}), ("scenes", {"scenes": []}),
    ]  # fmt: skip
    if case.takes("mask"):
        wide = torch.ones(1, 1 + SHAPE[1], 1 + SHAPE[2], dtype=torch.bool, device=device)
        wrong += [("mask", {"mask": given}) for given in (mask(device)[:, :3], mask(device) & False, wide)]
    if case.takes("colors"):
        wrong += [("colors", {"colors": COLORS.to(x) * 2}), ("colors", {"colors": COLORS.to(x)[:, :2]})]
    if case.boxes:
        hidden = torch.tensor([1.0, 0.0, 0.0], device=device, dtype=x.dtype)[:, None, None].expand(SHAPE)
        wrong += [("x", {"x": torch.cat([x, hidden[None]])}), ("held_out", {"held_out": (hidden[None], views)})]
        wrong += [("y", {"y": x.new_zeros(len(x), 4)}), ("y", {"y": torch.zeros_like(x[:, 0, 0, 0]).long()})]
    if case.targeted:
        with torch.no_grad():
            taken = int(model(x[:1]).argmax())
        wrong += [("target", {"target": CLASSES}), ("target", {"target": taken, "x": x[:1].expand(3, -1, -1, -1)})]
    for name, changes in wrong:
        given = {"x": x, **changes}
        with refused(name, name):
            case.run(model, given.pop("x"), **given)


@one_of(CASES, dtype=(torch.float64, torch.float32))
def test_texture(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    check_texture(case, device, dtype)


@one_of(CASES)
def test_held_out_success(case: Case, device: torch.device) -> None:
    check_held_out_success(case, device)


@one_of(CASES)
def test_made_on_its_own_scenes(case: Case, device: torch.device) -> None:
    check_made_on_its_own_scenes(case, device)


@one_of(CASES)
def test_physical_counts(case: Case, device: torch.device) -> None:
    check_physical_counts(case, device)


@one_of(CASES)
def test_physical_manners(case: Case, device: torch.device) -> None:
    check_physical_manners(case, device)


@one_of(CASES)
def test_physical_bad_input(case: Case, device: torch.device) -> None:
    check_physical_bad_input(case, device)
