"""Adversarial patches where the best one is known, and against a photo of the class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacker.results import PhysicalResult, so_far
from robustlab.attacker.victim import Victim
from robustlab.attacks import patch
from robustlab.attacks.physical.camera import PLAIN
from robustlab.attacks.physical.expectation import staged
from robustlab.attacks.physical.patch import disk
from robustlab.attacks.physical.printing import printable_colors
from robustlab.attacks.physical.scenes import Placed, Worn
from robustlab.data import load
from tests.suite.models import mlp

D = torch.float64
FIXED = Worn(camera=PLAIN)


def problem(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(n, 3, 6, 6, generator=generator, dtype=D) for _ in range(2))  # type: ignore[return-value]


def linear() -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(108, 2).to(D)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 108, generator=generator, dtype=D))
        layer.bias.copy_(torch.tensor([40.0, 0.0]))
    return nn.Sequential(nn.Flatten(), layer), (layer.weight[1] - layer.weight[0]).detach().reshape(3, 6, 6)


def test_on_a_linear_model_the_best_patch_is_a_corner() -> None:
    """Each color goes to the end that its weight says; near a disguise, to the end of what is left to it."""
    model, w = linear()
    x, judges = problem()
    where = disk(6, x)
    args: dict[str, Any] = {"scenes": FIXED, "held_out": (judges, FIXED.views(2)), "mask": where, "lr": 0.1}
    result = patch(model, x, target=1, loss="margin", steps=1, **args | {"lr": 0.6})
    torch.testing.assert_close(result.texture, (w > 0).to(D) * where)
    near = 0.3 + 0.4 * judges[0]
    result = patch(model, x, target=1, steps=8, disguise=near, eps=0.2, **args)
    torch.testing.assert_close(result.texture, (near + 0.2 * w.sign()) * where)


def test_the_expectation_is_that_of_all_pictures() -> None:
    """With one draw for each pair the estimate is no estimate: loss and gradient of the mean, by autograd on it."""
    model, (x, judges) = mlp((3, 6, 6)), problem(3)
    views = [lambda i, t, m, k=k: torch.where(m, t, i).roll(k, dims=-1) * (1 - 0.1 * k) for k in range(1)]
    where, texture = disk(6, x), judges[1].clone().requires_grad_(True)
    y = torch.tensor([0, 1, 2])
    mean = F.cross_entropy(model(views[0](x, texture, where)), y)
    (slope,) = torch.autograd.grad(mean, texture)
    with staged(
        model, x, y, scenes=views, held_out=(judges, views), mask=where, colors=None, target=None, loss="ce", draws=3,
        seed=0,
    ) as stage:  # fmt: skip
        loss, grad = stage.look(texture, 0)
        assert stage.session.queries.tolist() == [2, 2, 2]
    torch.testing.assert_close(loss, -mean.detach())
    torch.testing.assert_close(grad, -slope)


def test_every_image_and_scene_is_drawn() -> None:
    """Over many steps each pair of image and scene comes about as often."""
    model, (x, judges) = mlp((3, 6, 6)), problem(3)
    seen: list[tuple[int, int]] = []

    def view(k: int) -> Any:
        def see(images: Tensor, texture: Tensor, mask: Tensor) -> Tensor:
            seen.extend((int((x - one).abs().flatten(1).amax(1).argmin()), k) for one in images)
            return images

        return see

    patch(
        model, x, scenes=[view(0), view(1)], held_out=(judges, [FIXED.views(1)[0]]), mask=disk(6, x), steps=60, draws=2
    )
    counts = torch.zeros(3, 2)
    for i, k in seen:
        counts[i, k] += 1
    assert int(counts.sum()) == 120 and float(counts.min()) >= 10, counts


def test_judged_by_labels() -> None:
    """Where labels of the held-out images are given, a mistake on the clean image is no success of the patch."""
    model, _ = linear()
    x, judges = problem()
    wrong = 1 - model(judges).argmax(dim=1)
    blind = [lambda images, texture, mask: images]
    result = patch(model, x, held_out=(judges, blind), scenes=blind, mask=disk(6, x), steps=1)
    assert not bool(result.success.any())
    assert bool(patch(model, x, held_out=(judges, blind, wrong), scenes=blind, mask=disk(6, x), steps=1).success.all())


@pytest.mark.slow
@pytest.mark.parametrize("target", [0, 8])
def test_a_patch_beats_a_photo_of_the_class(target: int) -> None:
    """Of hands that show digits; the photo in the patch's place is the best of four, and it is printed too."""
    net, data, palette = zoo.load("sign_cnn"), load("sign_digits32"), printable_colors()
    scenes = Placed(scale=(0.3, 0.6))
    images = data.x_test[data.y_test != target][:40]
    views = scenes.views(6)
    result = patch(
        net, data.x_train[:64], held_out=(images, views), target=target, scenes=scenes, colors=palette, steps=60, seed=1
    )
    photos = F.interpolate(data.x_test[data.y_test == target][:4], size=result.mask.shape[1:], mode="area")
    with torch.no_grad():
        taken = [
            torch.stack([net(view(images, photo * result.mask, result.mask)).argmax(1) == target for view in views])
            for photo in photos
        ]
    rate, best = float(result.success.double().mean()), max(float(part.double().mean()) for part in taken)
    assert rate > best + 0.1, f"patch {rate:.0%}, photo {best:.0%}"


def test_printability_is_part_of_the_objective() -> None:
    model, (x, judges) = mlp((3, 6, 6)), problem()
    args: dict[str, Any] = {
        "scenes": FIXED, "held_out": (judges, FIXED.views(1)), "mask": disk(6, x), "steps": 1, "trace": True,
        "colors": printable_colors(2).double(),
    }  # fmt: skip
    values = [float(patch(model, x, printability=c, **args).trace["loss"][0]) for c in (0.0, 1.0)]  # type: ignore[index]
    gray = torch.full((3,), 0.5, dtype=D)
    score = torch.cdist(gray[None], args["colors"]).prod() * disk(6, x).sum()
    assert values[1] - values[0] == pytest.approx(float(score))
    made = patch(model, x, printability=1e4, **args | {"steps": 20, "draws": 6, "colors": args["colors"][[0, 0]]})
    free = patch(model, x, printability=1e4, **args | {"steps": 20, "draws": 6, "colors": None})
    assert float(made.trace["loss"][-1]) < float(made.trace["loss"][0]) / 10 and made.texture.unique().numel() == 2  # type: ignore[index]
    assert free.texture.unique().numel() > 2


def test_scenes_are_drawn_anew_in_every_step() -> None:
    model, (x, judges) = mlp((3, 6, 6)), problem(3)
    seen: list[Tensor] = []

    class Watched(Worn):
        def before(self, images: Tensor, mask: Tensor, noise: Any, number: int) -> Any:
            seen.append(noise.uniform((number, 5), (2,)))
            return super().before(images, mask, noise, number)

    patch(model, x, held_out=(judges, FIXED.views(1)), scenes=Watched(), mask=disk(6, x), steps=3, draws=4)
    drawn = torch.cat(seen)
    assert len(drawn) == 12 and len(drawn.unique(dim=0)) == 12


def test_budget_interruption_and_summary() -> None:
    model, (x, judges) = mlp((3, 6, 6)), problem()
    args: dict[str, Any] = {"scenes": FIXED, "held_out": (judges, FIXED.views(1)), "mask": disk(6, x), "draws": 9}
    short = patch(Victim(model, budget=6), x, steps=40, trace=True, **args)
    assert 5 <= int(short.queries.max()) <= 6 and short.trace is not None and len(short.trace["loss"]) < 6
    assert "held-out pictures succeeded" in short.summary()
    calls = []

    def gone(images: Tensor, texture: Tensor, mask: Tensor) -> Tensor:
        calls.append(texture.detach().clone())
        if len(calls) == 4:
            raise KeyboardInterrupt
        return torch.where(mask, texture, images)

    with pytest.raises(KeyboardInterrupt) as caught:
        patch(model, x, **{**args, "scenes": [gone]})
    kept = so_far(caught.value)
    assert isinstance(kept, PhysicalResult) and torch.equal(kept.texture, calls[-1])
    assert "not judged" in caught.value.__notes__[0]


def test_bad_input_of_its_own() -> None:
    model, (x, judges) = mlp((3, 6, 6)), problem()
    args: dict[str, Any] = {"held_out": (judges, FIXED.views(1))}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("mask", {"mask": torch.ones(1, 7, 7, dtype=torch.bool)}), ("mask", {"mask": torch.ones(1, 4, 4)}),
        ("disguise", {"disguise": torch.rand(3, 4, 4)}), ("disguise", {"disguise": torch.full((3, 3, 3), 2.0)}),
        ("eps", {"eps": -1.0}), ("steps", {"steps": 0}), ("lr", {"lr": 0.0}), ("draws", {"draws": 0}),
        ("printability", {"printability": -1.0}), ("target", {"target": torch.zeros(6, dtype=torch.int64)}),
        ("target", {"target": 1, "y": torch.ones(6, dtype=torch.int64)}), ("x", {"x": x[:0]}),
        ("held_out", {"held_out": (judges.float(), FIXED.views(1))}), ("held_out", {"held_out": (judges, Worn())}),
    ]  # fmt: skip
    for name, changes in wrong:
        given = {"x": x, "y": None, **args, **changes}
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            patch(model, given.pop("x"), given.pop("y"), **given)
    with pytest.raises(ValueError, match=r"^victim: "):
        patch(Victim(model, bounds=(-1.0, 1.0)), x, **args)
    one = torch.full((6,), int(model(x[:1]).argmax()))
    with pytest.raises(ValueError, match=r"^target: "):
        patch(model, x[:1].expand(6, -1, -1, -1), target=int(one[0]), **args)
