"""The judge's side: starts the server, asks one question per test, and takes nothing that comes back on trust."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import robustlab
from assignments.grading.asking import Model, serving
from assignments.grading.isolation import AT_MOST, PATIENCE, WITH_MODEL, Limits, all_but
from assignments.grading.student import CHECKS
from assignments.grading.task import Lost
from robustlab.teaching import handout

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(robustlab.__file__).resolve().parent
LIMITS = Limits(seconds=10.0, memory_mb=2048, file_mb=64)
MAX_ANSWER = 32 * 2**20
START_S = 120.0


@dataclass(frozen=True)
class Answer:
    """What came back for one question.

    Attributes:
        value: what the function returned or the variable holds; whatever a student's process may have forged.
        seconds: of the wall clock, from the fork to the end.
        failed: the first cell that raised, and what; empty where none did.
    """

    value: Any
    seconds: float
    failed: str = ""


class Server:
    """A running server, for ``with``: it is started when first asked, and again after its death.

    Args:
        hidden: files and folders that no test may see, such as that of the key.
        blocked: modules that students must do without, such as ``"robustlab.attacks"``. The public checks are away in
            any case: calls of theirs do nothing.
        namespaces: False does without them, as on a system that has none.
    """

    def __init__(self, hidden: Iterable[Path] = (), blocked: Sequence[str] = (), *, namespaces: bool = True) -> None:
        away = [LIBRARY.parent.joinpath(*name.split(".")) for name in (*blocked, CHECKS)]
        secret = [path.resolve() for path in hidden]
        self.blocked, self.namespaces = list(blocked), namespaces
        self.readable = [str(path) for root in _roots() for path in all_but(root, [*away, *secret])]
        self.found: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._work = Path(tempfile.mkdtemp(prefix="grader-"))
        self._work.chmod(0o711)

    def __enter__(self) -> Server:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._work, ignore_errors=True)

    def ask(
        self,
        cells: Sequence[tuple[int, str]],
        name: str,
        arguments: Sequence[Any] = (),
        *,
        call: bool = True,
        given: Mapping[str, Any] | None = None,
        limits: Limits = LIMITS,
        model: Model | None = None,
    ) -> Answer:
        """Run the cells in a new process and call ``name`` there, or read it as a variable.

        ``given`` is the variant that the cells get from ``handout.load``, whatever name they ask for. ``model`` stays
        in this process, and is asked by a callable that the function gets before its other arguments.

        Raises:
            Lost: there is no answer, and why: an exception, the end of time or memory, or bytes that say nothing.
        """
        question = {"cells": list(cells), "name": name, "arguments": list(arguments), "call": call, "given": given}
        question["asks"] = model is not None
        payload = handout.pack(question)
        (ours, theirs), (answers, asks) = socket.socketpair(), socket.socketpair()
        header = {"size": len(payload), "limits": limits, "blocked": self.blocked, "readable": self.readable}
        header["patience"] = PATIENCE if model is None else WITH_MODEL
        with ours, answers:
            try:
                with theirs, asks:
                    handed = [theirs.fileno(), asks.fileno()]
                    socket.send_fds(self._running(), [json.dumps(header).encode()], handed)
                if model is not None:
                    serving(answers, model)
                wait = AT_MOST * limits["seconds"] + 10
                raw = _talk(ours, payload, time.monotonic() + wait)
                end = self._line(wait + 10)
            except OSError as error:
                self._stop()
                raise Lost(f"the process that ran the test was lost ({error})") from error
        return _answer(raw, end, limits)

    def _running(self) -> socket.socket:
        if self._process is None or self._process.poll() is not None:
            self._start()
        return self._control

    def _start(self) -> None:
        self._stop()
        ours, theirs = socket.socketpair()
        home = str(self._work)
        environment = {"PATH": os.defpath, "HOME": home, "MPLCONFIGDIR": home, "MPLBACKEND": "Agg", "LANG": "C.UTF-8"}
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        code = (
            f"import sys; sys.path[:0] = {[str(ROOT), str(LIBRARY.parent)]}; from assignments.grading import server; "
        )
        code += f"server.main({theirs.fileno()}, {home!r}, {self.readable!r}, {self.namespaces})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", code],
                env=environment,
                cwd="/",
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._control, self._reader = ours, ours.makefile("rb")
        self.found = self._line(START_S)

    def _line(self, seconds: float) -> dict[str, Any]:
        self._control.settimeout(seconds)
        line = self._reader.readline()
        if not line:
            raise ConnectionError("the server has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def _stop(self) -> None:
        if self._process is not None:
            self._reader.close()
            self._control.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def _roots() -> list[Path]:
    """Where Python, its packages, robustlab and the system's libraries lie."""
    paths = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), "/usr/lib", "/lib", "/lib64"}
    roots = {Path(path).resolve() for path in paths if path and Path(path).exists()}
    roots |= {LIBRARY}
    return sorted(root for root in roots if not any(parent in roots for parent in root.parents))


def _talk(channel: socket.socket, payload: bytes, deadline: float) -> bytes:
    """Hand over the question and read the answer, at most so much of it as is of any use."""
    with suppress(BrokenPipeError, ConnectionResetError):
        channel.settimeout(max(0.1, deadline - time.monotonic()))
        channel.sendall(payload)
    parts, size = list[bytes](), 0
    while size <= MAX_ANSWER:
        channel.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            part = channel.recv(1 << 20)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
        size += len(part)
    with suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)  # whoever would go on writing fails at once
    return b"".join(parts)


def _answer(raw: bytes, end: dict[str, Any], limits: Limits) -> Answer:
    if len(raw) > MAX_ANSWER:
        raise Lost(f"the answer has more than {MAX_ANSWER >> 20} MB")
    if end["beyond"] in ("processes", "memory"):
        raise Lost(f"all its processes together have more {end['beyond']} than a test may have")
    if end["beyond"] or end["ended"] == -signal.SIGXCPU:
        raise Lost(f"time-out: it took more than {limits['seconds']:g} s, all cells of the notebook included")
    if not raw:
        how = f"signal {-end['ended']}" if end["ended"] < 0 else f"exit status {end['ended']}"
        raise Lost(f"the process ended without an answer ({how}): out of memory or time, or it was told to end")
    try:
        back = handout.unpack(raw)
    except ValueError:
        raise Lost("the answer is no answer: what came back cannot be read") from None
    failed = back.get("failed")
    first = next(iter(failed.items()), None) if isinstance(failed, dict) else None
    cell = f"the cell that begins '{str(first[0])[:60]}' fails: {str(first[1])[:300]}" if first else ""
    if "error" in back:
        error = str(back["error"])
        where = f" ({cell})" if cell and error.startswith("NameError") else ""
        raise Lost((error + where)[:500])
    if "value" not in back:
        raise Lost("the answer is no answer: it has no value")
    return Answer(back["value"], end["seconds"], cell)
