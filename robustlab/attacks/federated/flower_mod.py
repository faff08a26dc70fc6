"""Attacks on federated learning as a *mod* of Flower's: they take the place of a client of anybody's Flower app.

Beutel et al., "Flower: A friendly federated learning research framework" (2020). A mod stands between Flower and the
app of a client. This one lets the app train and answer as it always does, so that its reply has the form, the names and
the metrics that the server waits for, and then puts the attack's update into the place of the app's. Any function that
a :class:`~robustlab.training.clients.Client` takes as its ``attack`` will do.

Different here: Flower's servers send the model itself and take models back, weighted by a number of samples that each
client reports of itself. So a client can also claim to have many; then nothing need be scaled.

Flower is optional, ``pip install "robustlab[federated]"``, and imported on use alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from robustlab import checks
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import derive_seed
from robustlab.training.clients import ClientUpdate, Turn
from robustlab.training.flower import record_of, tensors_of
from robustlab.training.updates import Delta, difference

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context, Message
    from flwr.clientapp.typing import ClientAppCallable, Mod

__all__ = ["flower_mod"]

_KEPT = "robustlab: the global model of round "


def flower_mod(
    attack: ClientUpdate,
    *,
    model: nn.Module,
    data: Callable[[int], Pairs] | Pairs,
    weight: float,
    clients: Collection[int] = (0,),
    rounds: Collection[int] | None = None,
    claimed: int | None = None,
    seed: int = 0,
) -> Mod:
    """A mod with which some nodes of a Flower app send an attack's update: ``ClientApp(mods=[flower_mod(…)])``.

        reply ← G + δ,   δ = attack(G, data, turn)

    Args:
        attack: as a :class:`~robustlab.training.clients.Client` takes it: a function of the global model, the client's
            data and a :class:`~robustlab.training.clients.Turn` that returns a
            :class:`~robustlab.training.updates.Delta`.
        model: of the app's architecture, whose ``state_dict()`` has the names that the server sends. It is copied.
        data: the malicious clients' own, or a function of the node's ``partition-id`` that gives it.
        weight: w > 0, the factor with which the server takes a client's model into its mean, for ``Turn.weight``: 1/n
            for n clients of equal size; of clients that claim more, their part of all that is claimed.
        clients: the ``partition-id`` of those that are malicious; all others answer as they would. A round's turn is
            told that they all take part in it (``Turn.colluders``).
        rounds: counted from 0, in which they attack; None is all. Flower's own ``server-round`` starts from 1.
        claimed: the number of samples that they report (``num-examples``); None lets the app's own stand.
        seed: from which each turn's own is derived, as in a simulation.

    Returns:
        A mod. Messages other than for training, and errors of the app, pass unchanged.

    Raises:
        ValueError, TypeError: for a wrong argument; on use, for a model with other names than the server sends.

    Source:
        Beutel et al. (2020), for Flower; the attacks have their own.
    """
    if not callable(attack):
        raise TypeError(f"attack: want a callable, got {type(attack).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    checks.positive("weight", weight)
    if not clients:
        raise ValueError("clients: want at least one partition-id, got none")
    if claimed is not None:
        checks.at_least("claimed", claimed, 1, integer=True)
    return _Mod(attack, copy.deepcopy(model), data, weight, tuple(clients), rounds, claimed, seed)


@dataclass(frozen=True, eq=False)
class _Mod:
    """The mod, as an object that goes to other processes."""

    attack: ClientUpdate
    model: nn.Module
    data: Callable[[int], Pairs] | Pairs
    weight: float
    clients: tuple[int, ...]
    rounds: Collection[int] | None
    claimed: int | None
    seed: int

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        from flwr.app import MessageType

        client = int(context.node_config.get("partition-id", -1))
        if not message.metadata.message_type.startswith(MessageType.TRAIN) or client not in self.clients:
            return call_next(message, context)
        state = tensors_of(_only(message.content.array_records, "from the server"))  # before the app takes it
        number = _round(message)
        kept = context.state.array_records
        before = tensors_of(kept[_model_of(number - 1)]) if _model_of(number - 1) in kept else None
        for old in [name for name in kept if name.startswith(_KEPT)]:
            del context.state[old]
        context.state[_model_of(number)] = record_of(state)
        reply = call_next(message, context)
        if reply.has_error() or (self.rounds is not None and number not in self.rounds):
            return reply
        model = self._with(state)
        previous = None if before is None else difference(model, before)
        turn = Turn(number, client, derive_seed(self.seed, number, client), self.weight, len(self.clients), previous)
        data = read_labeled(self.data(client) if callable(self.data) else self.data, "data")
        sent = _only(reply.content.array_records, "from the app")
        sent.update(record_of(_moved(state, self.attack(model, data, turn))))
        if self.claimed is not None:
            for metrics in reply.content.metric_records.values():
                metrics["num-examples"] = self.claimed
        return reply

    def _with(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The model as the server sent it."""
        model = copy.deepcopy(self.model)
        if {name: t.shape for name, t in model.state_dict().items()} != {name: t.shape for name, t in state.items()}:
            raise ValueError("model: want the names and shapes that the server sends, got others")
        model.load_state_dict(state)
        return model


def _model_of(number: int) -> str:
    """Under which name a node keeps the global model of a round that it took part in."""
    return f"{_KEPT}{number}"


def _round(message: Message) -> int:
    """Counted from 0; 0 too where the server does not say."""
    told = [config["server-round"] for config in message.content.config_records.values() if "server-round" in config]
    return cast(int, told[0]) - 1 if told else 0


def _moved(state: Mapping[str, Tensor], delta: Delta) -> dict[str, Tensor]:
    """G + δ, rounded once to the dtypes of G."""
    changes = {**delta.parameters, **delta.statistics, **delta.counters}
    return {
        name: (value.to(changes[name].dtype) + changes[name].cpu()).to(value.dtype) for name, value in state.items()
    }


def _only(records: Mapping[str, ArrayRecord], whence: str) -> ArrayRecord:
    if len(records) != 1:
        raise ValueError(f"message: want one ArrayRecord {whence}, got {len(records)}")
    return next(iter(records.values()))
