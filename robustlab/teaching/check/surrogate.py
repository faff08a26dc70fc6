"""A stand-in for a defense whose gradient says nothing, held to what an attack needs of it.

An attack climbs a differentiable stand-in of a defense. It is of use where its labels are those of the defense (for a
random one: those given most often) and where its gradient points the same way at each call and is not zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from robustlab.teaching.check.finding import Wrong

DRAWS = 32


def surrogate(
    function: Callable[[Tensor], Tensor], defense: Callable[[Tensor], Tensor], x: Tensor, *, hints: int = 1
) -> None:
    """Check a differentiable stand-in of a defense: prints one line where all holds.

    Args:
        function: the stand-in; x (N, ...) → logits (N, K) or anything that a cross-entropy takes, with a gradient.
        defense: what it stands for; x → (N, K). It may draw at random, anew in each call.
        x: inputs to ask both about, at least 20.
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        with torch.no_grad():
            votes = torch.stack([defense(x).argmax(dim=1) for _ in range(DRAWS)])
        grads = [_gradient(function, x, votes[0]) for _ in range(2)]
        _useful(grads)
        _alike(function, x, votes)
    except Wrong as wrong:
        raise wrong.shown_as("surrogate", hints) from None
    print(f"surrogate: holds, on {len(x)} inputs")


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    point = x.detach().clone().requires_grad_()
    z = function(point)
    if not isinstance(z, Tensor) or z.dim() != 2 or len(z) != len(x):
        raise Wrong("want one row of logits per input", "wrong shape", "Return a tensor (N, K).")
    try:
        (grad,) = torch.autograd.grad(cross_entropy(z, y, reduction="sum"), point)
    except RuntimeError as error:
        raise Wrong(
            "the result has no gradient with respect to x",
            "a step without a derivative, such as argmax or detach",
            "What do you know of the defense that stands before this step?",
            "Use the network's own logits: an attack need not go through the last step.",
        ) from error
    return grad.flatten(1)


def _useful(grads: list[Tensor]) -> None:
    size, again = (grad.norm(dim=1) for grad in grads)
    dead = float((size == 0).double().mean())
    if dead > 0.2:
        raise Wrong(
            f"the gradient is exactly zero on {dead:.0%} of the inputs",
            "rounding on the way back, or a softmax that has saturated",
            "Which step has a derivative of zero almost everywhere?",
            "BPDA: points + (step(points) - points).detach() takes the step forward and the identity backward.",
            "A saturated softmax: hand on the logits before it, or divide them by a constant.",
        )
    turn = (grads[0] * grads[1]).sum(dim=1) / (size * again).clamp(min=1e-30)
    if float(turn.median()) < 0.7:
        raise Wrong(
            f"two calls at the same inputs give gradients whose cosine is {float(turn.median()):.2f}",
            "one random draw instead of the mean over draws",
            "The attack is to hold for most draws, not for the one that it saw.",
            "EOT: the mean of log-probabilities over draws, or over all cases where these are few.",
        )


def _alike(function: Callable[[Tensor], Tensor], x: Tensor, votes: Tensor) -> None:
    most = votes.mode(dim=0).values
    with torch.no_grad():
        agree = float((function(x).argmax(dim=1) == most).double().mean())
    own = float((votes == most).double().mean())
    if agree < min(0.9, own) - 0.1:
        raise Wrong(
            f"its label is that of the defense on {agree:.0%} of the inputs, where the defense agrees with itself "
            f"on {own:.0%}",
            "a step of the defense was left out",
            "What happens to an image before it reaches the network: is it turned, mirrored, moved?",
            "Keep all of the defense, and replace only what has no useful derivative.",
        )
