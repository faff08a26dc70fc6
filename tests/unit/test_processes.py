"""Many queries on several processes: the answers of one, and what is left when one dies, errs, or is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustlab.graph.tracing import trace
from robustlab.verification import branch_and_bound, milp, reluplex
from robustlab.verification.complete import processes
from robustlab.verification.complete.descent import descend
from robustlab.verification.complete.query import Replay, label_cases
from tests.unit.relu_patterns import tiny

ROOT = Path(__file__).resolve().parents[2]


def obey(task: str | int, replay: Replay) -> int | Tensor | None:
    """What a process does that is told to."""
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "leave":
        os._exit(7)
    if task == "err":
        raise ValueError("as it was told")
    if task == "odd error":
        raise Unpicklable
    if task == "hang":
        time.sleep(600)
    if task == "threads":
        return torch.get_num_threads()
    if task == "pid":
        return os.getpid()
    if task == "ask":
        return replay(torch.arange(3.0)[None])
    return int(task)


class Unpicklable(Exception):
    def __reduce__(self) -> str:
        raise TypeError("not this one")


def nothing(points: Tensor) -> Tensor | None:
    return None


def told(*tasks: str | int, replay: Callable[[Tensor], Tensor | None] = nothing, timeout: float | None = None) -> list:
    return processes.answers(
        obey,
        tasks,
        [replay] * len(tasks),
        rows=[10 * i for i in range(len(tasks))],
        processes=2,
        timeout=timeout,
        lost=-1,
    )


def gone(pid: int) -> bool:
    """Whether there is no such process, but perhaps as a zombie of the server."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


# Verifiers -----------------------------------------------------------------------------------------------------------


class Local(nn.Module):
    """A model that no other process could make: a closure."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.again = net, lambda z: z * 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("verifier", [branch_and_bound, milp, reluplex], ids=lambda verifier: verifier.__name__)
def test_answers_are_those_of_one_process(verifier: Callable) -> None:
    """Whatever their number: all verdicts, radii and counterexamples to the last bit; wrong labels, too."""
    net = tiny((4, 6, 5, 3), 1)
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = net(x).argmax(dim=1)
    y[4] = (y[4] + 1) % 3
    eps = torch.tensor([0.02, 0.05, 0.1, 0.3, 0.1, 0.3], dtype=torch.float64)
    numbers = (1, 2, 3) if verifier is branch_and_bound else (1, 2)
    one, *others = (verifier(Local(net), x, y, eps=eps, timeout=60, processes=n) for n in numbers)
    assert {"verified", "falsified"} <= set(one.status) and one.counterexample is not None
    for other in others:
        assert other.status == one.status and torch.equal(other.radius, one.radius) and other.method == one.method
        assert other.counterexample is not None
        assert torch.equal(other.counterexample.nan_to_num(9.0), one.counterexample.nan_to_num(9.0))


def test_counterexamples_are_of_the_callers_model() -> None:
    """The processes know the graph alone. A model that changes its mind after it was read falsifies nothing."""
    net = tiny((4, 6, 5, 3), 1)
    x = torch.rand(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    calls: list[int] = []

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            calls.append(os.getpid())
            return self.net(x)

    found = branch_and_bound(Stubborn(), x, eps=0.4, processes=2, timeout=20)
    assert found.status == ["falsified", "falsified"] and set(calls) == {os.getpid()}


def test_each_keeps_its_time() -> None:
    """Four samples that take minutes, half a second each, two at a time."""
    net, x = tiny((20, 40, 40, 40, 2), 0), torch.full((4, 20), 0.5, dtype=torch.float64)
    y, low, high = net(x).argmax(dim=1), torch.zeros(20, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    graph, cases = trace(net, (20,)), label_cases(low, high, int(y[0]), 2)
    found = graph(descend(graph, cases, restarts=200)).detach()
    last = net[-1]
    assert isinstance(last, nn.Linear)
    last.bias.data[y[0]] += 1.02 * float((found[:, 1 - y[0]] - found[:, y[0]]).max())
    branch_and_bound(net, x[:1], eps=0.01, processes=2)  # the server starts
    start = time.monotonic()
    answer = branch_and_bound(net, x, y, eps=0.5, branching="sensitivity", timeout=0.5, processes=2)
    assert answer.status == ["unknown"] * 4 and 1.0 < time.monotonic() - start < 30


def test_arguments() -> None:
    net, x = tiny((4, 6, 3), 1), torch.full((1, 4), 0.5, dtype=torch.float64)
    for wrong in (0, 1.5):
        with pytest.raises((ValueError, TypeError), match="processes: want"):
            milp(net, x, eps=0.1, processes=wrong)  # type: ignore[arg-type]
    assert len(branch_and_bound(net, x[:0], eps=0.1, processes=2)) == 0


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_one_that_dies_is_lost_alone() -> None:
    with pytest.warns(UserWarning) as told_of:
        assert told(1, "die", 2, "leave", 3) == [1, -1, 2, -1, 3]
    assert sorted(str(w.message) for w in told_of) == [
        "row 10: unknown, since its process ended with exit code -9",
        "row 30: unknown, since its process ended with exit code 7",
    ]


def test_one_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.3)
    with pytest.warns(UserWarning, match=r"row 0: unknown, since its process took more than 0\.2 s"):
        assert told("hang", 5, timeout=0.2) == [-1, 5]


@pytest.mark.parametrize(
    "task, error, message", [("err", ValueError, "as it was told"), ("odd error", RuntimeError, "Unp")]
)
def test_an_error_is_raised_and_nothing_runs_on(task: str, error: type, message: str) -> None:
    before = set(children())
    with pytest.raises(error, match=message):
        told("hang", task, "hang")
    assert eventually(lambda: set(children()) <= before)


def test_an_error_of_the_model_is_raised_too() -> None:
    def broken(points: Tensor) -> Tensor | None:
        raise KeyError("no such weights")

    before = set(children())
    with pytest.raises(KeyError, match="no such weights"):
        told("hang", "ask", replay=broken)
    assert eventually(lambda: set(children()) <= before)


def test_what_is_asked_is_answered_here() -> None:
    seen: list[Tensor] = []

    def replay(points: Tensor) -> Tensor | None:
        seen.append(points)
        return points[0] + 1

    (answer,) = told("ask", replay=replay)
    assert torch.equal(answer, torch.arange(1.0, 4.0)) and torch.equal(seen[0], torch.arange(3.0)[None])
    assert told("ask") == [None]


def test_each_has_a_process_and_its_share_of_threads() -> None:
    pids = told("pid", "pid", "pid")
    assert len({os.getpid(), *pids}) == 4
    assert told("threads") == [max(1, torch.get_num_threads() // 2)]


def children() -> list[int]:
    """Processes below this one that are not zombies."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if not lines["State"].startswith("Z"):
            parents[int(path.parent.name)] = int(lines["PPid"])
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        own = [pid for pid, parent in parents.items() if parent in todo]
        found, todo = found + own, own
    return [pid for pid in found if "forkserver" not in cmdline(pid) or parents[pid] != os.getpid()]


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_nothing_outlives_the_caller(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, sys, time
        from robustlab.verification.complete import processes
        from tests.unit import test_processes as work

        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
            processes.answers(
                work.note_and_hang, [sys.argv[1] + "/a", sys.argv[1] + "/b"], [work.nothing] * 2,
                rows=[0, 1], processes=2, timeout=None, lost=None,
            )
        """)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    caller = subprocess.Popen([sys.executable, script, tmp_path], env=environment, stderr=subprocess.DEVNULL)
    files = [tmp_path / name for name in "ab"]
    try:
        assert eventually(lambda: all(file.exists() and file.read_text() for file in files), 60)
        pids = [int(file.read_text()) for file in files]
        assert not any(map(gone, pids))
        caller.send_signal(how)
        assert eventually(lambda: all(map(gone, pids))), "a process runs on"
        assert caller.wait(60) != 0
    finally:
        caller.kill()
        caller.wait()


def note_and_hang(path: str, replay: Replay) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
