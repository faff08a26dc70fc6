"""The grader is safe and fair: what a submission may try, and what it gets for it."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from assignments.grading import submission
from assignments.grading.grade import (
    Grade,
    Result,
    _result,
    grade_cells,
    grade_class,
    left_out,
    submissions,
    write_table,
)
from assignments.grading.isolation import Limits, all_but
from assignments.grading.judge import Server
from assignments.grading.task import Assignment, Lost, Test, require, tensor_like
from robustlab.teaching.metered import Metered

LIMITS = Limits(seconds=3.0, memory_mb=512, file_mb=8)
ORPHAN = """
import os, time
def f():
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(60)
    return child
"""
SECRET = "what only the judge may know"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "course.key"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="module")
def server(secret: Path) -> Iterator[Server]:
    with Server(hidden=[secret], blocked=["robustlab.attacks"]) as running:
        yield running


def ask(server: Server, code: str, *arguments: Any, limits: Limits = LIMITS) -> Any:
    return server.ask([(0, code)], "f", arguments, limits=limits).value


def reason(server: Server, code: str, limits: Limits = LIMITS) -> str:
    with pytest.raises(Lost) as lost:
        ask(server, code, limits=limits)
    assert ask(server, "def f(): return 1") == 1, "the next test is as if nothing had been"
    return str(lost.value)


def test_it_says_what_protects(server: Server) -> None:
    assert set(server.found) == {"network", "processes", "files", "calls", "user"}
    assert all(server.found.values())


def test_a_question_is_answered(server: Server) -> None:
    x = torch.rand(2, 3, dtype=torch.float64)
    back = ask(server, "def f(x, n): return {'twice': 2 * x, 'name': n}", x, "ε")
    assert torch.equal(back["twice"], 2 * x) and back["name"] == "ε"


def test_the_same_answer_gets_the_same_grade() -> None:
    """What a notebook draws does not depend on the server that runs it."""
    draws = "import random, torch\nimport numpy as np\n"
    draws += "def f(): return [random.random(), torch.rand(3), torch.tensor(np.random.rand(2))]"
    told = []
    for _ in range(2):
        with Server() as running:
            told.append(ask(running, draws))
    assert str(told[0]) == str(told[1])


def test_nothing_is_left_from_test_to_test(server: Server) -> None:
    ask(server, "import torch, os\ntorch.relu = None\nopen('left', 'w').write('x')\ndef f(): return 1")
    assert ask(server, "import torch, os\ndef f(): return [torch.relu is None, os.listdir('.')]") == [False, []]


def test_folders_in_folders_are_removed(server: Server) -> None:
    assert server._process is not None
    number = server._process.pid
    deep = "import os\ndef f():\n    for _ in range(3000):\n        os.mkdir('a')\n        os.chdir('a')\n    return 1"
    assert ask(server, deep, limits=LIMITS | {"seconds": 20.0}) == 1
    assert ask(server, "import os\ndef f(): return os.listdir('.')") == [] and server._process.pid == number


def test_a_variable_names_the_cell_that_fails_before_it_is_set(server: Server) -> None:
    test = Test("v", 1, "c", "v", lambda out: require(out == 2, "not 2"), call=False)
    result = _result(test, [(0, "w = 0"), (1, "# mine\nv = 1\nraise NotImplementedError\nv = 2")], {}, server)
    assert result.reason == "not 2 (the cell that begins 'v = 1' fails: NotImplementedError)"
    assert _result(test, [(0, "v = 2"), (1, "1 / 0")], {}, server).points == 1


def test_exceptions_and_ends_are_reasons(server: Server) -> None:
    assert reason(server, "def f(): return 1 / 0") == "ZeroDivisionError: division by zero"
    begins = "defines no f (the cell that begins "
    assert begins + "'def f(: return 1' fails: SyntaxError" in reason(server, "def f(: return 1")
    ends = "# the end\npass\n\nimport sys; sys.exit(0)"  # a line of IPython's own is a pass
    assert begins + "'import sys; sys.exit(0)' fails: SystemExit: 0)" in reason(server, ends)
    assert reason(server, "def f(): raise KeyboardInterrupt") == "KeyboardInterrupt"
    assert "without an answer (exit status 0)" in reason(server, "import os\ndef f(): os._exit(0)")
    assert "without an answer (signal 11)" in reason(server, "import ctypes\ndef f(): ctypes.string_at(0)")
    assert reason(server, "def f(): return object()").startswith("TypeError: values['value']: want tensors")
    unprintable = "class E(Exception):\n    def __str__(self): raise E\ndef f(): raise E()"
    assert reason(server, unprintable) == "E: (its text cannot be read)"


def test_limits_hold(server: Server) -> None:
    quick = Limits(seconds=0.5, memory_mb=512, file_mb=8)
    late = "time-out: it took more than 0.5 s, all cells of the notebook included"
    assert reason(server, "def f():\n    while True: pass", quick) == late
    assert reason(server, "import time\ndef f(): time.sleep(60)", quick) == late
    deaf = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ndef f():\n    while True: pass"
    assert any(how in reason(server, deaf, quick) for how in ("time-out", "signal 9"))
    assert "memory" in reason(server, "import torch\ndef f(): return torch.ones(10**9)").lower()
    assert "File too large" in reason(server, "def f(): open('big', 'wb').write(bytes(2**24))")
    assert "the answer has more than 32 MB" in reason(server, "import os\ndef f(): os.write(3, b'x' * 2**26)")
    assert ask(server, "display(f'x')\ndef f():\n    print('x' * 10**7)\n    return 1") == 1  # output goes nowhere


def test_a_busy_machine_costs_nothing(server: Server) -> None:
    """Seconds are the processor's: who only waits for it may take three times as long."""
    assert ask(server, "import time\ndef f():\n    time.sleep(1)\n    return 1", limits=LIMITS | {"seconds": 0.5}) == 1


def test_two_gigabytes_of_output_go_nowhere(server: Server) -> None:
    loud = "import os\ndef f():\n    some = bytes(2**20)\n    return sum(os.write(n, some) for n in (1, 2) * 1024)"
    assert ask(server, loud) == 2**31
    files = "def f():\n    for n in range(300):\n        open(str(n), 'wb').write(bytes(7 * 2**20))"
    if server.found["network"] == "namespace":  # then files are in memory that is limited
        assert "No space left" in reason(server, files)


def test_a_process_that_multiplies_ends_with_its_test(server: Server) -> None:
    before = running_below(server)
    forks = """
import os, time
def f():
    for made in range(30):
        if os.fork() == 0:
            time.sleep(3600)
            os._exit(0)
    return made
"""
    assert ask(server, forks) == 29
    assert running_below(server) == before


def test_processes_have_one_memory_together(server: Server) -> None:
    """Each is below its own limit, and all of them are far beyond what a test may have."""
    if server.found["processes"] != "namespace":
        pytest.skip("this system has no namespaces")
    large = """
import os, time
def f():
    for _ in range(4):
        if os.fork() == 0:
            held = b"x" * (300 * 2**20)
            time.sleep(60)
    time.sleep(60)
"""
    small = "import os, time\nfor _ in range(200): os.fork() or time.sleep(60)\ntime.sleep(60)"  # torch is slow to fork
    crowd = f"import os, sys\ndef f(): os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', {small!r}])"
    assert "more memory than a test may have" in reason(server, large)
    said = reason(server, crowd)
    assert "more processes than a test may have" in said or "exit status 1" in said


NO_CALLS = """
import ctypes, os, socket
kernel = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    got = kernel.syscall(*arguments)
    if got < 0:
        raise OSError(ctypes.get_errno(), "refused")
def leave():
    call(29, 4711, 4096, 0o1666)  # shared memory, which the next test would find
def f():
    THIS
"""


@pytest.mark.parametrize(
    "this",
    [
        "os.chmod(KEY, 0o644)",
        "os.chmod('.', 0o777)",
        "os.utime(KEY, (1, 1))",
        "os.setxattr(KEY, 'user.a', b'x')",
        "os.chown(KEY, -1, -1)",
        "leave()",
        "call(68, 4711, 0o1666)",
        "call(248, b'user', b'mine', b'x', 1, -4)",
        "call(101, 16, 1, 0, 0)",
        "call(2**30 + 39)",
        "os.memfd_create('mine')",
        "socket.socket(socket.AF_UNIX).connect(SOCKET)",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', SOCKET)",
    ],
)
def test_what_landlock_does_not_see_is_refused(this: str, server: Server, secret: Path) -> None:
    """Calls that change a file without opening it, leave something for the next test, or reach a service outside."""
    if server.found["calls"] == "open":
        pytest.skip("this system takes no filter of system calls")
    before = secret.stat()
    code = NO_CALLS.replace("THIS", this).replace("KEY", repr(str(secret))).replace("SOCKET", repr("/run/some.socket"))
    assert "PermissionError" in reason(server, code)
    assert secret.stat() == before
    assert ask(server, code.replace("def f():\n    ", "def f():\n    return os.getuid()\n    ")) >= 0


def running_below(server: Server) -> int:
    """How many processes descend from a server's."""
    assert server._process is not None
    parents = dict[int, int]()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found = {server._process.pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return len(found)


def test_what_is_printed_is_no_grade(small: Assignment, server: Server) -> None:
    """Neither a traceback, nor a table of results, in the output or in a file."""
    shown = (
        "import json, sys, traceback\nresults = json.dumps({'score': 4, 'tests': [{'name': 'twice', 'score': 2}]})\n"
        "print(results)\nprint(results, file=sys.stderr)\nopen('results.json', 'w').write(results)\n"
        "def f(x):\n    try:\n        assert False, results\n    except AssertionError:\n"
        "        traceback.print_exc()\n    return results\ng = h = f"
    )
    grade = grade_cells(small, "k", "ada", [(0, shown)], server)
    assert grade.total == 0 and all(result.reason for result in grade.results)


def test_the_server_knows_neither_the_key_nor_the_submission_before(small: Assignment, server: Server) -> None:
    """No object of a new process holds a text that was in either of them."""
    mark = "a text that is " + "nowhere else"
    grade_cells(small, mark, "ada", [(0, f"def f(x): return {mark!r}\ndef g(): return 1")], server)
    search = """
import gc, sys
def f(one, two):
    mark, found, frame, frames = one + two, [], sys._getframe().f_back, []
    while frame:
        frames.append(list(frame.f_locals.values()))
        frame = frame.f_back
    for thing in [*gc.get_objects(), *frames]:
        for part in [thing, *gc.get_referents(thing)]:
            text = part.decode("latin-1") if isinstance(part, bytes) else part
            if isinstance(text, str) and mark in text and text is not mark:
                found.append(text)
    return found
"""
    assert ask(server, search, "a text that is ", "nowhere else") == []
    seen = search.replace("    mark, found,", "    held = [one + two + '!']\n    mark, found,")
    assert ask(server, seen, "a text that is ", "nowhere else") != [], "the search finds what is there"


def test_forged_answers_are_no_answers(server: Server) -> None:
    assert "cannot be read" in reason(server, "import os\ndef f():\n    os.write(3, b'points: 20')\n    os._exit(0)")
    pickled = "import os, pickle\ndef f():\n    os.write(3, pickle.dumps(1))\n    os._exit(0)"
    assert "cannot be read" in reason(server, pickled)
    bad = (
        "import os\ndef f():\n    import robustlab.teaching.handout as h\n    os.write(3, h.pack({}))\n    os._exit(0)"
    )
    assert "it has no value" in reason(server, bad)


def test_a_model_stays_with_the_judge_and_counts_there(server: Server) -> None:
    """A student's function asks by a callable; what is beyond the budget or malformed is refused, and costs nothing."""

    def asked(body: str) -> tuple[Any, Metered]:
        model = Metered(lambda x: torch.cat([x, 1 - x], dim=1), (1,), 5)
        code = "import torch, os, socket\nfrom robustlab.teaching.metered import Refused\n"
        return server.ask([(0, code + body)], "f", [3], limits=LIMITS, model=model).value, model

    told, model = asked("def f(api, n): return api(torch.tensor([[0.9], [0.2], [0.7]])[:n])")
    assert told.tolist() == [0, 1, 0] and (model.used, model.refused) == (3, 0)
    greedy = "def f(api, n):\n    api(torch.rand(4, 1))\n    try: api(torch.rand(2, 1))\n"
    greedy += "    except Refused as e: return str(e)"
    told, model = asked(greedy)
    assert "beyond the budget: 4 of 5" in told and (model.used, model.refused) == (4, 1)
    eighth = "torch.rand(1, 1).to(torch.float8_e5m2)"  # PyTorch stores such numbers, and does not compute with them
    told, model = asked(f"def f(api, n):\n    try: api({eighth})\n    except Refused as e: return str(e)")
    assert "cannot answer this" in told and model.used == 0
    for wrong in ("torch.rand(1, 2)", "torch.full((1, 1), 1.5)", "torch.full((1, 1), torch.nan)", "'x'", "None"):
        told, model = asked(f"def f(api, n):\n    try: api({wrong})\n    except Refused as e: return 'refused'")
        assert told == "refused" and (model.used, model.refused) == (0, 1)
    told, model = asked("def f(api, n):\n    api.used, api.budget = -100, 100\n    return len(api(torch.rand(5, 1)))")
    assert (told, model.used) == (5, 5)
    told, model = asked("def f(api, n):\n    os.write(4, b'x' * 99)\n    os.close(4)\n    return 1")
    assert (told, model.used) == (1, 0)
    assert ask(server, "def f(): return 1") == 1


def test_patched_modules_and_asserts_change_nothing(server: Server) -> None:
    """What is right is decided in another process, which the patches do not reach."""
    patched = (
        "import torch, builtins\nfrom robustlab.teaching import check, handout\n"
        "torch.allclose = lambda *a, **k: True\nbuiltins.AssertionError = Exception\ncheck.pgd = lambda *a, **k: None\n"
        "torch.Tensor.__eq__ = lambda a, b: True\ndef f(): return torch.zeros(3)"
    )
    with pytest.raises(Lost):
        require(torch.equal(ask(server, patched), torch.ones(3)), "not ones")


def test_the_key_the_tests_and_the_library_cannot_be_read(server: Server, secret: Path) -> None:
    if server.found["files"] == "open":
        pytest.skip("this system has neither Landlock nor another user")
    root = Path(__file__).resolve().parents[2]
    for path in (secret, root / "assignments" / "02_pgd" / "tasks.py", root / "README.md", Path("/proc/1/cmdline")):
        assert "PermissionError" in reason(server, f"def f(): return open({str(path)!r}).read()")
    refused = reason(server, "def f():\n    from robustlab.attacks import pgd")
    assert refused.startswith("ModuleNotFoundError: robustlab.attacks is refused where notebooks are graded")
    around = "import sys\ndef f():\n    del sys.modules['robustlab.attacks']\n    from robustlab.attacks import pgd"
    assert "PermissionError" in reason(server, around)
    assert "PermissionError" in reason(server, f"def f(): open({str(secret.parent / 'x')!r}, 'w')")
    assert ask(server, "import os\ndef f(): return [k for k in os.environ if 'KEY' in k]") == []


def test_public_checks_are_silent_and_teach_nothing(server: Server) -> None:
    """Calls in a student's own cells cost nothing, and closed forms that checks go by are not there to be used."""
    called = "from robustlab.teaching import check\ncheck.pgd(None)\nball = check.ConvexSet(1, 2)\ndef f(): return 1"
    assert ask(server, called) == 1
    module = "robustlab.teaching.check.smoothing"
    assert "not a package" in reason(server, f"def f():\n    from {module} import distance_at")
    around = f"import sys\ndef f():\n    del sys.modules['robustlab.teaching.check']\n    import {module}"
    search = "import gc, types\ndef f(): return [o.__name__ for o in gc.get_objects() if type(o) is types.FunctionType]"
    found = ask(server, search)
    assert "unpack" in found and "distance_at" not in found
    if server.found["files"] != "open":
        assert "PermissionError" in reason(server, around)


def test_no_network(server: Server) -> None:
    if server.found["network"] == "open":
        pytest.skip("this system has neither a network namespace nor Landlock's rules for it")
    code = "import socket\ndef f(): socket.create_connection(('192.0.2.1', 80), timeout=1)"
    assert any(name in reason(server, code) for name in ("PermissionError", "OSError"))


def test_other_processes_are_out_of_reach(server: Server) -> None:
    if server.found["processes"] == "open":
        pytest.skip("this system has no namespaces")
    code = "import os, signal\ndef f():\n    os.kill(os.getppid(), signal.SIGKILL)\n    os.kill(-1, signal.SIGKILL)"
    assert reason(server, code)
    stays = (
        "import os, time\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(60)\n    return 1"
    )
    assert ask(server, stays) == 1


def test_without_namespaces_a_test_leaves_nothing_running(tmp_path: Path) -> None:
    """Orphans come back to the server, which ends them."""
    with Server(namespaces=False) as running:
        assert running.found["network"] != "namespace"
        orphan = ask(running, ORPHAN)
        assert not Path(f"/proc/{orphan}").exists()


@pytest.mark.full("server")
def test_a_server_that_died_is_started_again() -> None:
    with Server() as running:
        assert running._process is not None
        running._process.kill()
        with pytest.raises(Lost, match="was lost"):
            ask(running, "def f(): return 3")
        assert ask(running, "def f(): return 4") == 4


def test_what_a_result_says_of_itself_is_not_heard(server: Server) -> None:
    """Only its numbers go over the socket, whatever class they came in."""
    lies = """
import torch
class Lying(torch.Tensor):
    def detach(self): return self
    cpu = contiguous = clone = detach
    def __eq__(self, other): return True
class Always(float):
    def __le__(self, other): return True
    def __eq__(self, other): return True
    def __repr__(self): return "1.0"
class Array:
    def __array__(self, *rest): return 1
"""
    told = ask(server, lies + "def f(): return [torch.zeros(2).as_subclass(Lying), Always(3)]")
    assert type(told[0]) is torch.Tensor and told[0].tolist() == [0, 0]
    assert type(told[1]) is float and told[1] in (1.0, 3.0)
    assert "want tensors" in reason(server, lies + "def f(): return Array()")


def test_what_runs_on_when_the_answer_is_given_adds_nothing(server: Server) -> None:
    """A thread and a child that hold the socket: the answer is what was there first, and the next test is alone."""
    thread = "import threading, time, os\ndef late():\n    time.sleep(0.5)\n    os.write(3, b'x')\n"
    assert ask(server, thread + "def f():\n    threading.Thread(target=late).start()\n    return 1") == 1
    child = "import os, time\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(0.5)\n"
    assert ask(server, child + "        os.write(3, b'x')\n        os._exit(0)\n    return 1") == 1
    assert ask(server, "def f(): return 2") == 2


def test_lists_that_would_fill_the_judges_memory_are_not_read(server: Server) -> None:
    """Thirty megabytes of empty lists, which are gigabytes once they are read."""
    forged = (
        "import os\nfrom safetensors.torch import save\ndef f():\n    lists = '[],' * 10_000_000\n"
        "    os.write(3, save({}, metadata={'values': '{\"value\": [' + lists + '[]]}'}))\n    os._exit(0)"
    )
    tracemalloc.start()
    assert "cannot be read" in reason(server, forged)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
    assert "use tensors" in reason(server, "def f(): return [1.5] * 10**6")


def notebook(*sources: str, **metadata: Any) -> bytes:
    cells = [{"cell_type": "code", "source": source, "metadata": metadata, "outputs": []} for source in sources]
    return json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}).encode()


def zipped(**files: bytes) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__dot__", "."), content)
    return raw.getvalue()


def test_cells_are_read() -> None:
    assert submission.cells(notebook("a = 1", "%matplotlib inline\nb = 2\n!rm x", "%%bash\nls")) == [
        (0, "a = 1"),
        (1, "pass\nb = 2\npass"),
    ]
    assert submission.cells(notebook("%%time\nc = 3", "\n%%capture out\nd = 4")) == [(0, "c = 3"), (1, "d = 4")]
    assert submission.cells(notebook("plot()", tags=["experiment"])) == []
    assert submission.cells(notebook("check()", nbgrader={"grade": True, "solution": False})) == []


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "does not parse"),
        (b"[" * 10**6, "does not parse"),
        (b"\xff\xfe", "does not parse"),
        (b"{}", "no notebook"),
        (b'{"cells": 3}', "no notebook"),
        (b'{"worksheets": [], "nbformat": 3}', "no notebook"),
        (b"PK\x03\x04", "cannot be read"),
        (zipped(a=b"x"), "holds 0 files"),
        (zipped(**{"a.ipynb": b"{}", "b.ipynb": b"{}"}), "holds 2 files"),
        (zipped(**{"../a.ipynb": notebook("1")}), "outside of its folder"),
        (zipped(**{"/etc/a.ipynb": notebook("1")}), "outside of its folder"),
        (zipped(**{f"{number}.txt": b"" for number in range(201)}), "201 entries"),
        (zipped(**{"a.ipynb": b"0" * (submission.MAX_FILE + 1)}), "more than 20 MB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_no_notebook_gets_a_reason(raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(submission.Unreadable, match=said):
        submission.read(tmp_path / "a")


SHAPES = {"a": (2, 3), "b": (4,)}


def npz(**values: Any) -> bytes:
    raw = io.BytesIO()
    np.savez_compressed(raw, **values)
    return raw.getvalue()


def test_arrays_are_read_alone_and_from_a_zip(tmp_path: Path) -> None:
    a, b = np.random.default_rng(0).random((2, 3), dtype=np.float32), np.arange(4)
    raw = npz(a=a, b=b, other=np.zeros(3))
    (tmp_path / "ada.npz").write_bytes(raw)
    (tmp_path / "bob.zip").write_bytes(zipped(**{"mine/x.npz": raw, "mine/notes.ipynb": b"{}"}))
    for name in ("ada.npz", "bob.zip"):
        found = submission.read_data(tmp_path / name, SHAPES)
        assert set(found) == {"a", "b"} and np.array_equal(found["a"], a) and found["b"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"junk", "cannot be read"),
        (b"PK\x03\x04", "cannot be read"),
        (npz(a=np.zeros((2, 3))), "no array b"),
        (npz(a=np.zeros((2, 4)), b=np.zeros(4)), "a has shape \\(2, 4\\)"),
        (npz(a=np.array([[object()] * 3] * 2), b=np.zeros(4)), "type object"),
        (npz(a=np.array([["x"] * 3] * 2), b=np.zeros(4)), "plain numbers"),
        (npz(a=np.zeros((2, 3), dtype=complex), b=np.zeros(4)), "plain numbers"),
        (npz(a=np.zeros((2, 3), dtype=">f8"), b=np.zeros(4)), "plain numbers"),
        (npz(a=np.asfortranarray(np.zeros((2, 3))), b=np.zeros(4)), "rows first"),
        (zipped(**{"a.npy": b"\x93NUMPY\x01\x00", "b.npy": b""}), "cannot be read"),
        (zipped(**{"a.npy": pickle.dumps(1), "b.npy": b""}), "cannot be read"),
    ],
)
def test_data_that_are_not_what_was_asked_for_get_a_reason(raw: bytes, said: str) -> None:
    with pytest.raises(submission.Unreadable, match=said):
        submission.arrays(raw, SHAPES)


def architecture() -> nn.Sequential:
    """With a tensor of whole numbers, too: the count of a batch normalization."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def net_of(**changed: Any) -> bytes:
    """A file of such a network, with tensors that are changed, added, or left out where they are None."""
    tensors = {name.replace(".", "_"): value for name, value in architecture().state_dict().items()} | changed
    return safetensors.torch.save({name.replace("_", ".", 1): t for name, t in tensors.items() if t is not None})


def header_of(text: str, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + body


def first(**entry: Any) -> bytes:
    """A file whose first tensor's entry in the header is changed, and nothing else."""
    raw = net_of()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["0.weight"] |= entry
    return header_of(json.dumps(header), raw[8 + size :])


def test_a_network_is_read_alone_and_from_a_zip(tmp_path: Path) -> None:
    net = architecture()
    torch.nn.init.uniform_(net[1].running_mean)
    raw, x = safetensors.torch.save(net.state_dict(), {"by": "ada"}), torch.rand(5, 3)
    (tmp_path / "ada.safetensors").write_bytes(raw)
    (tmp_path / "bob.zip").write_bytes(zipped(**{"mine/net.safetensors": raw, "mine/notes.ipynb": b"{}"}))
    for name in ("ada.safetensors", "bob.zip"):
        found = submission.read_network(tmp_path / name, architecture())
        assert not found.training and torch.equal(found(x), net.eval()(x))
        assert not any(part.requires_grad for part in found.parameters())


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"PK", "2 bytes"),
        ((2**40).to_bytes(8, "little") + b"{}", "a header of 1099511627776, at most 65536"),
        (header_of(" " * 70_000), "a header of 70000, at most 65536"),
        (header_of("{"), "does not parse"),
        (header_of("[" * 60_000), "does not parse"),
        (header_of("[]"), "has no tensor '0.bias'"),
        (net_of(**{"0_weight": None}), "has no tensor '0.weight': want 0.weight, 0.bias"),
        (net_of(**{"7_weight": torch.zeros(2)}), "has a tensor '7.weight'"),
        (safetensors.torch.save(nn.Linear(3, 4).state_dict()), "has no tensor '0.bias'"),
        (net_of(**{"0_weight": torch.zeros(5, 3)}), "F32 and .5, 3., want F32 and .4, 3."),
        (net_of(**{"0_weight": torch.zeros(4, 3).double()}), "F64 and .4, 3., want F32"),
        (net_of(**{"0_weight": torch.zeros(4, 3).bfloat16()}), "BF16"),
        (net_of(**{"0_weight": torch.full((4, 3), torch.nan)}), "0.weight has numbers that are not finite"),
        (net_of(**{"3_bias": torch.tensor([1.0, torch.inf])}), "3.bias has numbers that are not finite"),
        (first(data_offsets=[0, 47]), "0.weight has not the 48 bytes"),
        (first(data_offsets=[-48, 0]), "0.weight has not the 48 bytes"),
        (first(data_offsets=[10**9, 10**9 + 48]), "0.weight has not the 48 bytes"),
        (first(data_offsets=[0.0, 48.0]), "0.weight has not the 48 bytes"),
        (first(data_offsets=[]), "0.weight has not the 48 bytes"),
        (first(data_offsets="0"), "0.weight has not the 48 bytes"),
        (first(shape="4, 3"), "want F32 and .4, 3."),
        (header_of(json.dumps(dict.fromkeys(architecture().state_dict(), 7))), "None and None"),
        (pickle.dumps(architecture().state_dict()), "cannot be read"),
    ],
)
def test_a_network_that_is_not_what_was_asked_for_gets_a_reason(raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "ada.safetensors").write_bytes(raw)
    with pytest.raises(submission.Unreadable, match=said):
        submission.read_network(tmp_path / "ada.safetensors", architecture())


class Nets:
    """An assignment of which a network is handed in, a point for each test row that it reads rightly."""

    BLOCKED = ()
    architecture = staticmethod(architecture)

    @staticmethod
    def draw(seed: int, worked: bool) -> dict[str, Any]:
        return {}

    @staticmethod
    def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
        x = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed))

        def reads(row: int) -> Test:
            def judge(answer: Any) -> None:
                label = int(answer["network"](x[row : row + 1]).argmax())
                require(label == 1, f"row {row} is read as {label}")

            return Test(f"row-{row}", 1, "c", "network", judge)

        return [reads(0), reads(1)]


def test_a_class_of_networks_is_graded_and_pickles_are_not_read(tmp_path: Path) -> None:
    """Nothing is run, so no server is asked; a file of another kind is graded as what it is."""
    assignment = Assignment("nets", tmp_path, Nets)  # type: ignore[arg-type]
    (tmp_path / "tasks.py").touch()
    handed, out = tmp_path / "class", tmp_path / "grades"
    handed.mkdir()
    ones = {name: torch.zeros_like(t) for name, t in architecture().state_dict().items()}
    ones["3.bias"] = torch.tensor([0.0, 1.0])
    (handed / "ada.safetensors").write_bytes(safetensors.torch.save(ones))
    (handed / "bob.safetensors").write_bytes(safetensors.torch.save(ones | {"3.bias": torch.tensor([1.0, 0.0])}))
    (handed / "cleo.zip").write_bytes(zipped(**{"net.safetensors": safetensors.torch.save(ones)}))
    torch.save(ones, handed / "dan.pt")
    (handed / "eve").mkdir()
    torch.save(ones, handed / "eve" / "net.safetensors")
    (handed / "fay.zip").write_bytes(zipped(**{"net.pt": pickle.dumps(ones)}))
    server: Any = None
    graded = {g.student: g for g, _ in grade_class(assignment, "a long key", handed, out, server)}
    assert {who: g.total for who, g in graded.items()} == {"ada": 2, "bob": 0, "cleo": 2, "eve": 0, "fay": 0}
    assert graded["bob"].results[0].reason == "row 0 is read as 0"
    assert "cannot be read" in graded["eve"].results[0].reason and "holds 0 files" in graded["fay"].results[0].reason


def test_no_more_of_an_array_is_read_than_it_needs() -> None:
    """A header that says six numbers, and a hundred megabytes behind it that compress to nothing."""
    header = npz(a=np.zeros((2, 3)))
    with zipfile.ZipFile(io.BytesIO(header)) as archive:
        array = archive.read("a.npy")
    bomb = zipped(**{"a.npy": array + bytes(100 * 2**20)})
    tracemalloc.start()
    with pytest.raises(submission.Unreadable, match="not the 48 bytes"):
        submission.arrays(bomb, {"a": (2, 3)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(bomb) < 2**20 and peak < 4 * 2**20


HEADERS = ("{'descr': (", "-" * 9000 + "1", "(" * 5000, "{'descr': '<f8',b'x': False, 'shape': (2, 3), }", "'" * 3)


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_a_header_of_an_array_that_is_none_gets_a_reason(header: str) -> None:
    """NumPy parses it as Python, and fails in as many ways."""
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with pytest.raises(submission.Unreadable, match="cannot be read"):
        submission.arrays(zipped(**{"a.npy": raw, "b.npy": b""}), SHAPES)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_zip_is_no_exception(method: int) -> None:
    """Bytes that are not as they were sent: each kind of compression complains in its own way."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        archive.writestr("a.ipynb", notebook("def f(x):\n    return 2 * x\n" * 9))
    generator, unread = np.random.default_rng(0), 0
    for _ in range(300):
        raw = bytearray(made.getvalue())
        for place in generator.integers(len(raw), size=2):
            raw[place] = generator.integers(256)
        try:
            submission.cells(submission._from_zip(bytes(raw), ".ipynb"))
        except submission.Unreadable:
            unread += 1
    assert unread > 100


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A link would hand in another's work, and a pipe or a device would never end."""
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "a.ipynb").write_bytes(notebook("x = 1"))
    for name, target in (("bob", "../ada/a.ipynb"), ("cleo", "/dev/zero"), ("dan", "/no/such/file")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.ipynb").symlink_to(target)
    (tmp_path / "eve").mkdir()
    os.mkfifo(tmp_path / "eve" / "a.ipynb")
    linked = zipfile.ZipInfo("a.ipynb")
    linked.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "fay.zip", "w") as archive:
        archive.writestr(linked, "ada/a.ipynb")
    found = dict(submissions(tmp_path))
    assert submission.read(found.pop("ada")) == [(0, "x = 1")]
    for student, said in (("bob", "a link"), ("cleo", "a link"), ("dan", "a link"), ("eve", "a device")):
        with pytest.raises(submission.Unreadable, match=said):
            submission.read(found[student])
    with pytest.raises(submission.Unreadable, match="does not parse"):
        submission.read(found["fay"])


def test_a_notebook_of_too_much_is_not_run() -> None:
    with pytest.raises(submission.Unreadable, match="at most 500 cells"):
        submission.cells(notebook(*["x = 1"] * 100_000))
    with pytest.raises(submission.Unreadable, match="600000 letters of code"):
        submission.cells(notebook("#" * 600_000))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """Two gigabytes of zeros in two megabytes, whose header says that they are few."""
    raw = bytearray(zipped(**{"a.ipynb": b"\0" * (64 * 2**20)}))
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = (100).to_bytes(4, "little")  # the size that the directory gives
    (tmp_path / "bomb.zip").write_bytes(raw)
    with pytest.raises(submission.Unreadable):
        submission.read(tmp_path / "bomb.zip")


def test_a_notebook_in_a_zip_is_read_beside_what_systems_add(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(**{"mine/a.ipynb": notebook("x = 1"), "__MACOSX/mine/._a.ipynb": b"junk"}))
    assert submission.read(tmp_path / "a.zip") == [(0, "x = 1")]


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.ipynb", "wb") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(submission.Unreadable, match="2048 MB"):
        submission.read(tmp_path / "a.ipynb")


class Tasks:
    """An assignment of two tests: f doubles, and g must not take long."""

    BLOCKED = ()

    @staticmethod
    def draw(seed: int, worked: bool) -> dict[str, Any]:
        return {"x": torch.tensor([float(seed % 97)])}

    @staticmethod
    def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
        x = mine["x"]
        return [
            Test(
                "twice",
                2,
                "c",
                "f",
                lambda out: require(torch.equal(tensor_like(out, x), 2 * x.double()), "not 2x"),
                [x],
                seconds=2.0,
            ),
            Test("quick", 1, "c", "g", lambda out: require(out == 1, "not 1"), seconds=1.0),
            Test("odd", 1, "c", "h", lambda out: require(out["a"] > 0, "not positive")),
        ]


@pytest.fixture
def small(tmp_path: Path) -> Assignment:
    (tmp_path / "tasks.py").write_text("")
    return Assignment("00_small", tmp_path, Tasks)  # type: ignore[arg-type]


def test_a_time_out_costs_its_own_test_alone(small: Assignment, server: Server) -> None:
    cells = [(0, "def f(x): return 2 * x\ndef g():\n    while True: pass\ndef h(): return {'a': 1}")]
    grade = grade_cells(small, "k", "ada", cells, server)
    assert (grade.total, grade.lost) == (3, {"quick"})


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # a tensor's, at the index "a"
def test_an_odd_answer_is_no_exception(small: Assignment, server: Server) -> None:
    for odd in ("None", "[]", "{'a': 'x'}", "float('nan')", "torch.zeros(3)", "'x'"):
        cells = [(0, f"import torch\ndef f(x): return {odd}\ndef g(): return 1\ndef h(): return {odd}")]
        grade = grade_cells(small, "k", "ada", cells, server)
        assert grade.lost == {"twice", "odd"} and all(result.reason for result in grade.results[::2])


def test_a_class_is_graded_in_one_table_and_resumed(small: Assignment, tmp_path: Path, server: Server) -> None:
    folder, out = tmp_path / "handed in", tmp_path / "grades"
    (folder / "bob" / "00_small").mkdir(parents=True)
    right = notebook("def f(x): return 2 * x\ndef g(): return 1\ndef h(): return {'a': 1}")
    (folder / "ada@x.org.ipynb").write_bytes(right)
    (folder / "bob" / "00_small" / "a.ipynb").write_bytes(notebook("def g(): return 1"))
    (folder / "=cmd().ipynb").write_bytes(b"{")
    (folder / "eve").mkdir()
    first = list(grade_class(small, "k", folder, out, server))
    assert [(grade.student, grade.total, known) for grade, known in first] == [
        ("=cmd()", 0, False),
        ("ada@x.org", 4, False),
        ("bob", 1, False),
        ("eve", 0, False),
    ]
    (folder / "bob" / "00_small" / "a.ipynb").write_bytes(right)
    second = list(grade_class(small, "k", folder, out, server))
    assert [(grade.total, known) for grade, known in second] == [(0, True), (4, True), (4, False), (0, True)]
    for file in out.glob("*.json"):  # what a run leaves that was killed while it wrote
        file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert [known for _, known in grade_class(small, "k", folder, out, server)] == [False] * 4
    rows = list(csv.DictReader(io.StringIO((out / "grades.csv").read_text(encoding="utf-8"))))
    assert [row["points"] for row in rows] == ["0", "4", "4", "0"] and rows[0]["student"] == "'=cmd()"
    assert "does not parse" in rows[0]["reasons"] and "no notebook" in rows[3]["reasons"] and rows[1]["reasons"] == ""


def test_whatever_is_handed_in_gets_its_reason_and_the_batch_goes_on(
    small: Assignment, tmp_path: Path, server: Server
) -> None:
    folder = tmp_path / "handed in"
    folder.mkdir()
    right = notebook("def f(x): return 2 * x\ndef g(): return 1\ndef h(): return {'a': 1}")
    hangs = "def f(x):\n    while True: pass\ndef g(): return 1\ndef h(): return {'a': 1}"
    kills = "import os, signal\ndef f(x): os.kill(os.getppid(), signal.SIGKILL)\ng = h = f"
    bomb = zipped(**{"a.ipynb": b"\0" * (64 * 2**20)})
    handed_in = {
        "a does not parse.ipynb": (b"{", 0, "does not parse"),
        "b unpacks to a bomb.zip": (bomb, 0, "more than 20 MB"),
        "c leaves its folder.zip": (zipped(**{"../../c.ipynb": right}), 0, "outside of its folder"),
        "d ends.ipynb": (
            notebook("import sys\nsys.exit(0)", "raise SystemExit"),
            0,
            "defines no f (the cell that begins 'import sys' fails",
        ),
        "e hangs.ipynb": (notebook(hangs), 2, "time-out: it took more than 2 s"),
        "f kills.ipynb": (notebook(kills), 0, ""),
        "g is a pickle.zip": (zipped(**{"answer.pkl": pickle.dumps(1)}), 0, "holds 0 files *.ipynb"),
        "z is right.ipynb": (right, 4, ""),
    }
    for name, (raw, _, _) in handed_in.items():
        (folder / name).write_bytes(raw)
    with open(folder / "h is huge.ipynb", "wb") as file:
        file.truncate(2 * 2**30)
    (folder / "answer.pkl").write_bytes(pickle.dumps(1))
    handed_in["h is huge.ipynb"] = (b"", 0, "2048 MB")
    grades = {grade.student: grade for grade, _ in grade_class(small, "k", folder, tmp_path / "out", server)}
    assert set(grades) == {Path(name).stem for name in handed_in}
    for name, (_, points, said) in handed_in.items():
        grade = grades[Path(name).stem]
        assert grade.total == points and said in grade.results[0].reason, (name, grade.results)
        assert all(result.reason for result in grade.results if not result.points)
    assert not (tmp_path.parent / "c.ipynb").exists() and not (tmp_path / "c.ipynb").exists()


def test_names_and_reasons_that_are_no_text_are_written(small: Assignment, tmp_path: Path, server: Server) -> None:
    """A name from a zip of another system, and an error's text with half of a pair and a terminal's commands."""
    folder, out = tmp_path / "handed in", tmp_path / "out"
    folder.mkdir()
    odd = "def f(x): raise ValueError('\\ud800 \\x1b[2J \\x00')\ndef g(): return 1\ndef h(): return {'a': 1}"
    (folder / os.fsdecode(b"m\xfcller.ipynb")).write_bytes(notebook(odd))
    (grade,) = [grade for grade, _ in grade_class(small, "k", folder, out, server)]
    assert (grade.student, grade.total) == ("m\ufffdller", 2)
    (row,) = csv.DictReader(io.StringIO((out / "grades.csv").read_text(encoding="utf-8")))
    assert row["reasons"] == "twice: ValueError: ? ?[2J ?"
    assert [known for _, known in grade_class(small, "k", folder, out, server)] == [True]


def test_the_public_variant_is_nobodys_grade(small: Assignment, tmp_path: Path) -> None:
    """Whoever calls a file like the instructor gets the variant whose solution is public: the table says so."""
    write_table(tmp_path / "a.csv", [Grade("Instructor", [Result("a", 1, 1, "")], 0.1), Grade("ada", [], 0.1)])
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert "worked out in public" in rows[1] and "public" not in rows[2]


def test_a_reason_is_no_formula(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [Grade("-x", [Result("a", 0, 1, "y")], 0.1)])
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith("'-x,0,1,0")


def test_one_reason_is_said_once(tmp_path: Path) -> None:
    results = [
        Result("a", 0, 1, "no file"),
        Result("b", 1, 1, ""),
        Result("c", 0, 1, "late"),
        Result("d", 0, 1, "no file"),
    ]
    write_table(tmp_path / "a.csv", [Grade("ada", results, 0.1)])
    assert (tmp_path / "a.csv").read_text().splitlines()[1].endswith('"a, d: no file; c: late"')


def test_submissions_are_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "ada" / "02_pgd" / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("ada/02_pgd/a.ipynb", "ada/02_pgd/.ipynb_checkpoints/a.ipynb", "bob.zip", "notes.txt"):
        (tmp_path / name).write_text("{}")
    found = [(student, path.name) for student, path in submissions(tmp_path)]
    assert found == [("ada", "a.ipynb"), ("bob", "bob.zip")]
    for name in ("cleo/c.ipynb", "cleo/__MACOSX/._c.ipynb", "__MACOSX/cleo/c.ipynb", ".DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [(student, path.name) for student, path in submissions(tmp_path)][2:] == [("cleo", "c.ipynb")]
    assert left_out(tmp_path) == ["notes.txt"]


def test_what_is_hidden_is_in_no_readable_folder(tmp_path: Path) -> None:
    for name in ("a/b/c.txt", "a/b/d.txt", "a/e/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    hidden = [tmp_path / "a" / "b" / "c.txt"]
    assert list(all_but(tmp_path, hidden)) == [tmp_path / "a" / "b" / "d.txt", tmp_path / "a" / "e"]
    assert list(all_but(tmp_path / "a" / "e", hidden)) == [tmp_path / "a" / "e"]
    assert list(all_but(tmp_path, [tmp_path])) == []
