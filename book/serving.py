"""The built book, served on the loopback address, and what a browser is started with that visits it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from robustlab.attacker.serving import running

BROWSER_ARGUMENTS = [
    "--no-sandbox",  # CI runs as root in containers
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


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
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as address:
        yield address
