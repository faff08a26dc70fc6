"""The attack on transcripts: exact on an affine recognizer of one frame, and true to its counts, parts and masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacker.victim import Victim
from robustlab.attacks import transcript
from robustlab.attacks.whitebox.transcript import Heard, says
from robustlab.data import digit_strings, spoken_digits, spoken_strings
from robustlab.models import transcripts
from tests.suite.other_inputs import BLANK, Hears
from tests.suite.test_sounds import T, other, parts, sounds


class OneFrame(nn.Module):
    """A single frame: the transcript is the label of the highest affine score, or nothing."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.out = nn.Linear(5, classes).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)[:, None]


@pytest.mark.slow
def test_on_one_affine_frame_it_succeeds_exactly_where_it_can() -> None:
    """Two labels, one of them the blank: the smallest radius is margin / ‖w‖₁, targeted and untargeted."""
    for seed in range(3):
        model, x = OneFrame(2, seed), 0.2 * sounds(20)[:, :5]
        scores = model(x)[:, 0].detach()
        heard = scores[:, 0] > scores[:, 1]
        w = (model.out.weight[0] - model.out.weight[1]).detach()
        radius = (scores[:, 0] - scores[:, 1]).abs() / w.abs().sum()
        target = torch.where(heard, -1, 0)[:, None]
        for goal in ({}, {"target": target}):
            assert transcript(model, x, eps=1.01 * radius, **goal).success.all()
            failed = transcript(model, x, eps=0.99 * radius, **goal)
            assert not failed.success.any() and bool((failed.distances["linf"] <= 0.99 * radius + 1e-12).all())
            gone = (model(failed.x_adv)[:, 0] - scores) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
            assert torch.allclose(gone.abs(), 0.99 * radius * w.abs().sum(), rtol=1e-6), "the best point is a corner"


def test_success_is_what_the_model_hears() -> None:
    model, x = Hears().double(), sounds()
    target = other(model, x)
    result = transcript(model, x, target=target, eps=0.3, steps=40)
    for i in range(len(x)):
        path = model(result.x_adv[i : i + 1])[0].argmax(dim=1).tolist()
        heard = [label for label, before in zip(path, [BLANK, *path], strict=False) if label not in (before, BLANK)]
        assert (heard == [label for label in target[i].tolist() if label >= 0]) == bool(result.success[i])
    assert int(result.success.sum()) > 0 and bool((result.x_adv.abs() <= 1).all())
    assert bool(((result.x_adv - x).abs().amax(dim=1) <= 0.3 + 1e-12).all())
    free = transcript(model, x, eps=0.3, steps=40)
    changed = (transcripts(model(free.x_adv)) != transcripts(model(x))).any(dim=1)
    assert torch.equal(free.success, changed) and free.success.double().mean() >= result.success.double().mean()


def test_parts_are_heard_as_their_targets() -> None:
    """Success needs all of them; a run without the part rarely has it."""
    model, x = Hears().double(), sounds(40)
    told = parts(model, x)
    part = told["also"][0]  # type: ignore[index]
    both = transcript(model, x, eps=0.7, steps=60, **told)
    met = says(model(both.x_adv), told["target"]) & says(model(both.x_adv * part.mask), part.target)
    assert torch.equal(met, both.success)
    alone = transcript(model, x, eps=0.7, steps=60, target=told["target"])  # type: ignore[arg-type]
    by_chance = alone.success & says(model(alone.x_adv * part.mask), part.target)
    assert int(both.success.sum()) > int(by_chance.sum()) + 10


def test_a_part_moves_none_of_the_samples_that_it_does_not_hear() -> None:
    """Whole and part want opposite things, the part more steeply: beyond its mask the corner is the whole's."""
    model, x = OneFrame(2, 0), 0.2 * sounds(20)[:, :5]
    mask = (torch.arange(5) < 3).expand(20, -1)
    w = (model.out.weight[0] - model.out.weight[1]).detach()
    model.out.bias.data = torch.tensor([2.0, -2.0], dtype=torch.float64)  # label 0 is heard, so far
    said, nothing = torch.zeros(20, 1, dtype=torch.int64), torch.full((20, 1), -1)
    result = transcript(model, x, target=said, also=[Heard(mask, nothing)], eps=0.05, steps=40)
    assert not result.success.any()
    wish = 0.05 * torch.where(mask[0], -w.sign(), w.sign())
    assert torch.allclose(result.x_adv - x, wish.expand_as(x), atol=1e-9)


def test_what_is_not_movable_stays() -> None:
    model, x = Hears().double(), sounds()
    movable = torch.arange(T) % 3 == 0
    result = transcript(model, x, eps=0.5, movable=movable.expand(len(x), -1), steps=10)
    moved = (result.x_adv != x).any(dim=0)
    assert bool(moved[movable].any()) and not bool(moved[~movable].any())


def test_a_real_recognizer_says_what_is_wanted() -> None:
    """Spoken prices become other prices at a hundredth of the range, nearly always."""
    model, strings = zoo.load("spoken_cnn"), spoken_strings(spoken_digits(), 6, kind="price", seed=3)
    target = digit_strings(6, kind="price", seed=99)
    result = transcript(model, strings.x, target=target, eps=0.02, steps=60)
    assert int(result.success.sum()) >= 4 and torch.equal(says(model(result.x_adv), target), result.success)


def test_bad_input() -> None:
    model, x = Hears().double(), sounds(3)
    target, mask = torch.tensor([[0, 1]] * 3), torch.ones(3, T, dtype=torch.bool)
    assert len(transcript(model, x[:0], target=target[:0], eps=0.1)) == 0
    for told, error, message in (
        ({"target": target[:2]}, TypeError, r"target: want labels, int64 of shape \(3, S\)"),
        ({"target": target.float()}, TypeError, "target: want labels, int64"),
        ({"target": torch.tensor([[-1, 1]] * 3)}, ValueError, "target: want labels of at least 0, and −1 behind"),
        ({"target": target + 2}, ValueError, "target: want labels of 0 … 2, got 3"),
        ({"target": torch.tensor([[1, 1, 1, 1]] * 3)}, ValueError, "target: want labels that fit into 6 frames, .* 7"),
        ({"target": target, "movable": mask.float()}, TypeError, "movable: want a mask, bool of shape"),
        ({"target": target, "also": [Heard(mask[:2], target)]}, TypeError, "also: want a mask"),
        ({"also": [Heard(mask, target)]}, ValueError, "also: want a target of the whole"),
        ({"target": target, "steps": 0}, ValueError, "steps: want at least 1"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            transcript(model, x, eps=0.1, **told)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^victim: want a Victim of answer=\"sequence\", got answer='classes'"):
        transcript(Victim(model, bounds=(-1, 1)), x, target=target, eps=0.1)
    with pytest.raises(ValueError, match=r"^access: this attack needs 'white' access"):
        transcript(Victim(model, bounds=(-1, 1), answer="sequence", access="soft"), x, target=target, eps=0.1)
