"""Recorded experiments: each table is still that of its experiment, a chapter shows it, and a slice of it agrees.

That a slice agrees is asserted by the chapter's own cell, which calls ``Table.agree``; here stands that it does so.
Each way to go wrong is planted in an experiment of two cases. With ``--full`` a tenth of each experiment is run again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from book.chapter_form import code_cells, source
from book.check_notebooks import chapter_paths, read
from experiments import nets, record
from experiments.record import Experiment
from robustlab.intervals import Rate
from robustlab.teaching import recorded as tables
from robustlab.teaching.recorded import Table, recorded

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"__init__", "nets", "record"}
AWAITED = dict[str, str]()  # tables that a chapter to come will show, and its number
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem not in SHARED)


def experiment(name: str) -> Experiment:
    return import_module(f"experiments.{name}").EXPERIMENT


def test_every_experiment_has_its_table_and_every_table_its_experiment() -> None:
    assert sorted(tables.names()) == EXPERIMENTS
    assert [experiment(name).name for name in EXPERIMENTS] == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_table_is_of_the_data_and_networks_that_there_are(name: str) -> None:
    assert experiment(name).complaints(recorded(name)) == []


@pytest.mark.notebook
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_chapter_shows_a_table_and_computes_a_slice_again(name: str) -> None:
    opening, table = f'recorded("{name}")', recorded(name)
    for path in chapter_paths():
        chapter = read(path)
        cells = [source(cell) for cell in code_cells(chapter)]
        lines = [line for cell in cells for line in cell.splitlines() if opening in line]
        if lines:
            variable = lines[0].partition(" = ")[0].strip()
            assert any(f"{variable}.agree(" in cell for cell in cells), "no slice is computed again"
            text = " ".join(" ".join(source(cell).split()) for cell in chapter["cells"])
            assert table.caption in text or f"print({variable}.caption)" in text, f"nowhere {table.caption!r}"
            return
    number = AWAITED.get(name)
    there = number is None or any(path.name.startswith(f"{number}_") for path in chapter_paths())
    assert not there, f"no chapter reads the table {name!r}"


@pytest.mark.full
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_tenth_computed_again_agrees(name: str) -> None:
    one = experiment(name)
    assert one.repeat(one.cases[::10]) == []


# An experiment of two cases, and what may go wrong with it. -------------------------------------------------

CALLS: list[int] = []


def measured(seed: int) -> dict[str, Rate | float | list[float] | str]:
    CALLS.append(seed)
    return {"share": Rate(40 + seed, 50), "index": 2.0 + seed, "rises": [1.0, 0.5], "best": "square"}


SMALL = Experiment(
    name="small",
    question="Does it?",
    cases=[{"seed": 0}, {"seed": 1}],
    measure=measured,
    n={"seeds": 2, "images": 50},
    seeds=[0, 1],
    data=["mnist5k"],
    nets=["mnist_cnn"],
    tolerance={"index": 0.1},
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Tables and unfinished runs of the small experiment stay out of the tree."""
    CALLS.clear()
    if "small" in request.fixturenames:
        monkeypatch.setattr(tables, "FOLDER", tmp_path)
        monkeypatch.setattr(record, "UNFINISHED", tmp_path / "unfinished")
        monkeypatch.setattr(Experiment, "code", lambda self: "code")


@pytest.fixture
def small(elsewhere: None) -> Table:
    return SMALL.record()


def test_a_table_says_what_a_reader_has_to_know(small: Table) -> None:
    assert recorded("small") == small and SMALL.complaints(small) == []
    stored = json.loads(tables.file_of("small").read_text(encoding="utf-8"))
    assert {"seeds", "commit", "version", "seconds", "n", "data", "nets", "code", "torch", "threads"} <= stored.keys()
    assert all(len(digest) == 64 for digest in (*small.data.values(), *small.nets.values()))
    assert small.where(seed=1) == [
        {"seed": 1, "share": Rate(41, 50), "index": 3.0, "rises": [1.0, 0.5], "best": "square"}
    ]
    assert f"recorded at version {small.version}" in small.caption and "python -m experiments.small" in small.caption


def test_a_run_that_was_killed_goes_on_where_it_was(small: Table) -> None:
    tables.file_of("small").unlink()
    CALLS.clear()
    notes = record.UNFINISHED / "small.jsonl"
    lines = notes.read_text(encoding="utf-8").splitlines()
    notes.write_text("\n".join([*lines[:2], lines[2][:20]]), encoding="utf-8")  # killed while it wrote the second row
    again = SMALL.record()
    assert CALLS == [1] and again.rows == small.rows
    assert SMALL.record() == again and CALLS == [1], "all is done"
    SMALL.record(again=True)
    assert CALLS == [1, 0, 1]


def test_rows_of_another_state_are_not_mixed_in(small: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setattr(Experiment, "code", lambda self: "other code")
    SMALL.record()
    assert CALLS == [0, 1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data": {"mnist5k": "0" * 64}}, "data 'mnist5k' has changed"),
        ({"nets": {"mnist_cnn": "0" * 64}}, "net 'mnist_cnn' has changed"),
        ({"nets": {}}, "net 'mnist_cnn' has changed"),
        ({"rows": []}, "cases"),
        ({"tolerance": {"index": 9.0}}, "tolerances"),
        ({"code": "other", "version": "9.9", "commit": "other"}, None),
    ],
    ids=str,
)
def test_what_has_changed_is_seen(small: Table, change: dict, complaint: str | None) -> None:
    found = SMALL.complaints(replace(small, **change))
    assert bool(found) == (complaint is not None) and (complaint or "") in "".join(found)


@pytest.mark.parametrize(
    ("now", "complaint"),
    [
        ({"share": Rate(41, 50)}, None),
        ({"share": Rate(46, 50)}, "share: recorded 80.0 %"),
        ({"share": Rate(4, 5)}, "share"),  # other trials are another number
        ({"share": 0.8}, "share"),
        ({"index": 2.09}, None),
        ({"index": 2.2}, "index: recorded 2.0 ± 0.1, got 2.2"),
        ({"index": float("nan")}, "index"),
        ({"rises": [1.0, 0.5]}, None),
        ({"rises": [1.0, 0.6]}, "rises"),
        ({"rises": [1.0]}, "rises"),
        ({"best": "blend"}, "best"),
        ({"share": Rate(40, 50), "index": 9.0}, "index"),
    ],
    ids=str,
)
def test_a_slice_agrees_within_its_interval_or_raises(small: Table, now: dict, complaint: str | None) -> None:
    if complaint is None:
        small.agree({"seed": 0}, now)
    else:
        with pytest.raises(AssertionError, match=complaint):
            small.agree({"seed": 0}, now)


def test_a_reader_s_change_is_reported_and_the_notebook_runs_on(
    small: Table, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ROBUSTLAB_STRICT")
    small.agree({"seed": 0}, {"share": Rate(41, 50)})
    assert not capsys.readouterr().out
    small.agree({"seed": 0}, {"share": Rate(10, 50)})
    assert "share: recorded 80.0 %" in capsys.readouterr().out
    small.agree({"seed": 2}, {"share": Rate(10, 50)})
    assert "nothing to compare with: small: no row is the case {'seed': 2}" in capsys.readouterr().out


def test_a_slice_that_compares_nothing_is_refused(small: Table) -> None:
    with pytest.raises(ValueError, match="now"):
        small.agree({"seed": 0}, {})
    with pytest.raises(KeyError):
        small.agree({"seed": 2}, {"index": 1.0})
    with pytest.raises(KeyError):
        small.agree({"seed": 0}, {"indices": 1.0})
    with pytest.raises(ValueError, match="name: want one of small, got 'large'"):
        recorded("large")


def test_repeating_finds_what_disagrees(small: Table) -> None:
    assert SMALL.repeat(SMALL.cases) == []
    off = replace(SMALL, measure=lambda seed: measured(seed) | {"index": 7.0})
    assert len(off.repeat(SMALL.cases)) == 2
    with pytest.raises(SystemExit) as stopped:
        off.main(["--tenth"])
    assert stopped.value.code == 1


def test_a_stored_network_at_another_seed_is_the_recipe_s(small: Table) -> None:
    model, trigger = nets.load("mnist_badnets-2")
    assert trigger is not None and not model.training and nets.load("mnist_cnn")[1] is None
    assert len(nets.hashes(["mnist_badnets-2", "mnist_badnets"])["mnist_badnets-2"]) == 64
