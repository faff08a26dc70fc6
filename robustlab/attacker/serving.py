"""A model of one's own behind an HTTP API on this machine, to rehearse attacks on an API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Lock, Thread
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.models.modes import evaluating


@contextmanager
def serving(
    model: Callable[[Tensor], Tensor],
    *,
    answer: Literal["scores", "labels"] = "scores",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rate: float | None = None,
) -> Iterator[str]:
    """A model behind an HTTP API on the loopback address, as :class:`~robustlab.attacker.remote.RemoteModel` asks it.

    Only this machine can reach it. The port is one that is free, and is closed when the block is left; the model is in
    evaluation mode inside the block. Requests are answered one after the other.

        with serving(net, answer="labels") as url:
            victim = Victim(RemoteModel(url, answer="labels"), access="hard")

    Args:
        model: from a batch (n, ...) to scores (n, K).
        answer: ``"scores"``, the probabilities softmax(z), or ``"labels"``, the top label alone.
        dtype, device: of the batches that the model is given.
        rate: requests per second that are answered at most; others get 429 with Retry-After. None for no limit.

    Yields:
        The URL.

    Raises:
        ValueError, TypeError: for a wrong argument.
    """
    checks.one_of("answer", answer, ("scores", "labels"))
    if rate is not None:
        checks.positive("rate", rate)

    def reply(body: bytes) -> bytes:
        told = model(torch.tensor(json.loads(body)["inputs"], dtype=dtype, device=device))
        rows = told.softmax(dim=1) if answer == "scores" else told.argmax(dim=1)
        return json.dumps({answer: rows.tolist()}).encode()

    with evaluating(model), running(_Server(reply, 0.0 if rate is None else 1 / rate)) as url:
        yield url


@contextmanager
def running(server: HTTPServer) -> Iterator[str]:
    """A server of the loopback address at work in a thread; yields its URL, and closes it."""
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    """Answers POST by ``reply``, no oftener than every ``gap`` seconds."""

    daemon_threads = True

    def __init__(self, reply: Callable[[bytes], bytes], gap: float) -> None:
        self.reply, self.gap, self.free, self.lock = reply, gap, 0.0, Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        """Without the look-up of the machine's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def answered(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers."""
        with self.lock:
            early = self.free - time.monotonic()
            if early > 0:
                return 429, b"{}", {"Retry-After": str(int(early) + 1)}
            self.free = time.monotonic() + self.gap
            try:
                with torch.no_grad():
                    return 200, self.reply(body), {}
            except (ValueError, LookupError, TypeError, RuntimeError) as error:
                return 400, json.dumps({"error": str(error)[:200]}).encode(), {}


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, answer, headers = self.server.answered(body)
        with suppress(ConnectionError):  # who no longer waits for the answer does not get it
            self.send_response(status)
            head = {"Content-Type": "application/json", "Content-Length": str(len(answer)), **headers}
            for name, value in head.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""
