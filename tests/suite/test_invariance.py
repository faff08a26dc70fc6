"""What should make no difference makes none: a constant added to the logits, memory layouts, gradient modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.suite.cases import Case, batch, over
from tests.suite.models import IMAGE, Then, convnet


def check_logit_shift(case: Case, device: torch.device, shift: float = 3.0) -> None:
    """Adding a constant to all logits.

    Budget attacks must not move at all. Minimum-norm attacks end with a margin that is relative to the logits,
    so with a large constant their distances grow by what that margin costs; with a small one by less than 1 %.
    """
    model, x, y = batch(case, device, n=8)
    plain, shifted = case.run(model, x, y), case.run(Then(model, lambda z: z + shift), x, y)
    assert torch.equal(plain.success, shifted.success), "a constant in the logits decides about success"
    if case.row.min_norm:
        if case.norm != "l0" and abs(shift) <= 3:
            won = plain.success
            name = case.norm or "linf"
            torch.testing.assert_close(shifted.distances[name][won], plain.distances[name][won], rtol=1e-2, atol=1e-4)
    else:
        torch.testing.assert_close(plain.x_adv, shifted.x_adv, rtol=0, atol=1e-7)


def check_layout(case: Case, device: torch.device, layout: str = "transposed") -> None:
    """Views, strides and channels-last memory give what contiguous memory gives."""
    model, x, y = batch(case, device, n=4)
    if case.shape == IMAGE:
        model = convnet(case.classes).to(device)
        with torch.no_grad():
            y = model(x).argmax(dim=1)
    if layout == "transposed":
        view = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "strided":
        view = torch.stack([x, x], dim=-1)[..., 0]
    elif layout == "channels_last":
        view = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.T.contiguous().T
    else:
        x = x[:1].repeat(4, *[1] * len(case.shape))
        view, y = x[:1].expand_as(x), y[:1].expand(4)
        assert view.stride(0) == 0
    assert torch.equal(view, x)
    plain, ours = case.run(model, x, y), case.run(model, view, y)
    torch.testing.assert_close(ours.x_adv, plain.x_adv, rtol=0, atol=1e-6)
    assert torch.equal(ours.success, plain.success) and torch.equal(ours.queries, plain.queries)


def check_gradient_mode(case: Case, device: torch.device, mode: str = "no_grad") -> None:
    """Under no_grad and inference_mode, with tensors made there."""
    model, x, y = batch(case, device, n=4)
    plain = case.run(model, x, y)
    with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
        ours = case.run(model, x.clone(), y.clone(), ids=torch.arange(4, device=device))
    assert torch.equal(ours.x_adv, plain.x_adv)
    assert not ours.x_adv.is_inference() and not ours.x_adv.requires_grad


def check_batch_of_one_on_saturated_pixels(case: Case, device: torch.device) -> None:
    """All pixels at a corner of the box: minimum-norm attacks still find their way off it."""
    model, x, _ = batch(case, device, n=3)
    x = x.round()
    # A change of variables leaves the corner slowly: five times the quick run.
    more: dict[str, Any] = {"steps": 5 * case.row.quick["steps"]} if "steps" in case.row.quick else {}  # type: ignore[operator]
    with torch.no_grad():
        y = model(x).argmax(dim=1)
        if case.takes("pool"):  # labels alone do not lead to a target that noise does not meet
            others = case.points(100, seed=1).to(x)
            more["pool"] = (others, model(others).argmax(dim=1))
    for i in range(3):
        result = case.run(model, x[i : i + 1], y[i : i + 1], **more)
        assert not bool(result.x_adv.isnan().any())
        if case.row.min_norm:
            assert bool(result.success.all()), "pixels at the bounds stop the attack"
        elif case.row.access != "hard":  # labels alone do not tell a better point than x
            assert not torch.equal(result.x_adv, x[i : i + 1]), "pixels at the bounds stop the attack"


@pytest.mark.slow
@over(shift=(3.0, -300.0))
def test_logit_shift(case: Case, device: torch.device, shift: float = 3.0) -> None:
    check_logit_shift(case, device, shift)


@over(slow=True, layout=("transposed", "strided", "channels_last", "expanded"))
def test_layout(case: Case, device: torch.device, layout: str) -> None:
    check_layout(case, device, layout)


@over(slow=True, mode=("no_grad", "inference_mode"))
def test_gradient_mode(case: Case, device: torch.device, mode: str) -> None:
    check_gradient_mode(case, device, mode)


@over(slow=True)
def test_saturated_pixels(case: Case, device: torch.device) -> None:
    check_batch_of_one_on_saturated_pixels(case, device)
