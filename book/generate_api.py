"""The API reference: one page per file of the library, and tables that lead to them.

The pages of methods stand in the order of their names in the sidebar; a table, which a page in book/api includes, has
them in the order of the chapters, and after them the pieces that they share. A page shows the file's docstring and all
its public functions and classes. What it should say beyond that belongs into the docstring.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence

from book.myst import list_table, page
from book.notebooks import Chapter
from book.public_names import ELSEWHERE, Module, modules
from robustlab.teaching.catalogue import FOLDERS, SECTIONS

# Packages without methods: the page of book/api that shows them, and what it calls them.
SHARED = {
    "attacker": ("core", "The attacker"),
    "geometry": ("core", "Geometry"),
    "graph": ("graph", "Files"),
    "teaching": ("tools", "Files"),
}
# Folders of methods whose table stands on a page other than that of their package.
APART = {f"attacks/{part}": "attacks_on_training" for part in ("poisoning", "backdoor", "federated")}


def api_pages(chapters: Sequence[Chapter]) -> dict[str, str]:
    """File name to MyST Markdown, for book/generated: a page per file, and the tables that other pages include."""
    found = {folder: modules(folder) for folder in FOLDERS}
    there = {folder: own for folder, own in found.items() if any(module.rows for module in own)}
    links = {f"{chapter.number:02d}": chapter for chapter in chapters}
    tables: dict[str, list[str]] = {}
    files = {}
    for folder, own in {**there, **{folder: modules(folder) for folder in SHARED}}.items():
        home, title = SHARED.get(folder) or (APART.get(folder, folder.partition("/")[0]), FOLDERS[folder])
        tables.setdefault(home, []).append(folder_table(folder, title, own, links))
        files |= {
            f"api/{_stem(folder, module)}.md": file_page(module, links, shared=folder in SHARED) for module in own
        }
    return {
        **files,
        **{f"api_{home}.md": "\n\n".join(parts) + "\n" for home, parts in tables.items()},
        "api_contents.md": _contents(there),
    }


def file_page(module: Module, links: Mapping[str, Chapter], *, shared: bool = False) -> str:
    """The page of one file: all its functions and classes, each under the name by which it is imported.

    Args:
        module: the file.
        links: chapters by their two digits; the page says where its method is treated.
        shared: whether it lies in a package without methods; then all that has a docstring is shown, data too.
    """
    where = _treated(module, links, "../../../chapters")
    apart = [node for node in module.public if _home(module, node) != module.name] if shared else list(module.public)
    options = ["   :members:"] if shared else []
    if shared and apart:
        options.append(f"   :exclude-members: {', '.join(node.name for node in apart)}")
    blocks = [_directive(f".. automodule:: {module.name}", *options)]
    blocks += [_directive(*(line for node in apart for line in _member(module, node)))] if apart else []
    return page(_title(module), *blocks, f"Treated in chapter {where}." if where else "")


def folder_table(folder: str, title: str, own: Sequence[Module], links: Mapping[str, Chapter]) -> str:
    """A heading and a table of the files of one folder: methods by chapter, then what they share."""
    lines = [
        (
            f"[{_title(module)}](../generated/api/{_stem(folder, module)}.md)",
            ", ".join(f"{{py:obj}}`{node.name} <{_home(module, node)}.{node.name}>`" for node in _named(module)),
            _treated(module, links, "../../chapters"),
        )
        for module in _in_order(own)
    ]
    return f"({_label(folder)})=\n## {title}\n\n" + list_table(("File", "Names", "Chapter"), lines, (35, 50, 15))


def _named(module: Module) -> Sequence[ast.FunctionDef | ast.ClassDef]:
    """What a reader imports from the package; all that is public where that is nothing."""
    return [node for node in module.public if node.name in module.exported] or module.public


def _contents(there: Mapping[str, Sequence[Module]]) -> str:
    """The table of the folders of methods: each with its methods, which lead to their pages."""
    lines = []
    for folder, own in there.items():
        rows = [row for module in _in_order(own) for row in module.rows]
        names = ", ".join(f"{{py:obj}}`{row.key} <{row.public_name}>`" for row in rows)
        sections = ", ".join(section for section in SECTIONS if section in {row.section for row in rows})
        lines.append((f"[{FOLDERS[folder]}](#{_label(folder)})", sections, names))
    return list_table(("Folder", "Survey", "Methods"), lines, (25, 10, 65)) + "\n"


def _title(module: Module) -> str:
    return ", ".join(row.title for row in module.rows) or f"`{module.name.partition('.')[2]}`"


def _treated(module: Module, links: Mapping[str, Chapter], base: str) -> str:
    numbers = dict.fromkeys(number for row in module.rows for number in row.chapters if number in links)
    return ", ".join(f"[{number}]({base}/{links[number].stem}.ipynb)" for number in numbers)


def _label(folder: str) -> str:
    return "folder-" + folder.replace("/", "-")


def _directive(*lines: str) -> str:
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _member(module: Module, node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    """The directive of a function or class, under the name by which it is imported."""
    name = f"{_home(module, node)}.{node.name}"
    if isinstance(node, ast.FunctionDef):
        yield f".. autofunction:: {name}"
    else:
        yield from (f".. autoclass:: {name}", "   :members:")


def _home(module: Module, node: ast.FunctionDef | ast.ClassDef) -> str:
    if node.name in module.exported:
        return module.package
    lent = (package for package, names in ELSEWHERE.items() if names.get(node.name) == module.name)
    return next((f"robustlab.{package}" for package in lent), module.name)


def _in_order(own: Sequence[Module]) -> list[Module]:
    """Methods in the order of the chapters, then what users import, then the rest."""
    return sorted(own, key=lambda module: (not module.rows, not module.exported, module.place))


def _stem(folder: str, module: Module) -> str:
    """``attacks_whitebox_pgd``; of a shared package, by the page that shows it: ``core_attacker_victim``."""
    home = (SHARED[folder][0], folder) if folder in SHARED else folder.split("/")
    return "_".join(dict.fromkeys([*home, module.title]))
