"""Files written whole or not at all, tried before the work that they are for, and the digest of what they belong to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def _apart(*values: object, most: int = 40) -> tuple[str, ...]:
    """What is said of two values, cut to where they differ."""
    said = [str(value) for value in values]
    alike = next((i for i, letters in enumerate(zip(*said, strict=False)) if len(set(letters)) > 1), 0)
    start = 0 if alike < most - 10 else alike - 10
    return tuple(("…" if start else "") + text[start : start + most] for text in said)


def require_writable(path: Path, argument: str = "out") -> None:
    """Raise a ValueError now, rather than after an hour of training, where a file could not be written to ``path``."""
    part = _part(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if path.exists() and not path.is_file():  # a device, which the rename of a new file would take away
            raise OSError(None, "it is no file")
        part.touch()
        part.unlink()
    except OSError as error:
        raise ValueError(
            f"{argument}: want a file in a folder that takes files, got {path}: {error.strerror}"
        ) from error


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write several files: all of them, or none, and then the old ones stay as they are.

    Everything is on the disk under other names before the first is renamed, so a full disk or an interruption while
    writing changes nothing; files that are renamed one after the other should be given in the order of their need.
    """
    try:
        for path, raw in contents.items():
            with open(_part(path), "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        for path in contents:
            _part(path).unlink(missing_ok=True)
        raise
    for path in contents:
        os.replace(_part(path), path)


@dataclass(frozen=True)
class RunFiles:
    """Safetensors files of one run, from which it goes on after a kill: tensors, and facts that JSON holds.

    Attributes:
        argument: of the caller, which errors name.
        writer: the function whose files these are.
        run: what tells the run from all others, by name.
    """

    argument: str
    writer: str
    run: Mapping[str, Any]

    def write(self, path: Path, tensors: Mapping[str, Tensor], **facts: Any) -> None:
        """Write a file, whole or not at all.

        Raises:
            TypeError: for facts that JSON does not hold.
        """
        from safetensors.torch import save

        told = json.dumps({"run": dict(self.run), **facts})
        kept = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        write_together({path: save(kept, {_FORMAT: told})})

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts of a file.

        Raises:
            ValueError: if the file is of another kind, or of another run: the message names in what.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})[_FORMAT])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise self.unlike(path, str(error)) from None
        known = facts.pop("run", None) if isinstance(facts, dict) else None
        if not isinstance(known, dict):
            raise self.unlike(path, "without a run")
        other = [name for name, value in self.run.items() if known.get(name) != value]
        if other:
            told = ", ".join(f"{name} ({', here '.join(_apart(known.get(name), self.run[name]))})" for name in other)
            raise ValueError(f"{self.argument}: want that of this run, got {path}, of another {told}")
        return tensors, facts

    def unlike(self, path: Path, why: str) -> ValueError:
        """The error for a file that its writer cannot have written."""
        return ValueError(f"{self.argument}: want a file that {self.writer} has written, got {path}: {why}")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values, by which a file tells whether it belongs to these tensors."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


_FORMAT = "robustlab"


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
