"""A claim shows one stable line, and raises when the outcome is not the declared one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from robustlab.teaching.claims import METADATA_KEY, ClaimError, ClaimRecord, claim, recorded_claims


@pytest.fixture(autouse=True)
def fresh_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts with no claim made."""
    monkeypatch.setattr("robustlab.teaching.claims._stated", {})


def test_prints_exactly_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    claim("one-below-two", "One is below two", 1 < 2, method="fgsm", ours=0.1)
    assert capsys.readouterr().out == "one-below-two: One is below two — holds\n"
    claim("no-luck", "Two is below one", 2 < 1, method="fgsm", reproduces=False, reason="it is larger")
    assert capsys.readouterr().out == "no-luck: Two is below one — does not reproduce here\n"


@pytest.mark.parametrize(("outcome", "declared"), [(False, {}), (True, {"reproduces": False, "reason": "r"})])
def test_raises_when_the_outcome_is_not_the_declared_one(outcome: bool, declared: dict[str, Any]) -> None:
    with pytest.raises(ClaimError, match="its outcome is"):
        claim("some-claim", "Some text", outcome, method="fgsm", **declared)


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


def test_numbers_travel_rounded_in_the_metadata(tmp_path: Path) -> None:
    """In a kernel the line is compared text; the numbers are metadata, which nbval leaves alone."""
    displayed = _in_ipython(
        "claim('rounds', 'It rounds', True, method='pgd', "
        "ours={'a': 0.123456789, 'n': 100000, 'inf': float('inf')}, paper=torch.tensor(1.5))"
    )
    assert displayed["data"] == {"text/plain": "rounds: It rounds — holds"}
    record = displayed["metadata"][METADATA_KEY]
    assert record["ours"] == {"a": 0.1235, "n": 100000, "inf": "inf"}
    assert record["paper"] == 1.5
    output = {"output_type": "display_data", **displayed}
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, {"outputs": [output]}]}))
    assert recorded_claims(notebook) == [ClaimRecord(**record)]


def test_importing_it_does_not_import_ipython() -> None:
    code = "import sys, robustlab.teaching.claims; assert 'IPython' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _in_ipython(statement: str) -> dict[str, Any]:
    """What a statement displays in an IPython shell."""
    code = f"""
import json, torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput
shell = InteractiveShell.instance()
shell.display_pub.publish = lambda data, metadata=None, **rest: print(json.dumps([data, metadata]))
from robustlab.teaching.claims import claim
{statement}
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    data, metadata = json.loads(done.stdout.strip().splitlines()[-1])
    return {"data": data, "metadata": metadata}
