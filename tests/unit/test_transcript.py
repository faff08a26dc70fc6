"""The attack on transcripts: exact on an affine recognizer of one frame, and true to its counts, parts and masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks import transcript
from robustlab.attacks.whitebox.transcript import Heard, says
from robustlab.data import digit_strings, spoken_digits, spoken_strings
from robustlab.models import transcripts
from tests.pretend.twins import twins
from tests.suite.models import Counting
from tests.suite.test_no_side_effects import assert_unchanged, snapshot

T, FRAMES, BLANK = 24, 6, 3


class Toy(nn.Module):
    """Six frames of four samples each, read by a bidirectional GRU: scores of three labels and a blank."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.gru = nn.GRU(4, 8, batch_first=True, bidirectional=True)
            self.out = nn.Linear(16, BLANK + 1)
        for parameter in self.parameters():
            parameter.data *= 6

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x.unflatten(1, (FRAMES, 4)))[0])


class OneFrame(nn.Module):
    """A single frame: the transcript is the label of the highest affine score, or nothing."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.out = nn.Linear(5, classes).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)[:, None]


def sounds(n: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, T, generator=generator, dtype=torch.float64) * 1.6 - 0.8).to(dtype)


def other(model: nn.Module, x: Tensor) -> Tensor:
    """As targets, what is heard halfway to another sound."""
    return transcripts(model(mixed(x)))


def mixed(x: Tensor) -> Tensor:
    return 0.5 * x + 0.5 * x.roll(1, 0)


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
    model, x = Toy().double(), sounds()
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


def parts(model: nn.Module, x: Tensor) -> dict[str, object]:
    """The first half is to be heard as it was, whatever is heard of the whole."""
    mask = (torch.arange(T) < T // 2).expand(len(x), -1)
    return {"target": other(model, x), "also": [Heard(mask, transcripts(model(x * mask)))]}


def test_parts_are_heard_as_their_targets() -> None:
    """Success needs all of them; a run without the part rarely has it."""
    model, x = Toy().double(), sounds(40)
    told = parts(model, x)
    part = told["also"][0]  # type: ignore[index]
    both = transcript(model, x, eps=0.7, steps=60, **told)
    met = says(model(both.x_adv), told["target"]) & says(model(both.x_adv * part.mask), part.target)
    assert torch.equal(met, both.success)
    alone = transcript(model, x, eps=0.7, steps=60, target=told["target"])  # type: ignore[arg-type]
    by_chance = alone.success & says(model(alone.x_adv * part.mask), part.target)
    assert int(both.success.sum()) > int(by_chance.sum()) + 10


def test_what_is_not_movable_stays() -> None:
    model, x = Toy().double(), sounds()
    movable = torch.arange(T) % 3 == 0
    result = transcript(model, x, eps=0.5, movable=movable.expand(len(x), -1), steps=10)
    moved = (result.x_adv != x).any(dim=0)
    assert bool(moved[movable].any()) and not bool(moved[~movable].any())


@pytest.mark.parametrize("with_part", [False, True])
def test_counts(with_part: bool) -> None:
    model, x = Toy().double(), sounds()
    told = parts(model, x) if with_part else {"target": other(model, x)}
    model, share = Counting(model), 1 + with_part
    result = transcript(model, x, eps=0.3, steps=15, **told)
    assert model.forwards == int(result.queries.sum()) and model.backwards == int(result.gradients.sum())
    failed = ~result.success
    assert (result.queries[failed] == 17 * share).all() and (result.gradients[failed] == 16 * share).all()
    won = result.success & (result.queries > share)
    assert bool(won.any()) and torch.equal(result.first_success[won], result.queries[won] - share)
    assert (result.first_success[failed] == -1).all()
    for budget in (2 * share, 3 * share, 7 * share):
        spent = transcript(Victim(model.model, bounds=(-1, 1), answer="sequence", budget=budget), x, eps=0.3, **told)
        assert int(spent.queries.max()) <= budget
    done = transcript(model, x, target=transcripts(model(x)), eps=0.3)
    assert done.success.all() and (done.queries == 1).all() and torch.equal(done.x_adv, x)


def alone(result: AttackResult, i: int) -> AttackResult:
    return AttackResult(**{
        name: {k: v[i : i + 1] for k, v in value.items()} if isinstance(value, dict) else value[i : i + 1]
        for name, value in vars(result).items()
        if value is not None
    })  # fmt: skip


def test_a_sound_is_attacked_as_if_it_were_alone() -> None:
    model, x = Toy().double(), sounds(6)
    told = parts(model, x)
    part = told["also"][0]  # type: ignore[index]
    whole = transcript(model, x, eps=0.3, steps=12, seed=4, **told)
    again = transcript(model, x, eps=0.3, steps=12, seed=4, **told)
    assert torch.equal(whole.x_adv, again.x_adv)
    for i in range(6):
        row = slice(i, i + 1)
        own = {"target": told["target"][row], "also": [Heard(part.mask[row], part.target[row])]}  # type: ignore[index]
        one = transcript(model, x[row], eps=0.3, steps=12, seed=4, ids=torch.tensor([i]), **own)
        assert torch.allclose(one.x_adv, whole.x_adv[row], atol=1e-9) and one.queries[0] == whole.queries[i]


def test_nothing_of_the_callers_is_changed() -> None:
    model, x = nn.Sequential(Toy().double(), nn.Dropout(0.2)).train(), sounds(4)
    target, mask = torch.tensor([[0, 1]] * 4), torch.ones(4, T, dtype=torch.bool)
    before = snapshot(model, x, target, mask)
    transcript(model, x, target=target, eps=0.2, steps=3, movable=mask)
    assert_unchanged(before, model, x, target, mask)


def test_where_the_sounds_are() -> None:
    """On the pretend device, as on the CPU."""

    def run(device: torch.device) -> AttackResult:
        model, x = Toy().double(), sounds(4)
        told = parts(model, x)
        part = told["also"][0]  # type: ignore[index]
        also = [Heard(part.mask.to(device), part.target.to(device))]
        target = told["target"].to(device)  # type: ignore[attr-defined]
        return transcript(model.to(device), x.to(device), target=target, also=also, eps=0.3, steps=5)

    twins(run, rtol=1e-9, atol=1e-9)


def test_a_real_recognizer_says_what_is_wanted() -> None:
    """Spoken prices become other prices at a hundredth of the range, nearly always."""
    model, strings = zoo.load("spoken_cnn"), spoken_strings(spoken_digits(), 6, kind="price", seed=3)
    target = digit_strings(6, kind="price", seed=99)
    result = transcript(model, strings.x, target=target, eps=0.02, steps=60)
    assert int(result.success.sum()) >= 4 and torch.equal(says(model(result.x_adv), target), result.success)


def test_bad_input() -> None:
    model, x = Toy().double(), sounds(3)
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
