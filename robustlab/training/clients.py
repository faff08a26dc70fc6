"""Clients of federated learning: what one is told in a round, and what an honest one does with the global model.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-efficient learning of deep networks from
decentralized data" (2017), algorithm 1, its part ClientUpdate. What a client does depends on its data, the global model
and its own seed alone, so that any runtime gets the same update from it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.data.pairs import Pairs
from robustlab.training.fit import Objective, cross_entropy, fit
from robustlab.training.updates import Delta, difference

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Turn:
    """What a client is told, or an attacker finds out, about the round that it takes part in.

    Attributes:
        round: the round, counted from 0.
        client: its own number.
        seed: its own for this round.
        weight: w, the server's factor for its update; γ of model replacement is 1/w.
        colluders: how many malicious clients take part in this round.
        previous: what the server added to the global model in the round before; None in the first.
    """

    round: int
    client: int
    seed: int
    weight: float
    colluders: int
    previous: Delta | None = None


class ClientUpdate(Protocol):
    """What a client does with the global model: a function that changes neither it nor the data."""

    def __call__(self, model: nn.Module, data: Pair, turn: Turn, /) -> Delta:
        """The update that the client sends."""
        ...


def local_update(
    model: nn.Module,
    data: Pairs,
    *,
    seed: int,
    epochs: int = 2,
    batch_size: int = 64,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    objective: Objective[nn.Module] = cross_entropy,
) -> Delta:
    """Train a copy of the global model by stochastic gradient descent, and return the difference.

        L ← G;   L ← L − lr · ∇ objective(L, batch)  for each batch of each epoch;   δ = L − G

    Args:
        model: G, gives logits (N, K). It is copied.
        data: a Dataset, whose training part is used, a pair (x, y) or a loader.
        seed: any integer; of the order of the samples and of modules such as dropout.
        epochs, batch_size, lr: of the training, by default 2 passes in batches of 64 at a constant 0.1.
        momentum, weight_decay: of the descent, by default 0.9 and 5e-4. The momentum starts anew in each round.
        objective: as :func:`robustlab.training.fit.fit` takes it.

    Returns:
        Delta.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        McMahan et al. (2017), algorithm 1; the numbers are those of Bagdasaryan et al. (2020) for images.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    checks.not_negative("momentum", momentum)
    checks.below("momentum", momentum, 1)
    local = copy.deepcopy(model)
    fit(
        local, data, objective=objective, epochs=epochs, batch_size=batch_size, lr=lr, schedule="constant",
        optimizer=partial(torch.optim.SGD, momentum=momentum), weight_decay=weight_decay, seed=seed,
    )  # fmt: skip
    return difference(local, model)


@dataclass(frozen=True)
class LocalTraining:
    """An honest client: :func:`local_update` with these arguments, as :func:`simulate` calls it."""

    epochs: int = 2
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __call__(self, model: nn.Module, data: Pair, turn: Turn, /) -> Delta:
        """The update of a client that does as it was told."""
        return local_update(model, data, seed=turn.seed, **vars(self))


@dataclass(frozen=True, eq=False)
class Client:
    """One participant of a federation.

    Attributes:
        data: its own, a pair (x, y) or a Dataset.
        attack: what it does instead of training honestly; None for an honest client.
    """

    data: Pairs
    attack: ClientUpdate | None = None

    def __repr__(self) -> str:
        return "Client(malicious)" if self.attack else "Client()"
