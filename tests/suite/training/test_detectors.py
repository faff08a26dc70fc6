"""Detectors and repairs: the truth is out of their reach, clean data and models stay in peace, nothing is changed."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from scipy.stats import binom, ttest_1samp
from torch import Tensor, nn

from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacker.results import Detection, Repair
from robustlab.attacker.victim import accuracy
from tests.suite.test_no_side_effects import assert_unchanged, snapshot
from tests.suite.training.cases import (
    DETECTORS,
    SPOKEN,
    Case,
    clean,
    clean_images,
    images,
    over,
    same,
    sounds,
    tensors,
    trained,
    twice,
)  # fmt: skip

SECRETS = ("is_poison", "original_y", "truth", "is_cover", "poisoned")
MODELS = {"sample": 30, "class": 80}  # clean models about which a detector is asked
CALIBRATED = 10  # clean models, each judged by the threshold that the others set
SIGNIFICANCE = 1e-3
# With their quick arguments these find nothing, neither patch nor mask nor threshold, and so could not raise an alarm.
AWAKE: dict[str, dict[str, Any]] = {
    "neural_cleanse": {"steps": 30, "lr": 0.2, "x": images(6, seed=1)[0]},
    "tnd_data_free": {"sparsity": 0.01},
    **{key: {"rejection_rate": 0.1} for key in ("feature_squeezing", "mahalanobis", "kernel_density")},
    "temporal_dependency": {"rejection_rate": 0.2},
    "strip": {"rejection_rate": 0.1, "overlays": 20},
}


def repaired(case: Case, result: Any) -> nn.Module | None:
    """The repaired model of a repair; None for a detector, which has none."""
    if case.row.kind == "repair":
        assert isinstance(result, Repair) and isinstance(result.model, nn.Module)
        return result.model
    assert isinstance(result, Detection)
    return None


def check_detection(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    arguments = case.arguments(dtype, device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = case.run(**arguments)
    if repaired(case, found) is not None:
        return
    assert found.scores.dim() == 1 and found.scores.shape == found.flagged.shape and found.flagged.dtype == torch.bool
    assert found.scores.device == found.flagged.device
    assert told or not bool(found.scores.isnan().any()), "no verdict, and no warning"
    if math.isfinite(found.threshold):  # one threshold for all
        assert torch.equal(found.flagged, found.scores > found.threshold)


def check_truth_is_out_of_reach(case: Case) -> None:
    """No argument is made for the truth, and the object that knows it is refused."""
    assert not set(case.parameters) & set(SECRETS)
    arguments = case.arguments()
    for name, value in arguments.items():
        if name not in ("x", "data"):
            continue
        x, y = value if isinstance(value, tuple) else (arguments["x"], images()[1])
        knows = Poisoned(x, y, is_poison=torch.zeros(len(x), dtype=torch.bool), original_y=y)
        with pytest.raises(TypeError):
            case.run(**{**arguments, name: knows})


def check_same_answer_twice(case: Case) -> None:
    assert same(*twice(case)), "the global random state changes the answer"


def check_no_side_effects(case: Case) -> None:
    arguments = case.arguments()
    given = tensors([v for v in arguments.values() if not isinstance(v, nn.Module)])
    modules = nn.ModuleList(
        [m for v in arguments.values() for m in (v if isinstance(v, list) else [v]) if isinstance(m, nn.Module)]
    )
    for module in modules:
        module.train()
        next(module.children()).eval()
        next(module.parameters()).requires_grad_(False)
    before = snapshot(modules, *given)
    model = repaired(case, case.run(**arguments))
    assert_unchanged(before, modules, *given)
    if model is not None:
        assert all(model is not module for module in modules), "a repair works on a copy"
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.5)
        assert_unchanged(before, modules, *given)


def ask(case: Case, number: int, **changes: Any) -> Detection:
    """What a detector says about clean net `number` and its training set.

    A detector that compares inputs with ``clean`` ones gets new inputs and new clean ones: they must be exchangeable.
    """
    x, y = images(seed=2000 + number) if case.takes("clean") else clean_images(number)
    given: dict[str, Any] = {"data": clean_images(number) if case.takes("x") else (x, y), "x": x}
    if case.takes("clean"):
        given["clean"] = images(40, seed=3000 + number)[0]
    if case.takes("model"):
        given["model"] = clean(number)
    if case.row.key in SPOKEN:  # there is one recognizer
        given |= {"x": sounds(20, seed=2000 + number), "clean": sounds(40, seed=3000 + number)}
        del given["model"]
    given = {name: value for name, value in given.items() if case.takes(name)}
    return case.run(**case.arguments(**(given | AWAKE.get(case.row.key, {}) | changes)))


def check_false_alarms(case: Case) -> None:
    """Clean samples (level "sample") or models (level "class": any class) are flagged no more often than was stated.

    Each net asked has weights and images of its own. What is seen, at a significance of 0.001:

    * Level "class": alarms of 80 nets, binomial. At 0.23, which Neural Cleanse states for three classes, 32 alarms are
      too many. A rate twice as high is seen with probability 0.91, one 1.5 times as high with 0.21.
    * With a `calibration`: 10 nets, each judged by the other 9. Among exchangeable nets, a threshold that is one of the
      others' scores and keeps its rate flags at most 10·rate of them, whatever they are. No chance is left: one alarm
      more is seen.
    * Level "sample": shares flagged about 30 nets, a t-test, since the alarms about one net depend on each other.
      For STRIP at 0.1 a rate 1.7 times as high is seen with probability 0.97, one 1.5 times as high with 0.57.

    Two rates hold by construction, and so the check sees less. Spectral signatures flag the very share they state; seen
    is any sample more about each net, but not a share that is wrong in both places. Activation clustering states an
    upper bound, 0.35, and flags 0.04 here: nine times as many would pass.
    """
    if case.takes("calibration"):
        check_calibrated_alarms(case)
        return
    found = ask(case, 0)
    assert found.false_alarm_rate is not None, "a detector states a false-alarm rate"
    level = found.level
    assert level in MODELS, 'level: want "sample" or "class"'
    answers = [found, *(ask(case, number) for number in range(1, MODELS[level]))]
    rates = torch.tensor([answer.false_alarm_rate for answer in answers], dtype=torch.float64)
    assert bool(((rates > 0) & (rates < 1)).all())
    flagged = torch.stack([answer.flagged for answer in answers]).double()  # (nets, samples or classes)
    assert bool(flagged.any()), "nothing was flagged: what would an alarm be? give arguments in AWAKE"
    alarms = flagged.mean(dim=1) if level == "sample" else flagged.amax(dim=1)
    p = chance(alarms, rates, level)
    assert p >= SIGNIFICANCE, f"share of alarms: {alarms.mean():.3g} flagged, stated {rates.max():.3g} (p = {p:.2g})"


def chance(alarms: Tensor, rates: Tensor, level: str) -> float:
    """How likely so many alarms, or more, would be if the rates were right."""
    if level == "class":
        return float(binom.sf(int(alarms.sum()) - 1, len(alarms), float(rates.max())))
    excess = alarms - rates
    if float(excess.std()) < 1e-9:  # equal by construction
        return float(excess.mean() < 1e-9)
    return float(ttest_1samp(excess, 0, alternative="greater").pvalue)


def check_calibrated_alarms(case: Case) -> None:
    """Each net is judged by a threshold that the others have set; see :func:`check_false_alarms`."""
    highest = torch.stack([ask(case, number).scores.max() for number in range(CALIBRATED)])
    assert len(highest.unique()) > 1, "all clean nets look the same: give arguments in AWAKE"
    alarms, stated = 0, 0.0
    for number in range(CALIBRATED):
        others = torch.arange(CALIBRATED) != number
        found = ask(case, number, calibration=highest[others])
        assert found.level == "class" and found.false_alarm_rate is not None and 0 < found.false_alarm_rate < 1
        alarms, stated = alarms + int(found.flagged.any()), stated + found.false_alarm_rate
    assert alarms <= stated + 1e-9, f"{alarms} of {CALIBRATED} clean nets flagged, stated {stated:.3g}"


def check_repair_keeps_the_accuracy(case: Case) -> None:
    x, y = images()
    model = trained()
    assert accuracy(case.run(**case.arguments()).model, x, y) >= accuracy(model, x, y) - 0.15


@pytest.mark.slow
@over(DETECTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_detection(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    check_detection(case, dtype, device)


@over(DETECTORS)
def test_truth_is_out_of_reach(case: Case) -> None:
    check_truth_is_out_of_reach(case)


@pytest.mark.slow
@over(DETECTORS)
def test_same_answer_twice(case: Case) -> None:
    check_same_answer_twice(case)


@over(DETECTORS)
def test_no_side_effects(case: Case) -> None:
    check_no_side_effects(case)


@pytest.mark.slow
@over([case for case in DETECTORS if case.row.kind == "detector"])  # a repair raises no alarm
def test_false_alarms(case: Case) -> None:
    check_false_alarms(case)


@over([case for case in DETECTORS if case.row.kind == "repair"])
def test_repair_keeps_the_accuracy(case: Case) -> None:
    check_repair_keeps_the_accuracy(case)
