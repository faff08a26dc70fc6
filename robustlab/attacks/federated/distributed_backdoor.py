"""The distributed backdoor attack (DBA): one trigger in four parts, each taught by another client.

Xie, Huang, Chen and Li, "DBA: Distributed backdoor attacks against federated learning" (2020), equations 2 and 3. Each
of the colluding clients poisons its data with one part φ_i of a global trigger; no client ever trains on the whole,
which is what wakes the backdoor in the end. The geometry is the paper's: four bars of one size in two rows of two, with
a gap between them.

In the *single-shot* attack a client takes part once and scales its update by γ = 1/w; in the *multi-shot* one it sends
what it has in many rounds. Attack success is measured with the whole trigger and without images of the target class, by
:func:`~robustlab.attacks.watch_backdoor`.

Different here: the rate falls after a fifth and after four fifths of the poisoned training whatever the number of
epochs; in the authors' code the milestones 0.2·E and 0.8·E never come unless they are whole numbers.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

from robustlab import checks
from robustlab.attacks.backdoor.badnets import PatchTrigger
from robustlab.attacks.backdoor.trigger import stamped
from robustlab.attacks.federated.malicious_update import MaliciousUpdate, MixedBatches, others, prepared
from robustlab.data.pairs import Pairs
from robustlab.training.fit import fit
from robustlab.training.updates import difference

__all__ = ["FourBars", "distributed_backdoor", "falling_rate"]

PARTS = 4


def distributed_backdoor(
    model: nn.Module,
    data: Pairs,
    *,
    target: int,
    part: int | None,
    weight: float,
    single_shot: bool = True,
    size: int = 4,
    gap: int | tuple[int, int] = 2,
    location: tuple[int, int] = (0, 0),
    per_batch: int = 20,
    batch_size: int = 64,
    epochs: int = 10,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seed: int = 0,
) -> MaliciousUpdate:
    """What one of the colluding clients sends: trained on its part of the trigger alone.

        min_θ  Σ_{x ∈ S_poi} ℓ(f_θ(R(x, φ_i)), t) + Σ_{(x, y) ∈ S_cln} ℓ(f_θ(x), y)
        δ_i = γ·(θ_i − G),   γ = 1/w single-shot, 1 multi-shot

    Args:
        model: G, the global model with logits (N, K). It is copied.
        data: the client's own images (N, C, H, W) in [0, 1].
        target: the label t.
        part: 0 … 3, which bar φ_i this client has; None poisons with the whole trigger: the centralized attack.
        weight: w > 0, the server's factor for this update (``Turn.weight``).
        single_shot: whether the update is scaled to outlast the mean.
        size, gap, location: of :class:`FourBars`: 4, 2 and (0, 0) in the paper for MNIST, 6, 3 and (0, 0) for CIFAR-10.
        per_batch, batch_size: so many samples of a batch are poisoned (20 of 64 for MNIST, 5 of 64 for CIFAR-10).
        epochs, lr, momentum, weight_decay: of the poisoned training (10 epochs from 0.05 for MNIST, 6 for CIFAR-10);
            the rate falls by :func:`falling_rate`.
        seed: of order and draws.

    Returns:
        MaliciousUpdate, whose ``trigger`` is the whole one.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Xie et al. (2020), equations 2 and 3, table 1 and section 3.
    """
    x, y = prepared(model, data, target, weight, 1)
    whole = FourBars(size, gap=gap, location=location).to(x.device)
    if part is not None:
        checks.at_least("part", part, 0, integer=True)
        checks.below("part", part, PARTS)
    checks.at_least("batch_size", batch_size, 1, integer=True)
    checks.at_least("per_batch", per_batch, 1, integer=True)
    checks.at_most("per_batch", per_batch, batch_size)
    checks.at_least("epochs", epochs, 1, integer=True)
    checks.not_negative("momentum", momentum)
    own = whole if part is None else whole.part(part).to(x.device)
    poisoned = stamped(own, others(x, y, target))
    local = copy.deepcopy(model)
    fit(
        local, (x, y), objective=MixedBatches(poisoned, target, share=per_batch / batch_size), epochs=epochs,
        batch_size=batch_size, lr=lr, optimizer=partial(torch.optim.SGD, momentum=momentum), schedule=falling_rate,
        weight_decay=weight_decay, seed=seed,
    )  # fmt: skip
    gamma = 1 / weight if single_shot else 1.0
    return MaliciousUpdate(difference(local, model).scaled(gamma), local, gamma, target, whole)


def falling_rate(done: float) -> float:
    """The learning rate over its first one: a tenth from a fifth of the training on, a hundredth from four fifths on.

    Args:
        done: the part in [0, 1) of the training that is over.
    """
    return 0.1 ** sum(done >= milestone for milestone in (0.2, 0.8))


class FourBars(PatchTrigger):
    """The global trigger: four bars of one pixel's height, in two rows of two.

        row r, columns c … c + size − 1,  and  c + size + gap_x …;   the same in row r + 1 + gap_y

    Args:
        size: of a bar, pixels.
        gap: between the bars, in both directions or (down, across), at least 0.
        location: (r, c), row and column of the first pixel.
        color: in [0, 1].

    Raises:
        ValueError, TypeError: for a wrong argument; on use, if the trigger does not fit into the image.
    """

    def __init__(
        self, size: int = 4, *, gap: int | tuple[int, int] = 2, location: tuple[int, int] = (0, 0), color: float = 1.0
    ) -> None:
        checks.at_least("size", size, 1, integer=True)
        down, across = (gap, gap) if isinstance(gap, int) else gap
        for value in (down, across):
            checks.at_least("gap", value, 0, integer=True)
        bars = torch.full((PARTS, 2 + down, 2 * size + across), torch.nan, dtype=torch.float64)
        for number in range(PARTS):
            first = (number % 2) * (size + across)
            bars[number, (number // 2) * (1 + down), first : first + size] = color
        super().__init__(bars.nan_to_num(0.0).sum(dim=0).where(~bars.isnan().all(dim=0), torch.nan), position=location)
        self.bars: list[torch.Tensor] = list(bars)

    def part(self, number: int) -> PatchTrigger:
        """One of the four bars, where it is in the whole."""
        return PatchTrigger(self.bars[number], position=self.position)
