"""Fails a run of nbval in which the cells of one notebook together take more than ``chapter_seconds``.

The kernel's start is not counted. Reports reach the main process from the workers of pytest-xdist too. The limit is
there for a chapter that runs away, not for a busy machine: it is about twice what the slowest chapter takes on a core
of its own. What chapters should take is less, and the summary says how near they come.
"""

from __future__ import annotations

from collections import Counter

import pytest

AVERAGE, MOST = 30, 45  # seconds, the aim: one thread, as the tests run the cells
LIMIT = 120  # seconds, the failure; a slow machine may say  PYTEST_ADDOPTS="-o chapter_seconds=600" make test


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("chapter_seconds", "what all cells of one notebook together may take", default=str(LIMIT))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ChapterTimes(float(config.getini("chapter_seconds"))), "chapter_times")


class ChapterTimes:
    """Sums seconds by notebook. A plugin: a conftest.py would hear of the files beside it alone."""

    def __init__(self, limit: float) -> None:
        self.limit, self.seconds = limit, Counter[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path = report.nodeid.partition("::")[0]
        if report.when == "call" and path.endswith(".ipynb"):
            self.seconds[path] += report.duration

    def slow(self) -> list[str]:
        return sorted(path for path, took in self.seconds.items() if took > self.limit)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.slow() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if took := self.seconds.values():
            average = sum(took) / len(took)
            terminalreporter.line(
                f"{len(took)} notebooks took {average:.0f} s on average, {max(took):.0f} s at most; "
                f"the aim is {AVERAGE} s and {MOST} s"
            )
        if self.slow():
            terminalreporter.section("chapters too slow: the run fails", sep="-", red=True)
        for path in self.slow():
            terminalreporter.line(f"{path} took {self.seconds[path]:.1f} s, want at most {self.limit:g} s")
