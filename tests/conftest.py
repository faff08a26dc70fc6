"""What all tests share: one thread, fixed seeds, derandomized Hypothesis, and the device as a parameter.

Tests that ask for the ``device`` fixture run on the CPU and, where there is one, on CUDA, marked ``gpu``. Without CUDA,
tests marked ``gpu`` are taken out. So are tests marked ``full``, but for ``--full`` (``make test-full``) and for those
whose files changed since origin/main: the name of a changed file is a word of the test's id, or is given to the mark.
The terminal summary says how many were not run. ``--pretend-gpu`` runs on the pretend device of ``tests/pretend`` what
else runs on the CPU, but for tests marked ``threads``.

A notebook whose cells take too long fails the run (``chapter_times.py``).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from robustlab.teaching.reports import STRICT
from tests import changed, chapter_times
from tests.pretend import pretend_cuda

settings.register_profile(
    "robustlab",
    derandomize=True,  # the same examples on every machine
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("robustlab")

_CUDA = torch.cuda.is_available()
_NOT_RUN = pytest.StashKey[Counter[str]]()
_WHY = {
    "gpu": "no CUDA device",
    "full": "`make test-full` runs all",
    "threads": "the pretend device is that of one thread",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    chapter_times.pytest_addoption(parser)
    parser.addoption("--pretend-gpu", action="store_true", help="the pretend device in place of the CPU")
    parser.addoption("--full", action="store_true", help="run the tests marked full too, whatever changed")


def pytest_configure(config: pytest.Config) -> None:
    os.environ[STRICT] = "1"  # in the kernels of the chapters, too
    torch.set_num_threads(1)
    config.stash[_NOT_RUN] = Counter()
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_FromWorkers(config))
    chapter_times.pytest_configure(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = {PurePosixPath(path).stem for path in changed.changed_files()}
    kept, gone = [], []
    for item in items:
        why = _left_out(item, config.getoption("full"), names, config.getoption("pretend_gpu"))
        (gone if why else kept).append(item)
        config.stash[_NOT_RUN].update([why] if why else [])
    if gone:
        items[:] = kept
        config.hook.pytest_deselected(items=gone)


def _left_out(item: pytest.Item, full: bool, changed_names: set[str], pretend: bool = False) -> str:
    """The mark for which a test is not run now; "" where it is run."""
    if item.get_closest_marker("gpu") and not _CUDA:
        return "gpu"
    if item.get_closest_marker("threads") and pretend:
        return "threads"
    long = item.get_closest_marker("full")
    if long and not full:
        words = {*re.findall(r"\w+", item.nodeid), *long.args}
        if not changed_names & (words | {word.removeprefix("test_") for word in words}):
            return "full"
    return ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    workeroutput = getattr(session.config, "workeroutput", None)  # only in a worker of pytest-xdist
    if workeroutput is not None:
        workeroutput["not_run"] = dict(session.config.stash[_NOT_RUN])


class _FromWorkers:
    """Brings the counts of tests that were not run from the workers of pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_testnodedown(self, node: Any) -> None:
        self.config.stash[_NOT_RUN] |= Counter(getattr(node, "workeroutput", {}).get("not_run", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_NOT_RUN]:
        terminalreporter.section("not run", sep="-")
    for mark, count in sorted(config.stash[_NOT_RUN].items()):
        terminalreporter.line(f"{count} tests marked {mark}: {_WHY[mark]}")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same global random state, on one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield


@pytest.fixture(params=["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if _CUDA else [])])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, or under ``--pretend-gpu`` the pretend device; and CUDA where there is one."""
    if request.param == "cpu" and request.config.getoption("pretend_gpu"):
        with pretend_cuda() as gpu:
            yield gpu.device
    else:
        yield torch.device(request.param)
