"""What a federated simulation keeps of each round, and the files from which it goes on after a kill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from robustlab.files import require_writable, write_together

FORMAT = "robustlab.federated"


@dataclass(frozen=True, eq=False)
class Round:
    """One round, as it is kept.

    Attributes:
        state: of the global model after it, on the CPU.
        seen: what ``on_round`` returned.
        selected: its clients.
        norms: of their updates.
        seconds: of wall-clock time.
    """

    state: dict[str, Tensor]
    seen: Any
    selected: tuple[int, ...]
    norms: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class RoundFiles:
    """A folder with one safetensors file per round of one simulation, which ``run`` tells from all others."""

    folder: Path
    run: dict[str, Any]

    def path(self, number: int) -> Path:
        """The file of a round."""
        return self.folder / f"round_{number:05d}.safetensors"

    def save(self, number: int, round: Round) -> None:
        """Write a round, whole or not at all.

        Raises:
            ValueError: for values of ``on_round`` that JSON does not hold.
        """
        from safetensors.torch import save as serialize

        facts = {"seen": round.seen, "selected": round.selected, "norms": round.norms, "seconds": round.seconds}
        try:
            text = json.dumps({"run": self.run, **facts})
        except TypeError as error:
            raise ValueError(f"on_round: want values that JSON holds, beside resume=, got others: {error}") from None
        kept = {name: value.contiguous().clone() for name, value in round.state.items()}
        write_together({self.path(number): serialize(kept, {FORMAT: text})})

    def load(self, rounds: int) -> list[Round]:
        """The rounds that were done, from the first on without a gap, at most so many.

        Raises:
            ValueError: if a file is of another simulation (the message names in what), or none can be written.
        """
        from safetensors import SafetensorError, safe_open

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"resume: want a folder, got {self.folder}: {error.strerror}") from error
        require_writable(self.path(0), "resume")
        done: list[Round] = []
        while len(done) < rounds and self.path(len(done)).exists():
            path = self.path(len(done))
            try:
                with safe_open(path, "pt") as file:
                    facts = json.loads((file.metadata() or {})[FORMAT])
                    state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                raise ValueError(f"resume: want files that simulate() has written, got {path} ({error})") from None
            other = [name for name, value in self.run.items() if facts["run"].get(name) != value]
            if other:
                told = ", ".join(f"{name} ({facts['run'].get(name)}, here {self.run[name]})" for name in other)
                raise ValueError(f"resume: want the folder of this simulation, got {self.folder}, of another {told}")
            selected, norms = tuple(facts["selected"]), tuple(facts["norms"])
            done.append(Round(state, facts["seen"], selected, norms, facts["seconds"]))
        return done
