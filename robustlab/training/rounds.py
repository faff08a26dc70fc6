"""What a federated simulation keeps of each round, and the files from which it goes on after a kill."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from robustlab.files import RunFiles, require_writable


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
class Rounds:
    """A folder with one safetensors file per round of one simulation, which ``run`` tells from all others."""

    folder: Path
    run: dict[str, Any]

    @property
    def _files(self) -> RunFiles:
        """Which those are."""
        return RunFiles("resume", "simulate()", self.run)

    def path(self, number: int) -> Path:
        """The file of a round."""
        return self.folder / f"round_{number:05d}.safetensors"

    def save(self, number: int, round: Round) -> None:
        """Write a round, whole or not at all.

        Raises:
            ValueError: for values of ``on_round`` that JSON does not hold.
        """
        facts = {"seen": round.seen, "selected": round.selected, "norms": round.norms, "seconds": round.seconds}
        try:
            self._files.write(self.path(number), round.state, **facts)
        except TypeError as error:
            raise ValueError(f"on_round: want values that JSON holds, beside resume=, got others: {error}") from None

    def load(self, rounds: int) -> list[Round]:
        """The rounds that were done, from the first on without a gap, at most so many.

        Raises:
            ValueError: if a file is of another simulation (the message names in what), or none can be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"resume: want a folder, got {self.folder}: {error.strerror}") from error
        require_writable(self.path(0), "resume")
        done: list[Round] = []
        while len(done) < rounds and self.path(len(done)).exists():
            state, facts = self._files.read(self.path(len(done)))
            selected, norms = tuple(facts["selected"]), tuple(facts["norms"])
            done.append(Round(state, facts["seen"], selected, norms, facts["seconds"]))
        return done
