"""A Sphinx extension for the API pages: robustlab's docstrings, which are plain text, as reStructuredText.

The docstrings are written to be read in an editor. Formulas stand in indented blocks, names in back-quotes,
and a bar or a star is a bar or a star. This extension turns indented blocks into literal blocks and escapes
what reStructuredText would read as markup, so that the pages show what the source shows. Sections such as
``Args:`` are left to napoleon.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

SECTIONS = re.compile(r"(Args|Arguments|Attributes|Example|Examples|Note|Notes|Raises|Returns|Yields):\s*$")
KEEP = re.compile(
    r"``.+?``"  # literals
    r"|:[\w:]+:`[^`]+`"  # roles
    r"|(?<![\w*])(?P<star>\*{1,2})(?=\S)[^*\n]+?(?<=\S)(?P=star)(?![\w*])"  # emphasis
)
# Names that a signature should show, rather than what they stand for: unions and type variables.
ALIASES = (
    "Access",
    "Attack",
    "Bare",
    "Batch",
    "Builder",
    "Details",
    "Draw",
    "Eps",
    "LossFunction",
    "Made",
    "Model",
    "Numbers",
    "Reply",
    "Seen",
    "Trained",
    "Trained_contra",
)


def to_restructured_text(lines: list[str]) -> list[str]:
    """The docstring ``lines``, dedented, with literal blocks marked and everything else escaped."""
    out: list[str] = []
    in_section = in_literal = False
    paragraph = ""  # the last line with text in column 0
    for position, line in enumerate(lines):
        indented = line.startswith(" ")
        if line.strip() and not indented:
            in_section, in_literal, paragraph = bool(SECTIONS.match(line)), False, line
        starts_block = indented and position > 0 and not lines[position - 1].strip()
        if starts_block and not in_section and not in_literal:
            in_literal = True
            if not paragraph.endswith("::"):
                out += ["::", ""]
        out.append(line if in_literal else escape(line))
    return out


def escape(line: str) -> str:
    """``line`` with stray bars, stars, back-quotes and trailing underscores taken literally; ``* `` begins an item."""
    item = re.match(r" *\* (?=\S)", line)
    end = item.end() if item else 0
    parts = [line[:end]]
    for kept in KEEP.finditer(line, end):
        parts += [_escape_plain(line[end : kept.start()]), kept.group()]
        end = kept.end()
    return "".join([*parts, _escape_plain(line[end:])])


def _escape_plain(text: str) -> str:
    pieces = re.split(r"(?<!`)`([^`]+)`(?![`_])", text)  # odd pieces stood in single back-quotes
    for i, piece in enumerate(pieces):
        if i % 2:
            pieces[i] = f"``{piece}``"
        else:
            pieces[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r"(?<!\\)([|*])", r"\\\1", piece))
    return "".join(pieces)


def _process_docstring(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = to_restructured_text(lines)


def _skip_member(_app: Sphinx, _what: str, _name: str, member: Any, skip: bool, _options: Any) -> bool:
    """Leaves out the fields of a NamedTuple, whose docstring is ``Alias for field number ...``."""
    return skip or type(member).__name__ == "_tuplegetter"


def _settings(_app: Sphinx, config: Config) -> None:
    config.autodoc_member_order = "bysource"
    config.autodoc_inherit_docstrings = False  # what torch says of a method that we override is not about ours
    config.autodoc_typehints_format = "short"
    config.autodoc_preserve_defaults = True
    config.autodoc_type_aliases = {name: name for name in ALIASES}
    config.napoleon_use_ivar = True  # the alternative documents a dataclass's fields twice
    # Names of other projects have no page here, nor have the aliases.
    own = "|".join(ALIASES)
    config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, ("py:.*", rf"(?!robustlab\.).*|.*\b({own})")]


def _public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contents: nodes.TextElement
) -> nodes.Element | None:
    """Leads a reference to a function's home module to the public name under which it is documented."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("robustlab."):
        return None
    wanted, last = _imported(target), target.rpartition(".")[2]
    for name, entry in env.domains["py"].data["objects"].items():
        if wanted is not None and name.rpartition(".")[2] == last and _imported(name) is wanted:
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contents, name)
    return None


def _imported(name: str) -> Any:
    """The object with a dotted name, or None."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension; called by Sphinx."""
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)  # before napoleon, at 500
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-skip-member", _skip_member, priority=400)
    app.connect("missing-reference", _public_name)
    app.connect("config-inited", _settings, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
