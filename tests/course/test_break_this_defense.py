"""Of 04, which hands in data: what the judge's defenses do, and that honest work breaks students' defenses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from assignments.grading.grade import grade_data
from assignments.grading.task import JUDGES
from robustlab.attacks import pgd
from tests.course.test_assignments import ADA, OTHER, drawing

NAME = "04_break_this_defense"

pytestmark = pytest.mark.slow


def through(kind: str, network: Any, x: Tensor) -> Tensor:
    """What a student climbs: the mean over eight draws of the front, taken forward, with its own turn backward."""
    views = []
    for number in range(8):
        if kind == "dither":
            seen = x.transpose(2, 3)
            views.append(seen + ((7 * seen + torch.rand(x.shape)).floor().clamp(max=7) / 7 - seen).detach())
        elif kind == "turns":
            views.append(x.rot90(number % 2, dims=(2, 3)))
        else:
            views.append(x)
    z: Tensor = torch.stack([network(view).log_softmax(dim=1) for view in views]).mean(dim=0)
    return z


@pytest.mark.parametrize("student", [ADA])
def test_bpda_and_eot_get_all_points_on_a_students_defenses(student: str) -> None:
    assignment = drawing(NAME)
    mine = assignment.variant(OTHER, student)
    x, y, eps, answer, left = mine["x"], mine["y"], mine["eps"], dict[str, Tensor](), []
    for name, one in mine["defenses"].items():
        point = x.clone()
        for _ in range(50):
            point.requires_grad_()
            loss = cross_entropy(through(one["kind"], one["network"], point), y, reduction="sum")
            (grad,) = torch.autograd.grad(loss, point)
            point = (x + (point.detach() + 0.1 * eps * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
        answer[f"x_adv_{name}"] = point
        left.append(assignment.tasks.accuracy(one, point, y, torch.Generator().manual_seed(1)))
    answer["robust_accuracy"] = torch.tensor(left, dtype=torch.float64)
    answer["sound"] = (answer["robust_accuracy"] == answer["robust_accuracy"].max()).double()
    grade = grade_data(assignment, OTHER, student, answer)
    assert not grade.lost, grade.results


def test_the_sound_network_is_sound_and_the_others_are_not() -> None:
    """Seen by robustlab's PGD on the networks alone, of which the judge measures only one."""
    mine = drawing(NAME).variant(OTHER, ADA)
    y = mine["y"]
    for name, one in mine["defenses"].items():
        x = drawing(NAME).tasks.front(one["kind"], mine["x"], torch.Generator().manual_seed(0))
        share = 1 - float(pgd(one["network"], x, y, eps=mine["eps"], steps=40).success.double().mean())
        if name == mine[JUDGES]["sound"]:
            assert share > 0.25 and abs(share - mine[JUDGES]["withstands"]) <= 0.1
        else:
            assert share < 0.25


def test_the_notebook_and_the_judge_have_the_same_defenses() -> None:
    """The students' cell and the judge's functions, on each kind, with the same draws."""
    from tests.course.test_assignments import source

    (cell,) = (cell for cell in source(drawing(NAME)).cells if cell.get("id") == "setup")
    text = cell.source
    names: dict[str, Any] = {"torch": torch}
    exec(text[text.index("def front") : text.index("def defense")], names)
    tasks, x = drawing(NAME).tasks, torch.rand(400, 1, 14, 14)
    for kind in (*tasks.WORKED, *tasks.FOR_STUDENTS):
        ours = tasks.front(kind, x, torch.Generator().manual_seed(0))
        theirs = names["front"](kind, x)
        if kind in ("rounding", "loud", "labels"):
            assert torch.equal(ours, theirs)
        elif kind == "dither":
            assert (ours - theirs).abs().max() < 1 / 7 + 1e-6 and torch.allclose(ours.mean(), theirs.mean(), atol=1e-2)
        else:
            views = torch.stack([x, x.flip(3) if kind == "mirror" else x.rot90(1, dims=(2, 3))])
            for seen in (ours, theirs):
                which = (seen == views).flatten(2).all(dim=2)
                assert bool(which.any(dim=0).all()) and bool(which.any(dim=1).all())
