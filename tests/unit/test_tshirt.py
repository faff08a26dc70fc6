"""T-shirts: splines by SciPy, colors by scikit-learn, the loss by hand, the opponent in closed form, nets that ship."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacker.victim import Victim
from robustlab.attacks import tshirt
from robustlab.attacks.physical.camera import PLAIN
from robustlab.attacks.physical.color_map import ColorMap, dull_print, printed_chart
from robustlab.attacks.physical.printing import printable_colors
from robustlab.attacks.physical.shirts import Shirts
from robustlab.attacks.physical.watching import Confidence
from robustlab.data import people
from robustlab.data.people import sheet_points
from robustlab.geometry.keyed import Noise
from robustlab.models import detected, detections

D = torch.float64
NETS = ("person_anchor", "person_point")


def frames(n: int, part: Any = "train", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, boxes and control points of persons whom both shipped detectors find."""
    drawn = people(n, least=1, most=1, part=part, seed=seed)
    seen = torch.stack([detected(detections(zoo.load(net), drawn.images), drawn.boxes[:, 0]) for net in NETS]).all(
        dim=0
    )
    return drawn.images[seen], drawn.boxes[seen, 0], drawn.shirts[seen, 0]


def test_the_color_map_is_quadratic_regression() -> None:
    meant, seen = printed_chart()
    fitted = ColorMap.fitted(meant, seen)
    model = LinearRegression().fit(PolynomialFeatures(2).fit_transform(meant.numpy()), seen.numpy())
    fresh = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    wish = torch.from_numpy(model.predict(PolynomialFeatures(2).fit_transform(fresh.numpy())).clip(0, 1)).float()
    ours, truth = fitted(fresh.T[:, :, None])[:, :, 0].T, dull_print(fresh.T[:, :, None])[:, :, 0].T
    torch.testing.assert_close(ours, wish, rtol=0, atol=1e-5)
    assert float((ours - truth).abs().max()) < 0.02 < 0.08 < float((fresh - truth).abs().mean())
    for name, args in (("meant", (meant[:5], seen[:5])), ("seen", (meant, seen[:9])), ("meant", (meant * 2, seen))):
        with pytest.raises(ValueError, match=f"^{name}: "):
            ColorMap.fitted(*args)


def test_a_print_is_seen_where_scipys_spline_says() -> None:
    """Folds and all: the texture is a ramp in both directions, so that a picture tells the place on the sheet."""
    scene = people(3, least=1, most=1, seed=4)
    side = 40
    ramp = (torch.arange(side, dtype=D) + 0.5) / side
    texture = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.full((side, side), 0.5)])
    family = Shirts(scene.shirts[:, 0].to(D), folds=0.2, grain=0.0, camera=PLAIN)
    mask, images = torch.ones(1, side, side, dtype=torch.bool), scene.images.to(D)
    noise = Noise(1, torch.arange(3))
    pictures = family.before(images, mask, noise, 7)(texture)
    seen = family.seen
    spread = (seen.amax(dim=1, keepdim=True) - seen.amin(dim=1, keepdim=True)) / 2
    folded = seen + noise.uniform((7, 5), (20, 2), D, -0.2, 0.2) * spread
    centers = (np.arange(64) + 0.5) / 32 - 1
    at = np.stack(np.meshgrid(centers, centers), axis=-1).reshape(-1, 2)
    for i in range(3):
        spline = RBFInterpolator(
            folded[i].numpy(), sheet_points().double().numpy(), kernel="thin_plate_spline", degree=1
        )
        place = spline(at).reshape(64, 64, 2)
        inside = torch.from_numpy((np.abs(place) < 1 - 1 / side).all(axis=2))
        assert int(inside.sum()) > 80
        told = pictures[i].permute(1, 2, 0)[inside]
        torch.testing.assert_close(told[:, :2], torch.from_numpy((place + 1) / 2)[inside], rtol=0, atol=1e-6)
        outside = torch.from_numpy((np.abs(place) > 1 + 1 / side).any(axis=2))
        assert torch.equal(pictures[i][:, outside], images[i][:, outside])


def test_the_slope_through_cloth_and_printer_is_that_of_finite_differences() -> None:
    scene = people(2, least=1, most=1, seed=6)
    family = Shirts(scene.shirts[:, 0].to(D), color=ColorMap.fitted(*printed_chart()))
    render = family.before(scene.images.to(D), torch.ones(1, 5, 4, dtype=torch.bool), Noise(0, torch.arange(2)), 0)
    texture = 0.3 + 0.4 * torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=D)
    weight = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=D)
    assert torch.autograd.gradcheck(lambda t: (render(t) * weight).sum(), texture.requires_grad_(True), atol=1e-4)


def test_the_loss_counts_sure_boxes_that_overlap() -> None:
    """Of five boxes the second overlaps too little, the third is below ν, the last is elsewhere."""
    person = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    boxes = torch.tensor([[[0.0, 0, 10, 20], [0, 0, 10, 5.9], [0, 0, 10, 18], [1, 0, 11, 20], [30, 30, 40, 40]]])
    scores = torch.tensor([[0.9, 0.8, 0.02, 0.6, 0.99]], requires_grad=True)
    value = Confidence(0.05, 0.3)((boxes, scores), person)
    value.sum().backward()
    assert value.item() == pytest.approx(0.9 - 0.05 + 0.6 - 0.05)
    assert scores.grad is not None and scores.grad.tolist() == [[1.0, 0.0, 0.0, 1.0, 0.0]]


@pytest.fixture(scope="module")
def shirts() -> dict[str, Any]:
    """One against each shipped detector, and one against both; held out are other frames, folds and cameras."""
    (x, y, seen), (far, who, there) = frames(20), frames(16, "test", 9)
    held_out = (far, Shirts(there).views(2), who)
    args: dict[str, Any] = {
        "held_out": held_out,
        "scenes": Shirts(seen),
        "steps": 18,
        "draws": 8,
        "lr": 0.12,
        "trace": True,
    }
    nets = {name: zoo.load(name) for name in NETS}
    made = {name: tshirt(net, x, y, **args) for name, net in nets.items()}
    both = tshirt(list(nets.values()), x, y, **args)
    return {"made": made, "both": both, "held_out": held_out, "nets": nets, "x": x, "y": y, "scenes": args["scenes"]}


def hidden(net: nn.Module, held_out: Any, texture: Tensor) -> float:
    """The share of pictures without a sure box on the person, one box after the other."""
    images, views, who = held_out
    where, missed = torch.ones(1, *texture.shape[1:], dtype=torch.bool), 0
    for view in views:
        boxes, scores = detections(net, view(images, texture, where))
        for i, (left, top, right, bottom) in enumerate(who.tolist()):
            found = False
            for (a, b, c, d), p in zip(boxes[i].tolist(), scores[i].tolist(), strict=True):
                if p <= 0.5:
                    continue
                both = max(0.0, min(c, right) - max(a, left)) * max(0.0, min(d, bottom) - max(b, top))
                whole = (c - a) * (d - b) + (right - left) * (bottom - top) - both
                found |= both / whole > 0.3
            missed += not found
    return missed / (len(views) * len(who))


@pytest.mark.slow
def test_a_shirt_hides_from_its_detector_where_it_was_never_tried(shirts: dict[str, Any]) -> None:
    """Judged anew from the definition; gray and noise hide from nobody, nor does the other detector's shirt as well."""
    held_out, nets = shirts["held_out"], shirts["nets"]
    blank = torch.full((3, 20, 16), 0.5)
    noise = torch.rand(3, 20, 16, generator=torch.Generator().manual_seed(0))
    for name, other in (NETS, NETS[::-1]):
        result = shirts["made"][name]
        own = hidden(nets[name], held_out, result.texture)
        assert own == pytest.approx(float(result.success.double().mean()))
        plain = max(hidden(nets[name], held_out, texture) for texture in (blank, noise))
        assert own >= plain + 0.3 and own > hidden(nets[other], held_out, result.texture)


def test_against_both_the_worst_is_better_than_with_either_shirt(shirts: dict[str, Any]) -> None:
    both, held_out, nets = shirts["both"], shirts["held_out"], shirts["nets"]

    def worst(texture: Tensor) -> float:
        return min(hidden(net, held_out, texture) for net in nets.values())

    assert both.success.equal(both.hidden.all(dim=0)) and both.hidden.shape == (2, *both.success.shape)
    assert worst(both.texture) == pytest.approx(float(both.hidden.double().mean(dim=(1, 2)).min()))
    assert worst(both.texture) > max(worst(made.texture) for made in shirts["made"].values())
    assert int(both.queries.sum()) == 2 * (len(shirts["x"]) + 18 * 8)


def test_the_opponent_answers_in_closed_form(shirts: dict[str, Any]) -> None:
    """Two weights on the simplex: w_1 = clip((1 + u_1 − u_2)/2) of the ascended u; the print descends their mean."""
    losses, weights = shirts["both"].trace["losses"], shirts["both"].trace["weights"]
    assert weights[0].tolist() == [0.5, 0.5] and float(losses[0].max()) < 1.2  # in units of that without a print
    for before, loss, now in zip(weights[:-1], losses[1:], weights[1:], strict=True):
        risen = before + 0.05 * (loss - 1.0 * (before - 0.5))
        assert float(now[0]) == pytest.approx(float(((1 + risen[0] - risen[1]) / 2).clamp(0, 1)), abs=1e-6)


def test_printed_colors_are_those_of_the_palette_and_of_the_wearer(shirts: dict[str, Any]) -> None:
    """A print in ink; boxes of their own choice where none are given; torchvision's form of answers."""

    class Listing(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            boxes, scores = self.inner(x)
            return [{"boxes": b[s > 1e-6], "scores": s[s > 1e-6]} for b, s in zip(boxes, scores, strict=True)]

    net, palette = shirts["nets"]["person_anchor"], printable_colors()
    args = {"scenes": shirts["scenes"], "held_out": shirts["held_out"][:2], "steps": 2, "draws": 4, "colors": palette}
    whole = tshirt(net, shirts["x"], **args)
    listed = tshirt(Victim(Listing(net), answer="boxes"), shirts["x"], **args)
    assert torch.cdist(whole.texture.flatten(1).T, palette).amin(dim=1).max() < 1e-6
    torch.testing.assert_close(whole.texture, listed.texture)


def test_wrong_arguments_are_named(shirts: dict[str, Any]) -> None:
    x, y, net = shirts["x"], shirts["y"], shirts["nets"]["person_anchor"]
    seen = shirts["scenes"].seen
    nobody = torch.cat([x[:2], people(40, most=1, seed=3).images[[0]] * 0])
    good: dict[str, Any] = {"x": x, "y": y, "victim": net, "scenes": shirts["scenes"], "held_out": shirts["held_out"]}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("x: want frames in which each detector finds the person, no box found in rows \\[2\\]",
         {"x": nobody, "y": None, "scenes": Shirts(seen[:3])}),
        ("held_out: want frames", {"held_out": (nobody, shirts["held_out"][1][:1])}),
        ("mask: want at least one pixel", {"mask": torch.zeros(1, 8, 8, dtype=torch.bool)}),
        ("scenes: want control points of each", {"scenes": Shirts(seen[:5])}),
        ("y: want boxes of floats", {"y": torch.zeros(len(x)).long()}),
        ("y: want boxes \\(left", {"y": y.flip(1)}),
        ("held_out: want boxes", {"held_out": (*shirts["held_out"][:2], y[:1])}),
        ("victim: want detectors", {"victim": Victim(net)}),
        ("victim: want at least one detector", {"victim": []}),
        ("threshold", {"threshold": 1.0}), ("iou", {"iou": -0.1}), ("nu", {"nu": 1.0}), ("gamma", {"gamma": -1.0}),
        ("steps", {"steps": 0}), ("weight_step", {"weight_step": 0.0}), ("smoothness", {"smoothness": -1.0}),
    ]  # fmt: skip
    for message, changes in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            tshirt(**{**good, **changes})
    for name, limits in (("folds", {"folds": 0.6}), ("grain", {"grain": -1.0}), ("meant", {"meant": seen[0, :2]})):
        with pytest.raises(ValueError, match=f"^{name}: "):
            Shirts(seen, **limits)
    with pytest.raises(ValueError, match=r"^seen: want control points within"):
        Shirts(seen * 9)
