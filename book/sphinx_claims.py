"""A Sphinx extension: under each claim of a chapter, the page shows the numbers that it carries.

The stored text of a claim is its verdict alone, which is the same on every machine. Its numbers, ours and the paper's,
stand in the output's metadata, where a reader of the page would not see them.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from book.generate_claims import number_text
from robustlab.teaching.claims import ClaimRecord, recorded_claims


def with_numbers(body: str, claims: list[ClaimRecord]) -> str:
    """``body``, with the numbers of each of ``claims`` on the line below its verdict.

    Raises:
        ValueError: for a claim with numbers whose verdict is not in ``body``.
    """
    for claim in claims:
        both = (("here", claim.ours), ("paper", claim.paper))
        lines = [f"    {where:5}  {number_text(of)}" for where, of in both if of is not None]
        if not lines:
            continue
        line = escape(claim.line, quote=False)
        if line not in body:
            raise ValueError(f"claim {claim.id!r}: want its verdict on the page, found none")
        numbers = escape("\n".join(lines), quote=False)
        body = body.replace(line, f'{line}\n<span class="claim-numbers">{numbers}</span>', 1)
    return body


def _show_numbers(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: nodes.document | None
) -> None:
    notebook = Path(app.srcdir, f"{page}.ipynb")
    if context.get("body") and notebook.is_file():
        context["body"] = with_numbers(context["body"], recorded_claims(notebook))


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension; called by Sphinx."""
    app.connect("html-page-context", _show_numbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
