"""Files written whole or not at all, tried before the work that they are for, and the digest of what they belong to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def require_writable(path: Path, argument: str = "out") -> None:
    """Raise a ValueError now, rather than after an hour of training, where a file could not be written to ``path``."""
    part = _part(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
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


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values, by which a file tells whether it belongs to these tensors."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
