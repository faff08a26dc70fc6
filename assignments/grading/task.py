"""What an assignment's ``tasks.py`` is written with: tests that ask a student's process, and judge outside of it."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustlab.teaching import handout

SOURCES = Path(__file__).resolve().parents[1]
VARIANTS = 12
"""How many variants of an assignment a course hands out."""
METHODS = tuple(
    f"robustlab.{name}"
    for name in ("attacker", "attacks", "defenses", "evaluation", "geometry", "graph", "training", "verification")
)
"""The packages of robustlab that hold methods and their parts. Notebooks that are handed in have to do without them."""
NETWORK = "network"
"""The name by which judges get a network that was handed in."""
JUDGES = "judge"
"""What a variant holds under this name stays with the judge: it is in the grader's pack and not handed out."""


class Lost(Exception):
    """Points are lost, for the reason that it gives."""


@dataclass(frozen=True)
class Test:
    """One question to a student's process, and what it takes to be right.

    Attributes:
        name: a word, unique in the assignment.
        points: what it is worth, all or nothing.
        cell: the ``grade_id`` of the notebook's cell that announces these points.
        asks: the function to call, or the variable to read.
        judge: takes what came back, whatever it is, and raises `Lost` with a reason.
        arguments: of the call; copies go to the student's process.
        call: False to read a variable.
        seconds: of the processor, for the notebook's cells and the call; on a busy machine they may take three times
            as long.
        model: what the function may ask, by a callable that is its first argument; the model stays with the judge. It
            is asked anew in each test, so a counter of its own counts one test.
    """

    name: str
    points: int
    cell: str
    asks: str
    judge: Callable[[Any], None]
    arguments: Sequence[Any] = field(default=(), repr=False)
    call: bool = True
    seconds: float = 10.0
    model: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    __test__: ClassVar[bool] = False  # pytest takes it for one of its own


@dataclass(frozen=True)
class Assignment:
    """An assignment of the course: its folder, and the module that draws variants and tests.

    Attributes:
        tasks: has ``BLOCKED``, modules to do without, most often `METHODS`; ``draw(seed, worked) -> dict``, a variant,
            of the kind that the instructor's copy works out where ``worked``, and of another kind for all students;
            and ``tests(seed, mine) -> list[Test]`` for the variant ``mine``. Where it has ``DATA``, array → shape, then
            arrays are handed in, as an ``.npz``, and every judge gets all of them by their names. Where it has
            ``architecture() -> nn.Module``, the weights of such a network are handed in, as ``.safetensors``, and every
            judge gets ``{"network": it}``, in eval mode.
        variants: a folder with the variants that were handed out, as the grader's pack has it: they are read and not
            drawn again, since a network that was trained on another machine is another one. None draws them.
    """

    name: str
    folder: Path
    tasks: ModuleType
    variants: Path | None = None

    @property
    def source(self) -> Path:
        """The one notebook from which all copies are made."""
        return self.folder / "source.ipynb"

    @property
    def data(self) -> dict[str, tuple[int, ...]] | None:
        """The arrays that are handed in; None where it is the notebook."""
        shapes: dict[str, tuple[int, ...]] | None = getattr(self.tasks, "DATA", None)
        return shapes

    @property
    def network(self) -> nn.Module | None:
        """The architecture, made anew, whose weights are handed in; None where no network is."""
        make: Callable[[], nn.Module] | None = getattr(self.tasks, "architecture", None)
        return None if make is None else make()

    @property
    def read(self) -> tuple[str, str]:
        """The endings of files that are graded."""
        return (".npz" if self.data is not None else ".safetensors" if self.network is not None else ".ipynb", ".zip")

    def variant(self, key: str, student: str) -> dict[str, Any]:
        """What a student was given, and what of it the judge alone has."""
        instructors = student.strip().lower() == handout.INSTRUCTOR
        number = handout.INSTRUCTOR if instructors else f"{handout.variant_number(student, VARIANTS):02}"
        if self.variants is None:
            return self.draw(key, number)
        return handout.unpack((self.variants / f"{number}.safetensors").read_bytes())

    def draw(self, key: str, number: str) -> dict[str, Any]:
        """The variant of a number, or the instructor's."""
        drawn: dict[str, Any] = self.tasks.draw(seed_of(key, self.name, number), number == handout.INSTRUCTOR)
        return drawn

    def tests(self, key: str, student: str) -> list[Test]:
        """The hidden tests of a student, on networks and inputs that the key draws."""
        number = str(handout.variant_number(student, VARIANTS))
        found: list[Test] = self.tasks.tests(seed_of(key, self.name, "hidden", number), self.variant(key, student))
        return found


def handed_out(variant: dict[str, Any]) -> dict[str, Any]:
    """A variant without what the judge alone has."""
    return {name: value for name, value in variant.items() if name != JUDGES}


def load(name: str, variants: Path | None = None) -> Assignment:
    """The assignment of a folder such as ``"02_pgd"``, with the variants of a folder, or of its own pack.

    Raises:
        ValueError: there is none.
    """
    folder = SOURCES / name
    if name not in names():
        raise ValueError(f"name: want one of {names()}, got {name!r}")
    module = f"assignments_{name}"
    spec = importlib.util.spec_from_file_location(module, folder / "tasks.py")
    assert spec is not None and spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    sys.modules[module] = tasks
    spec.loader.exec_module(tasks)
    own = folder / "variants"
    return Assignment(name, folder, tasks, variants or (own if own.is_dir() else None))


def names() -> list[str]:
    """The assignments, in the order of the course."""
    return sorted(file.parent.name for file in SOURCES.glob("[0-9][0-9]_*/tasks.py"))


def seed_of(key: str, *names: str) -> int:
    """A seed below 2⁶³ that nobody without the course's key can tell."""
    return int.from_bytes(hmac.new(key.encode(), "/".join(names).encode(), hashlib.sha256).digest()[:8], "big") >> 1


def plain(text: str) -> str:
    """A stranger's text in one line, with a mark for each letter that no file takes or that a terminal obeys."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def tensor_like(value: Any, like: Tensor) -> Tensor:
    """What came back, if it is a finite tensor with the shape and dtype of ``like``; in double precision.

    Raises:
        Lost: it is not.
    """
    if not isinstance(value, Tensor):
        raise Lost(f"it returned a {type(value).__name__}, want a tensor")
    if value.shape != like.shape or value.dtype != like.dtype:
        got, want = (f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in (value, like))
        raise Lost(f"it returned {got}, want {want}")
    value = value.double()
    if not bool(torch.isfinite(value).all()):
        raise Lost("the result has numbers that are not finite")
    return value


def require(holds: Any, reason: str) -> None:
    """Raises `Lost` with the reason unless it holds."""
    if not bool(holds):
        raise Lost(reason)
