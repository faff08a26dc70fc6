"""The pages around the chapters: all are in the table of contents, all links lead somewhere, terms are in order."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from book.generate import pages as generated_pages
from tests.every import every

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in (ROOT / "book").rglob("*.md") if not {"generated", "static"} & set(path.parts))
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
PUBLIC = {
    **TEXTS,
    **{
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE-PROSE")
    },
}
GLOSSARY = TEXTS["book/glossary.md"]

each_page = every("page", sorted(TEXTS))
each_public_file = every("page", sorted(PUBLIC))


def toc_entries(node: Any) -> Iterator[str]:
    """All pages that _toc.yml names, globs resolved."""
    if isinstance(node, list):
        for part in node:
            yield from toc_entries(part)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("root", "file"):
                yield value
            elif key == "glob":
                yield from fnmatch.filter(THERE, value)
            else:
                yield from toc_entries(value)


GENERATED = {f"book/generated/{name.removesuffix('.md')}" for name in generated_pages()}
INCLUDED = {
    "book/generated/parts": "book/index.md",
    "book/generated/course_map": "book/course.md",
    "book/generated/api_contents": "book/api/index.md",
    "book/generated/operators": "book/api/graph.md",
    **{
        f"book/generated/api_{page}": f"book/api/{page}.md"
        for page in (
            "attacks",
            "attacks_on_training",
            "core",
            "defenses",
            "evaluation",
            "graph",
            "tools",
            "verification",
        )
    },
}
CHAPTERS = {str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob("chapters/*.ipynb")}
THERE = CHAPTERS | {name.removesuffix(".md") for name in TEXTS} | GENERATED
TOC = set(toc_entries(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))


def glossary_entries() -> dict[str, str]:
    """Term to definition."""
    body = re.search(r"```\{glossary\}\n(.*?)^```$", GLOSSARY, flags=re.MULTILINE | re.DOTALL)
    assert body is not None
    blocks = [block for block in body[1].split("\n\n") if block.strip()]
    entries: dict[str, str] = {}
    for block in blocks:
        lines = block.strip("\n").splitlines()
        names = [line for line in lines if not line.startswith(" ")]  # a term and its synonyms
        definition = " ".join(line.strip() for line in lines[len(names) :])
        assert names == lines[: len(names)] and definition, f"not a term with its definition: {block!r}"
        for name in names:
            assert name.casefold() not in {term.casefold() for term in entries}, f"{name} is defined twice"
            entries[name] = definition
    return entries


def test_every_page_of_the_table_of_contents_exists() -> None:
    assert THERE >= TOC, f"in _toc.yml and nowhere else: {sorted(TOC - THERE)}"


def test_every_page_is_in_the_table_of_contents() -> None:
    missing = THERE - set(INCLUDED) - TOC
    assert not missing, f"not in _toc.yml: {sorted(missing)}"
    for part, page in INCLUDED.items():
        assert re.search(rf"{{include}} \S*generated/{Path(part).name}.md", TEXTS[page])


@each_page
def test_one_title_at_the_top(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    assert re.match(r"(\([\w-]+\)=\n)?# \S", TEXTS[page])
    assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1


@each_page
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", TEXTS[page])
    links += [link + ".ipynb" for link in re.findall(r"^:link: (\S*chapters/\S+)$", TEXTS[page], flags=re.MULTILINE)]
    for link in links:
        target = (folder / link).resolve()
        name = str(target.relative_to(ROOT).with_suffix(""))
        assert target.exists() or name in GENERATED, f"{page} links to {link}, which does not exist"


@each_page
def test_no_role_is_broken_by_a_space_or_a_stray_quote(page: str) -> None:
    assert not re.search(r"\{(?:term|cite:[tp]|py:\w+)\}(?!`[^`\s])", TEXTS[page])


@each_public_file
def test_no_path_of_a_machine(page: str) -> None:
    found = re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users|usr|opt|mnt|var)\b|file://|[A-Z]:\\", PUBLIC[page])
    assert found is None, f"{page} mentions {found and found.group()}"


@each_public_file
def test_the_repository_has_its_address_in_one_place(page: str) -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"].removeprefix("https://") not in PUBLIC[page]


@each_public_file
def test_american_spelling_and_nothing_unfinished(page: str) -> None:
    british = r"\b(?:defence|colour|behaviour|licence|centre|(?:normal|minim|maxim|optim|general|memor|random)is\w+)\b"
    found = re.search(british, PUBLIC[page], flags=re.IGNORECASE)
    assert found is None, f"{page}: {found and found.group()}"
    unfinished = re.search(r"\b(?:TODO|FIXME|TBD|lorem ipsum)\b", PUBLIC[page])
    assert unfinished is None, f"{page}: {unfinished and unfinished.group()}"


@each_page
def test_citations_are_in_the_bibliography(page: str) -> None:
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    known = set(re.findall(r"^@(?!string)\w+\{([^,\s]+),", bibliography, flags=re.MULTILINE))
    cited = ",".join(re.findall(r"\{cite:[tp]\}`([^`]+)`", TEXTS[page])).split(",")
    missing = {key.strip() for key in cited if key.strip()} - known
    assert not missing, f"{page} cites {sorted(missing)}"


def test_glossary_is_sorted_and_large() -> None:
    heads = re.findall(r"(?:^|\n\n)(\S[^\n]*)\n", GLOSSARY.split("{glossary}")[1].replace("\n", "\n\n", 1))
    assert heads == sorted(heads, key=str.casefold)
    assert len(heads) >= 60
    assert set(heads) <= set(glossary_entries())


def test_definitions_are_short() -> None:
    for term, text in glossary_entries().items():
        assert text.endswith((".", ".`")), f"{term}: no full stop"
        assert len(text) < 420, f"{term}: {len(text)} characters are no definition"


@each_page
def test_terms_are_in_the_glossary(page: str) -> None:
    known = {term.casefold() for term in glossary_entries()}
    for role in re.findall(r"\{term\}`([^`]+)`", TEXTS[page]):
        shown = " ".join(role.split())
        target = re.search(r"<([^>]+)>$", shown)
        name = target[1] if target else shown
        assert name.casefold() in known, f"{page}: no glossary entry for {name!r}"


def test_most_terms_are_linked_from_another_entry() -> None:
    assert len(re.findall(r"\{term\}", GLOSSARY)) >= 40


def test_notation_has_the_survey_s_table() -> None:
    notation = TEXTS["book/notation.md"]
    for symbol in (
        r"f_\theta : \mathbb{R}^d \to [0, 1]^K",
        r"\mathrm{logit} : \mathbb{R}^d \to \mathbb{R}^K",
        "(x, y)",
        r"\hat y_\theta(x) \in [K]",
        r"x_{\mathrm{adv}}",
        r"\delta",
        r"\Delta",
        r"t \in [K]",
        r"\mathrm{loss}(f_\theta(x), y)",
        "g",
        r"D_{\mathrm{train}}",
        r"D_{\mathrm{test}}",
        r"\mathcal{T}",
    ):
        assert re.search(r"^\* - .*\$" + re.escape(symbol) + r"\$", notation, flags=re.MULTILINE), symbol


@pytest.mark.slow
def test_the_landing_page_links_every_chapter() -> None:
    cards = generated_pages()["parts.md"]
    for path in ROOT.glob("chapters/*.ipynb"):
        assert f"(../chapters/{path.name})" in cards
        assert f"- {path.name[:2]} " not in cards, f"{path.name} is here and announced as to come"
