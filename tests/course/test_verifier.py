"""What the judge of 06 goes by: counterexamples that are points, and questions that a verifier can answer."""

from __future__ import annotations

import pytest
import torch

from assignments.grading.task import VARIANTS, load
from robustlab.teaching.check.linear_bounds import values
from tests.every import every

TASKS = load("06_verifier").tasks


@pytest.mark.slow
@every("bend", [(0.0, 1.0), (0.4, 0.9), (-0.6, 1.1)])
def test_what_is_provable_has_no_counterexample_and_the_rest_has_one(bend: tuple[float, float]) -> None:
    layers, x, y = TASKS.network((12, 10, 10, 3), 5, bend, 3 * TASKS.GROUP)
    assert bool((values(layers, x, bend)[-1].argmax(dim=1) == y).all())
    asked = TASKS.instances(layers, x, y, bend)
    assert not bool((asked.provable & asked.false).any())
    assert int(asked.provable.sum()) == 2 * TASKS.GROUP and int(asked.false.sum()) >= TASKS.GROUP - 1
    by_intervals = TASKS.margin_bounds(layers, asked.x, asked.y, asked.eps, bend, "ibp") > 0
    assert TASKS.GROUP <= int(by_intervals.sum()) <= TASKS.GROUP + 2
    near = asked.x + asked.eps[:, None] * (2 * torch.rand(3000, *asked.x.shape) - 1).sign()
    fooled = (values(layers, near.clamp(0, 1), bend)[-1].argmax(dim=2) != asked.y).any(dim=0)
    assert not bool((fooled & asked.provable).any())


def test_nobody_gets_the_relu() -> None:
    kinds = [load("06_verifier").draw("the key of the tests", f"{number:02}")["kind"] for number in range(VARIANTS)]
    assert set(kinds) == {"leaky", "vee"}
