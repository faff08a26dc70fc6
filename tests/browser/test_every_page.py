"""Every page of the book, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.built_site import NOT_BUILT, chapters, pages, some
from tests.browser.visit import LOOKS, Visit

MAKES = ("_modules/", "book/api/", "book/generated/api/")
VISIBLE = "nodes => nodes.map((node) => node.checkVisibility())"


def _made(make: str) -> list[str]:
    return [page for page in pages() if page.startswith(make)] or [NOT_BUILT]


BOOK = [page for page in pages() if not page.startswith(MAKES)]
FRONT_MATTER = [page for page in BOOK if page not in chapters()] or [NOT_BUILT]


def _wrong(visit: Visit, page: str) -> list[str]:
    """What is wrong with a page, light and wide, and dark and narrow.

    Half of the time is axe-core's. So it sees each page in one of the two, in turns, without the insides of formulas
    and of code; `make test-full` sees all of all pages.
    """
    look = LOOKS[2 * (BOOK.index(page) % 2)]
    return visit.check_everything(LOOKS[::2], accessible=[look], whole=False)


@pytest.fixture(scope="module", params=chapters())
def chapter(browser: Browser, site: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A visit of each chapter for all tests that take one: opening it costs seconds, for the sake of its formulas."""
    with Visit(browser, site, request.param) as visit:
        yield visit


# Classes of their own, so that two processes can share the work.
class TestChapters:
    """Chapters as they come, and with all opened that can be."""

    def test_nothing_is_wrong(self, chapter: Visit) -> None:
        assert _wrong(chapter, chapter.path) == []

    def test_answers_and_solutions_are_closed_and_open(self, chapter: Visit) -> None:
        chapter.settle()
        quizzes = chapter.page.locator("fieldset.quiz").all()
        assert len(quizzes) >= 3, "a chapter has three to five questions"
        for quiz in quizzes:
            feedback, choices = quiz.locator("details > p"), quiz.locator("summary")
            assert not any(feedback.evaluate_all(VISIBLE)), "an answer before the question"
            choices.first.click()
            choices.evaluate_all("choices => choices.slice(1).forEach((choice) => choice.click())")
            assert all(feedback.evaluate_all(VISIBLE))
            said = [text.strip() for text in feedback.all_inner_texts()]
            assert sum(text.startswith("✓ Correct.") for text in said) == 1, "one answer is right"
            assert all(text.startswith(("✓ Correct.", "✗ Not quite.")) and len(text) > 20 for text in said)
            assert len(set(said)) == choices.count() >= 3, "each choice has its own feedback"
        solutions = chapter.page.locator(".solution.dropdown").all()
        assert solutions, "a chapter has exercises with solutions"
        for solution in solutions:
            content = solution.locator(".solution-content, section, .cell").first
            expect(content).to_be_hidden()
            solution.locator("button.toggle-button").click()
            expect(content).to_be_visible()
        closed = chapter.page.locator(".bd-article details:not([open])")
        closed.evaluate_all("closed => closed.forEach((details) => details.querySelector('summary').click())")
        expect(closed).to_have_count(0)
        assert chapter.complaints == []

    @pytest.mark.parametrize("page", some(chapters(), 1))
    def test_nothing_is_wrong_within_formulas_and_code(self, browser: Browser, site: str, page: str) -> None:
        with Visit(browser, site, page) as visit:
            assert visit.check_everything(LOOKS[::2]) == []


class TestFrontMatter:
    """All other pages that were written by hand, and the lists that lead into the book."""

    @pytest.mark.parametrize("page", FRONT_MATTER)
    def test_nothing_is_wrong(self, browser: Browser, site: str, page: str) -> None:
        with Visit(browser, site, page) as visit:
            assert _wrong(visit, page) == []


@pytest.mark.full
@pytest.mark.parametrize("page", BOOK)
def test_nothing_is_wrong_in_any_look(browser: Browser, site: str, page: str) -> None:
    with Visit(browser, site, page) as visit:
        assert visit.check_everything(LOOKS) == []


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
