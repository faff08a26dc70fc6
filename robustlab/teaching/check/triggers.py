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

from robustlab.teaching.check.finding import Wrong, require_pair
from robustlab.teaching.handout import linear_network

Search = Callable[[nn.Sequential, Tensor, Tensor], Any]
"""(network, x (n, 1, H, W), goals (G, n)) → masks (G, H, W), patterns (G, H, W)."""
Size = Callable[[nn.Sequential, Tensor, int], Any]
"""(network, x (n, 1, H, W), target) → the size of the smallest mask."""
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


def trigger_size(function: Size, *, seed: int = 0, hints: int = 1) -> None:
    """Check a search for the size of the smallest trigger on a network with a known one: prints one line if all holds.

    Args:
        function: called as ``function(network, x, target)`` with images x (n, 1, H, W) and a class; returns a number,
            the smallest sum of a mask in [0, 1] with which, and with some pattern, the search turned 99% of the
            images into that class.
        seed: of the images (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    network, x = planted(seed)
    try:
        sizes = torch.tensor([float(function(network, x.clone(), k)) for k in range(CLASSES)])
        _possible(sizes, torch.tensor([smallest_size(network, x, k) for k in range(CLASSES)]))
    except Wrong as wrong:
        raise wrong.shown_as("trigger_size", hints) from None
    print(f"trigger_size: holds, for {CLASSES} goals on {COUNT} images")


def smallest_size(network: nn.Sequential, x: Tensor, target: int) -> float:
    """The smallest sum of a mask that turns all images into the target, by a linear program.

    With q = m·p, which lies between 0 and m, the image (1 − m)·x + q is linear in (m, q), and so are the logits.
    """
    from scipy.optimize import linprog

    layer = network[1]
    assert isinstance(layer, nn.Linear)
    weight, images = layer.weight.detach().double(), x.flatten(1).double()
    d, rivals = images.shape[1], [k for k in range(CLASSES) if k != target]
    # The leads are slopes · ((1 − m)·x + q), and must be >= 0 for all images and rivals.
    slopes = weight[target] - weight[rivals]
    by_m = (slopes[None] * images[:, None]).flatten(0, 1)
    by_q = -slopes.repeat(len(images), 1)
    leads = by_m.sum(dim=1)
    below = torch.cat([-torch.eye(d), torch.eye(d)], dim=1).double()  # q <= m
    found = linprog(
        torch.cat([torch.ones(d), torch.zeros(d)]).numpy(),
        A_ub=torch.cat([torch.cat([by_m, by_q], dim=1), below]).numpy(),
        b_ub=torch.cat([leads, torch.zeros(d)]).numpy(),
        bounds=(0, 1),
    )
    return float(found.fun)


def _possible(sizes: Tensor, least: Tensor) -> None:
    if not bool(sizes.isfinite().all()):
        raise Wrong(
            f"for goal {int((~sizes.isfinite()).nonzero()[0])} no mask was found",
            "the price rises before anything works, or the steps are too few",
            "Without a price any image can be painted over.",
            "Start with a price of 0, and raise it once nearly all images reach the goal.",
        )
    if bool((sizes < 0).any()):
        raise Wrong(
            f"for goal {int(sizes.argmin())} the size is {float(sizes.min()):.2g}",
            "the mask is not held to [0, 1]",
            "How can a free variable be made to stay in [0, 1]?",
            "The mask is (tanh(w) + 1) / 2 of a free w, or it is clamped after each step.",
        )
    whole = sizes * SIZE**2
    if bool(((whole > 0.99 * least) & (whole < 1.5 * least)).all()):
        raise Wrong(
            f"for goal 0 the size is {float(sizes[0]):.2g}, and no mask below {float(least[0]):.2g} can work",
            "the mean of the mask, not its sum",
            "A size is counted in pixels.",
            "mask.sum().",
        )
    if bool((sizes < 0.99 * least).any()):
        k = int((sizes / least).argmin())
        raise Wrong(
            f"for goal {k} the size is {float(sizes[k]):.2g}, and no mask below {float(least[k]):.2g} can work",
            "a mask counts that does not work",
            "The smallest of all masks is empty. Which ones may be compared?",
            "Keep the size only where 99% of the images reach the goal with this mask and pattern.",
        )
    if bool((sizes > 1.2 * least).any()):
        k = int((sizes / least).argmax())
        raise Wrong(
            f"for goal {k} the size is {float(sizes[k]):.2g}, and {float(least[k]):.2g} is enough",
            "nothing makes the mask small, or all goals share one",
            "Any image can be painted over. What is special about a backdoor?",
            "Add a price times mask.sum() to the loss, and keep the smallest mask that worked, not the last.",
        )


def _answer(function: Search, network: nn.Sequential, x: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    out = function(network, x, goals)
    masks, patterns = require_pair(
        out,
        (CLASSES, SIZE, SIZE),
        "masks (G, H, W) and patterns (G, H, W)",
        "One mask and one pattern per row of goals.",
        "Return mask.detach(), pattern.detach().",
    )
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
