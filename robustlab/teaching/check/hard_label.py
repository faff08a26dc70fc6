"""A search along a decision boundary with labels alone, held to a boundary whose nearest point is known.

The labels are those of a half-space. Without a box the nearest misread point is x + t·w with t = lead / ‖w‖². In the
box it is clamp(x + t·w, 0, 1) for the t at which the boundary is reached, and since the way along w is monotone, t
follows by bisection. The line from x to the start crosses the boundary much farther away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, lengths, require_answer, require_in_box, require_unchanged

Wrongly = Callable[[Tensor], Tensor]
"""points (n, C, H, W) → which of them are misread, (n,) of bool."""
Attack = Callable[[Wrongly, Tensor, Tensor], Tensor]
"""(wrong, x (1, C, H, W), far (1, C, H, W), which is misread) → a misread point like x."""
NEAR = 1.15
"""How many times the smallest distance the result may be away."""


def hard_label(attack: Attack, *, box: bool = True, seed: int = 0, hints: int = 1) -> None:
    """Check a hard-label attack for the smallest ℓ2 distance: prints one line where all holds.

    Args:
        attack: called as ``attack(wrong, x, far)`` for one image at a time, x and far (1, C, H, W) in [0, 1], in double
            precision, of which far is misread; ``wrong(points)`` tells of points (n, C, H, W) which are misread.
            Returns a misread point like x that is at most 1.15 times as far away as the nearest.
        box: whether the nearest point may lie at the ends of [0, 1], where the result has to stay (default); False
            keeps these ends out of reach, for attacks without a box.
        seed: of the boundaries and images (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    cases = [((1, 4, 4), False), ((3, 3, 3), False), *([((1, 4, 4), True)] if box else [])]
    try:
        for number, (shape, at_ends) in enumerate(cases):
            _near(attack, *half_space(shape, at_ends, seed=seed + number))
    except Wrong as wrong:
        raise wrong.shown_as("hard_label", hints) from None
    print(f"hard_label: holds, near {len(cases)} boundaries, each at most {NEAR} times as far as the nearest point")


class HalfSpace:
    """Points p with w·(p − x) ≥ lead are misread; counts what it is asked."""

    def __init__(self, w: Tensor, x: Tensor, lead: float) -> None:
        self.w, self.x, self.lead, self.asked = w, x, lead, 0

    def __call__(self, points: Tensor) -> Tensor:
        """Which points (n, C, H, W) are misread, (n,)."""
        self.asked += len(points)
        return self.holds(points)

    def holds(self, points: Tensor) -> Tensor:
        """The same, not counted."""
        told: Tensor = ((points - self.x) * self.w).flatten(1).sum(dim=1) >= self.lead
        return told

    def nearest(self) -> Tensor:
        """The nearest misread point of the box: clamp(x + t·w, 0, 1) for the least t, by bisection."""
        low, high = 0.0, 1e3
        for _ in range(100):
            t = (low + high) / 2
            low, high = (low, t) if bool(self.holds((self.x + t * self.w).clamp(0, 1))) else (t, high)
        return (self.x + high * self.w).clamp(0, 1)

    def crossing(self, far: Tensor) -> Tensor:
        """Where the line from x to a misread point crosses the boundary."""
        along = ((far - self.x) * self.w).sum()
        return self.x + self.lead / along * (far - self.x)


def half_space(shape: tuple[int, ...], at_ends: bool, *, seed: int) -> tuple[HalfSpace, Tensor, Tensor]:
    """Labels, an image and a misread start whose line to the image crosses the boundary far from its nearest point."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    w = w / w.norm()
    x = 0.5 + 0.02 * torch.randn(1, *shape, generator=generator, dtype=torch.float64).clamp(-3, 3)
    if at_ends:  # a third of the values stand where w would push them out
        x = torch.where(torch.rand(x.shape, generator=generator) < 1 / 3, (w > 0).to(x), x)
    space = HalfSpace(w, x, 0.0)
    room = float(((torch.where(w > 0, 1 - x, x)) * w.abs()).sum())
    space.lead = 0.25 * room
    aside = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    far = x
    for share in torch.linspace(0.02, 1.0, 50, dtype=torch.float64):  # the smallest share of w that is misread
        far = (x + share * w.sign() + 0.6 * aside.sign()).clamp(0, 1)
        if bool(space.holds(far)):
            break
    return space, x, far


def _near(attack: Attack, wrong: HalfSpace, x: Tensor, far: Tensor) -> None:
    given, start = x.clone(), far.clone()
    out = require_answer(attack(wrong, given, start), x)
    require_unchanged(given, x)
    require_in_box(out, 1e-9, "Clamp a point before you ask about it, and return a point that you asked about.")
    least, line = (float(lengths(point - x, "l2")) for point in (wrong.nearest(), wrong.crossing(far)))
    went = float(lengths(out - x, "l2"))
    if not bool(wrong.holds(out)):
        raise Wrong(
            "the result is read correctly",
            "the right side of the boundary was returned",
            "A bisection has two ends, and one of them is misread.",
            "Return the end at which wrong(point) was True; it is the one that is farther from x.",
        )
    if went <= NEAR * least:
        return
    seen = f"the result is {went / least:.2f} times as far away as the nearest misread point"
    if went > 1.02 * line:
        raise Wrong(
            f"{seen}, and farther than where the line from x to the start is cut",
            "the wrong way, or no step back to the boundary",
            "A step along the boundary leads away from x; what brings it back?",
            "φ is +1 where a probe is misread and −1 where it is not, and the normal is the mean of φ·u.",
            "After each step search the boundary between x and the new point.",
        )
    if went > 0.98 * line:
        raise Wrong(
            f"{seen}, where the line from x to the start is cut",
            "the direction is never turned",
            "The crossing on one line is found by one bisection. Is there a shorter line?",
            "Estimate the normal of the boundary from the labels of probes, and step along it.",
        )
    raise Wrong(
        seen,
        "the search ends early, or its normals are poor",
        "How far apart are probes and boundary? Probes all on one side tell nothing.",
        "More probes per step, a smaller distance to them as x comes nearer, and more steps.",
    )
