"""The search for the weight c of the attacker's loss that penalty-based attacks share.

Carlini and Wagner (2017b), section V-B, and those who follow them: up by a factor until a first success, then halve the
interval between the largest c that failed and the smallest that succeeded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.attacker.live import Live


def first_weight(live: Live, c: float) -> None:
    """Notes ``live.c``, what each sample tries now, and the ends ``live.lower`` and ``live.upper`` of its interval."""
    live.c = live.x.new_full((len(live),), c)
    live.lower, live.upper = torch.zeros_like(live.c), torch.full_like(live.c, torch.inf)


def next_weight(live: Live, won: Tensor, failed: Tensor, factor: float = 10.0) -> None:
    """The next c of the samples that ``won`` or ``failed`` (n,) with theirs; ``factor``: growth until a success."""
    live.upper = torch.where(won, torch.minimum(live.upper, live.c), live.upper)
    live.lower = torch.where(failed, torch.maximum(live.lower, live.c), live.lower)
    following = torch.where(live.upper.isfinite(), (live.lower + live.upper) / 2, live.c * factor)
    live.c = torch.where(won | failed, following, live.c)
