"""Rendered signs and faces: balanced, seeded, apart in training and testing, and what their numbers say they are."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustlab import data
from robustlab.data import faces, photographs, signs
from robustlab.data.dataset import Dataset


def test_the_photographs_are_decoded_and_credited() -> None:
    shown = data.photos()
    assert shown.images.shape == (30, 3, 128, 128) and 0 <= float(shown.images.min()) < float(shown.images.max()) <= 1
    assert len(shown.titles) == len(shown.licenses) == len(shown.credits) == 30 and "30 photographs" in repr(shown)
    assert set(shown.licenses) <= {"public domain", "CC0", "CC0 1.0", "CC BY 2.0", "CC BY 4.0"}
    rough = (shown.images[:, :, 1:] - shown.images[:, :, :-1]).abs().mean()
    assert float(rough) < 0.1, "neighbors are alike, as in a photograph that was decoded rightly"


def test_backgrounds_are_squares_of_the_photographs() -> None:
    """Of another part none; and a square of a photograph whose colors are their places says where it was cut."""
    train, test = data.backgrounds(20, side=24, part="train"), data.backgrounds(20, side=24, part="test")
    assert torch.equal(train[10:20], data.backgrounds(torch.arange(10, 20), side=24)) and train.shape == (20, 3, 24, 24)
    assert not torch.equal(train, test)
    axis = (torch.arange(128) + 0.5) / 128
    ramp = torch.stack([axis.expand(128, 128), axis[:, None].expand(128, 128), torch.zeros(128, 128)]).expand(
        30, -1, -1, -1
    )
    photographs._images.cache_clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(photographs, "photos", lambda: SimpleNamespace(images=ramp))
        cut = data.backgrounds(400, side=24)
    photographs._images.cache_clear()
    steps = (cut[:, 0, 0, -1] - cut[:, 0, 0, 0]) / 23  # the width of one pixel of the square
    torch.testing.assert_close(steps, (cut[:, 1, -1, 0] - cut[:, 1, 0, 0]) / 23, rtol=0, atol=1e-4)
    assert float(steps.min()) >= 1 / 128 - 1e-4 and float(steps.max()) <= 1 / 24 + 1e-4
    size = 24 * steps  # a share of the photograph, which the square's middle keeps inside
    apart = size < 0.9
    middle = torch.stack([cut[:, 0].mean(dim=(1, 2)), cut[:, 1].mean(dim=(1, 2))])[:, apart]
    place = (middle - size[apart] / 2) / (1 - size[apart])  # uniform on [0, 1], across and down by themselves
    assert float(place.min()) > -0.02 and float(place.max()) < 1.02
    assert bool((place.amin(dim=1) < 0.03).all()) and bool((place.amax(dim=1) > 0.97).all()), "at all places"
    assert abs(float(torch.corrcoef(place)[0, 1])) < 0.2
    with pytest.raises(ValueError, match=r"^part: "):
        data.backgrounds(2, part="other")  # type: ignore[arg-type]


@pytest.mark.parametrize(("make", "classes"), [(data.road_signs, 8), (data.rendered_faces, 10)])
def test_rendered_pictures(make: Any, classes: int) -> None:
    before = torch.random.get_rng_state()
    d, more, other = make(40, 20), make(60, 10), make(40, 10, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(d, Dataset) and d.sample_shape == (3, 48, 48) and len(d.classes) == classes
    assert torch.equal(more.x_train[:40], d.x_train) and not torch.equal(other.x_train, d.x_train)
    assert not torch.equal(d.x_test, d.x_train[:20]) and float(d.x_train.min()) >= 0 and float(d.x_train.max()) <= 1
    assert torch.equal(d.y_train[:classes].sort().values, torch.arange(classes))
    assert make(8, 8, side=32).sample_shape == (3, 32, 32)
    for name, changes in (("n_train", {"n_train": 0}), ("n_test", {"n_test": 0}), ("side", {"side": 8})):
        with pytest.raises(ValueError, match=f"^{name}: "):
            make(**changes)


def area(outline: Tensor) -> float:
    return float(outline.double().mean()) * 4


def test_the_faces_of_signs_have_the_shapes_of_their_kinds() -> None:
    """Areas of a disk, an octagon, a square and a triangle by their formulas; a stop sign is red around its letters."""
    colors, outlines = data.sign_faces(64)
    meant = {
        "speed limit": math.pi * 0.95**2, "stop": 8 * math.tan(math.pi / 8) * 0.92**2, "parking": 4 * 0.85**2,
        "warning": 3 * math.tan(math.pi / 3) * 0.55**2, "priority": 4 * 0.67**2,
    }  # fmt: skip
    for kind, size in meant.items():
        assert area(outlines[data.ROAD_SIGNS.index(kind)]) == pytest.approx(size, rel=0.01), kind
    assert np.allclose(colors[0, :, 12, 32], signs.RED) and bool((colors[0, :, 26:38].min(dim=0).values > 0.9).any())
    assert bool((colors[1, :, 26:38].max(dim=0).values < 0.1).any()), "black digits"


def test_persons_are_told_apart_by_their_colors_alone_hardly_and_glasses_are_plain() -> None:
    d = data.rendered_faces(200, 100)
    means = torch.stack([d.x_train[d.y_train == c].flatten(1).mean(0) for c in range(10)])
    right = (torch.cdist(d.x_test.flatten(1), means).argmin(1) == d.y_test).float().mean()
    assert 0.5 < float(right) < 1.0
    rims = faces._plain_glasses(torch.linspace(-1, 1, 97)[None, None], torch.zeros(1, 1, 97), 48)
    bridge, eye = rims[0, 0, 48], rims[0, 0, round(48 + 48 * 0.34)]
    assert float(bridge) == 1 and float(eye) == 0


def test_faces_in_the_wild_arrive_in_the_same_shape(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of scikit-learn's reader, which needs a network, one of its form."""
    target = np.array([0, 1, 0, 0, 1, 0, 1, 1, 0, 1])
    asked: dict[str, Any] = {}

    def fetch(**told: Any) -> SimpleNamespace:
        asked.update(told)
        if not told["download_if_missing"]:
            raise OSError("Data not found")
        images = np.broadcast_to(np.arange(10, dtype=np.float32)[:, None, None, None] / 10, (10, 62, 47, 3)).copy()
        return SimpleNamespace(images=images, target=target, target_names=np.array(["one", "other"]))

    import sklearn.datasets

    monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", fetch)
    d = data.faces_in_the_wild(tmp_path, download=True, least=4, side=32)
    assert d.sample_shape == (3, 32, 32) and d.classes == ("one", "other") and asked["color"] is True
    assert d.y_test.tolist() == [0, 1] and len(d.x_train) == 8
    torch.testing.assert_close(d.x_test[:, 0, 3, 4], torch.tensor([0.5, 0.7]))  # the fourth photograph of each person
    torch.testing.assert_close(d.x_train[:, 0, 3, 4], torch.tensor([0, 1, 2, 3, 4, 6, 8, 9]) / 10)
    with pytest.raises(FileNotFoundError, match=r"^root: "):
        data.faces_in_the_wild(tmp_path)
    with pytest.raises(ValueError, match=r"^least: "):
        data.faces_in_the_wild(tmp_path, least=1)
