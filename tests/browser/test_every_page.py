"""Every page of the book, light and dark, wide and narrow."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.browser.site import NOT_BUILT, pages, some
from tests.browser.visit import Visit


def _is_source(page: str) -> bool:
    return page.startswith("_modules/")


# Two classes, so that two processes can share the work.
class TestBookPages:
    """Chapters, front matter, reference."""

    @pytest.mark.parametrize("page", [page for page in pages() if not _is_source(page)])
    def test_nothing_is_wrong(self, browser: Browser, site: str, page: str) -> None:
        with Visit(browser, site, page) as visit:
            assert visit.check_everything() == []


class TestSourcePages:
    """The library's source code, as the API reference links to it: many pages of one make, of which a few are seen.

    Each is seen light and dark, wide and narrow, but not in all four combinations.
    """

    @pytest.mark.parametrize("page", some([page for page in pages() if _is_source(page)] or [NOT_BUILT], 6))
    def test_nothing_is_wrong(self, browser: Browser, site: str, page: str) -> None:
        with Visit(browser, site, page) as visit:
            assert visit.check_everything([("light", "wide"), ("dark", "narrow")]) == []


def test_the_root_leads_to_the_first_page(browser: Browser, site: str) -> None:
    with Visit(browser, site, "index.html") as visit:
        visit.page.wait_for_url(f"{site}book/index.html")
        assert visit.complaints == []
