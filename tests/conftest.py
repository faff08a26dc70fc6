"""What all tests share: one thread, fixed seeds, derandomized Hypothesis, and the device as a parameter.

Tests that ask for the ``device`` fixture run on the CPU and, marked ``gpu``, on CUDA. Where there is no CUDA device,
tests marked ``gpu`` are taken out and the terminal summary says how many were not run.

A notebook whose cells take too long fails the run (``chapter_times.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import chapter_times

settings.register_profile(
    "robustlab",
    derandomize=True,  # the same examples on every machine
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("robustlab")

_NOT_RUN = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    chapter_times.pytest_addoption(parser)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    config.stash[_NOT_RUN] = 0
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_FromWorkers(config))
    chapter_times.pytest_configure(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    gone = [item for item in items if item.get_closest_marker("gpu")]
    if gone:
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=gone)
        config.stash[_NOT_RUN] = len(gone)


def pytest_sessionfinish(session: pytest.Session) -> None:
    workeroutput = getattr(session.config, "workeroutput", None)  # only in a worker of pytest-xdist
    if workeroutput is not None:
        workeroutput["gpu_not_run"] = session.config.stash[_NOT_RUN]


class _FromWorkers:
    """Brings the count of tests that were not run from the workers of pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_testnodedown(self, node: Any) -> None:
        count = getattr(node, "workeroutput", {}).get("gpu_not_run", 0)
        self.config.stash[_NOT_RUN] = max(self.config.stash[_NOT_RUN], count)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_NOT_RUN]:
        terminalreporter.section("gpu", sep="-")
        terminalreporter.line(f"{config.stash[_NOT_RUN]} tests marked gpu: not run: no CUDA device")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same global random state, on one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and CUDA where there is one."""
    return torch.device(request.param)
