"""Builds the web book to _build/html, with every warning an error: ``python -m book.build [--fresh]``.

Jupyter Book turns _config.yml into Sphinx settings; this script takes them and calls Sphinx itself, because
the stock command cannot leave out the extensions that put other hosts' scripts on every page.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pybtex.plugin
from docutils.nodes import document
from jupyter_book.config import get_final_config
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.console import color_terminal, nocolor
from sphinx.util.docutils import docutils_namespace, patch_docutils

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"

# sphinx_thebe declares a global twice on every page; the others load from other hosts, or would.
UNWANTED = {"sphinx_thebe", "sphinx_comments", "sphinx.ext.intersphinx"}

FIRST_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<meta http-equiv="refresh" content="0; url={page}">
</head>
<body><main><h1>{title}</h1><p><a href="{page}">Open the book</a></p></main></body>
</html>
"""


def sphinx_settings(root: Path = ROOT) -> dict[str, Any]:
    """The settings of _config.yml in Sphinx's terms, less the unwanted extensions."""
    settings, _ = get_final_config(
        user_yaml=root / "_config.yml",
        cli_config={"latex_individualpages": False},
        sourcedir=root,
        raise_on_invalid=True,
    )
    settings["extensions"] = [name for name in settings["extensions"] if name not in UNWANTED]
    for key in ("latex_doc_overrides", "comments_config"):
        settings.pop(key, None)
    return settings


def build(root: Path = ROOT, *, fresh: bool = False) -> bool:
    """Builds the book; returns whether it came out without an error or a warning.

    Args:
        root: the folder of _config.yml and _toc.yml.
        fresh: build from nothing, instead of only the pages whose sources changed.
    """
    # A relative path in the settings is relative to the root, which holds no conf.py to say so.
    sys.path.insert(0, str(root))
    output, doctrees = root / "_build" / "html", root / "_build" / "doctrees"
    # Sphinx did not come to an end on pages that it had read under another table of contents.
    read = doctrees / "environment.pickle"
    newest = max(path.stat().st_mtime for path in (root / "_toc.yml", root / "_config.yml"))
    if fresh or (read.exists() and newest > read.stat().st_mtime):
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(doctrees, ignore_errors=True)
    if not color_terminal():
        nocolor()
    clean = False
    try:
        app = _run_sphinx(root, output, doctrees)
        clean = app.statuscode == 0
    finally:
        # Sphinx warns about a page only when it reads it: without this, a second try would pass.
        if not clean:
            shutil.rmtree(doctrees, ignore_errors=True)
    if not clean:
        return False
    start = app.config.root_doc + ".html"
    (output / "index.html").write_text(FIRST_PAGE.format(title=app.config.html_title, page=start), "utf-8")
    return True


def _run_sphinx(root: Path, output: Path, doctrees: Path) -> Sphinx:
    """One silent run of Sphinx, but for its warnings."""
    # For each citation pybtex reads the metadata of all installed packages: a third of the time of writing pages.
    plugins = patch.object(pybtex.plugin, "find_plugin", cache(pybtex.plugin.find_plugin))
    with patch_docutils(str(root)), docutils_namespace(), plugins:
        app = Sphinx(
            srcdir=root,
            confdir=None,
            outdir=output,
            doctreedir=doctrees,
            buildername="html",
            confoverrides=sphinx_settings(root),
            status=None,
            warning=sys.stderr,
            warningiserror=True,
            keep_going=True,
        )
        app.connect("doctree-read", _one_document)
        app.connect("env-updated", _write_on_two_processes)
        app.build()
    return app


def _one_document(_app: Sphinx, page: document) -> None:
    """All nodes of a page belong to it.

    MyST reads directives of reStructuredText into a document of their own, whose settings lead to all that is known of
    the book. Pickled with each page of the reference that is 4 MB, and most of the time of reading and writing it.
    """
    for node in page.findall():
        node.document = page


def _write_on_two_processes(app: Sphinx, _env: BuildEnvironment) -> None:
    """Pages are read by one process, since not all extensions can merge what two have read."""
    app.parallel = 2


def main() -> int:
    """Writes the generated pages, builds, and says where to open the book."""
    parser = argparse.ArgumentParser(description="Build the web book to _build/html.")
    parser.add_argument("--fresh", action="store_true", help="build from nothing")
    arguments = parser.parse_args()
    gc.set_threshold(50_000, 10, 10)  # nearly all of a page's many small objects stay: looking for others is dear
    from book.generate import write_generated

    try:
        HTML.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=HTML).close()  # a folder that is there may be read-only
        write_generated()
    except OSError as error:
        print(f"The book is built inside the checkout, which cannot be written to: {error}", file=sys.stderr)
        return 1
    if not build(fresh=arguments.fresh):
        print("\nThe book has warnings, and they count as errors: see above.", file=sys.stderr)
        return 1
    print(f"\nThe book is built. Open  {(HTML / 'index.html').as_uri()}")
    print("or serve it:  make serve  (then open http://localhost:8000)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
