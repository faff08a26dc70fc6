"""Run chapters and store what they show: ``python -m book.execute [CHAPTER ...] [--runs 3]``.

Every chapter runs top to bottom in a fresh kernel, several times. The runs must show the same text (pictures
may differ), or nothing is written: what flips here would flip in the tests. The last run's outputs are
stored, without what changes from machine to machine; the times of all runs and the peak memory go into the
notebook's metadata, from where the page of execution times reads them.

How a chapter is marked up, and how that reaches the page (tests/book holds all of it):

* A figure cell shows one picture and nothing else. Its caption, its name and its text for readers who cannot
  see it stand in the cell's metadata: ``{"mystnb": {"figure": {"name": "fig-01-x", "caption": "..."},
  "image": {"alt": "..."}}}``. The book builder makes them a captioned figure that ``{ref}`` can name.
* A slider cell shows one slider and nothing else, and directly follows the figure cell with the same frames.
* The cell tagged ``install`` is the first code cell; its text is `install_cell`, written by this command.
* Tags ``part-...`` mark the parts of the anatomy, ``from-scratch``, ``equality``, ``solution`` the cells.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from book.outputs import compared_text, complaints
from robustlab.teaching.reports import STRICT

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ROOT / "chapters"
TIMING_KEY = "robustlab_timing"
MAX_BYTES = 1_000_000
CELL_TIMEOUT_S = 300
_WIDGETS = "application/vnd.jupyter.widget-state+json"
_KEEP_LANGUAGE = ("name", "file_extension", "mimetype", "pygments_lexer")
_COST = "import resource; r = resource.getrusage(resource.RUSAGE_SELF); print(r.ru_utime + r.ru_stime, r.ru_maxrss)"


def repository_url(config: Path = ROOT / "_config.yml") -> str:
    """The address of the repository, from the one place where it stands."""
    return str(yaml.safe_load(config.read_text(encoding="utf-8"))["repository"]["url"])


def version(project: Path = ROOT / "pyproject.toml") -> str:
    """The version of robustlab that the chapters were written for."""
    return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def install_cell(url: str) -> str:
    """Source of a chapter's first code cell, which installs robustlab on Colab and Binder: the release of its version.

    A chapter that somebody opens years later still meets the library that it was tested with.
    """
    return f"""# On Colab or Binder this installs robustlab; anywhere else it does nothing.
import importlib.util
import os
import subprocess
import sys

hosted = "google.colab" in sys.modules or "BINDER_SERVICE_HOST" in os.environ
if hosted and importlib.util.find_spec("robustlab") is None:
    source = "robustlab @ git+{url}@v{version()}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)
    importlib.invalidate_caches()"""


def execute(path: Path, *, runs: int = 3, url: str | None = None) -> tuple[list[float], float]:
    """Run a chapter ``runs`` times and store the outputs of the last run in it.

    Args:
        path: the notebook.
        runs: number of runs, each in a fresh kernel (default 3).
        url: address of the repository (default: the one in ``_config.yml``).

    Returns:
        Seconds of each run, and the largest peak memory of the kernel in MB.

    Raises:
        ValueError: outputs hold an error, stderr, a progress bar or a path of this machine; the text differs
            between two runs; or the notebook becomes too large. The file is then left as it was.
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    text = path.read_text(encoding="utf-8")
    seconds, peaks, shown = [], [], []
    for _ in range(runs):
        notebook = nbformat.reads(text, as_version=4)
        _refresh_install_cell(notebook, repository_url() if url is None else url)
        took, peak = _run(notebook, path.parent)
        seconds.append(round(took, 2))
        peaks.append(round(peak))
        shown.append([compared_text(cell) for cell in notebook.cells if cell.cell_type == "code"])
    for index, texts in enumerate(zip(*shown, strict=True)):
        if len(set(texts)) > 1:
            raise ValueError(f"{path.name}: code cell {index} shows different text in different runs: {set(texts)}")
    notebook.metadata[TIMING_KEY] = {"runs_s": seconds, "peak_mb": max(peaks)}
    _normalize(notebook, path.stem)
    found = [line for cell in notebook.cells for line in complaints(cell)]
    if found:
        raise ValueError(f"{path.name}: " + "; ".join(found))
    written = nbformat.writes(notebook, ensure_ascii=False) + "\n"
    if len(written.encode()) > MAX_BYTES:
        raise ValueError(f"{path.name}: {len(written.encode()):,} bytes, want at most {MAX_BYTES:,}")
    nbformat.validate(notebook)
    path.write_text(written, encoding="utf-8")
    return seconds, max(peaks)


def _refresh_install_cell(notebook: NotebookNode, url: str) -> None:
    for cell in notebook.cells:
        if "install" in cell.metadata.get("tags", ()):
            cell.source = install_cell(url)
            cell.metadata.setdefault("jupyter", {})["source_hidden"] = True


def _run(notebook: NotebookNode, folder: Path) -> tuple[float, float]:
    """Execute all cells in place; returns the processor's seconds, the kernel's start included, and peak memory in MB.

    On one thread they are those of a clock on a core of its own, and a busy machine does not change them much.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    with client.setup_kernel(env={"OMP_NUM_THREADS": "1", **os.environ, STRICT: "1"}):
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        notebook.cells.append(nbformat.v4.new_code_cell(_COST))
        probe = client.execute_cell(notebook.cells[-1], len(notebook.cells) - 1)
        notebook.cells.pop()
        client.set_widgets_metadata()
    took, peak = map(float, probe.outputs[0].text.split())
    return took, peak / 1024


def _normalize(notebook: NotebookNode, stem: str) -> None:
    """Leave nothing in the file that says when and where it ran."""
    language = {"name": "python", **notebook.metadata.get("language_info", {})}
    notebook.metadata.language_info = {key: language[key] for key in _KEEP_LANGUAGE if key in language}
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            png = output.get("data", {}).get("image/png")
            if png:
                output.data["image/png"] = _smaller(png)
    _name_widgets(notebook, stem)


def _smaller(png: str) -> str:
    """The same picture with at most 256 colors, where that takes fewer bytes."""
    raw = base64.b64decode(png)
    buffer = io.BytesIO()
    flat = Image.open(io.BytesIO(raw)).convert("RGB")
    flat.quantize(256, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return base64.b64encode(min(raw, buffer.getvalue(), key=len)).decode("ascii")


def _name_widgets(notebook: NotebookNode, stem: str) -> None:
    """Give widgets names that follow from the chapter: the kernel draws new random ones in each run."""
    state: dict[str, Any] = notebook.metadata.get("widgets", {}).get(_WIDGETS, {}).get("state", {})
    text = json.dumps(notebook)
    for place, old in enumerate(state):
        text = text.replace(old, hashlib.sha256(f"{stem}-{place}".encode()).hexdigest()[:32])
    notebook.update(nbformat.from_dict(json.loads(text)))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m book.execute", description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", type=Path, help="notebooks (default: all in chapters/)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each chapter (default 3)")
    chosen = parser.parse_args(arguments)
    failed = 0
    for path in chosen.chapters or sorted(CHAPTERS.glob("*.ipynb")):
        print(f"{path.name} ...", end=" ", flush=True)
        try:
            seconds, peak = execute(path.resolve(), runs=chosen.runs)
        except Exception as problem:  # one broken chapter must not keep the others from running
            failed += 1
            print(f"FAILED\n{problem}", file=sys.stderr)
        else:
            print(f"{', '.join(f'{second:.1f} s' for second in seconds)}; {peak:.0f} MB")
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
