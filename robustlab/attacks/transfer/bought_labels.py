"""The set that a substitute is trained on: labels that are bought from a victim, and where the next ones are asked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.victim import Victim
from robustlab.data.pairs import Pairs, read_inputs, read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.geometry.projections import clip

BATCH = 250  # points that are asked about at a time


class Bought:
    """Points and what the victim said of them; they are kept whatever happens."""

    def __init__(self, points: Tensor, labels: Tensor) -> None:
        self.points, self.labels, self.paid = points, labels, 0

    def buy(self, victim: Victim, new: Tensor, outputs: int) -> None:
        """Ask about new points, each once; those of which the victim says NaN are paid for and left out."""
        for part in new.split(BATCH) if len(new) else ():
            with victim.session(part, access="hard") as asked:
                told, known = asked.y, ~asked.lost
            self.paid += len(part)
            self.points = torch.cat([self.points, part[known]])
            self.labels = torch.cat([self.labels, told[known]])
            if bool((told >= outputs).any()):
                raise ValueError(
                    f"net: want an output for each label of the victim, which says {int(told.max())}, got {outputs}; "
                    "without a net say classes="
                )


def first_set(
    victim: Victim, x: Tensor, pool: Pairs | Tensor | None, known: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Bought]:
    """The points of S_0 to be asked about, and those whose labels are known; in the dtype and on the device of x."""
    held, labels = x[:0].detach().clone(), torch.zeros(0, dtype=torch.int64, device=x.device)
    if known is not None:
        held, labels = read_labeled(known, "known")
        _like("known", held, x, victim)
        held, labels = held.to(x), labels.to(x.device)
    if pool is None:
        return (x if known is None else x[:0]).detach().clone(), Bought(held, labels)
    new = read_inputs(pool, "pool")
    _like("pool", new, x, victim)
    return new.to(x), Bought(held, labels)


def _like(name: str, points: Tensor, x: Tensor, victim: Victim) -> None:
    if not len(points) or points.shape[1:] != x.shape[1:]:
        raise ValueError(f"{name}: want samples of shape {tuple(x.shape[1:])}, at least one, got {tuple(points.shape)}")
    checks.images(points, victim.bounds, name)


def reservoir(n: int, most: int, seed: int, draw: int) -> Tensor:
    """Which of n points are kept, (min(n, most),): each set of that size is equally likely.

    Point i < most takes place i; each later one takes place r, drawn from 0 … i, where r < most, and drives out who is
    there. So the place belongs to the last that took it.

    Source: Papernot et al. (2016), algorithm 1; Vitter, "Random sampling with a reservoir" (1985).
    """
    order = torch.arange(n)
    drawn = (Noise(seed, order).uniform((1, draw), (), torch.float64) * (order + 1)).long()
    place = torch.where(order < most, order, drawn)
    taking = place < most
    return torch.full((min(n, most),), -1).scatter_reduce(0, place[taking], order[taking], "amax")


def augmented(victim: Victim, net: nn.Module, points: Tensor, labels: Tensor, way: float) -> Tensor:
    """x + λ·sign(J_F(x)[label]), in the box."""
    if not len(points):
        return points
    moved = []
    for part, label in zip(points.split(BATCH), labels.split(BATCH), strict=True):
        with Victim(net, bounds=victim.bounds).session(part, label) as inner:
            grad = inner.gradient(part, inner.everyone(), _log_probability).grad
            moved.append(clip(part + way * grad.sign(), inner.low, inner.high))
    return torch.cat(moved)


def _log_probability(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """log F(x)[y], (n,)."""
    return logits.log_softmax(dim=1).gather(1, y[:, None])[:, 0]


def as_computed(x: Tensor) -> Tensor:
    """Half precision as the attack computes: in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
