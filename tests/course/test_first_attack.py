"""What the judge of ``01_first_attack`` goes by, held against values counted by hand and a search."""

from __future__ import annotations

import pytest
import torch

from assignments.grading.task import Lost, load
from tests.course.test_assignments import KEY

pytestmark = pytest.mark.slow


def test_what_a_threat_model_allows() -> None:
    """Values counted by hand: the box, the reach, the way, and whole numbers."""
    tasks = load("01_first_attack").tasks
    threat = {
        "low": torch.zeros(4),
        "high": torch.full((4,), 10.0),
        "reach": torch.full((4,), 2.5),
        "way": ["both", "up", "down", "both"],
        "whole": [False, False, False, True],
    }
    x = torch.tensor([[9.0, 5.0, 5.0, 5.0]])
    for value, right in (
        ([9.0, 5.0, 5.0, 5.0], [1, 1, 1, 1]),
        ([10.0, 7.5, 2.5, 7.0], [1, 1, 1, 1]),
        ([6.5, 4.9, 5.1, 5.5], [1, 0, 0, 0]),
        ([10.1, 7.6, 2.4, 8.0], [0, 0, 0, 0]),
    ):
        assert tasks.allowed(torch.tensor([value]), x, threat).int().tolist() == [right]


def test_the_robust_accuracy_is_that_of_a_search_over_a_fine_grid() -> None:
    assignment = load("01_first_attack")
    for number in range(4):
        mine = assignment.draw(KEY, f"{number:02}")
        threat, x, y = mine["threat"], mine["x"], mine["y"]
        grid = torch.linspace(-1, 1, 801)[:, None, None] * threat["reach"] + x
        tried = torch.cat([grid, grid.round()])
        weight = mine["model"][1].weight.detach()
        gain = (weight[y] - weight[1 - y]) * (tried - x)
        gain = gain.masked_fill(~assignment.tasks.allowed(tried, x, threat), torch.inf).amin(dim=0).sum(dim=1)
        z = mine["model"](x).detach()
        lead = z.gather(1, y[:, None]).squeeze(1) - z.gather(1, 1 - y[:, None]).squeeze(1)
        share = float((lead + gain > 0).double().mean())
        assert abs(assignment.tasks.robust(mine, 1.0) - share) <= 0.011


def test_a_reason_does_not_say_what_the_robust_accuracies_are() -> None:
    """Else zeros handed in first would bring the numbers themselves."""
    assignment = load("01_first_attack")
    mine = assignment.draw(KEY, "03")
    test = next(test for test in assignment.tasks._numbers(mine) if test.name == "curve")
    with pytest.raises(Lost) as lost:
        test.judge([0.0, 0.0, 0.0])
    assert str(lost.value) == "at 0.25 of the reach 0.000 is not that of your table"
    with pytest.raises(Lost, match="is no list of three numbers"):
        test.judge(["89%", "75%", "50%"])
    curve = [assignment.tasks.robust(mine, scale) for scale in assignment.tasks.SCALES]
    test.judge(curve)
    test.judge(torch.tensor(curve))
    assert not any(f"{share:.3f}" in str(lost.value) for share in curve)
