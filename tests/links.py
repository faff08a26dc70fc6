"""Asks for every address on another host that the pages, the chapters and the bibliography name.

An address fails if its server says that there is no such page (404, 410), or if its host does not exist. Servers that
refuse robots (403, 429) or are busy are listed and do not fail. Only the standard library.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# An address behind "git+" is one for pip.
ADDRESS = re.compile(r"(?<!git\+)https?://(?!127\.|localhost)[^\s<>\"'`{}\\|^\]]+")
BROWSER = {"User-Agent": "Mozilla/5.0 (links of a book, asked once)"}


def texts() -> Iterator[tuple[str, str]]:
    """Name and text of everything that a reader may click in."""
    for pattern in ("*.md", "*.cff", "book/**/*.md", "book/references.bib", "robustlab/**/*.py", "robustlab/**/*.md"):
        for path in sorted(ROOT.glob(pattern)):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n".join("".join(cell["source"]) for cell in cells)


def addresses(name: str, text: str) -> set[str]:
    """Without what a sentence or Markdown puts behind; digital object identifiers and arXiv numbers as links."""
    found = {link.rstrip(".,;:") for link in ADDRESS.findall(text)}
    found = {link[: -1 if link.count(")") > link.count("(") else None] for link in found}
    if name.endswith(".bib"):
        found |= {f"https://doi.org/{doi}" for doi in re.findall(r"^\s*doi\s*=\s*[{\"]([^}\"]+)", text, re.MULTILINE)}
        found |= {
            f"https://arxiv.org/abs/{n}" for n in re.findall(r"^\s*eprint\s*=\s*[{\"]([^}\"]+)", text, re.MULTILINE)
        }
    return {link.partition("#")[0] for link in found}


def answer(link: str) -> str:
    """ "ok", "gone", "no answer" or "refused", with the reason behind."""
    try:
        with urllib.request.urlopen(urllib.request.Request(link, headers=BROWSER), timeout=20):
            return "ok"
    except urllib.error.HTTPError as error:
        return f"{'gone' if error.code in (404, 410) else 'refused'}: {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return f"no answer: {getattr(error, 'reason', error)}"


def main() -> int:
    """Exit with 1 where an address is gone or does not answer."""
    places = defaultdict(set)
    for name, text in texts():
        for link in addresses(name, text):
            places[link].add(name)
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = dict(zip(places, pool.map(answer, places), strict=True))
    for link, said in sorted(answers.items()):
        if said != "ok":
            print(f"{link}\n    {said}; in {', '.join(sorted(places[link]))}")
    if all(said.startswith("no answer") for said in answers.values()):
        print(f"None of {len(answers)} addresses answers: is there a network?")
    lost = sum(said.startswith(("gone", "no answer")) for said in answers.values())
    print(f"{len(answers)} addresses, {lost} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
