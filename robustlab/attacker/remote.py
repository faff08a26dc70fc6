"""A model behind an HTTP API, as a callable that attacks take: ``Victim(RemoteModel(url), access="soft")``.

Standard library alone. :func:`robustlab.attacker.serving.serving` puts a model of one's own behind such an API.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import torch
from torch import Tensor

from robustlab import checks

_AGAIN = (429, 502, 503, 504)  # what a server says that may well answer a little later
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class RemoteError(ConnectionError):
    """A remote model did not answer, or not as it should; the message says which URL, what came and what was wanted.

    Where it ends an attack, :func:`robustlab.attacker.results.so_far` has what the attack had found.
    """


class RemoteModel:
    """A model behind an HTTP API: inputs (n, ...) → scores (n, K), or labels (n,).

    A batch is sent as ``{"inputs": [...]}``, nested lists of numbers, by POST; the answer is
    ``{"scores": [[...], ...]}`` or ``{"labels": [...]}``. Other formats are a matter of ``encode`` and ``decode``. A
    model that tells scores is a victim under soft access, one that tells labels under hard access.

    What fails is asked again up to ``retries`` times, if it may well go better later: a connection that is refused or
    dropped, a server that does not answer in time, and the statuses 429, 502, 503 and 504. Before each try there is a
    pause, as long as the server says by Retry-After, else ``wait`` seconds, twice as long each time. Whatever else goes
    wrong is an error at once. A retry costs none of a victim's ``budget``, which counts the questions of an attack; the
    server may count otherwise, so that ``requests`` tells how many it got.

    Args:
        url: ``"http://..."`` or ``"https://..."``.
        answer: what the API tells, ``"scores"`` or ``"labels"``.
        timeout: seconds in which a request must be answered in full.
        retries: how often a request is sent again, at most.
        wait: seconds before the first retry, where the server does not say.
        patience: the longest pause, in seconds, that a server may ask for; a longer one is an error.
        batch_size: rows in one request, at most; None sends each question whole.
        headers: more of them, such as ``{"Authorization": "Bearer ..."}``.
        encode: from the batch, a tensor, to what is sent as JSON.
        decode: from the parsed JSON to the lists of scores or labels.

    Attributes:
        requests: HTTP requests sent so far, retries included.

    Raises:
        ValueError, TypeError: for a wrong argument.
        RemoteError: (when called) if there is no answer, or one that is malformed.
    """

    def __init__(
        self,
        url: str,
        *,
        answer: Literal["scores", "labels"] = "scores",
        timeout: float = 10.0,
        retries: int = 0,
        wait: float = 1.0,
        patience: float = 60.0,
        batch_size: int | None = None,
        headers: dict[str, str] | None = None,
        encode: Callable[[Tensor], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
    ) -> None:
        if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"url: want http://... or https://..., got {url!r}")
        checks.one_of("answer", answer, ("scores", "labels"))
        checks.positive("timeout", timeout)
        checks.at_least("retries", retries, 0, integer=True)
        checks.not_negative("wait", wait)
        checks.not_negative("patience", patience)
        if batch_size is not None:
            checks.at_least("batch_size", batch_size, 1, integer=True)
        self.url, self.answer, self.timeout, self.retries = url, answer, timeout, retries
        self.wait, self.patience, self.batch_size = wait, patience, batch_size
        self.headers = {"Content-Type": "application/json", **(headers or {})}
        self._encode = encode or (lambda x: {"inputs": x.tolist()})
        self._decode = decode or (lambda told: told[answer])
        proxies = ProxyHandler({}) if urlsplit(url).hostname in _LOOPBACK else ProxyHandler()
        self._open = build_opener(proxies).open
        self.requests = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The answer for a batch (n, ...): scores in the dtype of x (half precision: float32), or int64 labels."""
        parts = x.split(self.batch_size or max(1, len(x)))
        rows = [row for part in parts for row in self._rows(part)]
        dtype = torch.int64 if self.answer == "labels" else torch.promote_types(x.dtype, torch.float32)
        try:
            told = torch.tensor(rows, dtype=dtype, device=x.device)
        except (TypeError, ValueError) as error:  # ragged, or no numbers
            raise self._malformed(rows, len(x)) from error
        if told.dim() != (1 if self.answer == "labels" else 2):
            raise self._malformed(rows, len(x))
        return told

    def _rows(self, x: Tensor) -> list[Any]:
        """What the API says of each input of a batch."""
        text = self._answered(json.dumps(self._encode(x)).encode())
        try:
            rows = self._decode(json.loads(text))
        except (ValueError, LookupError, TypeError) as error:
            raise self._malformed(text.decode(errors="replace"), len(x)) from error
        whole = self.answer != "labels" or all(type(row) is int for row in rows or ())
        if not isinstance(rows, list) or len(rows) != len(x) or not whole:
            raise self._malformed(rows, len(x))
        return rows

    def _answered(self, body: bytes) -> bytes:
        """The body of the answer to one request, which is sent again where that may help."""
        cause: Exception
        for tries in range(self.retries + 1):
            try:
                return self._sent(body)
            except HTTPError as error:
                cause, problem = error, f"answered {error.code} {error.reason}"
                if error.code not in _AGAIN:
                    break
                pause = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                reason = error.reason if isinstance(error, URLError) else error
                late = isinstance(reason, TimeoutError)
                problem = f"did not answer within {self.timeout:g} s" if late else f"could not be asked: {reason!r}"
                cause, pause = error, None
            if pause is not None and pause > self.patience:
                problem += f", and wants {pause:.0f} s of patience, more than patience={self.patience:g}"
                break
            if tries < self.retries:
                time.sleep(self.wait * 2**tries if pause is None else pause)
        again = f", {tries + 1} times" if tries else ""
        raise RemoteError(f"model: {self.url} {problem}{again}") from cause

    def _sent(self, body: bytes) -> bytes:
        """One request; what arrives in drops must be complete in time, too."""
        self.requests += 1
        end, parts = time.monotonic() + self.timeout, list[bytes]()
        with self._open(Request(self.url, body, self.headers), timeout=self.timeout) as response:
            while part := response.read1(2**20):
                parts.append(part)
                if time.monotonic() > end:
                    raise TimeoutError
            if response.length:
                raise http.client.IncompleteRead(b"".join(parts), response.length)
        return b"".join(parts)

    def _malformed(self, got: object, n: int) -> RemoteError:
        kind = "lists of equally many numbers" if self.answer == "scores" else "integers"
        text = str(got)
        text = text if len(text) <= 80 else text[:79] + "…"
        return RemoteError(f"model: want {n} {kind} as {self.answer} from {self.url}, got {text}")

    def __repr__(self) -> str:
        return f"RemoteModel({self.url!r}, answer={self.answer!r})"


def _seconds(after: str | None) -> float | None:
    """Retry-After, which is a number of seconds or a date; None where it is neither."""
    if after is None:
        return None
    try:
        seconds = float(after) if after.strip().isdigit() else parsedate_to_datetime(after).timestamp() - time.time()
        return max(0.0, seconds)
    except (TypeError, ValueError):
        return None
