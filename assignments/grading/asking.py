"""A model that a student's function may ask and nothing else: it lives in the judge's process, behind a socket.

A socket without an address, inherited by the one process that runs the test, does what a server on the loopback address
would do, and less can go wrong: the process has no network at all, nobody else can reach the model, no port is taken,
and the counter, the budget and the weights are where no submission can touch them. On the socket each message is its
length in 8 bytes and a file of :mod:`robustlab.teaching.handout`, so that nothing is unpickled.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

from torch import Tensor

from robustlab.teaching import handout
from robustlab.teaching.metered import Refused

MAX_MESSAGE = 64 * 2**20
Model = Callable[[Tensor], Tensor]


class Asked:
    """The student's side: a callable like :class:`robustlab.teaching.metered.Metered`, which asks over a socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def __call__(self, x: Tensor) -> Tensor:
        """The model's answers.

        Raises:
            Refused: the judge gives none, and why.
        """
        _send(self._channel, {"x": x})
        told = _received(self._channel)
        if told is None:
            raise Refused("the model is gone")
        if "refused" in told:
            raise Refused(str(told["refused"]))
        answer: Tensor = told["told"]
        return answer


def serving(channel: socket.socket, model: Model) -> Thread:
    """The judge's side: a thread that answers from ``model`` until the other end is closed."""
    thread = Thread(target=_serve, args=(channel, model), daemon=True)
    thread.start()
    return thread


def _serve(channel: socket.socket, model: Model) -> None:
    with suppress(OSError, ValueError):  # whatever is no question ends the conversation
        while (question := _received(channel)) is not None:
            try:
                answer: dict[str, Any] = {"told": model(question.get("x"))}  # type: ignore[arg-type]
            except Refused as refused:
                answer = {"refused": str(refused)}
            except Exception as error:  # such as of numbers with which PyTorch does not compute
                answer = {"refused": f"the model cannot answer this ({type(error).__name__})"}
            _send(channel, answer)
    with suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)


def _send(channel: socket.socket, values: dict[str, Any]) -> None:
    raw = handout.pack(values)
    channel.sendall(len(raw).to_bytes(8, "big") + raw)


def _received(channel: socket.socket) -> dict[str, Any] | None:
    """The next message; None where the other side has ended."""
    size = int.from_bytes(_read(channel, 8), "big")
    if not 0 < size <= MAX_MESSAGE:
        return None
    raw = _read(channel, size)
    return handout.unpack(raw) if len(raw) == size else None


def _read(channel: socket.socket, size: int) -> bytes:
    raw = bytearray()
    while len(raw) < size:
        part = channel.recv(min(1 << 20, size - len(raw)))
        if not part:
            break
        raw += part
    return bytes(raw)
