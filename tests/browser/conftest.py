"""The browser and the served book, one of each for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from book.serving import BROWSER_ARGUMENTS, serve
from tests.browser.built_site import HTML, NOT_BUILT, documented_policy
from tests.system import find_browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test in this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium. Its absence is a failure: nothing is skipped in silence."""
    path = find_browser()
    if path is None:
        pytest.fail("no Chromium or Chrome found; `python3 tests/system.py --browser` says what to type")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address of the built book, served under the policy that hosts are told of: a violation is a complaint."""
    if not (HTML / "index.html").exists():
        pytest.fail(NOT_BUILT)
    with serve(HTML, documented_policy()) as address:
        yield address
