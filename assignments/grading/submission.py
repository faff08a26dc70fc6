"""What a student hands in, read without trust: nothing in it is run, unpickled or unpacked to the disk.

It is a notebook, read as cells to run, or data: an ``.npz``, or the weights of a network whose architecture is given,
as ``.safetensors``. Numbers are read from their bytes, never by the readers of other libraries. Each is taken alone or
from a zip.
"""

from __future__ import annotations

import io
import json
import math
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MAX_FILE, MAX_ENTRIES, MAX_CELLS, MAX_CODE, MAX_HEADER = 20 * 2**20, 200, 500, 2**19, 2**16
TYPES = {torch.float32: ("F32", "<f4"), torch.float64: ("F64", "<f8"), torch.int64: ("I64", "<i8")}
"""Of a network's tensors, the names that safetensors and NumPy have for them."""
SKIPPED = "experiment"
"""The tag of cells that the grader leaves out, as it does public checks: figures, on which no function depends."""


AROUND = ("%%capture", "%%time")
"""IPython's lines over a cell that it runs all the same; a cell under any other is not run."""


class Unreadable(Exception):
    """A submission that gets zero points, for the reason that it gives."""


def read(path: Path) -> list[tuple[int, str]]:
    """The code cells of a notebook, or of the one notebook in a zip: number and source, without magics.

    Raises:
        Unreadable: there is no such notebook, or it is too large, and why.
    """
    raw = _bytes(path, "notebook")
    return cells(_from_zip(raw, ".ipynb") if raw[:2] == b"PK" else raw)


def read_data(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The arrays of an ``.npz``, or of the one in a zip, that have the names and shapes that are asked for.

    Raises:
        Unreadable: it is no such file, an array is missing, of another shape, of objects or too large, and why.
    """
    raw = _bytes(path, "data")
    return arrays(raw if path.suffix == ".npz" else _from_zip(raw, ".npz"), shapes)


def arrays(raw: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The arrays in the bytes of an ``.npz``.

    Raises:
        Unreadable: as :func:`read_data`.
    """
    found = dict[str, Tensor]()
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for name, shape in shapes.items():
                if archive.namelist().count(f"{name}.npy") != 1:
                    raise Unreadable(f"the data have no array {name}")
                with archive.open(f"{name}.npy") as file:
                    found[name] = _array(file, name, shape)
    except Unreadable:
        raise
    except Exception as error:  # zipfile, each of its kinds of compression and NumPy's reader of headers have their own
        raise Unreadable(f"the data cannot be read: {error}"[:200]) from None
    return found


def _array(file: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """One array, of whose bytes no more are read than its shape and type need."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    got, columns_first, dtype = header(file)
    if got != shape or columns_first or dtype.kind not in "fiub" or dtype.itemsize > 8 or not dtype.isnative:
        raise Unreadable(f"{name} has shape {got} and type {dtype}, want {shape} of plain numbers, rows first"[:200])
    size = math.prod(shape) * dtype.itemsize
    raw = file.read(size + 1)
    if len(raw) != size:
        raise Unreadable(f"{name} has not the {size} bytes that it announces")
    values = np.frombuffer(raw, dtype=dtype).reshape(shape)
    return torch.from_numpy(values.astype(np.float64 if dtype.kind == "f" else np.int64))


def read_network(path: Path, architecture: nn.Module) -> nn.Module:
    """The network of a given architecture with the weights in a ``.safetensors``, or of the one in a zip.

    Args:
        path: of the file.
        architecture: takes the weights, if they are all that it has and nothing else; it comes back in eval mode.

    Raises:
        Unreadable: it is no such file, its header is too large, a tensor is missing, of another shape or type, not
            finite, or none of the architecture's, and why.
    """
    raw = _bytes(path, "network")
    return weights(raw if path.suffix == ".safetensors" else _from_zip(raw, ".safetensors"), architecture)


def weights(raw: bytes, architecture: nn.Module) -> nn.Module:
    """The network of a given architecture with the weights in the bytes of a ``.safetensors``.

    Raises:
        Unreadable: as :func:`read_network`.
    """
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > min(MAX_HEADER, len(raw) - 8):
        raise Unreadable(f"the network cannot be read: {len(raw)} bytes with a header of {size}, at most {MAX_HEADER}")
    try:
        header = json.loads(raw[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the network's header does not parse: {error}"[:200]) from None
    wanted = architecture.state_dict()
    names = set(header) - {"__metadata__"} if isinstance(header, dict) else set()
    for name in sorted(names ^ set(wanted)):
        has = "has no" if name in wanted else "has a"
        raise Unreadable(f"the network {has} tensor {name[:80]!r}: want {', '.join(wanted)}"[:400])
    body = memoryview(raw)[8 + size :]
    architecture.load_state_dict({name: _tensor(name, header[name], like, body) for name, like in wanted.items()})
    return architecture.eval().requires_grad_(False)


def _tensor(name: str, entry: Any, like: Tensor, body: memoryview) -> Tensor:
    """One tensor of a safetensors file, if it has the shape and the type of ``like`` and is finite."""
    kind, in_numpy = TYPES[like.dtype]
    shape, size = list(like.shape), like.numel() * like.element_size()
    entry = entry if isinstance(entry, dict) else {}
    if entry.get("dtype") != kind or entry.get("shape") != shape:
        got = f"{entry.get('dtype')} and {entry.get('shape')}"
        raise Unreadable(f"{name} has type and shape {got}, want {kind} and {shape}"[:200])
    match entry.get("data_offsets"):
        case [int(start), int(end)] if 0 <= start == end - size <= len(body) - size:
            values = torch.from_numpy(np.frombuffer(body[start:end], dtype=in_numpy).reshape(shape).copy())
        case _:
            raise Unreadable(f"{name} has not the {size} bytes that its shape needs")
    if not bool(values.isfinite().all()):
        raise Unreadable(f"{name} has numbers that are not finite")
    return values


def _bytes(path: Path, what: str) -> bytes:
    try:
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            raise Unreadable(f"no {what} that can be read: the folder has none, or more than one")
        if not stat.S_ISREG(found.st_mode):  # a link may lead to another's, and a pipe or a device never ends
            raise Unreadable(f"no {what} that can be read: it is a link or a device, and no file")
        size = found.st_size >> 20
        if size >= MAX_FILE >> 20:
            raise Unreadable(f"the file has {size} MB, want less than {MAX_FILE >> 20}: clear the outputs")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"no {what} that can be read: {error.strerror}") from error


def cells(raw: bytes) -> list[tuple[int, str]]:
    """The code cells in the bytes of a notebook.

    Raises:
        Unreadable: they are none.
    """
    try:
        notebook = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the notebook does not parse: {error}"[:200]) from None
    listed = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_CELLS:
        raise Unreadable(f"the file is no notebook of format 4 with at most {MAX_CELLS} cells")
    found = [(number, source) for number, cell in enumerate(listed) if (source := _code(cell))]
    size = sum(len(source) for _, source in found)
    if size > MAX_CODE:
        raise Unreadable(f"the notebook has {size} letters of code, want at most {MAX_CODE}")
    return found


def _code(cell: Any) -> str:
    """The source of a code cell that is to be run, without IPython's own lines; else nothing."""
    if not isinstance(cell, dict) or cell.get("cell_type") != "code":
        return ""
    source, metadata = cell.get("source", ""), cell.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    tags, mark = metadata.get("tags"), metadata.get("nbgrader")
    public_check = isinstance(mark, dict) and mark.get("grade") and not mark.get("solution")
    if public_check or (isinstance(tags, list) and SKIPPED in tags):
        return ""
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    magic, _, body = text.lstrip().partition("\n")
    if magic.startswith("%%"):
        text = body if magic.split()[0] in AROUND else ""
    lines = text.splitlines()
    return "\n".join("pass" if line.startswith(("%", "!", "?")) else line for line in lines)


def _from_zip(raw: bytes, ending: str) -> bytes:
    """The one file with an ending in an archive. Sizes are counted while it unpacks: its own word may be a lie."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise Unreadable(f"the zip has {len(entries)} entries, at most {MAX_ENTRIES} are read")
            outside = [entry.filename for entry in entries if _leaves(entry.filename)]
            if outside:
                raise Unreadable(f"the zip has entries outside of its folder, such as {outside[0][:80]!r}")
            found = [e for e in entries if e.filename.endswith(ending) and not hidden(e.filename)]
            if len(found) != 1:
                raise Unreadable(f"the zip holds {len(found)} files *{ending}, want exactly 1")
            with archive.open(found[0]) as file:
                text = file.read(MAX_FILE + 1)
    except Unreadable:
        raise
    except Exception as error:  # zipfile and each of its kinds of compression have their own
        raise Unreadable(f"the zip cannot be read: {error}"[:200]) from None
    if len(text) > MAX_FILE:
        raise Unreadable(f"what is in the zip has more than {MAX_FILE >> 20} MB")
    return text


def _leaves(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else False


def hidden(name: str) -> bool:
    """What systems add on their own: ``__MACOSX``, ``.ipynb_checkpoints``."""
    return any(part.startswith((".", "__")) for part in PurePosixPath(name).parts)
