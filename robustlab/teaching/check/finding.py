"""What a check says: what was seen, the likely cause, and hints one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class Wrong(AssertionError):
    """A check that does not hold.

    Attributes:
        cause: the likely cause in a few words, such as ``"no projection"``.
        hints: from a nudge to nearly the line of code.
    """

    def __init__(self, seen: str, cause: str, *hints: str) -> None:
        super().__init__(seen)
        self.seen, self.cause, self.hints, self.shown, self.name = seen, cause, hints, 1, "check"

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.seen}", f"Likely cause: {self.cause}."]
        lines += [f"Hint {i + 1} of {len(self.hints)}: {hint}" for i, hint in enumerate(self.hints[: self.shown])]
        if self.shown < len(self.hints):
            lines.append(f"One more hint: the same check with hints={self.shown + 1}.")
        return "\n".join(lines)

    def shown_as(self, name: str, hints: int) -> Wrong:
        """The same, of the check ``name`` and with so many hints (at least one)."""
        self.name, self.shown = name, max(1, hints)
        return self


def require_answer(out: Any, like: Tensor) -> Tensor:
    """The answer, if it is a finite tensor with the shape and the dtype of ``like``; it is detached."""
    if out is None:
        raise Wrong("the function returned None", "no return", "Return the attacked inputs at the end.")
    if not isinstance(out, Tensor):
        kind = type(out).__name__
        raise Wrong(f"the function returned a {kind}", "not a tensor", "Return one tensor: the points, not a tuple.")
    if out.shape != like.shape:
        raise Wrong(
            f"the result has shape {tuple(out.shape)}, the input {tuple(like.shape)}",
            "wrong shape",
            "A sample's length is a sum over all dimensions but the first: x.flatten(1).",
            "To put one number beside each sample, reshape it: eps.reshape(-1, *[1] * (x.dim() - 1)).",
        )
    if out.dtype != like.dtype:
        raise Wrong(
            f"the result has dtype {out.dtype}, the input {like.dtype}",
            "dtype changed",
            "Make new tensors with torch.zeros_like(x) or torch.rand_like(x).",
        )
    out = out.detach()
    bad = ~out.isfinite().flatten(1).all(dim=1)
    if bool(bad.any()):
        raise Wrong(
            f"the result is not finite in sample {int(bad.nonzero()[0, 0])}",
            "a division by zero",
            "A gradient may be exactly zero; then so is its length.",
            "Divide by length.clamp_min(1e-12).",
        )
    return out


def require_shape(out: Any, shape: Sequence[int], want: str, *hints: str) -> Tensor:
    """The answer, detached, if it is a tensor of ``shape``; ``want`` says in words what it holds."""
    if not isinstance(out, Tensor) or out.shape != tuple(shape):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise Wrong(f"the function returned {got}, want {want}: {tuple(shape)}", "wrong shape", *hints)
    return out.detach()


def require_pair(out: Any, shape: Sequence[int], want: str, *hints: str) -> tuple[Tensor, Tensor]:
    """Both parts of the answer, detached, if it is a pair of tensors of ``shape``; ``want`` names them."""
    good = isinstance(out, tuple | list) and len(out) == 2 and all(isinstance(part, Tensor) for part in out)
    if not good or any(part.shape != tuple(shape) for part in out):
        raise Wrong(f"the function returned no pair of {want}", "wrong shape", *hints)
    return out[0].detach(), out[1].detach()


def require_unchanged(given: Tensor, before: Tensor, name: str = "x") -> None:
    """Raises :class:`Wrong` if a function has changed the argument ``name``."""
    if not torch.equal(given, before):
        raise Wrong(
            f"{name} is not what it was before the call",
            f"{name} was changed in place",
            "Operations whose name ends in _ , and += on a tensor, change the caller's tensor.",
            f"Start from {name}.clone(), or compute a new tensor in each step.",
        )
    if given.requires_grad and not before.requires_grad:
        raise Wrong(
            f"{name} asks for gradients after the call, and did not before",
            f"{name}.requires_grad was set on the caller's tensor",
            f"What backward() adds stays in {name}.grad, and a second call starts from there.",
            f"point = {name}.clone().requires_grad_(), and the gradient at point.",
        )


def blame(seen: str, slips: Iterable[tuple[Any, ...]], matches: Callable[[Any], bool]) -> None:
    """Raises :class:`Wrong` with the cause of the first slip that explains what was seen.

    Args:
        seen: what was.
        slips: what a likely slip leads to, its cause, and hints.
        matches: whether that is what came out.
    """
    for outcome, cause, *hints in slips:
        if matches(outcome):
            raise Wrong(seen, cause, *hints)


def of_the_batch(
    *hints: str, who: str = "samples", seen: str = "a sample gets another result in a batch than alone"
) -> Wrong:
    """The finding that the rows of a batch are not on their own."""
    return Wrong(seen, f"batch-dependent: {who} share something that each should have alone", *hints)


def require_in_box(out: Tensor, slack: float, hint: str) -> None:
    """Raises :class:`Wrong` if a result leaves [0, 1] by more than ``slack``."""
    low, high = float(out.min()), float(out.max())
    if low < -slack or high > 1 + slack:
        raise Wrong(
            f"the result leaves the box: its pixels go from {low:.3g} to {high:.3g}",
            "no clamp to [0, 1]",
            "An attacked image is an image.",
            hint,
        )


def lengths(delta: Tensor, norm: str) -> Tensor:
    """‖δ‖ of each sample, (N,)."""
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)
