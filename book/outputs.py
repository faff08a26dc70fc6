"""What the cells of a notebook show: the part that nbval compares, and what must never be stored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from robustlab.teaching.claims import OTHERWISE
from robustlab.teaching.reports import MARK, MOVING, UNEXPECTED
from robustlab.teaching.sounds import SOUND

# Strict nbval ignores pictures, and the widget view, whose identifiers are random.
_NOT_COMPARED = ("image/png", "image/jpeg", "application/vnd.jupyter.widget-view+json")

# Sliders and pictures may hold these letters by chance, so only text is searched.
_FORBIDDEN = {
    "a path of the machine": re.compile(r"/(?:home|root|Users|work|tmp|usr|opt|var)/|[A-Z]:\\\\|site-packages"),
    "a progress bar": re.compile(r"\r(?!\n)|\d+%\||\b(?:it/s|s/it)\b|[█▏▎▍▌▋▊▉]"),
    "a warning": re.compile(r"\b\w*Warning\b"),
    "an object's address": re.compile(r"\bat 0x[0-9a-f]{6,}"),
    "colored terminal text": re.compile(r"\x1b\["),
    "an expectation that did not hold": re.compile("|".join(text.split("{}")[1] for text in (UNEXPECTED, OTHERWISE))),
}


def joined(source: str | list[str]) -> str:
    """A cell's text, which notebooks store as one string or as a list of lines."""
    return source if isinstance(source, str) else "".join(source)


def compared_text(cell: dict[str, Any]) -> str:
    """Everything that a code cell shows as text, in order, as strict nbval compares it under tests/nbval.cfg."""
    return MOVING.sub(MARK, "\n".join(text for _, text in _texts(cell)))


def complaints(cell: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a cell's stored outputs, one line each."""
    for output in cell.get("outputs", ()):
        if output["output_type"] == "error":
            yield f"an error is stored: {output['ename']}: {output['evalue']}"
        if output.get("name") == "stderr":
            yield f"stderr is stored: {joined(output['text'])[:200]!r}"
        if "image/svg+xml" in output.get("data", {}):
            yield "an SVG is stored: nbval compares it byte by byte, so store a PNG"
    for _, text in _texts(cell):
        for what, pattern in _FORBIDDEN.items():
            found = pattern.search(text)
            if found:
                yield f"{what} is stored: {text[max(0, found.start() - 40) : found.end() + 40]!r}"


def _texts(cell: dict[str, Any]) -> Iterator[tuple[str, str]]:
    streams: dict[str, str] = {}  # a kernel may cut a stream in two wherever it likes, so nbval joins the pieces
    for output in cell.get("outputs", ()):
        if output["output_type"] == "stream":
            streams[output["name"]] = streams.get(output["name"], "") + joined(output["text"])
        for mime, content in output.get("data", {}).items():
            if mime not in _NOT_COMPARED:
                yield mime, SOUND.sub("a sound", joined(content))
    yield from streams.items()
