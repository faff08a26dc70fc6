"""The clean server: imports torch once, then forks one confined process per test.

It is started by the judge with an empty environment and a socket, knows no expectation, solution or seed, and never
reads what goes to a test or comes from it: each test gets sockets of its own, one for its question and one for the
model that it may ask, which the server only passes on. So the next student's process, a copy of the server, holds
nothing of the last one's. It ends when the judge closes the socket.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from assignments.grading import isolation

PRELOADED = (
    *("torch", "numpy", "scipy.stats", "safetensors.torch", "matplotlib.pyplot", "robustlab.teaching.metered"),
    "assignments.grading.student",  # no test needs to read this folder then
)


def main(descriptor: int, work: str, readable: list[str], namespaces: bool) -> None:
    """Serve requests from the socket ``descriptor`` until it is closed."""
    control = socket.socket(fileno=descriptor)
    folder, paths = Path(work), [Path(path) for path in readable]
    found = isolation.enter_namespaces(folder, namespaces) | isolation.file_protection(paths)
    for name in PRELOADED:
        __import__(name)
    import torch

    torch.set_num_threads(1)
    control.sendall(json.dumps(found).encode() + b"\n")
    for number in range(10**9):
        request, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 2)
        if not request:
            return
        end = _one_test(json.loads(request), descriptors, folder / str(number))
        control.sendall(json.dumps(end).encode() + b"\n")


def _one_test(request: dict[str, Any], handed: list[int], work: Path) -> dict[str, Any]:
    """Fork the test, wait for its end or the limit, and leave nothing of it; says how it ended."""
    work.mkdir(mode=0o700)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _in_child(handed, work, request)
        finally:
            os._exit(1)
    for descriptor in handed:
        os.close(descriptor)
    watch = os.pidfd_open(child)
    beyond = _ended(watch, child, request["limits"], request["patience"])
    os.close(watch)
    if beyond:
        os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    isolation.end_all_others(child)
    _remove(work)
    return {"ended": ended, "beyond": beyond, "seconds": time.monotonic() - started}


def _ended(watch: int, child: int, limits: isolation.Limits, patience: float) -> str:
    """Waits for a test's end as long as its limits allow; returns what it goes beyond, if anything.

    On a busy machine a test waits for a processor, and so do we.
    """
    started, waited, seconds = time.monotonic(), 0.0, limits["seconds"]
    while not select.select([watch], [], [], 0.1)[0]:
        with suppress(OSError), open(f"/proc/{child}/schedstat", encoding="ascii") as file:
            waited = int(file.read().split()[1]) * 1e-9
        gone = time.monotonic() - started
        if gone - waited > patience * seconds or gone > isolation.AT_MOST * seconds:
            return "seconds"
        if crowd := isolation.beyond_in_sum(limits):
            return crowd
    return ""


def _in_child(handed: list[int], work: Path, request: dict[str, Any]) -> None:
    os.setsid()
    talk, asks = (fcntl.fcntl(descriptor, fcntl.F_DUPFD, 8) for descriptor in handed)
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.dup2(talk, 3)
    os.dup2(asks, 4)
    os.closerange(5, 1 << 12)
    with suppress(OSError):  # where memory ends, this process is the one to go, not a grader
        Path("/proc/self/oom_score_adj").write_text("1000")
    channel = socket.socket(fileno=3)
    payload = channel.makefile("rb").read(request["size"])
    isolation.confine(work, [Path(path) for path in request["readable"]], request["limits"])
    os.environ["MPLCONFIGDIR"] = os.environ["HOME"] = str(work)
    from assignments.grading.student import answer

    channel.sendall(answer(payload, request["blocked"], socket.socket(fileno=4)))
    os._exit(0)


def _remove(work: Path) -> None:
    """A folder that a test filled, whatever it put there."""
    import shutil

    try:
        shutil.rmtree(work, ignore_errors=True)
    except RecursionError:  # folders in folders, thousands of them
        subprocess.run(["rm", "-rf", "--", str(work)], check=False)
