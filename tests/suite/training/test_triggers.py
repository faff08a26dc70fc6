"""Triggers: in the box, deterministic, shape and dtype kept, composable, and with gradients where they should have
them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import BlendedTrigger, InputAwareTrigger, PatchTrigger, TokenTrigger, Trigger, WarpedTrigger
from robustlab.attacks.backdoor.trigger import stamped
from tests.suite.test_no_side_effects import assert_unchanged, snapshot
from tests.suite.training.cases import POISONS, SIDE, images, over

SHAPE = (1, SIDE, SIDE)


def _drawn() -> dict[str, Callable[[], nn.Module]]:
    """Trigger by the key of its method: each finished backdoor's own, and further forms of them."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for case in POISONS:
        if case.row.kind == "backdoor":
            found[case.row.key] = lambda case=case: case.run(**case.arguments()).trigger
    return found | {
        "badnets-checker": lambda: PatchTrigger("checker", position="top-left", color=0.7),
        "badnets-tensor": lambda: PatchTrigger(torch.tensor([[1.0, torch.nan], [0.2, 0.4]]), position=(2, 3)),
        "blended-strong": lambda: BlendedTrigger.noise(SHAPE, alpha=1.0, seed=3),
        "warped-strong": lambda: WarpedTrigger((SIDE, SIDE), strength=6.0, grid=3, seed=1),
        "input_aware_backdoor-untrained": lambda: InputAwareTrigger(1, width=4),
        "sequential": lambda: nn.Sequential(PatchTrigger(), BlendedTrigger.noise(SHAPE)),
    }


TRIGGERS = _drawn()
each = pytest.mark.parametrize("name", TRIGGERS)


def check_trigger(trigger: nn.Module, x: Tensor) -> None:
    """In [0, 1]; same shape, dtype and device; the same again; sample by sample; input, trigger and RNG unchanged."""
    before = snapshot(trigger, x)
    with torch.no_grad():
        out = trigger(x)
        assert out.shape == x.shape and out.dtype == x.dtype and out.device == x.device
        assert out.min() >= 0 and out.max() <= 1
        assert not torch.equal(out, x), "the trigger changes nothing"
        assert torch.equal(trigger(x), out), "twice is not the same"
        alone = torch.cat([trigger(one) for one in x.split(1)])
        torch.testing.assert_close(alone, out, rtol=0, atol=1e-6)
        assert trigger(x[:0]).shape == x[:0].shape
    assert_unchanged(before, trigger, x)
    out.zero_()
    assert_unchanged(before, trigger, x)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_trigger(name: str, dtype: torch.dtype, device: torch.device) -> None:
    check_trigger(TRIGGERS[name]().to(device).eval(), images(9, dtype)[0].to(device))


@each
def test_triggers_compose(name: str) -> None:
    first, second, (x, _) = TRIGGERS[name](), PatchTrigger("pixel", position=(0, 0), color=0.25), images(6)
    both = nn.Sequential(first, second)
    check_trigger(both, x)
    with torch.no_grad():
        assert torch.equal(both(x), second(first(x))) and (both(x)[:, :, 0, 0] == 0.25).all()
        assert torch.equal(stamped(both, x, batch_size=4), both(x))


@each
def test_gradients_reach_the_image(name: str) -> None:
    """By finite differences, along a random direction, in float64."""
    trigger = TRIGGERS[name]().double()
    x = 0.2 + 0.6 * images(3, torch.float64)[0]
    x.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    weight, step = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    (slope,) = torch.autograd.grad((trigger(x) * weight).sum(), x)
    with torch.no_grad():
        rise = ((trigger(x + 1e-6 * step) - trigger(x - 1e-6 * step)) * weight).sum() / 2e-6
    assert float((slope * step).sum()) == pytest.approx(float(rise), rel=1e-3, abs=1e-4)
    assert name == "blended-strong" or slope.abs().max() > 0


@each
def test_what_is_not_an_image_is_refused(name: str) -> None:
    trigger, (x, _) = TRIGGERS[name](), images(2)
    for wrong in ((x * 255).byte(), x[:, 0], x * 2 - 0.5, torch.full_like(x, torch.nan), "image"):
        with pytest.raises((ValueError, TypeError), match=r"^x: want"):
            trigger(wrong)


@over([case for case in POISONS if case.row.kind == "backdoor"])
def test_a_trigger_that_is_not_meant_for_an_image_differs_from_its_own(case: object) -> None:
    trigger, (x, _) = TRIGGERS[str(case)](), images(9)
    assert isinstance(trigger, Trigger)
    with torch.no_grad():
        crossed = trigger.cross(x, seed=1)
        if crossed is not None:
            assert crossed.shape == x.shape and crossed.min() >= 0 and crossed.max() <= 1
            assert torch.equal(crossed, trigger.cross(x, seed=1)) and not torch.equal(crossed, trigger(x))
            assert not torch.equal(crossed, trigger.cross(x, seed=2))


@pytest.mark.parametrize("position", ["start", "end"], ids=["badnets-start", "badnets-end"])
def test_phrase_in_a_text(position: str) -> None:
    """Against lists of Python."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(30, 9, dtype=torch.int64)
    lengths = torch.randint(0, 10, (30,), generator=generator)
    for i, n in enumerate(lengths.tolist()):
        x[i, :n] = torch.randint(1, 20, (n,), generator=generator)
    phrase = [21, 22, 23]
    before = x.clone()
    out = TokenTrigger(phrase, position=position)(x)
    assert torch.equal(x, before) and out.shape == x.shape and out.dtype == torch.int64
    for row, made, n in zip(before.tolist(), out.tolist(), lengths.tolist(), strict=True):
        text = row[:n]
        want = (phrase + text)[:9] if position == "start" else text[:6] + phrase
        assert made == want + [0] * (9 - len(want))
    for wrong in (x.float(), x[0], x[:, :2]):
        with pytest.raises((ValueError, TypeError), match=r"^x: want"):
            TokenTrigger(phrase)(wrong)
