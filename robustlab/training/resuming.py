"""What a training has to know to go on after a kill, in one safetensors file that is written whole or not at all."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from robustlab.files import RunFiles, digest, require_writable
from robustlab.training.averaging import Average, put

LISTS = ("loss", "lr", "monitor", "validation")
P = ParamSpec("P")
Made = TypeVar("Made")

ARGUMENTS = ("epochs", "batch_size", "lr", "schedule", "optimizer", "weight_decay", "averaging", "seed")


@dataclass
class Record:
    """What was noted after each epoch, and the weights that did best on validation."""

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    monitor: list[Any] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int:
        """The first epoch of the highest validation; −1 without."""
        return self.validation.index(max(self.validation)) if self.validation else -1

    @property
    def stale(self) -> int:
        """How many epochs in turn have not been better than the best."""
        return len(self.validation) - 1 - self.best_epoch

    def add(self, loss: float, lr: float, seconds: float) -> None:
        """Note an epoch.

        Raises:
            FloatingPointError: if its loss is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss was {loss} in epoch {len(self.loss)}: try a smaller lr")
        self.loss.append(loss)
        self.lr.append(lr)
        self.seconds = seconds

    def history(self) -> dict[str, Any]:
        """All that was noted, for the caller."""
        lists = {name: tuple(getattr(self, name)) for name in LISTS}
        return {**lists, "seconds": self.seconds, "best_epoch": self.best_epoch}


@dataclass
class Training:
    """The parts of a training that change from epoch to epoch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    objective: Any
    average: Average | None
    record: Record = field(default_factory=Record)

    def finish(self) -> None:
        """Give the model the weights that are wanted in the end: the best on validation, else their average."""
        wanted = self.record.best or (self.average.state if self.average is not None else {})
        if wanted:
            put(self.model, wanted)

    def tensors(self) -> dict[str, Tensor]:
        """All that is not a number, as ``group/name``."""
        groups: dict[str, dict[str, Tensor]] = {"model": self.model.state_dict(), "best": self.record.best}
        if self.average is not None:
            groups["average"] = self.average.state
        if hasattr(self.objective, "state_dict"):
            groups["objective"] = self.objective.state_dict()
        for i, state in self.optimizer.state_dict()["state"].items():
            held = {name: value for name, value in state.items() if value is not None}
            groups[f"optimizer.{i}"] = {name: torch.as_tensor(value) for name, value in held.items()}
        return {f"{group}/{name}": value for group, part in groups.items() for name, value in part.items()}

    def put(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Go on from what :meth:`tensors` gave."""

        def part(group: str) -> dict[str, Tensor]:
            return {name.partition("/")[2]: t for name, t in tensors.items() if name.partition("/")[0] == group}

        put(self.model, part("model"))
        self.record.best = part("best")
        if self.average is not None:
            home = self.average.state
            self.average.state = {name: value.to(home[name]) for name, value in part("average").items()}
            self.average.updates = updates
        if hasattr(self.objective, "load_state_dict"):
            self.objective.load_state_dict(part("objective"))
        whole = self.optimizer.state_dict()
        numbers = sorted({int(name.split("/")[0].split(".")[1]) for name in tensors if name.startswith("optimizer.")})
        self.optimizer.load_state_dict({**whole, "state": {i: part(f"optimizer.{i}") for i in numbers}})


@dataclass(frozen=True)
class ResumeFile:
    """A file of one training, which ``run`` tells from all others."""

    path: Path
    run: dict[str, Any]

    @property
    def _files(self) -> RunFiles:
        """Which those of this training are."""
        return RunFiles("resume", "fit()", self.run)

    def save(self, training: Training) -> None:
        """Write where the training is, whole or not at all.

        Raises:
            ValueError: for values of ``on_epoch`` that JSON does not hold.
        """
        facts = {name: getattr(training.record, name) for name in (*LISTS, "seconds")}
        updates = training.average.updates if training.average else 0
        try:
            scaler = training.scaler.state_dict()
            self._files.write(self.path, training.tensors(), record=facts, updates=updates, scaler=scaler)
        except TypeError as error:
            raise ValueError(f"on_epoch: want values that JSON holds, beside resume=, got others: {error}") from None

    def load(self, training: Training) -> Record:
        """Go on from the file, if it is there, else begin; returns the record.

        Raises:
            ValueError: if the file belongs to another training (the message names in what), or none can be written.
        """
        if not self.path.exists():
            require_writable(self.path, "resume")
            return training.record
        tensors, facts = self._files.read(self.path)
        for name, value in facts["record"].items():
            setattr(training.record, name, value)
        training.scaler.load_state_dict(facts["scaler"])
        training.put(tensors, facts["updates"])
        return training.record


def identity(model: nn.Module, x: Tensor, y: Tensor, objective: Any, told: tuple[Any, ...]) -> dict[str, Any]:
    """What tells one training from another: the model's tensors, the data, the objective, and the arguments of fit."""
    shapes = {name: [str(value.dtype), *value.shape] for name, value in model.state_dict().items()}
    digests = {
        "model": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:12],
        "data set": digest({"x": x, "y": y})[:12],
    }
    return {**digests, "objective": name_of(objective), **dict(zip(ARGUMENTS, told, strict=True))}


def with_arguments(factory: Callable[P, Made]) -> Callable[P, Made]:
    """Let the objective that a function makes say of which ``arguments`` it is, by name."""
    signature = inspect.signature(factory)

    @wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Made:
        made = factory(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        vars(made)["arguments"] = dict(given.arguments)
        return made

    return make


def name_of(given: Any) -> str:
    """A word as it is; the name of a function, with what `functools.partial` binds, or that of an object's class.

    ``arguments`` of an object, where it says them, stand behind its name.
    """
    if isinstance(given, partial):
        return f"{name_of(given.func)}({_listed(*given.args, **given.keywords)})"
    if isinstance(arguments := getattr(given, "arguments", None), dict):
        return f"{type(given).__qualname__}({_listed(**arguments)})"
    return given if isinstance(given, str) else getattr(given, "__qualname__", type(given).__qualname__)


def _listed(*args: Any, **kwargs: Any) -> str:
    return ", ".join([*map(_bound, args), *(f"{name}={_bound(value)}" for name, value in kwargs.items())])


def _bound(value: Any) -> str:
    """A number, a word or a few of them as they are; of all else who it is, since its ``repr`` may have an address."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_bound, value))}]"
    return repr(value) if isinstance(value, str | int | float | None) else name_of(value)
