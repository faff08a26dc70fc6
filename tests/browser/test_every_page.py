"""Every page of the book, light and dark, wide and narrow."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.browser.site import NOT_BUILT, chapters, pages, some
from tests.browser.visit import LOOKS, Visit

MAKES = ("_modules/", "book/api/", "book/generated/api/")


def _made(make: str) -> list[str]:
    return [page for page in pages() if page.startswith(make)] or [NOT_BUILT]


BOOK = [page for page in pages() if not page.startswith(MAKES)]


# Each page is seen light and dark, wide and narrow, but in all four combinations only by `make test-full`; and the
# accessibility of most is looked at without the insides of formulas and of code.
class TestBookPages:
    """Chapters and front matter. A class of its own, so that two processes can share the work."""

    @pytest.mark.parametrize("page", BOOK)
    def test_nothing_is_wrong(self, browser: Browser, site: str, page: str) -> None:
        with Visit(browser, site, page) as visit:
            assert visit.check_everything(LOOKS[::2], whole=False) == []

    @pytest.mark.parametrize("page", some(chapters(), 2))
    def test_nothing_is_wrong_within_formulas_and_code(self, browser: Browser, site: str, page: str) -> None:
        with Visit(browser, site, page) as visit:
            assert visit.check_everything(LOOKS[::2]) == []

    @pytest.mark.full
    @pytest.mark.parametrize("page", BOOK)
    def test_nothing_is_wrong_in_the_other_looks(self, browser: Browser, site: str, page: str) -> None:
        with Visit(browser, site, page) as visit:
            assert visit.check_everything(LOOKS[1::2]) == []


class TestReferencePages:
    """The API reference and the source code that it links to: many pages of one make, of which a few are seen."""

    @pytest.mark.parametrize("page", [page for make in MAKES for page in some(_made(make), 5)])
    def test_nothing_is_wrong(self, browser: Browser, site: str, page: str) -> None:
        with Visit(browser, site, page) as visit:
            assert visit.check_everything(LOOKS[::2]) == []


def test_the_root_leads_to_the_first_page(browser: Browser, site: str) -> None:
    with Visit(browser, site, "index.html") as visit:
        visit.page.wait_for_url(f"{site}book/index.html")
        assert visit.complaints == []
