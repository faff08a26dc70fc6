"""The API reference of the methods: one page per folder of the library, one section per file, from the catalogue.

A page has first the files that hold no method but that users import from, then the methods in the order of the
chapters, then the pieces that these share. Of each file it shows the docstring and all public functions and classes.
What a page should say beyond that belongs into the docstring of a module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence

from book.myst import list_table, page
from book.notebooks import Chapter
from book.public_names import Module, modules
from robustlab.teaching.catalogue import FOLDERS, SECTIONS


def api_pages(chapters: Sequence[Chapter]) -> dict[str, str]:
    """File name to MyST Markdown, for book/generated: a page per folder, and the table that the index includes."""
    found = {folder: modules(folder) for folder in FOLDERS}
    there = {folder: own for folder, own in found.items() if any(module.rows for module in own)}
    links = {f"{chapter.number:02d}": chapter for chapter in chapters}
    return {
        **{f"api/{_stem(folder)}.md": folder_page(folder, own, links) for folder, own in there.items()},
        "api_contents.md": _contents(there),
    }


def folder_page(folder: str, own: Sequence[Module], links: Mapping[str, Chapter]) -> str:
    """The page of one folder.

    Args:
        folder: one of the catalogue's ``FOLDERS``.
        own: the modules that lie there.
        links: chapters by their two digits; a section says where its method is treated.
    """
    methods = _methods(own)
    others = [module for module in own if not module.rows]
    blocks = [f"The files of `robustlab/{folder}`; users import their names from `{methods[0].package}`."]
    blocks += [_section(module, "##", links) for module in others if module.exported]
    blocks += [_section(module, "##", links) for module in methods]
    shared = [_section(module, "###", links) for module in others if not module.exported]
    blocks += ["## What these methods share", *shared] if shared else []
    return f"(api-{_stem(folder).replace('_', '-')})=\n" + page(FOLDERS[folder], *blocks)


def _section(module: Module, level: str, links: Mapping[str, Chapter]) -> str:
    title = ", ".join(row.title for row in module.rows) or f"`{module.title}`"
    treated = dict.fromkeys(number for row in module.rows for number in row.chapters if number in links)
    where = ", ".join(f"[{number}](../../../chapters/{links[number].stem}.ipynb)" for number in treated)
    members = [line for node in module.public for line in _member(module, node)]
    return "\n".join(
        [
            *[f"{level} {title}", ""],
            *([f"Chapter {where}.", ""] if where else []),
            *["```{eval-rst}", f".. automodule:: {module.name}", "```"],
            *(["", "```{eval-rst}", *members, "```"] if members else []),
        ]
    )


def _member(module: Module, node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    """The directive of a function or class, under the name by which it is imported."""
    home = module.package if node.name in module.exported else module.name
    if isinstance(node, ast.FunctionDef):
        yield f".. autofunction:: {home}.{node.name}"
    else:
        yield from (f".. autoclass:: {home}.{node.name}", "   :members:")


def _contents(there: Mapping[str, Sequence[Module]]) -> str:
    """The table of the pages: each with its methods, which lead to their sections."""
    lines = []
    for folder, own in there.items():
        rows = [row for module in _methods(own) for row in module.rows]
        names = ", ".join(f"{{py:obj}}`{row.key} <{row.public_name}>`" for row in rows)
        sections = ", ".join(section for section in SECTIONS if section in {row.section for row in rows})
        lines.append((f"[{FOLDERS[folder]}](../generated/api/{_stem(folder)}.md)", sections, names))
    return list_table(("Page", "Survey", "Methods"), lines, (25, 10, 65)) + "\n"


def _methods(own: Sequence[Module]) -> list[Module]:
    """The modules that hold methods, in the order of the chapters."""
    return sorted((module for module in own if module.rows), key=lambda module: module.place)


def _stem(folder: str) -> str:
    return folder.replace("/", "_")
