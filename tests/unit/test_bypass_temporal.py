"""Ways past temporal dependency: what each may change, what it wants of each part, and that the detector is passed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robustlab import zoo
from robustlab.attacker.victim import Victim
from robustlab.attacks import bypass_temporal, transcript
from robustlab.attacks.whitebox.bypass_temporal import _labels_of, _rest
from robustlab.attacks.whitebox.transcript import Heard, says
from robustlab.data import digit_strings, spoken_digits, spoken_strings
from robustlab.defenses import temporal_dependency
from robustlab.defenses.detection.temporal_dependency import beginnings
from tests.suite.other_inputs import Hears
from tests.suite.test_sounds import other, sounds


def test_the_target_is_split_where_the_sound_is() -> None:
    target = torch.tensor([[4, 5, 6, 7], [4, 5, 6, -1], [4, -1, -1, -1], [-1, -1, -1, -1]])
    first = _labels_of(target, 0.5)
    assert first.tolist() == [[4, 5, -1, -1], [4, 5, -1, -1], [-1] * 4, [-1] * 4]  # halves round to even
    rest = _rest(Heard(torch.arange(6).expand(4, -1) < 3, first), target)
    assert rest.target.tolist() == [[6, 7, -1, -1], [6, -1, -1, -1], [4, -1, -1, -1], [-1] * 4]
    assert rest.mask.tolist() == [[False] * 3 + [True] * 3] * 4


@pytest.mark.slow
@pytest.mark.parametrize("way", ["segment", "concatenation", "combination"])
def test_success_is_what_is_heard_of_the_whole_and_of_its_beginning(way: Any) -> None:
    model, x = Hears().double(), sounds(20)
    lengths = torch.tensor([24, 18] * 10)
    target = other(model, x)
    result = bypass_temporal(model, x, target=target, way=way, k=0.5, lengths=lengths, eps=0.9, steps=60)
    kept = (target >= 0).sum(dim=1).mul(0.5).round()
    first = target.masked_fill(torch.arange(target.shape[1]) >= kept[:, None], -1)
    cut = beginnings(result.x_adv, 0.5, lengths)
    assert torch.equal(result.success, says(model(result.x_adv), target) & says(model(cut), first))
    moved = (result.x_adv - x).abs()
    assert bool((moved.amax(dim=1) <= 0.9 + 1e-9).all()) and torch.equal(result.distances["linf"], moved.amax(dim=1))
    behind = torch.arange(24) >= lengths[:, None] // 2
    assert bool((moved[behind] == 0).all()) == (way == "segment")
    if way == "combination":
        assert int(result.success.sum()) > 0


@pytest.mark.slow
@pytest.mark.full
def test_the_combination_passes_a_detector_that_the_attack_alone_does_not() -> None:
    """Spoken strings at a fiftieth of the range: the mean disagreement falls below that of clean strings."""
    model, recordings = zoo.load("spoken_gru"), spoken_digits()
    strings, clean = spoken_strings(recordings, 6, kind="price", seed=3), spoken_strings(recordings, 40, seed=4)
    target = digit_strings(6, kind="price", seed=99)
    told = {"target": target, "eps": 0.02, "steps": 60}
    scores = []
    for result in (
        transcript(model, strings.x, **told),
        bypass_temporal(model, strings.x, lengths=strings.lengths, **told),
    ):
        fooled = says(model(result.x_adv), target)
        assert int(fooled.sum()) >= 4
        found = temporal_dependency(
            model, result.x_adv[fooled], clean.x, lengths=strings.lengths[fooled], clean_lengths=clean.lengths
        )
        scores.append(float(found.scores.mean()))
    assert scores[1] < 0.6 * scores[0] and scores[0] > 0.2, scores


def test_bad_input() -> None:
    model, x = Hears().double(), sounds(3)
    target = torch.tensor([[0, 1]] * 3)
    for told, message in (
        ({"way": "half"}, "way: want one of"),
        ({"k": 0.0}, "k: want"),
        ({"k": 1.0}, "k: want"),
        ({"k": ()}, "k: want one share"),
        ({"k": (0.3, 0.5), "way": "segment"}, "k: want one share"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            bypass_temporal(model, x, target=target, eps=0.1, **told)  # type: ignore[arg-type]
    poor = Victim(model, bounds=(-1, 1), answer="sequence", budget=5)
    with pytest.raises(ValueError, match=r"^budget: want at least 6 for the concatenation, .* got 5"):
        bypass_temporal(poor, x, target=target, way="concatenation", eps=0.1)
    with pytest.raises(TypeError, match=r"^target: want labels"):
        bypass_temporal(model, x, target=target.float(), eps=0.1)
