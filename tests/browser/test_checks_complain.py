"""The checks themselves: each sees the defect that it is there for, planted in a small page."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from book.serving import serve
from tests.browser.built_site import documented_policy
from tests.browser.test_links import broken_links, repeated_ids
from tests.browser.visit import Visit

PAGE = """<!DOCTYPE html>
<html lang="en" data-theme="light"><head><title>A page</title></head>
<body><main class="bd-article"><h1>A page</h1>{defect}</main></body></html>
"""
DEFECTS = {
    "error on the console": "<script>console.error('oh')</script>",
    "error in a script": "<script>throw new Error('oh')</script>",
    "asks another host": '<img alt="" src="http://example.org/a.png">',
    "answered with 404": '<img alt="" src="absent.png">',
    "broken picture": '<img alt="" src="absent.png">',
    "picture without alt": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">',
    "formula not rendered": r'<span class="math">\(x\)</span>',
    "formula with an error": '<mjx-container><mjx-merror data-mjx-error="oh">x</mjx-merror></mjx-container>',
    "TeX left in the text": "<p>The bound $$x^2$$ holds.</p>",
    "wider than the window": '<div style="width: 2000px">wide</div>',
    "label (": '<input type="radio" name="a">',
    "color-contrast (": '<p style="color: #bbb; background: #fff">pale</p>',
    "color-contrast (1)": '<div class="highlight"><pre>' + 2 * '<span style="color: #bbb">pale</span>' + "</pre></div>",
}


def _write(folder: Path, defect: str) -> None:
    (folder / "page.html").write_text(PAGE.format(defect=defect), encoding="utf-8")


def _complaints(browser: Browser, folder: Path) -> list[str]:
    with serve(folder) as site, Visit(browser, site, "page.html") as visit:
        visit.settle()
        visit.check_mathematics()
        visit.check_images()
        visit.check_layout("light", "wide")
        visit.thin()
        visit.check_accessibility("light", "wide")
        return [complaint for complaint in visit.complaints if "favicon" not in complaint]


@pytest.mark.parametrize("complaint", DEFECTS)
def test_a_defect_is_seen(browser: Browser, tmp_path: Path, complaint: str) -> None:
    _write(tmp_path, DEFECTS[complaint])
    assert any(said.startswith(complaint) for said in _complaints(browser, tmp_path))


def test_a_sound_page_passes(browser: Browser, tmp_path: Path) -> None:
    _write(tmp_path, "<p>Costs $5 or $6.</p>")
    (tmp_path / "favicon.ico").write_bytes(b"")
    assert _complaints(browser, tmp_path) == []


@pytest.mark.parametrize(
    "defect",
    [
        '<object data="page.html"></object>',
        "<script>fetch('https://example.org/')</script>",
        "<style>@import 'https://example.org/a.css';</style>",
        '<base href="/elsewhere/">',
    ],
)
def test_what_the_policy_forbids_is_seen(browser: Browser, tmp_path: Path, defect: str) -> None:
    _write(tmp_path, defect)
    with serve(tmp_path, documented_policy()) as site, Visit(browser, site, "page.html") as visit:
        visit.page.wait_for_timeout(100)
        assert any("Content Security Policy" in said for said in visit.complaints)


@pytest.mark.parametrize("link", ["absent.html", "#absent", "page.html#absent", "../absent/", "folder/absent.ipynb"])
def test_a_broken_link_is_seen(tmp_path: Path, link: str) -> None:
    _write(tmp_path, f'<a href="{link}">there</a>')
    assert len(broken_links(tmp_path / "page.html")) == 1


def test_a_script_from_another_host_is_seen(tmp_path: Path) -> None:
    _write(tmp_path, '<script src="https://example.org/a.js"></script>')
    assert broken_links(tmp_path / "page.html") == ["loads from another host: https://example.org/a.js"]


def test_an_id_that_is_there_twice_is_seen(tmp_path: Path) -> None:
    _write(tmp_path, '<p id="a">one</p><p class="b" id="a">two</p><p id="c">three</p>')
    assert repeated_ids(tmp_path / "page.html") == ["a"]
