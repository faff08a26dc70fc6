"""The worst of k random transformations, held to what the model was asked about.

Which transformations are drawn is the function's own matter. The model notes its inputs, and from them follows what the
function has to return: for each image the largest loss, and whether any of its transformations is misread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustlab.teaching.check.finding import Wrong, blame, require_pair, require_unchanged
from robustlab.teaching.check.gradient_attacks import Watched
from robustlab.teaching.handout import relu_network

Worst = Callable[[int, nn.Module, Tensor, Tensor, Tensor], Any]
"""(k, model, x (N, C, H, W), y (N,), ids (N,)) → fooled (N,) bools, worst (N,)."""
COUNT, K, SIDE, CLASSES = 9, 6, 10, 3


def worst_of(function: Worst, *, seed: int = 0, hints: int = 1) -> None:
    """Check the worst of k random transformations: prints one line where all holds.

    Args:
        function: called as ``function(k, model, x, y, ids)`` with images x (N, 1, H, W), which the model reads as y,
            and a number per image by which its draws are made. It asks the model about x once and about k batches like
            x, in which each image is transformed by a draw of its own; returns whether any of an image's
            transformations is misread, (N,), and the largest cross-entropy of them and of the image itself, (N,).
        seed: of the model and images (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    model, x, y = worst_case(seed)
    try:
        for k in (K, 2):  # few draws may all be harmless, so that x itself is the worst
            _of_all(function, model, x, y, k)
        _own_draws(function, model, x, y)
    except Wrong as wrong:
        raise wrong.shown_as("worst_of", hints) from None
    print(f"worst_of: holds, for {COUNT} images and {K} transformations, and image by image")


def worst_case(seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Images of one bar each, from faint to bright, and a random network with the labels that it gives them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, SIDE * SIDE, generator=generator, dtype=torch.float64) / SIDE
    last = torch.randn(CLASSES, 24, generator=generator, dtype=torch.float64)
    zeros = [torch.zeros(n, dtype=torch.float64) for n in (24, CLASSES)]
    model = relu_network([(weight, zeros[0]), (last, zeros[1])])
    x = 0.1 * torch.rand(COUNT, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    for i in range(COUNT):
        x[i] += 0.6 * (1 - i / COUNT)
        x[i, 0, 2 + i % 6, 1:9] += 0.8 * i / COUNT
    return model, x, model(x).argmax(dim=1).detach()


def _asked(
    function: Worst, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, k: int = K
) -> tuple[Tensor, Tensor, Tensor]:
    """What came back, and the batches that the model was asked about, (M, N, ...)."""
    watched, given = Watched(model).eval(), x.clone()
    out = function(k, watched, given, y.clone(), ids)
    require_unchanged(given, x)
    watched.require_eval()
    fooled, worst = require_pair(
        out,
        y.shape,
        "tensors (N,)",
        "One bool and one loss per image.",
        "cross_entropy(..., reduction='none') keeps the loss of each image.",
    )
    rows = torch.cat(watched.points)
    if len(rows) % len(x):
        raise Wrong(
            f"the model was asked about {len(rows)} images, no multiple of {len(x)}",
            "batches that are not like x",
            "Each draw transforms all images.",
        )
    return fooled, worst.double(), rows.reshape(-1, *x.shape)


def _of_all(function: Worst, model: nn.Module, x: Tensor, y: Tensor, k: int) -> None:
    fooled, worst, batches = _asked(function, model, x, y, torch.arange(COUNT), k)
    z = model(batches.flatten(0, 1)).detach()
    losses = cross_entropy(z, y.repeat(len(batches)), reduction="none").reshape(len(batches), -1)
    misread = z.argmax(dim=1).reshape(len(batches), -1) != y
    if len(batches) != k + 1:
        raise Wrong(
            f"the model was asked about {len(batches)} batches for k = {k}",
            "another number of draws than k",
            "k transformations, and the image itself once.",
            "for j in range(k).",
        )
    if bool((batches[1:] == batches[0]).all()):
        raise Wrong("all batches are x", "nothing is transformed", "Ask the model about the transformed images.")
    if k > 1 and bool((batches[1:] == batches[1]).all()):
        raise Wrong(
            f"all {k} transformations of an image are the same",
            "one draw, k times",
            "Each of the k turns draws anew.",
            "Noise(seed, ids).uniform(j, ...) with the number j of the turn.",
        )
    largest = losses.amax(dim=0)
    if not torch.allclose(worst, largest, atol=1e-9):
        seen = "the loss is not the largest of each image"
        blame(seen, _slips_of_loss(losses, worst), lambda loss: torch.allclose(worst, loss, atol=1e-9))
        raise Wrong(
            f"the loss differs by up to {float((worst - largest).abs().max()):.2g} from the largest one",
            "not the largest loss of each image",
            "The worst so far is the maximum of the worst before and the loss now.",
            "worst = worst.maximum(loss).",
        )
    if not torch.equal(fooled.bool(), misread.any(dim=0)):
        last = torch.equal(fooled.bool(), misread[-1])
        raise Wrong(
            f"{int(fooled.sum())} images are called fooled, and {int(misread.any(dim=0).sum())} were misread",
            "the last draw decides" if last else "not whether any draw is misread",
            "One transformation that is misread is enough.",
            "fooled |= logits.argmax(dim=1) != y.",
        )


def _slips_of_loss(losses: Tensor, worst: Tensor) -> Iterator[tuple[Any, ...]]:
    """The losses of likely slips, each with its cause and hints."""
    yield losses[-1], "the last draw, not the worst", "Keep what was worst so far.", "worst = worst.maximum(loss)."
    yield losses.mean(dim=0), "the mean of the draws, not the worst", "The attacker chooses.", "amax over the draws."
    yield losses.amin(dim=0), "the smallest loss, not the largest", "The attacker wants a large loss."
    yield losses[1:].amax(dim=0), "the image itself is left out", "To do nothing is a transformation, too."
    yield (
        losses.amax().expand_as(worst),
        "batch-dependent: one maximum over all images",
        "Each image has a worst of its own.",
        "torch.maximum works image by image.",
    )
    together = losses[losses.mean(dim=1).argmax()]
    yield (
        together,
        "batch-dependent: the draw is chosen for all images together",
        "Each image has a worst of its own.",
        "torch.maximum works image by image.",
    )


def _own_draws(function: Worst, model: nn.Module, x: Tensor, y: Tensor) -> None:
    same, label = x[:1].expand_as(x).clone(), y[:1].expand_as(y).clone()
    _, _, batches = _asked(function, model, same, label, torch.arange(COUNT))
    if bool((batches == batches[:, :1]).all()):
        raise Wrong(
            "images that are alike are transformed alike, whatever their number",
            "one draw for the whole batch",
            "Each image has draws of its own.",
            "Draw (N, 3) numbers, by the images' numbers.",
        )
    ids = torch.arange(COUNT)
    worst = _asked(function, model, x, y, ids)[1]
    alone = torch.cat([_asked(function, model, x[i : i + 1], y[i : i + 1], ids[i : i + 1])[1] for i in range(COUNT)])
    if not torch.allclose(alone, worst, atol=1e-9):
        raise Wrong(
            "an image gets another result in a batch than alone",
            "batch-dependent: draws depend on the place in the batch",
            "What happens to an image should depend on its own number.",
            "Noise(seed, ids) draws by the numbers of the images.",
        )
