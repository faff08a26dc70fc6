"""The built book, served on the loopback address, and the browser that visits it."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
NOT_BUILT = "the book is not built: run `make book` first"

BROWSER_ARGUMENTS = [
    "--no-sandbox",  # CI runs as root in containers
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def pages() -> list[str]:
    """All pages of the built book, as paths below its root; a single telling name if there is none.

    Left out are the page at the root, which only sends readers on to the first page, and the theme's templates.
    """
    found = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))
    return [page for page in found if page != "index.html" and not page.startswith("_static/")] or [NOT_BUILT]


def chapters() -> list[str]:
    """The pages that were chapters' notebooks."""
    return [page for page in pages() if page.startswith("chapters/")] or [NOT_BUILT]


def some(found: list[str], number: int) -> list[Any]:
    """Parameters: ``number`` of the pages, the longest and the shortest among them; the others are marked full."""
    by_size = sorted(found, key=lambda page: (HTML / page).stat().st_size if (HTML / page).is_file() else 0)
    kept = {by_size[k * (len(by_size) - 1) // max(number - 1, 1)] for k in range(number)}
    return [page if page in kept else pytest.param(page, marks=pytest.mark.full) for page in found]


def documented_policy() -> str:
    """The Content-Security-Policy that the page *How to use this book* gives to hosts."""
    page = (ROOT / "book" / "how_to_use.md").read_text(encoding="utf-8")
    (policy,) = re.findall(r"^Content-Security-Policy: (.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return " ".join(policy.split())


class _Silent(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, policy: str, **others: Any) -> None:
        self.policy = policy
        super().__init__(*arguments, **others)

    def end_headers(self) -> None:
        """With the policy, where there is one."""
        if self.policy:
            self.send_header("Content-Security-Policy", self.policy)
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Says nothing: the requests would fill the tests' output."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """A browser that leaves a page hangs up on what it was still loading: no reason for a traceback."""
        with suppress(ConnectionError):
            super().copyfile(source, outputfile)


@contextmanager
def serve(folder: Path, policy: str = "") -> Iterator[str]:
    """Serves ``folder`` on the loopback address; yields the address, with a slash at its end.

    Args:
        folder: what is served.
        policy: the Content-Security-Policy that is sent with every file; none by default.
    """
    handler = functools.partial(_Silent, directory=str(folder), policy=policy)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
