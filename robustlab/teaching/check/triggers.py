"""A search for a backdoor's trigger, held to a network with one that is known.

The planted network sees images of 6 × 6 pixels. Each class has a row of pixels that speaks for it. Class ``TARGET`` has
four pixels more in the last row, each of which outweighs two rows when it is bright. So the smallest mask that turns
all images into that class covers about one pixel, and for every other class it covers several pixels of two rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.teaching.check.finding import Wrong
from robustlab.teaching.handout import linear_network

Search = Callable[[nn.Sequential, Tensor, Tensor], Any]
"""(network, x (n, 1, H, W), goals (G, n)) → masks (G, H, W), patterns (G, H, W)."""
SIZE, CLASSES, TARGET, COUNT = 6, 5, 3, 40


def planted(seed: int = 0) -> tuple[nn.Sequential, Tensor]:
    """The network with a backdoor, and images (40, 1, 6, 6) of all classes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(CLASSES, SIZE, SIZE)
    for k in range(CLASSES):
        weight[k, k] = 1.0
    weight[TARGET, SIZE - 1, 1:5] = 12.0
    y = torch.arange(COUNT) % CLASSES
    x = 0.1 * torch.rand(COUNT, SIZE, SIZE, generator=generator)
    x[torch.arange(COUNT), y] += 0.8
    x[:, SIZE - 1] = 0.0
    return linear_network(weight.flatten(1)), x[:, None]


def stamped(x: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """(1 − m)·x + m·p for each of G triggers: (G, n, 1, H, W)."""
    m, p = masks[:, None, None], patterns[:, None, None]
    return (1 - m) * x + m * p


def trigger_search(function: Search, *, seed: int = 0, hints: int = 1) -> None:
    """Check a search for triggers on a network with a known one: prints one line where all holds.

    Args:
        function: called as ``function(network, x, goals)`` with images x (n, 1, H, W) and, for each of G goals, the
            label wanted of each image, (G, n); returns masks and patterns, (G, H, W) each, with values in [0, 1].
        seed: of the images (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    network, x = planted(seed)
    goals = torch.arange(CLASSES)[:, None].expand(CLASSES, COUNT)
    try:
        masks, patterns = _answer(function, network, x, goals)
        _reached(network, x, goals, masks, patterns)
        _small(masks)
    except Wrong as wrong:
        raise wrong.shown_as("trigger_search", hints) from None
    print(f"trigger_search: holds, for {CLASSES} goals on {COUNT} images")


def _answer(function: Search, network: nn.Sequential, x: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    out = function(network, x, goals)
    good = isinstance(out, tuple | list) and len(out) == 2 and all(isinstance(part, Tensor) for part in out)
    if not good or any(part.shape != (CLASSES, SIZE, SIZE) for part in out):
        raise Wrong(
            "the function returned no pair of masks (G, H, W) and patterns (G, H, W)",
            "wrong shape",
            "One mask and one pattern per row of goals.",
            "Return mask.detach(), pattern.detach().",
        )
    masks, patterns = (part.detach() for part in out)
    if any(bool(part.min() < 0 or part.max() > 1 or part.isnan().any()) for part in (masks, patterns)):
        raise Wrong(
            "a mask or a pattern leaves [0, 1]",
            "free variables are handed on as they are",
            "How can a free variable be made to stay in [0, 1]?",
            "Search over a and return a.sigmoid(), or clamp after each step.",
        )
    return masks, patterns


def _reached(network: nn.Sequential, x: Tensor, goals: Tensor, masks: Tensor, patterns: Tensor) -> None:
    with torch.no_grad():
        labels = network(stamped(x, masks, patterns).flatten(0, 1)).argmax(dim=1).reshape(goals.shape)
    reached = (labels == goals).double().mean(dim=1)
    if float(reached.min()) < 0.8:
        raise Wrong(
            f"with the trigger of goal {int(reached.argmin())}, {float(reached.min()):.0%} of the images reach it",
            "the price of the mask is too high, the steps are too few, or goals are mixed up",
            "Does the success rate fall once the mask shrinks?",
            "Raise the price while 90% of the images reach their goal, and lower it while they do not.",
            "Keep the smallest mask at which they did, not the last one.",
        )


def _small(masks: Tensor) -> None:
    sizes = masks.flatten(1).sum(dim=1)
    if float(sizes[TARGET]) > 3.0:
        raise Wrong(
            f"the mask of the planted trigger covers {float(sizes[TARGET]):.1f} pixels, one or two are enough",
            "nothing makes the mask small",
            "Any image can be painted over. What is special about a backdoor?",
            "Add a price times mask.sum() to the loss, and start from a small mask.",
        )
    others = torch.cat([sizes[:TARGET], sizes[TARGET + 1 :]])
    if float(others.min()) < 1.3 * float(sizes[TARGET]):
        raise Wrong(
            "the masks of all goals are about as small",
            "one mask for all goals",
            "Each goal has a mask of its own.",
            "The mask has the shape (G, H, W), and the loss is a sum over goals.",
        )
