"""The jobs outside of `make test`: what they install, what they run, and that the workflow only calls the Makefile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests import links, versions

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8"))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_the_workflow_only_calls_targets_of_the_makefile() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {row["target"] for row in WORKFLOW["jobs"]["nightly"]["strategy"]["matrix"]["include"]}
    assert {step["run"] for step in STEPS if "run" in step} == {"make test", "make pdf", "make ${{ matrix.target }}"}
    assert {"test-full", "test-lowest", "test-newest"} <= targets
    assert all(re.search(rf"^{target}:", rules, flags=re.MULTILINE) for target in targets)


def test_lint_reads_the_chapters() -> None:
    """A cell with an unused import is planted: ruff sees it, as `make lint` calls it, and leaves its layout alone."""
    cell = {"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {}, "outputs": []}
    cell["source"] = ["import os\n", "x = [1,\n", "     2]     # set by hand\n"]
    notebook = json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})

    def ruff(*arguments: str) -> str:
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--force-exclude"]
        name = ("--stdin-filename", "chapters/99_planted.ipynb", "-")
        return subprocess.run([*command, *name], cwd=ROOT, input=notebook, capture_output=True, text=True).stdout

    assert "F401" in ruff("check") and "I001" not in ruff("check")
    assert json.loads(ruff("format"))["cells"][0]["source"] == cell["source"]


def test_actions_are_pinned_by_commit() -> None:
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert used and [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name)] == []


def test_all_pins_are_looked_after_in_groups() -> None:
    watched = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))["updates"]
    assert {entry["package-ecosystem"] for entry in watched} == {"pip", "github-actions"}
    for entry in watched:
        assert (ROOT / entry["directory"].lstrip("/") / "requirements.txt").exists()
        assert [group["patterns"] for group in entry["groups"].values()] == [["*"]], "one pull request for a kind"


def test_the_full_run_has_the_suites_on_the_pretend_device() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^test-full: test\b.*\n\t@.* -m pytest .*--pretend-gpu tests/suite$", rules, flags=re.MULTILINE)


def test_the_lowest_versions_are_those_that_pyproject_promises() -> None:
    lowest, newest = versions.requirements("lowest"), versions.requirements("newest")
    assert {"torch==2.6", "torchvision==0.21", "onnx==1.16"} <= set(lowest)
    assert [need.replace(">=", "==") for need in newest[:8]] == lowest[:8] != newest[:8]


def test_tests_of_the_library_need_nothing_of_the_book() -> None:
    chosen = versions.files()
    assert {"tests/suite/test_success.py", "tests/unit/test_pgd.py"} <= set(chosen)
    others = ("catalogue", "references", "jobs", "vnnlib_peer")
    assert not {f"tests/unit/test_{name}.py" for name in others} & set(chosen)


def test_addresses_are_found_without_what_stands_behind_them() -> None:
    text = "[a](https://a.org/b_(c)), <https://d.org>. `https://e.org/#part`: http://127.0.0.1:8/ git+https://g.org@v1"
    assert links.addresses("page.md", text) == {"https://a.org/b_(c)", "https://d.org", "https://e.org/"}
    entry = '@article{x,\n  doi = {10.1/ab},\n  eprint = "1412.6572",\n  url = {https://f.org},\n}'
    found = {"https://doi.org/10.1/ab", "https://arxiv.org/abs/1412.6572", "https://f.org"}
    assert links.addresses("references.bib", entry) == found
    assert len(dict(links.texts())) > 100
