"""A student's notebook as cells to run, read without trust: nothing in it is run, unpickled or unpacked to the disk."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

MAX_FILE, MAX_ENTRIES, MAX_CELLS = 20 * 2**20, 200, 500
SKIPPED = "experiment"
"""The tag of cells that the grader leaves out, as it does public checks: figures, on which no function depends."""


class Unreadable(Exception):
    """A submission that gets zero points, for the reason that it gives."""


def read(path: Path) -> list[tuple[int, str]]:
    """The code cells of a notebook, or of the one notebook in a zip: number and source, without magics.

    Raises:
        Unreadable: there is no such notebook, or it is too large, and why.
    """
    try:
        size = path.stat().st_size >> 20
        if size >= MAX_FILE >> 20:
            raise Unreadable(f"the file has {size} MB, want less than {MAX_FILE >> 20}: clear the outputs")
        raw = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"no notebook that can be read: {error.strerror}") from error
    return cells(_from_zip(raw) if raw[:2] == b"PK" else raw)


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
    return [(number, source) for number, cell in enumerate(listed) if (source := _code(cell))]


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
    if text.lstrip().startswith("%%"):
        return ""
    lines = text.splitlines()
    return "\n".join("pass" if line.startswith(("%", "!", "?")) else line for line in lines)


def _from_zip(raw: bytes) -> bytes:
    """The notebook in an archive. Sizes are counted while it unpacks, as its own word on them may be a lie."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise Unreadable(f"the zip has {len(entries)} entries, at most {MAX_ENTRIES} are read")
            outside = [entry.filename for entry in entries if _leaves(entry.filename)]
            if outside:
                raise Unreadable(f"the zip has entries outside of its folder, such as {outside[0][:80]!r}")
            found = [e for e in entries if e.filename.endswith(".ipynb") and not _hidden(e.filename)]
            if len(found) != 1:
                raise Unreadable(f"the zip holds {len(found)} notebooks, want exactly 1")
            with archive.open(found[0]) as file:
                text = file.read(MAX_FILE + 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise Unreadable(f"the zip cannot be read: {error}"[:200]) from None
    if len(text) > MAX_FILE:
        raise Unreadable(f"the notebook in the zip has more than {MAX_FILE >> 20} MB")
    return text


def _leaves(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else False


def _hidden(name: str) -> bool:
    """What systems add on their own: ``__MACOSX``, ``.ipynb_checkpoints``."""
    return any(part.startswith((".", "__")) for part in PurePosixPath(name).parts)
