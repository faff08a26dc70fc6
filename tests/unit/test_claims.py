"""A claim shows one stable line, and raises when the outcome is not the declared one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from robustlab.teaching.claims import METADATA_KEY, ClaimError, ClaimRecord, claim, recorded_claims

PAIRS = [["late", 0.1235], ["early", [0.5, 0.4, 0.6]], ["inf", "inf"]]


@pytest.fixture(autouse=True)
def fresh_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts with no claim made."""
    monkeypatch.setattr("robustlab.teaching.claims._stated", {})


def test_prints_its_line_and_below_it_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    claim("one-below-two", "One is below two", 1 < 2, method="fgsm")
    assert capsys.readouterr().out == "one-below-two: One is below two — holds\n"
    claim("no-luck", "Two is below one", 2 < 1, method="fgsm", reproduces=False, reason="it is larger")
    assert capsys.readouterr().out == "no-luck: Two is below one — does not reproduce here\n"
    claim(
        "close", "A is near B", True, method="fgsm", ours={"b": (0.97, 0.95, 0.99), "a": 3}, paper=0.98,
        n=300, refuted_by="less than 0.9",
    )  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "close: A is near B — holds",
        "    paper       0.98",
        "    here        b: ≈0.97 [0.95, 0.99]; a: ≈3 (n = 300)",
        "    refuted by  less than 0.9",
    ]


@pytest.mark.parametrize(("outcome", "declared"), [(False, {}), (True, {"reproduces": False, "reason": "r"})])
def test_an_outcome_that_is_not_the_declared_one(
    outcome: bool, declared: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It raises in the book's own runs, and is reported to a reader who has changed something."""
    with pytest.raises(ClaimError, match="its outcome is"):
        claim("some-claim", "Some text", outcome, method="fgsm", **declared)
    monkeypatch.delenv("ROBUSTLAB_STRICT")
    claim("some-claim", "Some text", outcome, method="fgsm", ours=0.3, **declared)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("some-claim: Some text — declared that it ") and first.endswith("here it is otherwise")
    assert second.split() == ["here", "≈0.3"]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"id": "Not_Kebab"}, "id"),
        ({"id": "trailing-"}, "id"),
        ({"method": "No Key"}, "method"),
        ({"method": ""}, "method"),
        ({"text": ""}, "text"),
        ({"text": "two\nlines"}, "text"),
        ({"outcome": False, "reproduces": False}, "reason"),
        ({"outcome": False, "reproduces": False, "reason": " "}, "reason"),
        ({"reason": "superfluous"}, "reason"),
    ],
)
def test_refuses_a_badly_formed_claim(changed: dict[str, Any], name: str) -> None:
    good: dict[str, Any] = {"id": "good-id", "text": "Fine", "outcome": True, "method": "fgsm"}
    with pytest.raises(ClaimError, match=f"^{name}"):
        claim(**(good | changed))


def test_an_id_stands_for_one_claim_but_a_cell_may_run_again() -> None:
    claim("same-id", "First text", True, method="fgsm")
    claim("same-id", "First text", True, method="fgsm")
    with pytest.raises(ClaimError, match="already stands for another claim"):
        claim("same-id", "Second text", True, method="fgsm")


@pytest.mark.slow
def test_the_claims_of_a_cell_are_one_table_and_their_numbers_travel_in_order(tmp_path: Path) -> None:
    shown = _in_ipython(
        "claim('rounds', 'It rounds <', True, method='pgd', "
        "ours={'late': 0.123456789, 'early': (0.5, 0.4, 0.6), 'inf': float('inf')}, paper=torch.tensor(1.5))\n"
        "claim('second', 'A second', True, method='pgd')"
    )
    (displayed,) = shown
    assert displayed["data"]["text/plain"].splitlines()[-1] == "second: A second — holds"
    html = displayed["data"]["text/html"]
    assert html.count("<tr>") == 3 and "It rounds &lt;" in html and "late: ≈0.123<br>early: ≈0.5 [0.4, 0.6]<br>" in html
    first, _ = displayed["metadata"][METADATA_KEY]
    assert first["ours"] == PAIRS and first["paper"] == 1.5
    output = {"output_type": "display_data", **displayed}
    notebook = tmp_path / "n.ipynb"
    # Notebooks are written with their keys sorted.
    notebook.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, {"outputs": [output]}]}, sort_keys=True))
    records = recorded_claims(notebook)
    ours = {"late": 0.1235, "early": (0.5, 0.4, 0.6), "inf": "inf"}
    assert records[0] == ClaimRecord("rounds", "It rounds <", "pgd", True, ours, 1.5)
    assert list(records[0].ours) == ["late", "early", "inf"] and records[1].id == "second"


@pytest.mark.slow
def test_a_table_is_shown_where_its_cell_fails_too() -> None:
    shown = _in_ipython("claim('first', 'A first', True, method='pgd')\nraise ValueError('later')")
    assert [one["data"]["text/plain"] for one in shown] == ["first: A first — holds"]


def test_importing_it_does_not_import_ipython() -> None:
    code = "import sys, robustlab.teaching.claims; assert 'IPython' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _in_ipython(cell: str) -> list[dict[str, Any]]:
    """What a cell displays in an IPython shell."""
    code = f"""
import json
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.display_pub.publish = lambda data, metadata=None, **rest: print("SHOWN", json.dumps([data, metadata]))
shell.run_cell("import torch; from robustlab.teaching.claims import claim")
shell.run_cell({cell!r})
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SHOWN ")]
    return [dict(zip(("data", "metadata"), json.loads(line[6:]), strict=True)) for line in lines]
