"""What a reader does with the book: search it, answer quizzes, open solutions, move sliders, take notebooks along."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from playwright.sync_api import Browser, expect

from tests.browser.built_site import HTML, NOT_BUILT, ROOT, chapters, pages, some
from tests.browser.visit import Visit

# For what does not depend on a chapter's own text: two of them in every run.
some_chapters = pytest.mark.parametrize("page", some(chapters(), 2))
WIDGET = '<script type="application/vnd.jupyter.widget-view+json">'


def _containing(text: str) -> list[str]:
    """The pages whose source contains ``text``."""
    return [page for page in pages() if page == NOT_BUILT or text in (HTML / page).read_text(encoding="utf-8")]


@some_chapters
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_a_quiz_is_answered_by_keyboard(browser: Browser, site: str, page: str, scripts: bool) -> None:
    with Visit(browser, site, page, java_script_enabled=scripts) as visit:
        quiz = visit.page.locator("fieldset.quiz").first
        one, other = quiz.locator("summary").all()[:2]
        one.focus()
        visit.page.keyboard.press("Space")
        expect(quiz.locator("details > p").first).to_be_visible()
        visit.page.keyboard.press("Tab")
        expect(other).to_be_focused()
        visit.page.keyboard.press("Enter")
        expect(quiz.locator("details > p").nth(1)).to_be_visible()


def test_the_theme_switches_and_is_remembered(browser: Browser, site: str) -> None:
    with Visit(browser, site, "book/index.html", color_scheme="light") as visit:
        theme = "document.documentElement.dataset.theme"
        seen = [visit.page.evaluate(theme)]
        button = visit.page.locator(".theme-switch-button").first
        for _ in range(3):
            button.click()
            seen.append(visit.page.evaluate(theme))
        assert {"light", "dark"} <= set(seen)
        while visit.page.evaluate("document.documentElement.dataset.mode") != "dark":
            button.click()
        visit.page.reload()
        assert visit.page.evaluate(theme) == "dark"
        assert visit.complaints == []


@some_chapters
def test_search_finds_a_word_of_the_chapter(browser: Browser, site: str, page: str) -> None:
    with Visit(browser, site, page) as visit:
        heading = visit.page.locator("h1").first.inner_text()
        word = max(re.findall(r"[A-Za-z]+", heading), key=len)
        visit.page.keyboard.press("Control+k")
        field = visit.page.locator("#pst-search-dialog input[type=search]")
        expect(field).to_be_visible()
        field.fill(word)
        field.press("Enter")
        visit.page.wait_for_url("**/search.html?**")
        hit = visit.page.locator(f'#search-results li:has(a[href*="{page}"])').first
        expect(hit).to_be_visible()
        # The excerpt is of the text, not of the buttons and lists around it, and says where the word stands in it.
        excerpt = hit.locator("p.context").inner_text()
        assert len(excerpt) > 40 and "Contents" not in excerpt and "\\(" not in excerpt
        assert word.casefold()[:4] in excerpt.casefold()
        assert visit.complaints == []


@pytest.mark.parametrize("page", _containing(WIDGET))
def test_a_slider_changes_its_picture(browser: Browser, site: str, page: str) -> None:
    with Visit(browser, site, page) as visit:
        visit.settle()
        sliders = visit.page.locator(".cell_output").filter(has=visit.page.get_by_role("slider")).all()
        assert sliders, "the page holds the state of a slider, and draws none"
        for slider in sliders:
            handle, picture = slider.get_by_role("slider").first, slider.locator("img:visible").first
            handle.scroll_into_view_if_needed()
            value, largest = (handle.get_attribute(f"aria-value{name}") for name in ("now", "max"))
            shown = picture.get_attribute("src") or ""
            handle.focus()
            visit.page.keyboard.press("ArrowLeft" if value == largest else "ArrowRight")
            expect(handle).not_to_have_attribute("aria-valuenow", value or "")
            expect(picture).not_to_have_attribute("src", shown)
        assert visit.complaints == []


@some_chapters
def test_a_page_works_from_the_disk_with_the_network_cut(browser: Browser, page: str) -> None:
    with Visit(browser, HTML.as_uri() + "/", page, offline=True) as visit:
        visit.settle()
        assert visit.page.locator("mjx-container").count() > 0
        visit.check_mathematics()
        visit.check_images()
        assert visit.complaints == []


@some_chapters
def test_the_notebook_can_be_downloaded(browser: Browser, site: str, page: str) -> None:
    notebook = page.replace(".html", ".ipynb")
    with Visit(browser, site, page) as visit:
        link = visit.page.locator(f'.dropdown-download-buttons a[href$="{notebook}"]').first
        address = link.evaluate("link => link.href")
        answer = visit.page.request.get(address)
        assert answer.ok
        assert answer.json() == json.loads((ROOT / notebook).read_text(encoding="utf-8"))


@some_chapters
def test_launch_buttons_lead_to_this_notebook(browser: Browser, site: str, page: str) -> None:
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    repository, branch = settings["repository"]["url"], settings["repository"]["branch"]
    owner_and_name = "/".join(repository.rstrip("/").split("/")[-2:])
    notebook = page.replace(".html", ".ipynb")
    with Visit(browser, site, page) as visit:
        addresses = visit.page.locator(".dropdown-launch-buttons a").evaluate_all("links => links.map((a) => a.href)")
        assert set(addresses) == {
            f"https://colab.research.google.com/github/{owner_and_name}/blob/{branch}/{notebook}",
            f"https://mybinder.org/v2/gh/{owner_and_name}/{branch}?urlpath=lab/tree/{notebook}",
        }
        assert visit.page.locator(f'a[href="{repository}"]').count() > 0


@some_chapters
def test_a_printed_page_is_the_text_alone(browser: Browser, site: str, page: str) -> None:
    with Visit(browser, site, page) as visit:
        visit.settle()
        visit.page.emulate_media(media="print")
        for frame in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article"):
            for part in visit.page.locator(frame).all():
                expect(part).to_be_hidden()
        assert visit.page.locator("h1:visible").count() == 1
        expect(visit.page.locator(".bd-article").first).to_be_visible()


@some_chapters
def test_cards_beside_links_say_what_they_lead_to(browser: Browser, site: str, page: str) -> None:
    with Visit(browser, site, page) as visit:
        visit.settle()
        card = visit.page.locator("#hover-card")
        for links in ("a[data-card]", "a.reference[href^='#equation-']", "a.reference[href^='#fig-']"):
            shown = visit.page.locator(f".bd-article {links}").filter(visible=True)  # not those in a folded answer
            if not shown.count():
                continue
            link = shown.first
            link.focus()
            expect(card).to_be_visible()
            expect(link).to_have_attribute("aria-describedby", "hover-card")
            assert card.inner_text().strip() and "\\(" not in card.inner_text()
            visit.page.keyboard.press("Escape")
            expect(card).to_be_hidden()
        link.hover()
        expect(card).to_be_visible()
        assert visit.complaints == []


@some_chapters
def test_the_tab_key_passes_formulas(browser: Browser, site: str, page: str) -> None:
    with Visit(browser, site, page) as visit:
        visit.settle()
        assert visit.page.locator("mjx-container").count() > 10
        # A displayed formula that is wider than the page scrolls, and is reached by keyboard.
        assert visit.page.locator("mjx-container:not([display])[tabindex='0']").count() == 0


@some_chapters
def test_figures_keep_their_words_on_a_phone(browser: Browser, site: str, page: str) -> None:
    """They are as wide as in a wide window, in boxes that scroll by keyboard too; the page itself is not widened."""
    with Visit(browser, site, page) as visit:
        visit.page.set_viewport_size({"width": 390, "height": 900})
        figure = visit.page.locator(".cell_output img").first
        figure.scroll_into_view_if_needed()
        expect(figure).to_have_class(re.compile("wide-figure"))
        box = figure.bounding_box()
        assert box is not None and box["width"] >= 600
        assert visit.page.locator(".cell_output[tabindex='0']").count() >= 1
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visit.complaints == []


@pytest.mark.parametrize("page", _containing('class="filterable'))
def test_words_of_long_tables_stay_whole_on_a_phone(browser: Browser, site: str, page: str) -> None:
    """The table scrolls in its box; nothing but a key in code letters is cut within a word."""
    with Visit(browser, site, page) as visit:
        visit.page.set_viewport_size({"width": 390, "height": 900})
        cut = visit.page.evaluate(
            """() => [...document.querySelectorAll('table.filterable td')].slice(0, 200).flatMap(cell => {
                 const found = [], walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
                 while (walker.nextNode()) {
                   const node = walker.currentNode;
                   if (node.parentElement.closest('code')) continue;
                   for (const word of node.data.matchAll(/[A-Za-z]+/g)) {
                     const range = document.createRange();
                     range.setStart(node, word.index);
                     range.setEnd(node, word.index + word[0].length);
                     if (range.getClientRects().length > 1) found.push(word[0]);
                   }
                 }
                 return found;
               })"""
        )
        assert cut == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visit.complaints == []


@some_chapters
def test_verdicts_are_seen_without_scrolling_in_a_wide_window(browser: Browser, site: str, page: str) -> None:
    with Visit(browser, site, page) as visit:
        cut = "n => n.scrollWidth > n.clientWidth + 1 && getComputedStyle(n).overflowX !== 'visible'"
        boxes = "[...document.querySelectorAll('.bd-article :has(> table.claims)')]"
        assert visit.page.evaluate(f"{boxes}.length") >= 1
        assert visit.page.evaluate(f"{boxes}.filter({cut}).length") == 0


@some_chapters
def test_paper_is_white_and_nothing_on_it_is_cut(browser: Browser, site: str, page: str) -> None:
    with Visit(browser, site, page, color_scheme="dark") as visit:
        visit.settle()
        visit.page.set_viewport_size({"width": 720, "height": 1000})  # a sheet of A4 between its margins
        visit.page.emulate_media(media="print")
        visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert visit.page.evaluate("document.documentElement.dataset.theme") == "light"
        visit.check_layout("print", "A4")
        cut = "n => n.scrollWidth > n.clientWidth + 1 && getComputedStyle(n).overflowX !== 'visible'"
        assert (
            visit.page.evaluate(f"[...document.querySelectorAll('.bd-article :has(> table)')].filter({cut}).length")
            == 0
        )
        for closed in visit.page.locator(".solution.dropdown").all():
            expect(closed).to_be_hidden()
        visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert visit.page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert visit.complaints == []
