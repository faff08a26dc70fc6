"""A run that compares notebooks fails where one of them takes too long, although all of its cells agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from book.generate_times import INTRODUCTION
from tests.book.specimen import nbval, write
from tests.chapter_times import AVERAGE, LIMIT, MOST

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param((), id="alone", marks=pytest.mark.full("chapter_times")),
        pytest.param(("--numprocesses=1", "--dist=loadscope"), id="in a worker"),
    ],
)
def test_a_slow_chapter_fails_the_run(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "chapters").mkdir()
    write(tmp_path / "chapters" / "slow.ipynb", "import time\ntime.sleep(2)", "time.sleep(2)")
    write(tmp_path / "chapters" / "quick.ipynb", "a = 1", "b = 2")
    options = ("-p", "tests.chapter_times", "-o", "chapter_seconds=3", *workers)
    done = nbval(tmp_path / "chapters", *options)
    assert done.returncode == 1 and "4 passed" in done.stdout, done.stdout
    assert re.search(r"slow\.ipynb took \d+\.\d s, want at most 3 s", done.stdout), done.stdout
    assert "quick.ipynb took" not in done.stdout and "2 notebooks took" in done.stdout


def test_the_tests_run_with_this_limit(request: pytest.FixtureRequest) -> None:
    assert request.config.pluginmanager.has_plugin("chapter_times")
    told = " ".join(INTRODUCTION.split())
    assert f"longer than {LIMIT} s" in told and f"{AVERAGE} s there on average and {MOST} s at most" in told
