"""What the judge of 07 goes by: the distances of its inputs are true radii, and honest answers are far from losing."""

from __future__ import annotations

import pytest
import torch

from assignments.grading.task import VARIANTS, Lost, load
from robustlab.teaching.check.smoothing import distance_at
from tests.every import every

NAME, KEY = "07_smoothing", "the key of the tests"
NORMS = {"gaussian": 2.0, "laplace": 1.0, "uniform": 1.0}


@every("kind", [*NORMS])
def test_the_distance_of_an_input_is_the_radius_of_its_norm(kind: str) -> None:
    """No step shorter than the distance crosses the threshold, and one that is longer does."""
    mine = load(NAME).draw(KEY, "instructor") | {"kind": kind, "wanted": 0.2}
    test = {test.name: test for test in load(NAME).tasks.tests(3, mine)}["coverage"]
    x, model = test.arguments[0], test.model
    away = x[len(x) // 2 :]
    model.budget, before = 10**6, model(away)  # type: ignore[union-attr]
    step = torch.randn(4000, 4)
    step = step / torch.linalg.vector_norm(step, ord=NORMS[kind], dim=1, keepdim=True)
    step = torch.cat([step, torch.eye(4), -torch.eye(4)])
    far = 0.6 * mine["scale"]
    for share, crossed in ((0.99, False), (1.2, True)):
        found = model(away[0] + share * far * step) != before[0]  # type: ignore[misc]
        assert bool(found.any()) == crossed


def test_to_certify_nothing_gets_nothing() -> None:
    """A radius of zero is right for half of the votes and less: the judge asks for more of them, too."""
    for test in load(NAME).tests(KEY, "ada@example.org"):
        if test.asks == "radius":
            with pytest.raises(Lost):
                test.judge(0 * test.arguments[0])


def test_what_is_wanted_can_be_certified_with_few_draws() -> None:
    drawn = [load(NAME).draw(KEY, f"{number:02}") for number in range(VARIANTS)]
    assert {mine["kind"] for mine in drawn} == {"laplace", "uniform"}
    for mine in drawn:
        assert distance_at(mine["kind"], mine["scale"], mine["alpha"] ** (1 / 1000)) > mine["wanted"] > 0
