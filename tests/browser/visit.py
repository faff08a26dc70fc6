"""One visit to a page: opens it with every other host cut off, and collects what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, Route

AXE = (Path(__file__).parent / "axe.min.js").read_text(encoding="utf-8")
WIDTHS = {"wide": 1280, "narrow": 390}
HEIGHT = 900
# The width changes once: after that, the page needs a moment to make what now scrolls reachable by keyboard.
LOOKS = (("light", "wide"), ("dark", "wide"), ("dark", "narrow"), ("light", "narrow"))
RESIZE_MS = 400

# Errors on the console that are not ours to mend, as regular expressions. There is none at present.
TOLERATED_CONSOLE_ERRORS: tuple[str, ...] = ()
# Rules of axe-core that are switched off, each with its reason. There is none at present.
AXE_RULES_OFF: dict[str, str] = {}
# Rules that run once in each color scheme, since they are slow and do not depend on the width.
AXE_RULES_OF_COLOR = ("color-contrast",)


class Visit:
    """A page that is open, as a context manager; ``complaints`` grows while it is."""

    def __init__(self, browser: Browser, site: str, path: str, **context: Any) -> None:
        self.path = path
        self._own = (site, "data:", "blob:", "about:")
        self._context = browser.new_context(viewport={"width": WIDTHS["wide"], "height": HEIGHT}, **context)
        self._colors_checked: set[str] = set()
        self.complaints: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.route(lambda url: not url.startswith(self._own), self._refuse)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error in a script: {error}"))
        self.page.on("response", self._on_response)
        self.page.on("requestfailed", self._on_failure)
        self.page.goto(site + path, wait_until="load")

    def __enter__(self) -> Visit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()

    def _refuse(self, route: Route) -> None:
        self.complaints.append(f"asks another host: {route.request.url}")
        route.abort()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type != "error" or any(re.search(known, message.text) for known in TOLERATED_CONSOLE_ERRORS):
            return
        self.complaints.append(f"error on the console: {message.text}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self.complaints.append(f"answered with {response.status}: {response.url}")

    def _on_failure(self, request: Request) -> None:
        if request.url.startswith(self._own):
            self.complaints.append(f"does not load: {request.url}")

    def settle(self) -> None:
        """Waits until equations are set and widgets are drawn, and stills what moves."""
        self.page.add_style_tag(content="*, ::before, ::after { transition: none !important; }")
        self.page.evaluate("async () => { if (window.MathJax?.startup) await MathJax.startup.promise; }")
        if self.page.locator('script[type="application/vnd.jupyter.widget-view+json"]').count():
            self.page.locator(".jupyter-widgets").first.wait_for(state="attached")
            self.page.locator("img.widget-image:not([alt])").first.wait_for(state="detached")

    def look(self, scheme: str, width: str) -> None:
        """Shows the page as a reader with this color scheme and window width sees it."""
        self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        self.page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
        if self.page.viewport_size != (size := {"width": WIDTHS[width], "height": HEIGHT}):
            self.page.set_viewport_size(size)  # type: ignore[arg-type]
            self.page.wait_for_timeout(RESIZE_MS)

    def check_mathematics(self) -> None:
        """Every formula is rendered, none with an error, and no TeX is left in the text."""
        found = self.page.evaluate(
            r"""() => {
              const text = (node) => node.textContent.trim().slice(0, 80);
              const formulas = [...document.querySelectorAll(".bd-article .math")];
              const bare = formulas.filter((node) => !node.querySelector("mjx-container"));
              const wrong = document.querySelectorAll("mjx-merror, [data-mjx-error], .MathJax_Error");
              const article = document.querySelector(".bd-article")?.cloneNode(true);
              article?.querySelectorAll("pre, code, script, style, mjx-container").forEach((node) => node.remove());
              const tex = /\$\$|\\[(\[]|\\begin\{[a-z*]+\}|(?<!\\)\$[^\s$]([^$\n]*[^\s$])?\$(?!\d)/g;
              const left = article?.textContent.match(tex);
              return [
                ...bare.map((node) => `formula not rendered: ${text(node)}`),
                ...[...wrong].map((node) => `formula with an error: ${node.dataset.mjxError || text(node)}`),
                ...(left ?? []).map((piece) => `TeX left in the text: ${piece}`),
              ];
            }"""
        )
        self.complaints += found

    def check_images(self) -> None:
        """Every picture has loaded and has a text for those who cannot see it."""
        self.complaints += self.page.evaluate(
            """async () => (await Promise.all([...document.images].map(async (image) => {
                 image.loading = "eager";  // those that wait until they are near the window
                 await image.decode().catch(() => {});
                 return image;
               }))).flatMap((image) => [
                 ...(image.complete && image.naturalWidth === 0 ? [`broken picture: ${image.src}`] : []),
                 ...(image.hasAttribute("alt") ? [] : [`picture without alt: ${image.src.slice(0, 80)}`]),
               ])"""
        )

    def check_layout(self, scheme: str, width: str) -> None:
        """Nothing is wider than the window."""
        wide = self.page.evaluate(
            """() => {
                 const room = document.documentElement.clientWidth;
                 if (document.documentElement.scrollWidth <= room + 1) return [];
                 const scrolls = (node) => node && (getComputedStyle(node).overflowX !== "visible"
                   || scrolls(node.parentElement));
                 const wide = [...document.querySelectorAll("body *")].filter((node) =>
                   node.getBoundingClientRect().right > room + 1 && !scrolls(node.parentElement));
                 return (wide.length ? wide : [document.body]).slice(0, 3)
                   .map((node) => node.outerHTML.slice(0, 100));
               }"""
        )
        self.complaints += [f"wider than the window ({scheme}, {width}): {element}" for element in wide]

    def check_dark_figures(self) -> None:
        """In the dark, figures keep their white paper and their colors."""
        self.complaints += self.page.evaluate(
            """() => [...document.querySelectorAll(".bd-article img:not(.only-dark, .dark-light)")]
                 .filter((image) => getComputedStyle(image).filter !== "none"
                   || getComputedStyle(image).backgroundColor !== "rgb(255, 255, 255)")
                 .map((image) => `figure not on white in the dark: ${image.src.slice(0, 80)}`)"""
        )

    def check_accessibility(self, scheme: str, width: str) -> None:
        """axe-core finds no serious and no critical violation."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE)
        off = [*AXE_RULES_OFF, *(AXE_RULES_OF_COLOR if scheme in self._colors_checked else ())]
        self._colors_checked.add(scheme)
        violations = self.page.evaluate(
            """async (rules) => (await axe.run(document, { resultTypes: ["violations"], rules })).violations
                 .filter((violation) => ["serious", "critical"].includes(violation.impact))
                 .map(({ id, nodes }) => `${id} (${nodes.length}): ${nodes[0].html.slice(0, 120)}`)""",
            {rule: {"enabled": False} for rule in off},
        )
        self.complaints += [f"{violation} ({scheme}, {width})" for violation in violations]

    def thin(self) -> None:
        """Takes out what axe-core would look at again and again: the insides of formulas, and in each block of code all
        tokens of a kind but the first. These are four fifths of a chapter's elements, and of its time."""
        self.page.evaluate(
            """() => {
                 document.querySelectorAll("mjx-container").forEach((formula) => formula.replaceChildren());
                 document.querySelectorAll(".highlight pre").forEach((code) => {
                   const kinds = new Set();
                   code.querySelectorAll("span:not([id]):not(:has(*))").forEach((token) => {
                     if (kinds.has(token.className)) token.replaceWith(token.textContent);
                     kinds.add(token.className);
                   });
                 });
               }"""
        )

    def check_everything(
        self,
        looks: Sequence[tuple[str, str]] = LOOKS,
        *,
        accessible: Sequence[tuple[str, str]] | None = None,
        whole: bool = True,
    ) -> list[str]:
        """All checks, in the given color schemes and widths; returns what is wrong, each once.

        Accessibility is looked at in ``accessible``, which is all of them by default; unless ``whole``, that of a page
        made thin.
        """
        self.settle()
        self.check_mathematics()
        self.check_images()
        for scheme, width in looks:
            self.look(scheme, width)
            self.check_layout(scheme, width)
            if scheme == "dark":
                self.check_dark_figures()
        if not whole:
            self.thin()
        for scheme, width in reversed(looks if accessible is None else accessible):
            self.look(scheme, width)
            self.check_accessibility(scheme, width)
        return list(dict.fromkeys(self.complaints))
