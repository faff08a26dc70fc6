"""A server's rule that merges updates, held to its definition on updates of which some are far off and alike.

Each rule is written out again here, and so is each likely slip; a slip is named where it explains all rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, blame, require_shape, require_unchanged

Rule = Literal["krum", "trimmed mean", "median", "clipping"]
Round = tuple[Tensor, int, float]
"""Updates u (m, d), how many clients may be malicious, and the bound R."""
SIZES, DIMENSIONS = ((12, 4), (7, 2), (9, 1), (10, 3)), 3
ROUNDS = 8  # rounds of each size


def aggregation(function: Callable[..., Tensor], rule: Rule, *, seed: int = 0, hints: int = 1) -> None:
    """Check a rule of aggregation: prints one line where all holds.

    Args:
        function: for "krum" and "trimmed mean" called as ``function(u, B)`` with updates u (m, d), one row per client,
            and the number B of clients that may be malicious; for "median" as ``function(u)``; for "clipping" as
            ``function(u, R)`` with the bound R on a length. Returns the merged update, (d,): the update of the least
            sum of squared distances to its m − B − 2 nearest others; the mean of each coordinate without its B
            smallest and B largest numbers; the middle number of each coordinate, or the mean of the middle two; the
            mean of all updates, each shortened to R where it is longer.
        rule: which of the four.
        seed: of the updates (default 0).
        hints: how many hints to show (default 1).

    Raises:
        ValueError: for another rule.
        Wrong: with what was seen, the likely cause and hints.
    """
    if rule not in RIGHT:
        raise ValueError(f"rule: want one of {', '.join(RIGHT)}, got {rule!r}")
    rounds = [round_of(size, bad, 1000 * seed + i) for size, bad in SIZES for i in range(ROUNDS)]
    try:
        _merged(function, rule, rounds)
    except Wrong as wrong:
        raise wrong.shown_as("aggregation", hints) from None
    print(f"aggregation: {rule} holds, in {len(rounds)} rounds of {min(SIZES)[0]} to {max(SIZES)[0]} clients")


def round_of(size: int, bad: int, seed: int) -> Round:
    """Honest updates about a common one (of an odd seed one of them 0), and ``bad`` that are alike, mostly long."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(size, DIMENSIONS, generator=generator, dtype=torch.float64)
    common, far = torch.randn(2, DIMENSIONS, generator=generator, dtype=torch.float64)
    u = 0.5 * common + spread
    u[0] *= 1 - seed % 2
    u[size - bad :] = 3 * far + 0.3 * spread[size - bad :]
    u = u[torch.randperm(size, generator=generator)]
    return u, bad, float(u.norm(dim=1).median())


def _merged(function: Callable[..., Tensor], rule: Rule, rounds: list[Round]) -> None:
    found = []
    for u, bad, bound in rounds:
        given = u.clone()
        out = function(given, *{"median": (), "clipping": (bound,)}.get(rule, (bad,)))
        require_unchanged(given, u, "u")
        want = "one number per parameter"
        found.append(
            require_shape(out, u.shape[1:], want, "Merge over the clients: dim=0.", "Of Krum, return u[i].").to(u)
        )

    def matches(made: Callable[..., Tensor]) -> bool:
        """Whether a rule gives what came back, in all rounds."""
        pairs = zip(found, rounds, strict=True)
        return all(torch.allclose(out, made(*told), atol=1e-9, equal_nan=True) for out, told in pairs)

    if matches(RIGHT[rule]):
        return
    right = [RIGHT[rule](*told) for told in rounds]
    off = sum(not torch.allclose(out, want, atol=1e-9) for out, want in zip(found, right, strict=True))
    seen = f"the merged update is another one than that of the rule in {off} of {len(rounds)} rounds"
    blame(seen, SLIPS[rule], matches)
    if not all(bool(out.isfinite().all()) for out in found):
        raise Wrong(seen, "a division by zero", "A client may send nothing: an update of length 0.", "clamp(max=1).")
    raise Wrong(seen, "another rule", *HINTS[rule])


def near_sums(u: Tensor, count: int, power: float = 2, farthest: bool = False) -> Tensor:
    """(m,) of each update the sum of distances, to a power, to ``count`` others; the first in order is left out."""
    far = torch.cdist(u, u, compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1, descending=farthest).values
    return far[:, 1 : 1 + count].pow(power).sum(dim=1)


def least(u: Tensor, scores: Tensor) -> Tensor:
    """The update of the least score."""
    return u[scores.argmin()]


def trimmed(u: Tensor, low: int, high: int) -> Tensor:
    """The mean of each coordinate without its ``low`` smallest and ``high`` largest numbers."""
    return u.sort(dim=0).values[low : len(u) - high].mean(dim=0)


def middle(u: Tensor, low: float = 0.5) -> Tensor:
    """Of two middle numbers the lower counts ``low``."""
    values = u.sort(dim=0).values
    return low * values[(len(u) - 1) // 2] + (1 - low) * values[len(u) // 2]


def shortened(u: Tensor, bound: float, order: float = 2) -> Tensor:
    """Each row, no longer than a bound."""
    length = torch.linalg.vector_norm(u, ord=order, dim=1, keepdim=True)
    return torch.where(length > bound, u * bound / length, u)


def by(u: Tensor, key: Tensor) -> Tensor:
    """The rows in the order of a key."""
    return u[key.argsort()]


RIGHT: dict[str, Callable[..., Tensor]] = {
    "krum": lambda u, B, R: least(u, near_sums(u, len(u) - B - 2)),
    "trimmed mean": lambda u, B, R: trimmed(u, B, B),
    "median": lambda u, B, R: middle(u),
    "clipping": lambda u, B, R: shortened(u, R).mean(dim=0),
}
HINTS = {
    "krum": (
        "Squared distances to the others; of each row the m − B − 2 least; their sum; the least sum.",
        "((u[:, None] - u[None]) ** 2).sum(dim=2).sort(dim=1).values[:, 1 : m - B - 1].",
    ),
    "trimmed mean": (
        "Each coordinate by itself: order, drop at both ends, take the mean of what is left.",
        "u.sort(dim=0).values[B : m - B].mean(dim=0).",
    ),
    "median": (
        "Each coordinate by itself: order, take the middle number, or the mean of the middle two.",
        "Of u.sort(dim=0).values, rows (m - 1) // 2 and m // 2.",
    ),
    "clipping": (
        "One length per client; whoever is longer than R is shortened to it; then the mean over all.",
        "u * (R / length).clamp(max=1), with length of shape (m, 1).",
    ),
}
MEAN = (lambda u, B, R: u.mean(dim=0), "the plain mean", "One client moves it as far as it likes.")
SLIPS: dict[str, list[tuple[Any, ...]]] = {
    "krum": [
        (lambda u, B, R: least(u, near_sums(u, len(u) - B - 1)), "a neighbor too many",
         "Count them: m − B − 2 others.", "With itself in column 0: [:, 1 : m - B - 1]."),
        (lambda u, B, R: least(u, near_sums(u, len(u) - B - 3)), "a neighbor too few",
         "The nearest of all is the update itself, at distance 0.", "With itself in column 0: [:, 1 : m - B - 1]."),
        (lambda u, B, R: least(u, near_sums(u, 1)), "the nearest neighbor alone",
         "Two clients who send the same are each other's nearest, however far they are.", "Sum over m − B − 2."),
        (lambda u, B, R: least(u, near_sums(u, len(u))), "all others count, not the nearest alone",
         "Up to B of the others may lie far away.", "Sort the distances of each row first."),
        (lambda u, B, R: least(u, near_sums(u, len(u) - B - 2, power=1)), "distances, not their squares",
         "‖u_i − u_j‖² is a sum of squares, without the root."),
        (lambda u, B, R: least(u, near_sums(u, len(u) - B - 2, farthest=True)),
         "the farthest, not the nearest", "sort() goes from small to large: take the first."),
        (lambda u, B, R: least(u, -near_sums(u, len(u) - B - 2)), "the largest score, not the least",
         "Honest updates are near each other: argmin."),
        (lambda u, B, R: by(u, near_sums(u, len(u) - B - 2))[: len(u) - B - 2].mean(dim=0), "multi-Krum",
         "Krum takes the update of a single client."),
        MEAN,
    ],
    "trimmed mean": [
        (lambda u, B, R: trimmed(u, 0, B), "the smallest stay", "An attacker may pull down as well.", "[B : m - B]."),
        (lambda u, B, R: trimmed(u, B, 0), "the largest stay", "An attacker may push up as well.", "[B : m - B]."),
        (lambda u, B, R: trimmed(u, B // 2, B - B // 2), "B numbers are dropped in all, not at each end",
         "All B may lie on the same side.", "[B : m - B]."),
        (lambda u, B, R: by(u, u.norm(dim=1))[B : len(u) - B].mean(dim=0), "whole clients are dropped, by their length",
         "The rule looks at each coordinate by itself.", "u.sort(dim=0)."),
        (lambda u, B, R: by(u, (u - middle(u)).norm(dim=1))[: len(u) - 2 * B].mean(dim=0),
         "whole clients are dropped, by their distance", "The rule looks at each coordinate by itself."),
        (lambda u, B, R: u.gather(0, u.abs().argsort(dim=0))[B : len(u) - B].mean(dim=0),
         "numbers are sorted without sign", "The smallest number is the most negative one.", "u.sort(dim=0)."),
        (lambda u, B, R: u.sort(dim=1).values[B : len(u) - B].mean(dim=0), "sorted within each client",
         "Compare the clients: dim=0."),
        (lambda u, B, R: u[B : len(u) - B].mean(dim=0), "not sorted", "The first B rows are not the smallest numbers."),
        (lambda u, B, R: trimmed(u, B, B) * (len(u) - 2 * B) / len(u), "divided by m",
         "m − 2B numbers are left.", ".mean(dim=0) of what is left."),
        (lambda u, B, R: trimmed(u, B, B) * (len(u) - 2 * B), "a sum, not a mean", ".mean(dim=0) of what is left."),
        (lambda u, B, R: middle(u), "the median", "The mean of all that is left, not of the middle two."),
        MEAN,
    ],
    "median": [
        (lambda u, B, R: middle(u, low=1), "the lower of two middle numbers",
         "torch.median takes the lower one of an even count.", "The mean of both: places (m - 1) // 2 and m // 2."),
        (lambda u, B, R: middle(u, low=0), "the upper of two middle numbers",
         "An even count has two in the middle.", "The mean of both: places (m - 1) // 2 and m // 2."),
        (lambda u, B, R: least(u, near_sums(u, len(u), power=1)), "one client's update",
         "The rule looks at each coordinate by itself."),
        (lambda u, B, R: (u[(len(u) - 1) // 2] + u[len(u) // 2]) / 2, "not sorted", "u.sort(dim=0).values."),
        (lambda u, B, R: middle(u.flatten()).expand(u.shape[1]), "one number for all coordinates",
         "A median for each coordinate: dim=0."),
        MEAN,
    ],
    "clipping": [
        (lambda u, B, R: (u * (R / u.norm(dim=1, keepdim=True))).mean(dim=0), "short updates are lengthened",
         "Whoever is shorter than R stays as it is.", "(R / length).clamp(max=1)."),
        (lambda u, B, R: u.clamp(-R, R).mean(dim=0), "coordinates are clipped, not lengths",
         "R bounds the length of an update.", "u.norm(dim=1, keepdim=True)."),
        (lambda u, B, R: shortened(u.mean(dim=0)[None], R)[0], "the mean is clipped, not each update",
         "One long update has already moved the mean.", "Shorten the rows, then take the mean."),
        (lambda u, B, R: shortened(u, R).sum(dim=0), "a sum, not a mean", "The server takes 1/m of each."),
        (lambda u, B, R: (u * (u.norm(dim=1, keepdim=True) <= R)).mean(dim=0), "long updates count as zero",
         "They are shortened to R, not left out."),
        (lambda u, B, R: u[u.norm(dim=1) <= R].mean(dim=0), "long updates are left out",
         "They are shortened to R, and counted."),
        (lambda u, B, R: shortened(u, R, order=1).mean(dim=0), "lengths in ℓ1", "√ of the sum of squares."),
        (lambda u, B, R: shortened(u, R, order=torch.inf).mean(dim=0), "lengths in ℓ∞", "√ of the sum of squares."),
        (lambda u, B, R: (u * (R / u.square().sum(dim=1, keepdim=True)).clamp(max=1)).mean(dim=0),
         "no root of the length", "√ of the sum of squares."),
        (lambda u, B, R: (u * (R / u.norm())).mean(dim=0), "one factor for all clients",
         "Each client has a length of its own.", "norm(dim=1, keepdim=True)."),
        MEAN,
    ],
}  # fmt: skip
