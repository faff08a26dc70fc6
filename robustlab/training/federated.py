"""Federated learning in one process: clients that train on data of their own, and a server that adds what they send.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-efficient learning of deep networks from
decentralized data" (2017), algorithm 1. A round: the server draws clients and hands each the global model G; each
trains a copy on its own data and returns the difference; the server adds a weighted sum, or what a robust rule makes of
them.

Different here: clients run one after another, and what a client does in a round depends on its data, G and its own seed
alone, not on who else was drawn. So the order does not matter, and other runtimes can be held against this one.
"""

from __future__ import annotations

import copy
import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.data.pairs import read_labeled
from robustlab.files import digest
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.models.modes import evaluating
from robustlab.progress import bar
from robustlab.training.averaging import copy_of, put
from robustlab.training.clients import Client, ClientUpdate, LocalTraining, Pair, Turn
from robustlab.training.resuming import name_of
from robustlab.training.rounds import Round, Rounds
from robustlab.training.updates import (
    STATISTICS,
    Delta,
    Divide,
    Rule,
    Statistics,
    aggregate,
    apply_delta,
    difference,
    server_weights,
)

Seen = TypeVar("Seen")
_HONEST = LocalTraining()


@dataclass(frozen=True, eq=False)
class Federation(Generic[Seen]):
    """What happened during :func:`simulate`, one entry per round.

    Attributes:
        model: the global model after the last round, a copy of the caller's in its mode.
        states: the state of the global model after each round, on the CPU.
        monitor: what ``on_round`` returned; empty without it.
        selected: the clients of each round, in increasing order.
        norms: ℓ2 norm of the parameters of each of their updates, in that order.
        seconds: wall-clock time of all rounds.
    """

    model: nn.Module
    states: tuple[dict[str, Tensor], ...]
    monitor: tuple[Seen, ...]
    selected: tuple[tuple[int, ...], ...]
    norms: tuple[tuple[float, ...], ...]
    seconds: float

    def at(self, round: int) -> nn.Module:
        """The global model after a round, counted from 0 (−1 is the last): a copy of its own."""
        model = copy.deepcopy(self.model)
        put(model, self.states[round])
        return model

    def __repr__(self) -> str:
        return f"Federation({len(self.states)} rounds of {type(self.model).__name__} in {self.seconds:.1f} s)"


def simulate(
    model: nn.Module,
    clients: Sequence[Client],
    *,
    rounds: int,
    selected: int | None = None,
    honest: ClientUpdate = _HONEST,
    eta: float = 1.0,
    divide: Divide = "selected",
    rule: Rule | None = None,
    statistics: Statistics = "together",
    schedule: Mapping[int, Sequence[int]] | None = None,
    on_round: Callable[[int, nn.Module], Seen] | None = None,
    seed: int = 0,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
) -> Federation[Seen]:
    """Run rounds of federated learning, one client after another.

        G ← G + Σ_{i selected} w_i · δ_i      δ_i: update of client i,  w: :func:`server_weights`

    Args:
        model: the global model G at first; it is copied, and the copy moves on its device.
        clients: n_total of them. At least one is honest.
        rounds: how many, at least 1.
        selected: clients per round, drawn without replacement; None takes all.
        honest: what honest clients do.
        eta, divide: of :func:`~robustlab.training.updates.server_weights`.
        rule, statistics: of :func:`~robustlab.training.updates.aggregate`. A rule with an argument ``seed``, for noise
            say, is given another one in each round.
        schedule: round → clients that take part in it for certain. Where it is given, malicious clients take part by
            it alone, and the rest of a round is drawn from the honest.
        on_round: called as ``on_round(round, model)`` after each round with the model in evaluation mode and without
            gradients; what it returns, such as main and backdoor accuracy, is kept in ``Federation.monitor``.
        seed: of the draw and of the clients' own seeds.
        progress: show a bar in a terminal.
        resume: a folder, made where it is missing, that gets one file per round, whole or not at all. If rounds of the
            same simulation are there already, it goes on after them, to the outcome of one that was never interrupted;
            what ``on_round`` returns must then be such as JSON holds. Of a rule it knows the name and what
            `functools.partial` binds, of attacks only which clients have one.

    Returns:
        Federation.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work: a client without data, clients that are all
            malicious, a schedule that names rounds or clients that do not exist. In its round, for an update with NaN,
            or that is no Delta, and for a client that changes the model it is handed. An error of a client's own has a
            note that says whose.

    Source:
        McMahan et al. (2017), algorithm 1.
    """
    server = Server(
        model, clients, rounds=rounds, selected=selected, honest=honest, eta=eta, divide=divide, rule=rule,
        statistics=statistics, schedule=schedule, on_round=on_round, seed=seed, resume=resume,
    )  # fmt: skip
    for number in bar(range(rounds), show=progress, label="simulate"):
        if number < server.first:  # done before an interruption
            continue
        turns = server.turns(number)
        updates = [clients[turn.client].attack or honest for turn in turns]
        server.take([answer(f, server.model, server.data[t.client], t) for f, t in zip(updates, turns, strict=True)])
    return server.outcome()


class Server(Generic[Seen]):
    """The server's side of a simulation, whoever carries its messages: who takes part, and what it makes of answers.

    For each round from ``first`` on: ``turns(number)``, then ``take(deltas)`` with what those clients sent, in that
    order. At the end ``outcome()``.

    Args:
        model, clients, rounds, selected, honest, eta, divide, rule, statistics, schedule, on_round, seed, resume: as
            :func:`simulate` takes them, all checked here.

    Attributes:
        model: the global model, a copy of the caller's.
        data: of each client, as (x, y).
        first: the first round that is still to be done; above 0 after an interruption.
        previous: what the round before has changed.
    """

    def __init__(
        self, model: nn.Module, clients: Sequence[Client], *, rounds: int, selected: int | None, honest: ClientUpdate,
        eta: float, divide: Divide, rule: Rule | None, statistics: Statistics,
        schedule: Mapping[int, Sequence[int]] | None, on_round: Callable[[int, nn.Module], Seen] | None, seed: int,
        resume: str | os.PathLike[str] | None,
    ) -> None:  # fmt: skip
        self.data = _check(model, clients, rounds, selected, honest, on_round, rule, schedule)
        checks.one_of("statistics", statistics, STATISTICS)
        self.n, self.total = len(clients) if selected is None else selected, len(clients)
        self.bad = [i for i, client in enumerate(clients) if client.attack is not None]
        self.weigh = partial(server_weights, eta=eta, divide=divide, total=self.total)
        self.weigh([1] * self.n)  # raises before any work
        self.rule, self.statistics, self.schedule, self.on_round, self.seed = rule, statistics, schedule, on_round, seed
        told = {"selected": self.n, "eta": eta, "divide": divide, "statistics": statistics, "seed": seed}
        run = told | _identity(model, self.data, self.bad, schedule, rule, honest)
        self.files = None if resume is None else Rounds(Path(resume), run)
        self.done: list[Round] = [] if self.files is None else self.files.load(rounds)
        self.first = len(self.done)
        self.model = copy.deepcopy(model)
        self.previous: Delta | None = None
        for round in self.done[-2:]:
            before = copy_of(self.model)
            put(self.model, round.state)
            self.previous = difference(self.model, before)

    def turns(self, number: int) -> list[Turn]:
        """What each client of a round is told, in increasing order of their numbers."""
        self.start = time.perf_counter()
        present = _drawn(number, self.total, self.n, self.bad, self.schedule, self.seed)
        weights = self.weigh([len(self.data[i][1]) for i in present])
        colluders = len(set(present) & set(self.bad))
        self.asked = [
            Turn(number, i, derive_seed(self.seed, number, i), weight, colluders, self.previous)
            for i, weight in zip(present, weights, strict=True)
        ]
        return self.asked

    def take(self, deltas: Sequence[Delta]) -> None:
        """Move the global model by what the clients of the last ``turns`` sent, look at it, and keep the round."""
        number = self.asked[0].round
        for turn, delta in zip(self.asked, deltas, strict=True):
            if not bool(delta.vector(self.statistics == "together").isfinite().all()):
                raise ValueError(f"clients: want finite updates, got NaN or infinity from number {turn.client}")
        merging = _seeded(self.rule, derive_seed(self.seed, number, -1))
        before = copy_of(self.model)
        weights = [turn.weight for turn in self.asked]
        apply_delta(self.model, aggregate(deltas, weights, rule=merging, statistics=self.statistics))
        self.previous = difference(self.model, before)
        seen = None if self.on_round is None else _look(self.on_round, number, self.model)
        state = {name: value.cpu() for name, value in copy_of(self.model).items()}
        norms = tuple(delta.norm() for delta in deltas)
        present = tuple(turn.client for turn in self.asked)
        self.done.append(Round(state, seen, present, norms, time.perf_counter() - self.start))
        if self.files is not None:
            self.files.save(number, self.done[-1])

    def outcome(self) -> Federation[Seen]:
        """What happened."""
        rounds = self.done
        return Federation(
            self.model, tuple(r.state for r in rounds),
            tuple(r.seen for r in rounds) if self.on_round is not None else (),
            tuple(r.selected for r in rounds), tuple(r.norms for r in rounds), sum(r.seconds for r in rounds),
        )  # fmt: skip


def answer(update: ClientUpdate, model: nn.Module, data: Pair, turn: Turn) -> Delta:
    """What a client sends. The model that it is handed is the others' as well: what it did to it would never be merged.

    Raises:
        TypeError, ValueError: for an answer that is no Delta, or a model that the client has changed; its own errors,
            with a note that says whose they are.
    """
    before = copy_of(model)
    try:
        delta: object = update(model, data, turn)
    except Exception as error:
        error.add_note(f"This is of client number {turn.client} in round {turn.round}.")
        raise
    if not isinstance(delta, Delta):
        raise TypeError(f"clients: want a Delta, got {type(delta).__name__} from number {turn.client}")
    for name, value in model.state_dict().items():
        if not bool(((value == before[name]) | value.isnan()).all()):
            raise ValueError(
                f"clients: want the model left as it is, so train a copy.deepcopy of it; got another {name!r} from "
                f"number {turn.client}"
            )
    return delta


def _seeded(rule: Rule | None, seed: int) -> Rule | None:
    """The rule of one round: one that draws has a seed of its own there."""
    if rule is None:
        return None
    try:
        draws = "seed" in inspect.signature(rule).parameters
    except ValueError:  # a function of PyTorch's own, as torch.mean, does not say what it takes
        draws = False
    return partial(rule, seed=seed) if draws else rule  # type: ignore[call-arg]


def _look(on_round: Callable[[int, nn.Module], Seen], number: int, model: nn.Module) -> Seen:
    with evaluating(model, freeze=False), torch.no_grad():
        return on_round(number, model)


def _identity(
    model: nn.Module, data: list[Pair], bad: list[int], schedule: Mapping[int, Sequence[int]] | None,
    rule: Rule | None, honest: ClientUpdate,
) -> dict[str, Any]:  # fmt: skip
    """What tells one simulation from another; of a rule its name and what is bound to it, of attacks only whose."""
    parts = {f"{i}{name}": part for i, pair in enumerate(data) for name, part in zip("xy", pair, strict=True)}
    return {
        "model": digest(copy_of(model))[:12],
        "clients": digest(parts)[:12],
        "malicious": bad,
        "schedule": {str(number): list(certain) for number, certain in (schedule or {}).items()},
        "rule": None if rule is None else name_of(rule),
        "honest": repr(honest) if isinstance(honest, LocalTraining) else name_of(honest),
    }


def _drawn(
    number: int, total: int, n: int, bad: Sequence[int], schedule: Mapping[int, Sequence[int]] | None, seed: int
) -> tuple[int, ...]:
    """The clients of a round, in increasing order."""
    certain = set() if schedule is None else set(schedule.get(number, ()))
    order = Noise(seed, torch.tensor([number])).permutation(0, total)[0].tolist()
    free = [i for i in order if i not in certain and (schedule is None or i not in bad)]
    return tuple(sorted([*certain, *free[: n - len(certain)]]))


def _check(
    model: object, clients: Sequence[Client], rounds: int, selected: int | None, honest: object, on_round: object,
    rule: object, schedule: Mapping[int, Sequence[int]] | None,
) -> list[Pair]:  # fmt: skip
    """All checks before any work; returns the clients' data."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    for name, function in (("honest", honest), ("on_round", on_round), ("rule", rule)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: want a callable, got {type(function).__name__}")
    checks.at_least("rounds", rounds, 1, integer=True)
    if not clients or not all(isinstance(client, Client) for client in clients):
        raise TypeError("clients: want a sequence of at least one Client")
    if all(client.attack is not None for client in clients):
        raise ValueError(f"clients: want at least one honest client, got {len(clients)} that are all malicious")
    n = len(clients) if selected is None else selected
    checks.at_least("selected", n, 1, integer=True)
    checks.at_most("selected", n, len(clients))
    few = 2 if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()) else 1
    data = []
    for i, client in enumerate(clients):
        if isinstance(client.data, tuple) and len(client.data) == 2 and not len(client.data[0]):
            raise ValueError(f"clients: want at least {few} samples each, got a client without data, number {i}")
        x, y = read_labeled(client.data, f"clients[{i}].data")
        if len(y) < few:
            raise ValueError(f"clients: want at least {few} samples each for batch norm, got {len(y)} of number {i}")
        checks.at_home(model, x, f"clients[{i}].data", device=False)
        data.append((x, y))
    honest_ones = sum(client.attack is None for client in clients)
    for number in range(rounds) if schedule is not None else ():
        certain = schedule.get(number, ()) if schedule is not None else ()
        if len(certain) > n or n - len(certain) > honest_ones:
            raise ValueError(
                f"schedule: want at most {n} clients in a round, the rest of them honest, and there are {honest_ones} "
                f"honest ones, got {list(certain)} in round {number}"
            )
    for number, certain in (schedule or {}).items():
        if not 0 <= number < rounds or not all(0 <= i < len(clients) for i in certain):
            raise ValueError(
                f"schedule: want rounds in 0 … {rounds - 1} and clients in 0 … {len(clients) - 1}, got clients "
                f"{list(certain)} in round {number}, which would never take part"
            )
    return data
