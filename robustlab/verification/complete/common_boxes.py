"""Cases that have one box, such as a label that may lose to each other one: what is the same for all of them.

Hidden layers depend on the box alone. So they are bounded once for all cases of a box, and where that is dear the cases
keep one box: it is clipped to what is left of any, split along one side, and its halves are bounded at the same time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.verification.complete.branching import Domains, select
from robustlab.verification.propagation.region import Box


def distinct(low: Tensor, high: Tensor) -> tuple[Tensor, Box]:
    """The place of each box among the distinct ones, (D,), and these; in the order given where all are."""
    ends, which = torch.unique(torch.stack([low, high], dim=1), dim=0, return_inverse=True)
    if len(ends) == len(low):
        return torch.arange(len(low), device=low.device), Box(low, high)
    return which, Box(ends[:, 0], ends[:, 1])


def parts(domains: Domains, most: int) -> list[Tensor]:
    """Rows of the domains, in parts of at most so many distinct boxes."""
    which = distinct(domains["low"], domains["high"])[0]
    return [(which // most == i).nonzero().flatten() for i in range(int(which.max()) // most + 1)]


def lowest_first(pool: Domains, most: int, *, together: bool) -> tuple[Domains, Domains]:
    """So many domains, those with the lowest bounds, and the others; ``together``: so many boxes with all cases."""
    bound = pool["bound"]
    which = distinct(pool["low"], pool["high"])[0] if together else torch.arange(len(bound), device=bound.device)
    lowest = bound.new_full((int(which.max()) + 1,), torch.inf).scatter_reduce(0, which, bound, "amin")
    rank = lowest.argsort().argsort()[which]
    order, taken = rank.argsort(stable=True), int((rank < most).sum())
    return select(pool, order[:taken]), select(pool, order[taken:])


def common_box(which: Tensor, left: Tensor, at: Tensor, to: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of domains with one box: the smallest box around what is left of each that stays open, and sums of their shares.

    So they keep one box and are split along one side, and its hidden layers are bounded once for all of them.
    """
    rows, place = left[:, None], which[:, None].expand_as(at)
    none = at.new_full((int(which.max()) + 1, at.shape[1]), torch.inf)
    at = none.scatter_reduce(0, place, torch.where(rows, at, torch.inf), "amin")
    to = (-none).scatter_reduce(0, place, torch.where(rows, to, -torch.inf), "amax")
    share = torch.zeros_like(none).scatter_add(0, place, torch.where(rows, share.nan_to_num(0.0), 0.0))
    return at[which], to[which], share[which]
