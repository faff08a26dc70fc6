"""Of 05, which hands in data: what a search by pairs of classes finds in students' boxes, and how the judge counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from assignments.grading.grade import grade_data
from assignments.grading.task import JUDGES
from tests.course.test_assignments import KEY, OTHER, drawing, source

NAME, IMAGES = "05_backdoor_forensics", 20

pytestmark = pytest.mark.slow


def by_pairs(mine: dict[str, Any]) -> dict[str, Tensor]:
    """An answer of a student: the search of the public solution, for each source class with images of that class.

    A swap shows in both directions, so what is small in one of them alone is none.
    """
    names: dict[str, Any] = {"torch": torch, "stamped": _stamped, "cross_entropy": torch.nn.functional.cross_entropy}
    (cell,) = (cell for cell in source(drawing(NAME)).cells if cell.get("id") == "search")
    exec(cell.source, names)
    x, y, networks = mine["x"], mine["y"], mine["networks"]
    sizes, masks, patterns = torch.zeros(12, 10, 10), torch.zeros(12, 10, 10, 14, 14), torch.zeros(12, 10, 10, 14, 14)
    goals = torch.arange(10)[:, None].expand(10, IMAGES)
    for k, network in enumerate(networks):
        for label in range(10):
            images = x[y == label][:IMAGES]
            masks[k, label], patterns[k, label] = names["search"](network, images, goals[:, : len(images)], steps=200)
        sizes[k] = masks[k].flatten(2).sum(dim=2).clamp(max=60)
    below = sizes.log().median(dim=0).values - sizes.log()
    below.diagonal(dim1=1, dim2=2).fill_(-1.0)
    swap = mine["kind"] == "swap"
    scores, place = ((below + below.transpose(1, 2)) / 2 if swap else below).flatten(1).max(dim=1)
    pairs = torch.stack([place // 10, place % 10], dim=1)
    for k, (a, b) in enumerate(pairs.tolist()):  # the direction of a swap with the smaller mask is the proof
        pairs[k] = torch.tensor([b, a] if swap and sizes[k, b, a] < sizes[k, a, b] else [a, b])
    at, success = (torch.arange(12), pairs[:, 0], pairs[:, 1]), torch.zeros(12)
    for k, network in enumerate(networks):
        images = x[y == pairs[k, 0]][IMAGES:]
        z = network(_stamped(images, masks[at][k : k + 1], patterns[at][k : k + 1])[0])
        success[k] = (z.argmax(dim=1) == pairs[k, 1]).float().mean()
    answer = {"scores": scores, "threshold": torch.tensor([0.3 if swap else 0.5]), "pairs": pairs, "masks": masks[at]}
    answer |= {"patterns": patterns[at], "success": success}
    return {name: value.double() for name, value in answer.items()}


def _stamped(x: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    m, p = masks[:, None, None], patterns[:, None, None]
    return (1 - m) * x + m * p


@pytest.mark.full("tasks", "backdoor_forensics")
@pytest.mark.parametrize(("key", "student"), [(OTHER, "ada@example.org"), (KEY, "eve")], ids=["swap", "source"])
def test_a_search_by_pairs_gets_all_points_in_a_students_box(key: str, student: str) -> None:
    assignment = drawing(NAME)
    grade = grade_data(assignment, key, student, by_pairs(assignment.variant(key, student)))
    assert not grade.lost, grade.results


def told(mine: dict[str, Any]) -> dict[str, Tensor]:
    """An answer made of the truth, with empty triggers."""
    truth = mine[JUDGES]["backdoor"].double()
    return {
        "scores": truth,
        "threshold": torch.tensor([0.5]).double(),
        "pairs": mine[JUDGES]["pairs"],
        "masks": torch.zeros(12, 14, 14).double(),
        "patterns": torch.zeros(12, 14, 14).double(),
        "success": torch.zeros(12).double(),
    }


def test_what_false_alarms_and_misses_cost() -> None:
    """Counted by hand: with n backdoors each miss costs 1 / n, each false alarm 2 / n."""
    assignment = drawing(NAME)
    mine = assignment.variant(KEY, "instructor")
    truth, bad = mine[JUDGES]["backdoor"], int(mine[JUDGES]["backdoor"].sum())
    limits = {"some": 0.3, "most": 0.55, "nearly": 0.8}
    for misses in range(3):
        for alarms in range(3):
            answer = told(mine)
            answer["scores"][truth.nonzero().flatten()[:misses]] = 0.0
            answer["scores"][(~truth).nonzero().flatten()[:alarms]] = 1.0
            gain = (bad - misses - 2 * alarms) / bad
            lost = grade_data(assignment, KEY, "instructor", answer).lost
            assert lost & set(limits) == {name for name, least in limits.items() if gain < least}


def test_the_truth_without_a_trigger_is_no_evidence() -> None:
    assignment = drawing(NAME)
    mine = assignment.variant(KEY, "instructor")
    assert grade_data(assignment, KEY, "instructor", told(mine)).lost == {"evidence", "honest"}
    painted = told(mine) | {"masks": torch.ones(12, 14, 14).double(), "success": torch.ones(12).double()}
    assert {"evidence", "honest"} <= grade_data(assignment, KEY, "instructor", painted).lost


def test_what_a_trigger_is_to_change() -> None:
    tasks, y, pair = drawing(NAME).tasks, torch.tensor([0, 1, 2, 3]), torch.tensor([1, 3])
    for kind, wanted, changes in (
        ("all", [3, 3, 3, 3], [1, 1, 1, 0]),
        ("source", [0, 3, 2, 3], [0, 1, 0, 0]),
        ("swap", [0, 3, 2, 1], [0, 1, 0, 1]),
    ):
        found = tasks.goals(kind, y, pair)
        assert (found[0].tolist(), found[1].int().tolist()) == (wanted, changes)
