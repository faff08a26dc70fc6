"""Each check of this suite, seen to fail on a method that is broken on purpose."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacker.results import Detection, Repair
from robustlab.attacks import PatchTrigger, PoisonedDataset, badnets
from robustlab.teaching.catalogue import Row
from tests.suite.training import test_bad_data as bad_data
from tests.suite.training import test_detectors as detectors
from tests.suite.training import test_heads_and_pixels as heads
from tests.suite.training import test_poisons as poisons
from tests.suite.training import test_triggers as triggers
from tests.suite.training.cases import POISONS, Case, images, trained

CPU = torch.device("cpu")
GOOD = next(case for case in POISONS if case.row.key == "badnets")


def planted(change: Callable[[PoisonedDataset, Tensor, Tensor], Any]) -> Case:
    """BadNets with a bug: ``change(result, x, y)`` spoils what it returns, or its data."""

    @functools.wraps(badnets)
    def broken(data: Any, **kw: Any) -> PoisonedDataset:
        result = badnets(data, **kw)
        change(result, *data)
        return result

    return replace(GOOD, function=broken)


def rate_and_clean_part(case: Case) -> None:
    poisons.check_truth_is_out_of_reach(poisons.check_rate_and_clean_part(case, torch.float32, CPU))


def one_more(p: PoisonedDataset, x: Tensor, y: Tensor) -> None:
    p.is_poison[(~p.is_poison).nonzero()[0]] = True


def brush(p: PoisonedDataset, x: Tensor, y: Tensor) -> None:
    p.x[(~p.is_poison).nonzero()[0]] += 1e-6


def clean_label_lost(p: PoisonedDataset, x: Tensor, y: Tensor) -> None:
    row = (~p.is_poison).nonzero()[0]
    p.y[row] = (p.y[row] + 1) % 3


def wrong_original(p: PoisonedDataset, x: Tensor, y: Tensor) -> None:
    p.original_y = p.y.clone()


def out_of_box(p: PoisonedDataset, x: Tensor, y: Tensor) -> None:
    p.x[p.is_poison] *= 1.5


def whisper(p: PoisonedDataset, x: Tensor, y: Tensor) -> None:
    p.x.is_poison = p.is_poison  # type: ignore[attr-defined]


def in_front(p: PoisonedDataset, x: Tensor, y: Tensor) -> None:
    order = torch.cat([p.is_poison.nonzero().flatten(), (~p.is_poison).nonzero().flatten()])
    for name in ("x", "y", "is_poison", "original_y", "row", "is_cover"):
        setattr(p, name, getattr(p, name)[order])


@pytest.mark.parametrize("bug", [one_more, brush, clean_label_lost, wrong_original, out_of_box, whisper, in_front])
def test_spoiled_data_are_seen(bug: Callable[..., None]) -> None:
    with pytest.raises(AssertionError):
        rate_and_clean_part(planted(bug))


def test_a_poison_outside_its_ball_is_seen() -> None:
    case = next(case for case in POISONS if case.row.key == "feature_modification")
    poisons.check_radius(case)
    for share in (1.001, 0.5):  # too far, and a radius that shows nothing

        @functools.wraps(case.function)
        def broken(data: Any, *, eps: float, share: float = share, **kw: Any) -> Poisoned:
            return case.function(data, eps=share * eps, **kw)

        with pytest.raises(AssertionError, match="ball"):
            poisons.check_radius(replace(case, function=broken))


def test_good_data_pass() -> None:
    rate_and_clean_part(GOOD)


def test_a_global_draw_is_seen() -> None:
    case = planted(lambda p, x, y: p.x.add_(torch.rand(()) * 1e-3))
    for check in (poisons.check_seed, poisons.check_no_side_effects):
        with pytest.raises(AssertionError):
            check(case)


def test_written_input_and_shared_memory_are_seen() -> None:
    for bug in (lambda p, x, y: x.mul_(0.5), lambda p, x, y: setattr(p, "x", x)):
        with pytest.raises(AssertionError):
            poisons.check_no_side_effects(planted(bug))


def test_poisoned_target_class_is_seen() -> None:
    @functools.wraps(badnets)
    def broken(data: Any, *, include_target: bool = False, **kw: Any) -> PoisonedDataset:
        return badnets(data, include_target=True, **kw)

    with pytest.raises(AssertionError):
        poisons.check_labels_and_the_target_class(replace(GOOD, function=broken))


def test_unchecked_arguments_are_seen() -> None:
    @functools.wraps(badnets)
    def broken(data: Any, *, rate: Any = 0.1, **kw: Any) -> PoisonedDataset:
        return badnets(data, rate=rate if isinstance(rate, float) and 0 < rate < 1 else 0.1, **kw)

    with pytest.raises(pytest.fail.Exception):
        poisons.check_bad_arguments(replace(GOOD, function=broken))


def test_unchecked_labels_are_seen() -> None:
    @functools.wraps(badnets)
    def broken(data: Any, **kw: Any) -> PoisonedDataset:
        return badnets((data[0], torch.as_tensor(data[1]).flatten().long().clamp_min(0)), **kw)

    bad_data.check_wrong_labels(GOOD)
    with pytest.raises(pytest.fail.Exception):
        bad_data.check_wrong_labels(replace(GOOD, function=broken))


def test_small_labels_that_are_refused_are_seen() -> None:
    @functools.wraps(badnets)
    def broken(data: Any, **kw: Any) -> PoisonedDataset:
        if data[1].dtype != torch.int64:
            raise TypeError(f"y: want torch.int64, got {data[1].dtype}")
        return badnets(data, **kw)

    with pytest.raises(TypeError):
        bad_data.check_small_integers_are_labels(replace(GOOD, function=broken))


def test_a_kept_graph_is_seen() -> None:
    bad_data.check_keeps_no_graph(GOOD)
    with pytest.raises(AssertionError, match="graph"):
        bad_data.check_keeps_no_graph(planted(lambda p, x, y: setattr(p, "x", p.x + 0 * x)))


def test_torch_s_own_errors_are_seen() -> None:
    """A detector that shows its data to the model unchecked."""

    def trusting(model: nn.Module, data: Pair) -> Detection:
        found = detector(model, data)
        return replace(found, details={"logits": model(data[0]).detach()})

    for check in (bad_data.check_wrong_inputs, bad_data.check_inputs_of_another_dtype_than_the_model):
        with pytest.raises((RuntimeError, AssertionError, pytest.fail.Exception)):
            check(watch(trusting))


class Loud(PatchTrigger):
    def stamp(self, x: Tensor) -> Tensor:
        return super().stamp(x) * 1.2


class Random(PatchTrigger):
    def stamp(self, x: Tensor) -> Tensor:
        return (super().stamp(x) + 0.1 * torch.rand(())).clamp(0, 1)


class Batchwise(PatchTrigger):
    def stamp(self, x: Tensor) -> Tensor:
        return (super().stamp(x) * (0.9 + 0.01 * len(x))).clamp(0, 1)


class InPlace(PatchTrigger):
    def stamp(self, x: Tensor) -> Tensor:
        x[..., :2, :2] = 1
        return x.clone()


class Double(PatchTrigger):
    def stamp(self, x: Tensor) -> Tensor:
        return super().stamp(x).double()


class Asleep(PatchTrigger):
    def stamp(self, x: Tensor) -> Tensor:
        return x.clone()


@pytest.mark.parametrize("kind", [Loud, Random, Batchwise, InPlace, Double, Asleep])
def test_broken_triggers_are_seen(kind: type[PatchTrigger]) -> None:
    with pytest.raises(AssertionError):
        triggers.check_trigger(kind(), images(9)[0])


Pair = tuple[Tensor, Tensor]


def detector(model: nn.Module, data: Pair, *, threshold: float = 1.17) -> Detection:
    """A distance from the class's mean: a plain detector that keeps all promises."""
    if not isinstance(data, tuple):
        raise TypeError("data: want a pair")
    x, y = data
    far = torch.stack([(x[i] - x[y == y[i]].mean(dim=0)).norm() for i in range(len(x))])
    return Detection(far, far > threshold, threshold, false_alarm_rate=0.05, level="sample")


def watch(function: Callable[..., Any], kind: str = "detector") -> Case:
    row = Row(key="watch", title="Watch", cite="tran2018", kind=kind, chapter="16", dims=("image",))
    return Case(row, function)


def all_checks(case: Case) -> None:
    detectors.check_detection(case, torch.float32, CPU)
    detectors.check_truth_is_out_of_reach(case)
    detectors.check_same_answer_twice(case)
    detectors.check_no_side_effects(case)
    detectors.check_false_alarms(case)


@pytest.mark.slow
def test_a_good_detector_passes() -> None:
    all_checks(watch(detector))


def alarmist(model: nn.Module, data: Pair, **kw: Any) -> Detection:
    return detector(model, data, threshold=0.5)


def forgetful(model: nn.Module, data: Pair, **kw: Any) -> Detection:
    model.eval()
    return detector(model, data)


def moody(model: nn.Module, data: Pair, **kw: Any) -> Detection:
    found = detector(model, data)
    return replace(found, scores=found.scores + torch.rand(()))


def lucky(model: nn.Module, data: Pair, **kw: Any) -> Detection:
    """As moody as the one above, but the global generator is put back."""
    with torch.random.fork_rng(devices=[]):
        return moody(model, data)


def peeking(model: nn.Module, data: Any, **kw: Any) -> Detection:
    if isinstance(data, Poisoned):
        return Detection(data.is_poison.float(), data.is_poison, 0.5)
    return detector(model, data)


def blurred(model: nn.Module, data: Pair, **kw: Any) -> Detection:
    found = detector(model, data)
    return replace(found, flagged=found.scores > 0.5)


def silent(model: nn.Module, data: Pair, **kw: Any) -> Detection:
    return replace(detector(model, data), false_alarm_rate=None)


@pytest.mark.parametrize("bug", [alarmist, forgetful, moody, lucky, peeking, blurred, silent])
def test_broken_detectors_are_seen(bug: Callable[..., Detection]) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        all_checks(watch(bug))


def by_chance(x: Tensor, *, often: int = 1) -> Detection:
    """Judges a model by chance alone, and raises an alarm `often` times as often as it states."""
    score = x.double().sum().mul(1e3).remainder(1)[None]
    return Detection(score, score > 1 - 0.23 * often, 1 - 0.23 * often, false_alarm_rate=0.23, level="class")


def by_others(x: Tensor, *, calibration: Tensor | None = None, often: int = 1) -> Detection:
    """Judges a model by others; a threshold that the second of them sets is passed twice as often."""
    score = by_chance(x).scores
    if calibration is None:
        return Detection(score, score > 1, 1.0)
    threshold = float(calibration.sort(descending=True).values[often - 1])
    return Detection(score, score > threshold, threshold, false_alarm_rate=1 / (len(calibration) + 1), level="class")


def by_clean(x: Tensor, clean: Tensor, *, often: int = 1) -> Detection:
    """Judges inputs by clean ones, of which a tenth times `often` lie above the threshold."""
    score, known = (part.flatten(1).mean(dim=1) for part in (x, clean))
    threshold = float(known.sort(descending=True).values[len(clean) * often // 10 - 1])
    return Detection(score, score > threshold, threshold, false_alarm_rate=0.1, level="sample")


@pytest.mark.parametrize("kind", [by_chance, by_others, by_clean])
def test_twice_as_many_alarms_as_stated_are_seen(kind: Callable[..., Detection]) -> None:
    detectors.check_false_alarms(watch(kind))
    with pytest.raises(AssertionError, match="flagged, stated"):
        detectors.check_false_alarms(watch(functools.wraps(kind)(functools.partial(kind, often=2))))


def test_a_check_that_sees_no_alarm_is_no_check() -> None:
    with pytest.raises(AssertionError, match="AWAKE"):
        detectors.check_false_alarms(watch(functools.wraps(detector)(functools.partial(detector, threshold=9.0))))


def repair_in_place(model: nn.Module, data: Pair) -> Repair[None]:
    return Repair(model, None)


def repair_to_nothing(model: nn.Module, data: Pair) -> Repair[None]:
    return Repair(trained(0).apply(lambda m: [p.data.zero_() for p in m.parameters()] and None), None)


def test_broken_repairs_are_seen() -> None:
    with pytest.raises(AssertionError):
        detectors.check_no_side_effects(watch(repair_in_place, "repair"))
    with pytest.raises(AssertionError):
        detectors.check_repair_keeps_the_accuracy(watch(repair_to_nothing, "repair"))


def linear_only(model: nn.Module, data: Pair) -> Detection:
    """Reads no features, and yet wants a linear layer."""
    if not any(isinstance(part, nn.Linear) for part in model.modules()):
        raise ValueError("model: want at least one nn.Linear")
    return detector(model, data)


def last_linear(model: nn.Module, data: Pair, *, layer: Any = None) -> Detection:
    """Takes what the last linear layer is fed with, whatever that is."""
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if layer is None and not names:
        raise ValueError("model: want an nn.Linear, or a layer")
    return replace(detector(model, data), layer=f"output of {layer}" if layer else f"input of {names[-1]}")


def test_a_head_taken_for_features_is_seen() -> None:
    with pytest.raises(AssertionError, match="refused"):
        heads.check_any_head(watch(linear_only))
    with pytest.raises(AssertionError, match="a post layer is fed with"):
        heads.check_post_layer(watch(last_linear))
    with pytest.raises(AssertionError, match="passed in silence"):
        heads.check_bytes_are_told(watch(detector))
    heads.check_any_head(watch(detector))
    heads.check_post_layer(watch(detector))


def speechless(model: nn.Module, data: Pair) -> Detection:
    """Has no verdict about one sample, and does not say so."""
    found = detector(model, data)
    return replace(found, scores=found.scores.index_fill(0, torch.tensor([0]), torch.nan), threshold=math.inf)


def test_a_verdict_that_is_missing_in_silence_is_seen() -> None:
    with pytest.raises(AssertionError, match="no verdict, and no warning"):
        detectors.check_detection(watch(speechless), torch.float32, CPU)
