"""A victim behind a real HTTP API: the same results as at home, every failure told or retried, nothing found lost.

The servers that fail are written here, on ``http.server`` alone; ports are free ones, and are closed with the test.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.remote import RemoteError, RemoteModel
from robustlab.attacker.results import so_far
from robustlab.attacker.serving import serving
from robustlab.attacker.victim import Victim
from robustlab.attacks import ddn, one_pixel, pgd, semantic_hsv, square
from tests.suite.cases import noise_box
from tests.suite.models import IMAGE, convnet, mlp
from tests.suite.test_batch import assert_same

Step = tuple[int, dict[str, str], bytes] | str
"""What a server does at one request: status, headers, body; or "hang", "drip", "drop"."""


def good(n: int = 2, k: int = 3) -> Step:
    return 200, {}, json.dumps({"scores": [[1.0] + [0.0] * (k - 1)] * n}).encode()


@contextmanager
def server(*script: Step, seen: list[bytes] | None = None) -> Iterator[str]:
    """Follows a script, request by request, and repeats its last line."""
    left, stop = list(script), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if seen is not None:
                seen.append(body)
            step = left.pop(0) if len(left) > 1 else left[0]
            if step == "drop":
                self.connection.shutdown(socket.SHUT_RDWR)
            elif step == "hang":
                stop.wait(5)
            elif step == "drip":  # a little now and then, and never all
                self.send_response(200)
                self.end_headers()
                while not stop.wait(0.02):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            else:
                status, headers, answer = step
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None: ...

        def handle(self) -> None:
            with suppress(OSError):  # the one who asked may have hung up
                super().handle()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/"
    finally:
        stop.set()
        http.shutdown()
        http.server_close()
        thread.join()


X = torch.arange(4.0).reshape(2, 2) / 8


# What is asked and told ----------------------------------------------------------------------------------------------


def test_attacks_find_what_they_find_at_home() -> None:
    """Scores by square, labels by a hard-label attack; counts are equal, and the port is closed afterwards."""
    net, x = convnet(dtype=torch.float32), noise_box(6, IMAGE, torch.float32)
    with serving(net.train()) as url:
        remote = RemoteModel(url)
        there = square(Victim(remote, access="soft", output="probs"), x, eps=0.1, queries=20, seed=3)
        assert remote.requests == int(there.queries.max()) + 1 and not net.training  # 1: the final check of the others
        torch.testing.assert_close(remote(x.double()), net(x).softmax(dim=1).double())
    assert net.training
    here = square(Victim(net, access="soft"), x, eps=0.1, queries=20, seed=3)
    assert_same(there, here)
    with pytest.raises(RemoteError, match="could not be asked"):
        remote(x)

    net, x = convnet(channels=3, dtype=torch.float32), noise_box(6, (3, 4, 4), torch.float32)
    with serving(net, answer="labels") as url:
        victim = Victim(RemoteModel(url, answer="labels"), access="hard")
        there = semantic_hsv(victim, x, trials=9, seed=3)
        assert bool(there.success.any())
    assert_same(there, semantic_hsv(Victim(net, access="hard"), x, trials=9, seed=3))


def test_batches_formats_and_headers() -> None:
    """A question of five rows goes in three requests; another format is sent and read."""
    seen = list[bytes]()
    with server(*[(200, {}, json.dumps([{"class": c} for c in part]).encode()) for part in ([1, 2], [0, 1], [2])],
                seen=seen) as url:  # fmt: skip
        forms = {"encode": lambda x: x.tolist(), "decode": lambda told: [row["class"] for row in told]}
        remote = RemoteModel(url, answer="labels", batch_size=2, **forms)
        told = remote(torch.arange(5.0)[:, None])
    assert told.tolist() == [1, 2, 0, 1, 2] and told.dtype == torch.int64 and remote.requests == 3
    assert [json.loads(body) for body in seen] == [[[0.0], [1.0]], [[2.0], [3.0]], [[4.0]]]


# What fails ----------------------------------------------------------------------------------------------------------


def test_a_connection_that_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(RemoteError, match=rf"^model: {url} could not be asked: ConnectionRefusedError"):
        RemoteModel(url)(X)
    patient = RemoteModel(url, retries=2, wait=0.01)
    with pytest.raises(RemoteError, match=r"ConnectionRefusedError.*, 3 times$"):
        patient(X)
    assert patient.requests == 3


@pytest.mark.parametrize("fault", ["drop", "hang", "drip", (503, {}, b"")], ids=["drop", "hang", "drip", "503"])
def test_what_may_go_better_later(fault: Step) -> None:
    """An error without retries, an answer with one."""
    told = {"drop": "could not be asked", "hang": "within 0.15 s", "drip": "within 0.15 s"}
    with server(fault, good()) as url, pytest.raises(RemoteError, match=told.get(str(fault), "answered 503")):
        start = time.monotonic()
        try:
            RemoteModel(url, timeout=0.15)(X)
        finally:
            assert time.monotonic() - start < 2
    with server(fault, good()) as url:
        remote = RemoteModel(url, timeout=0.15, retries=1, wait=0.01)
        assert remote(X).tolist() == [[1, 0, 0]] * 2 and remote.requests == 2


def test_a_rate_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is the server's, in seconds or as a date; without one it doubles; what is too long is told."""
    pauses = list[float]()
    monkeypatch.setattr(time, "sleep", pauses.append)
    date = formatdate(time.time() + 30, usegmt=True)
    limited = [(429, {"Retry-After": after} if after else {}, b"") for after in ("7", None, date, None, "soon")]
    with server(*limited, good()) as url:
        assert RemoteModel(url, retries=5, wait=0.5)(X).shape == (2, 3)
    assert pauses[0] == 7 and pauses[1] == 1 and 25 < pauses[2] <= 30 and pauses[3:] == [4, 8]
    with server(*limited, good()) as url, pytest.raises(RemoteError, match="answered 429"):
        RemoteModel(url)(X)
    with server((429, {"Retry-After": "61"}, b"")) as url, pytest.raises(RemoteError, match=r"61 s.*patience=60$"):
        RemoteModel(url, retries=5)(X)
    assert len(pauses) == 5


@pytest.mark.parametrize(
    "body",
    [
        b"<html>", b"{}", b"[]", b"7", b'{"scores": 7}', b'{"scores": [[1, 0]]}', b'{"scores": [[1, 0], [1]]}',
        b'{"scores": [[1, 0], ["a", 0]]}', b'{"scores": [1, 0]}', b'{"scores": [[1, 0], null]}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_what_is_malformed(body: bytes) -> None:
    """Told at once: a second question would be answered alike."""
    with server((200, {}, body)) as url:
        remote = RemoteModel(url, retries=3, wait=0.01)
        with pytest.raises(
            RemoteError, match=r"^model: want 2 lists of equally many numbers as scores from http://127"
        ):
            remote(X)
        assert remote.requests == 1


@pytest.mark.parametrize("labels", [[0.5, 1], [True, 0], ["0", "1"], [[0], [1]], [1], None])
def test_labels_that_are_none(labels: Any) -> None:
    wish = pytest.raises(RemoteError, match=r"^model: want 2 integers as labels from")
    with server((200, {}, json.dumps({"labels": labels}).encode())) as url, wish:
        RemoteModel(url, answer="labels")(X)


def test_an_answer_that_is_cut_off_and_one_that_is_an_error() -> None:
    cut = 200, {"Content-Length": "999"}, b'{"scores"'
    with server(cut) as url, pytest.raises(RemoteError, match="IncompleteRead"):
        RemoteModel(url)(X)
    with server((404, {}, b"")) as url, pytest.raises(RemoteError, match="answered 404"):
        remote = RemoteModel(url, retries=3)
        try:
            remote(X)
        finally:
            assert remote.requests == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:80", "http://", "", 7])
def test_urls(url: Any) -> None:
    with pytest.raises(ValueError, match=r"^url: want http"):
        RemoteModel(url)


def test_our_own_server() -> None:
    """It limits its rate, tells a wrong question from an answer, and leaves no thread behind."""
    before, net = threading.active_count(), mlp((2,), 3).float()
    with serving(net, rate=4) as url:  # a busy machine may take a tenth of a second for an answer
        remote = RemoteModel(url)
        remote(X)
        with pytest.raises(RemoteError, match="answered 429"):
            remote(X)
        time.sleep(0.26)
        assert remote(X).shape == (2, 3)
        time.sleep(0.26)
        with pytest.raises(RemoteError, match="answered 400"):
            remote(torch.rand(2, 5))
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_client_that_no_longer_waits(capfd: pytest.CaptureFixture[str]) -> None:
    """Its answer cannot be sent any more: the server goes on, and prints no traceback."""
    told = threading.Event()

    def slow(x: Tensor) -> Tensor:
        if not told.is_set():
            time.sleep(0.3)
            told.set()
        return torch.zeros(len(x), 100_000)  # more than the connection holds back

    with serving(slow) as url:
        with pytest.raises(RemoteError, match="did not answer within"):
            RemoteModel(url, timeout=0.05)(torch.zeros(1, 3))
        assert told.wait(5)
        assert RemoteModel(url)(torch.zeros(1, 3)).shape == (1, 100_000)
        time.sleep(0.2)
    assert "Traceback" not in capfd.readouterr().err


# What was found is not lost -----------------------------------------------------------------------------------------


class Dying(nn.Module):
    """A model that answers so often, and no more."""

    def __init__(self, model: nn.Module, answers: int, error: BaseException) -> None:
        super().__init__()
        self.model, self.left, self.error = model, answers, error

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.model(x)


RUNS: dict[str, Callable[..., Any]] = {
    "square": lambda v, x, y: square(v, x, y, eps=0.06, queries=40),
    "one_pixel": lambda v, x, y: one_pixel(v, x, y, pixels=3, population=8, generations=6),
    "pgd": lambda v, x, y: pgd(v, x, y, eps=0.05, steps=12, loss="margin"),
    "ddn": lambda v, x, y: ddn(v, x, y, steps=12),
    "semantic_hsv": lambda v, x, y: semantic_hsv(v, x, y, trials=20),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("error", [RemoteError("gone"), KeyboardInterrupt()], ids=["api", "ctrl-c"])
def test_what_an_attack_found_survives(name: str, error: BaseException) -> None:
    """At every moment: who was fooled is fooled still, inside the box, with the queries that were answered."""
    shape = (3, 4, 4)
    net, x = mlp(shape, 3), noise_box(12, shape, torch.float64)
    y, found = net(x).argmax(dim=1), 0
    y[0] = (y[0] + 1) % 3  # fooled at x
    for answers in (1, 2, 3, 5):
        dying = Dying(net, answers, type(error)(*error.args))
        with pytest.raises(type(error)) as caught:
            RUNS[name](dying, x, y)
        result = so_far(caught.value)
        assert result is not None and len(result) == 12 and bool(result.success[0])
        assert torch.equal(result.x_adv[0], x[0])
        assert torch.equal(net(result.x_adv).argmax(dim=1) != y, result.success)
        assert torch.equal(result.success, result.first_success >= 0)
        assert int(result.queries.max()) >= answers and bool(((result.x_adv >= 0) & (result.x_adv <= 1)).all())
        assert int(result.success.sum()) >= found, "with more answers there are more successes"
        found = int(result.success.sum())
        told = "".join(getattr(caught.value, "__notes__", []))
        assert (f"{found} of 12 succeeded" in told) == (found > 1)
    assert found > 2


def test_nothing_is_attached_before_an_attack_has_begun() -> None:
    x = noise_box(3, IMAGE, torch.float64)
    for run in (
        lambda: square(Dying(mlp(IMAGE, 3), 0, RemoteError("gone")), x, eps=0.1),
        lambda: square(mlp(IMAGE, 3), x, eps=-1.0),
    ):
        with pytest.raises((RemoteError, ValueError)) as caught:
            run()
        assert so_far(caught.value) is None and not hasattr(caught.value, "__notes__")


# What is refused by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [square, one_pixel])
def test_labels_alone_are_refused(attack: Callable[..., Any]) -> None:
    net, x = convnet(), noise_box(3, IMAGE, torch.float64)
    args = {"eps": 0.1} if attack is square else {}
    with pytest.raises(ValueError, match=r"^access: this attack needs 'soft' access, the victim grants 'hard'"):
        attack(Victim(net, access="hard"), x, **args)
    with pytest.raises(ValueError, match=r"^model: want scores of shape \(3, K\), got labels alone; .*access=\"hard\""):
        attack(Victim(lambda points: net(points).argmax(dim=1), access="soft"), x, **args)


@pytest.mark.parametrize(("attack", "least"), [(square, 3), (one_pixel, 402)])
def test_a_budget_below_the_first_round_is_refused(attack: Callable[..., Any], least: int) -> None:
    """Before any question; with the least that is named the first round is asked."""
    x, asked = noise_box(2, IMAGE, torch.float64), list[int]()
    net = mlp(IMAGE, 3)

    def model(points: Tensor) -> Tensor:
        asked.append(len(points))
        return net(points)

    args = {"eps": 1e-9} if attack is square else {"generations": 1}
    with pytest.raises(ValueError, match=rf"^budget: want at least {least}, .*first round of this attack {least - 2}"):
        attack(Victim(model, access="soft", budget=least - 1), x, **args)
    assert not asked
    attack(Victim(model, access="soft", budget=least), x, **args)
    assert sum(asked) >= 2 * (least - 1)
