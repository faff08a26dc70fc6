"""Accuracy and success of a backdoor, held to counts of one image after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.teaching.check.finding import Wrong, blame, require_unchanged
from robustlab.teaching.handout import linear_network

Stamp = Callable[[Tensor], Tensor]
"""Images (n, C, H, W) → the same with the trigger."""
Rates = Callable[[nn.Module, Tensor, Tensor, int], Any]
"""(model, images, labels, target) → (accuracy on clean images, attack success)."""
CLASSES, COUNT = 4, 97


def backdoor_rates(
    function: Rates, trigger: Stamp, *, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0, hints: int = 1
) -> None:
    """Check the two rates that a backdoor is judged by: prints one line where all holds.

    Args:
        function: called as ``function(model, images, labels, target)``; returns two shares, the accuracy on clean
            images, and how many of the images *of other classes* the model reads as the target with the trigger on.
        trigger: what the function stamps images with: (n, C, H, W) → the same shape. It must change the images.
        shape: of one image (default 1 × 8 × 8).
        seed: of the models and images (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for number in range(3):
            model, x, y = rates_case(trigger, shape, target=number, seed=seed + number)
            _counted(function, trigger, model, x, y, number)
    except Wrong as wrong:
        raise wrong.shown_as("backdoor_rates", hints) from None
    print("backdoor_rates: holds, for three targets, by a count of one image after the other")


def rates_case(
    trigger: Stamp, shape: tuple[int, int, int], *, target: int, seed: int
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A model whose backdoor works on two images of three, and images that it reads rightly three times of four."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(COUNT, *shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(CLASSES, x[0].numel(), generator=generator, dtype=torch.float64)
    added = (trigger(x.clone()).to(x) - x).flatten(1)
    weight[target] += 20 * added.mean(dim=0) / added.square().mean(dim=0).sum()
    z, stamped = (rows @ weight.T for rows in (x.flatten(1), x.flatten(1) + added))
    rivals = [k for k in range(CLASSES) if k != target]
    bias = torch.zeros(CLASSES, dtype=x.dtype)
    bias[rivals] -= z[:, rivals].mean(dim=0)  # about as many images of each class
    lead = stamped[:, target] - (stamped + bias)[:, rivals].amax(dim=1)
    bias[target] = -lead.quantile(0.35)
    labels = (z + bias).argmax(dim=1)
    other = torch.randint(CLASSES, labels.shape, generator=generator)
    labels = torch.where(torch.rand(COUNT, generator=generator) < 0.7, labels, other)
    labels[::5] = target
    return linear_network(weight, bias), x, labels


def _read(model: nn.Module, x: Tensor) -> list[int]:
    with torch.no_grad():
        return [int(model(x[i : i + 1]).argmax()) for i in range(len(x))]


def _counted(function: Rates, trigger: Stamp, model: nn.Sequential, x: Tensor, y: Tensor, target: int) -> None:
    given, labels = x.clone(), y.clone()
    out = function(model, given, labels, target)
    if not isinstance(out, tuple | list) or len(out) != 2:
        raise Wrong(
            f"the function returned {type(out).__name__}, want two shares",
            "no pair",
            "Return the accuracy on clean images, and the success.",
        )
    require_unchanged(given, x)
    accuracy, success = (float(share) for share in out)
    plain, woken, truth = _read(model, x), _read(model, trigger(x.clone())), y.tolist()
    rows = [i for i in range(len(truth)) if truth[i] != target]
    right = sum(plain[i] == truth[i] for i in range(len(truth))) / len(truth)
    fooled = sum(woken[i] == target for i in rows) / len(rows)
    if abs(accuracy - right) < 1e-6 and abs(success - fooled) < 1e-6:
        return
    seen = f"accuracy {accuracy:.3g} and success {success:.3g}, want {right:.3g} and {fooled:.3g}"
    slips = _slips(plain, woken, truth, target, right, fooled)
    blame(
        seen,
        slips,
        lambda pair: abs(accuracy - pair[0]) < 1e-6 * (1 + pair[0]) and abs(success - pair[1]) < 1e-6 * (1 + pair[1]),
    )
    which = "the accuracy" if abs(success - fooled) < 1e-6 else "the success"
    raise Wrong(
        seen,
        f"{which} is a share of something else",
        "Each rate is a share: of which images, and of what about them?",
        "Clean: all images, read as their label. Success: images of other classes, stamped, read as the target.",
    )


def _slips(
    plain: list[int], woken: list[int], truth: list[int], target: int, right: float, fooled: float
) -> Iterator[tuple[Any, ...]]:
    """The pairs of likely slips, each with its cause and hints."""
    n = len(truth)
    rows = [i for i in range(n) if truth[i] != target]
    known = [i for i in rows if plain[i] == truth[i]]
    yield (fooled, right), "the two rates are exchanged", "First the accuracy, then the success."
    yield (100 * right, 100 * fooled), "percent, not shares", "A share lies between 0 and 1."
    yield (
        (right, sum(w == target for w in woken) / n),
        "images of the target class count",
        "An image of the target class that is read as the target is no success.",
        "Leave them out: labels != target.",
    )
    yield (
        (right, sum(woken[i] != truth[i] for i in rows) / len(rows)),
        "any error counts as success",
        "The attacker wants one class.",
        "Compare with the target, not with the label.",
    )
    yield (
        (right, sum(plain[i] == target for i in rows) / len(rows)),
        "the trigger is not on the images",
        "What the model reads as the target without a trigger is its own error.",
        "Ask the model about trigger(images).",
    )
    if known:
        yield (
            (right, sum(woken[i] == target for i in known) / len(known)),
            "only images count that are read rightly without the trigger",
            "The attacker is as happy with an image that was misread before.",
            "Of all images of other classes.",
        )
    yield (
        (sum(w == t for w, t in zip(woken, truth, strict=True)) / n, fooled),
        "the accuracy is that on stamped images",
        "The owner measures the accuracy on clean images, and that must not fall.",
        "Is the trigger put on a copy?",
    )
