"""What an attack's answer says about each sample: the distance at which it was fooled."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.attacker.results import AttackResult
from robustlab.geometry.norms import Norm

_ROUNDING = 1e-5  # x + δ − x may pass ε by this part of it


def found_distance(
    result: AttackResult,
    x: Tensor,
    ball: Norm,
    name: str,
    bound: float | None,
    box: tuple[float | Tensor, float | Tensor],
) -> Tensor:
    """(n,) on the CPU: the distance at which each sample was fooled, ∞ where it was not."""
    if not isinstance(result, AttackResult):
        raise TypeError(f"attack: want a function that returns an AttackResult, got {type(result).__name__}")
    distance = torch.where(result.success, ball.length(result.x_adv - x), torch.inf).double().cpu()
    if bound is None:
        return distance
    # x + δ is rounded to a pixel value, which moves each element by up to half a unit in the last place.
    largest = max(float(torch.as_tensor(end).abs().amax()) for end in box)
    slack = float(ball.length(torch.ones_like(x[:1]))) * torch.finfo(x.dtype).eps * largest
    passed = distance.isfinite() & (distance > bound * (1 + _ROUNDING) + slack)
    if bool(passed.any()):
        raise RuntimeError(f"attack: {name} claims a success at distance {distance[passed].max():g} for eps {bound:g}")
    return torch.where(distance.isfinite(), distance.clamp_max(bound), distance)
