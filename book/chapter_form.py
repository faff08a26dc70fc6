"""Rules on the form of a chapter: executed, clean, captioned, small and quick. Each rule yields complaints."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from statistics import median
from typing import Any

from book.execute import MAX_BYTES, TIMING_KEY, install_cell, repository_url
from book.outputs import complaints, joined
from robustlab.teaching.claims import records_of

Notebook = dict[str, Any]
Cell = dict[str, Any]

MAX_SECONDS, MAX_MB, RUNS = 60.0, 2000, 3
_VIEW = "application/vnd.jupyter.widget-view+json"
_STATE = "application/vnd.jupyter.widget-state+json"
# A cell with one of these shows something; without outputs it was stripped.
_SHOWS = re.compile(r"^\s*(?:print|claim|plot\.slider|display)\(", re.MULTILINE)


def tags(cell: Cell) -> list[str]:
    return list(cell["metadata"].get("tags", ()))


def code_cells(notebook: Notebook) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: Cell) -> str:
    return joined(cell["source"])


def first_line(cell: Cell) -> str:
    return (source(cell).strip().splitlines() or ["(empty)"])[0]


def shown(cell: Cell, mime: str) -> list[Cell]:
    return [output for output in cell["outputs"] if mime in output.get("data", {})]


def executed(notebook: Notebook) -> Iterator[str]:
    """Every code cell was run, once, top to bottom, and its outputs are stored."""
    for place, cell in enumerate(code_cells(notebook), start=1):
        if cell["execution_count"] != place:
            yield f"code cell {place} has count {cell['execution_count']}: run `python -m book.execute`"
        expects = _SHOWS.search(source(cell)) or "figure" in cell["metadata"].get("mystnb", {})
        if expects and not cell["outputs"]:
            yield f"code cell {place} shows something, but no output is stored: {first_line(cell)!r}"


def clean_outputs(notebook: Notebook) -> Iterator[str]:
    """No error, stderr, warning, progress bar, address or path of a machine is stored."""
    for place, cell in enumerate(code_cells(notebook), start=1):
        yield from (f"code cell {place}: {problem}" for problem in complaints(cell))


def stable_source(notebook: Notebook) -> Iterator[str]:
    """No cell relies on a trailing semicolon, which nbval ignores, or is left out of the comparison."""
    for place, cell in enumerate(code_cells(notebook), start=1):
        if source(cell).rstrip().endswith(";"):
            yield f"code cell {place} ends with ';': assign the value instead"
        marks = {"raises-exception", "skip-execution", "nbval-skip", "nbval-ignore-output", "nbval-raises-exception"}
        if marks & set(tags(cell)) or "NBVAL_" in source(cell) or source(cell).startswith("%%"):
            yield f"code cell {place} opts out of the comparison"
        wide = [line for line in source(cell).splitlines() if len(line) > 88]
        if wide and "install" not in tags(cell):
            yield f"code cell {place} has a line of more than 88 characters: {wide[0]!r}"


def installs(notebook: Notebook) -> Iterator[str]:
    """The first code cell installs robustlab on hosted notebooks, from the one stated address."""
    first = code_cells(notebook)[0]
    if "install" not in tags(first) or source(first) != install_cell(repository_url()):
        yield "the first code cell is not `book.execute.install_cell` of the repository in _config.yml"
    if first["outputs"]:
        yield "the install cell shows something"


def figures(notebook: Notebook) -> Iterator[str]:
    """Every picture has a name, a caption and a text for readers who cannot see it; one to a cell."""
    for place, cell in enumerate(code_cells(notebook), start=1):
        pictures = shown(cell, "image/png") + shown(cell, "image/jpeg")
        marked = cell["metadata"].get("mystnb", {})
        if not pictures and not marked:
            continue
        if len(pictures) != 1 or len(cell["outputs"]) != 1:
            yield f"code cell {place} shows {len(cell['outputs'])} outputs: want one picture, alone in its cell"
        texts = {
            "name": marked.get("figure", {}).get("name", ""),
            "caption": marked.get("figure", {}).get("caption", ""),
            "alt": marked.get("image", {}).get("alt", ""),
        }
        for what, least in (("name", 5), ("caption", 40), ("alt", 30)):
            if len(texts[what].strip()) < least:
                yield f"code cell {place}: the figure's {what} is missing or too short: {texts[what]!r}"
        if texts["name"] and not texts["name"].startswith("fig-"):
            yield f"code cell {place}: the figure's name must start with 'fig-': {texts['name']!r}"


def sliders(notebook: Notebook) -> Iterator[str]:
    """A slider stands alone in its cell, after the figure with the same frames, and its state is stored."""
    cells = code_cells(notebook)
    state = notebook["metadata"].get("widgets", {}).get(_STATE, {}).get("state", {})
    for place, (before, cell) in enumerate(itertools.pairwise(cells), start=2):
        views = shown(cell, _VIEW)
        if not views:
            continue
        if len(cell["outputs"]) != 1:
            yield f"code cell {place}: a slider shares its cell with other outputs"
        if not shown(before, "image/png"):
            yield f"code cell {place}: no figure directly before the slider shows its frames on paper"
        if any(view["data"][_VIEW]["model_id"] not in state for view in views):
            yield f"code cell {place}: the slider's state is not stored in the notebook"


def claims(notebook: Notebook) -> Iterator[str]:
    """There are claims; each call left one verdict with its record; no two share an id."""
    seen: set[str] = set()
    for place, cell in enumerate(code_cells(notebook), start=1):
        calls = len(re.findall(r"^\s*claim\(", source(cell), re.MULTILINE))
        records = [record for output in cell["outputs"] for record in records_of(output)]
        if calls != len(records):
            yield f"code cell {place}: {calls} claims are made, {len(records)} verdicts are stored"
        for record in records:
            if record.id in seen:
                yield f"code cell {place}: claim {record.id!r} is made twice"
            seen.add(record.id)
    if not seen:
        yield "no claim is made"


def fences(notebook: Notebook) -> Iterator[str]:
    """A directive's first line holds no backtick: behind one, Markdown takes a fence of backticks for plain text."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for line in re.findall(r"^```+\{.*`.*$", source(cell), re.MULTILINE):
                yield f"a backtick in a directive's first line (want ::: or a title without roles): {line!r}"


def small(notebook: Notebook) -> Iterator[str]:
    """The file stays under a megabyte."""
    size = len(json.dumps(notebook, ensure_ascii=False, indent=1).encode())
    if size > MAX_BYTES:
        yield f"the notebook takes {size:,} bytes, want at most {MAX_BYTES:,}"


def quick(notebook: Notebook) -> Iterator[str]:
    """Three timed runs are recorded, with a median of at most 60 s and a peak of at most 2 GB."""
    timing = notebook["metadata"].get(TIMING_KEY, {"runs_s": [], "peak_mb": 0})
    runs = timing["runs_s"]
    if len(runs) < RUNS:
        yield f"{len(runs)} timed runs are recorded, want {RUNS}: run `python -m book.execute`"
    elif median(runs) > MAX_SECONDS:
        yield f"the median of its runs is {median(runs):.0f} s, want at most {MAX_SECONDS:.0f} s"
    if timing["peak_mb"] > MAX_MB:
        yield f"the peak memory is {timing['peak_mb']:.0f} MB, want at most {MAX_MB} MB"


RULES = (executed, clean_outputs, stable_source, installs, figures, sliders, claims, fences, small, quick)
