"""Many queries on several processes: each query has one of its own, and so many run at a time.

A process gets the network and the cases, and asks for what only the caller has: whether a candidate fools the model
itself. So models need not be picklable, and are never copied. Where a process dies, or does not end within its time,
its query is unknown, a warning says why, and the others go on. An error in one is raised here, and ends all.

Processes come from a server that has the library imported and has computed nothing (Python's ``forkserver``), or, where
there is none, from new interpreters. A script that asks for them must protect its main part by
``if __name__ == "__main__":``, as :mod:`multiprocessing` says.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from robustlab.verification.complete.query import Replay

GRACE = 5.0  # seconds after its time that a process has to end by itself
Reply = TypeVar("Reply")


def answers(
    work: Callable[[Any, Replay], Reply], tasks: Sequence[Any], replays: Sequence[Replay], *, rows: Sequence[int],
    processes: int, timeout: float | None, lost: Reply,
) -> list[Reply]:  # fmt: skip
    """``work(task, replay)`` for every task, in their order, so many at a time.

    Args:
        work: a function of a module, which processes import.
        tasks: what it is given, pickled; nothing on a GPU.
        replays: its second argument, which is asked in this process.
        rows: what a warning calls the tasks.
        processes: at a time.
        timeout: seconds that a task is to take; None for no limit.
        lost: the answer of a task whose process did not give one.
    """
    waiting, running, found = deque(range(len(tasks))), dict[int, _Query](), [lost] * len(tasks)
    threads = max(1, torch.get_num_threads() // processes)
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                i = waiting.popleft()
                running[i] = _Query(work, tasks[i], timeout, threads)
            wait([query.connection for query in running.values()], timeout=1.0)
            for i, query in list(running.items()):
                try:
                    done, found[i] = query.step(replays[i], lost)
                except _Died as reason:
                    warnings.warn(f"row {rows[i]}: unknown, since {reason}", stacklevel=5)
                    done = True
                if done:
                    running.pop(i).stop()
    finally:
        for query in running.values():
            query.stop()
    return found


class _Died(Exception):
    """Why there is no answer."""


@dataclass
class _Query:
    """One process, from its start to its end."""

    work: Callable[[Any, Replay], Any]
    task: Any
    timeout: float | None
    threads: int

    def __post_init__(self) -> None:
        served = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if served else "spawn")
        if served:
            context.set_forkserver_preload([__name__, self.work.__module__])
        self.connection, other = context.Pipe()
        given = pickle.dumps((self.work, self.task))
        self.process = context.Process(  # type: ignore[attr-defined]  # of each kind, not of their base
            target=_answer, args=(other, given, self.threads), daemon=True
        )
        self.process.start()
        other.close()  # the end of the process is then the end of what comes from there
        self.end = float("inf")

    def step(self, replay: Replay, lost: Any) -> tuple[bool, Any]:
        """What has come meanwhile: whether the query is at its end, and its answer."""
        while self.connection.poll():
            try:
                word, value = pickle.loads(self.connection.recv_bytes())
            except EOFError:
                self.process.join()
                raise _Died(f"its process ended with exit code {self.process.exitcode}") from None
            if word == "answer":
                return True, value
            if word == "error":
                raise value
            if word == "begins":
                self.end = time.monotonic() + GRACE + self.timeout if self.timeout is not None else float("inf")
            else:
                self.connection.send_bytes(pickle.dumps(replay(value)))
        if time.monotonic() > self.end:
            raise _Died(f"its process took more than {self.timeout:g} s and {GRACE:g} to end")
        return False, lost

    def stop(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _answer(connection: Connection, given: bytes, threads: int) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller is interrupted, and ends us
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    torch.set_num_threads(threads)

    def send(word: str, value: Any) -> None:
        connection.send_bytes(pickle.dumps((word, value)))

    def replay(points: torch.Tensor) -> torch.Tensor | None:
        send("replay", points.cpu())
        return pickle.loads(connection.recv_bytes())

    work, task = pickle.loads(given)
    send("begins", None)
    try:
        answer = work(task, replay)
    except Exception as error:  # any kind of error: it is raised there
        try:
            send("error", error)
        except Exception:  # an error that cannot be pickled
            send("error", RuntimeError(f"{type(error).__name__}: {error}"))
    else:
        send("answer", answer)


def _end_with_the_caller() -> None:
    """Where the caller was killed, nobody waits for an answer."""
    caller = multiprocessing.parent_process()
    assert caller is not None
    wait([caller.sentinel])
    os._exit(1)
