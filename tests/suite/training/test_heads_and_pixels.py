"""Any classifier that gives logits will do, a layer that is read is told, images in 0 … 255 do not pass unseen."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import Detection, Repair
from tests.suite.training.cases import CLASSES, DETECTORS, POISONS, REGRESSION, Case, images, over, trained

ON_IMAGES = [case for case in DETECTORS + POISONS if "image" in case.row.dims and case.row.key not in REGRESSION]
MODELED = [case for case in ON_IMAGES if case.needs("model")]


def convolutional() -> nn.Module:
    """A classifier without a linear layer: the head is a convolution, averaged over positions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, CLASSES, 1), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ).eval()  # fmt: skip


def with_post_layer() -> nn.Module:
    """A linear layer behind the logits, as calibration puts it there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*trained().children(), nn.Hardtanh(-50, 50), nn.Linear(CLASSES, CLASSES)).eval()


def run(case: Case, **changes: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the searches are too short to end
        return case.run(**case.arguments(**changes))


def layer_of(result: Any) -> str | None:
    """Which layer a result says was read."""
    if isinstance(result, Detection):
        return result.layer
    if isinstance(result, Repair):
        return getattr(result.details, "layer", None)
    details = getattr(result, "details", {})
    return details.get("layer") or ", ".join(details.get("layers", ())) or None


def asked(case: Case, model: nn.Module, wish: str, name: str, *layers: Any) -> Any:
    """The result; None where the method asks for a layer, which is then given as each of ``layers``, and named."""
    try:
        return run(case, model=model)
    except ValueError as error:
        assert case.takes("layer") and wish in str(error), f"refused: {error}"
    for layer in layers:
        assert layer_of(run(case, model=model, layer=layer)) in (name, f"output of {name}"), "the layer is not told"
    return None


def check_any_head(case: Case) -> None:
    """A method that reads logits alone takes a convolutional head; one that reads features asks for the layer."""
    model = convolutional()
    result = asked(case, model, "layer", "1", "1", model[1])
    assert result is None or layer_of(result) in (None, "1"), "the head was taken for the features"


def check_post_layer(case: Case) -> None:
    """The logits before a post layer are no features: a method that reads features asks which they are."""
    result = asked(case, with_post_layer(), "layer: want which", "2", "2")
    assert result is None or layer_of(result) is None, "what a post layer is fed with was taken for the features"


def check_bytes_are_told(case: Case) -> None:
    """Images in 0 … 255 are refused, or a warning says what they seem to be."""

    def scaled(value: Any) -> Any:
        return (255 * value[0], value[1]) if isinstance(value, tuple) else 255 * value

    given = case.arguments()
    names = [name for name in ("data", "x", "clean") if isinstance(given.get(name), tuple | Tensor)]
    for name in names:
        changed = case.arguments(**{name: scaled(given[name])})
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                case.run(**changed)
            except ValueError as error:
                assert str(error).startswith((f"{name}: want values in [0, 1]", "x: want values in [0, 1]")), error
                continue
        assert any(f"{name} / 255" in str(one.message) for one in told), f"{name} in 0 … 255 passed in silence"


@pytest.mark.slow
@over(MODELED)
def test_any_head(case: Case) -> None:
    check_any_head(case)


@pytest.mark.slow
@over(MODELED)
def test_post_layer(case: Case) -> None:
    check_post_layer(case)


@over([case for case in DETECTORS if "image" in case.row.dims])
def test_bytes_are_told(case: Case) -> None:
    check_bytes_are_told(case)


def test_features_of_any_range_are_no_images() -> None:
    """Vectors, and images in [0, 1], raise no warning."""
    from robustlab import checks

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (
            255 * torch.rand(4, 7),
            images()[0],
            9 * torch.rand(4, 1, 5, 5) - 4,
            255 * torch.rand(2, 64, 3, 3),
        ):
            checks.unit_pixels("x", fine)
    with pytest.warns(UserWarning, match=r"data: .*got values in \[0, 255\].*data / 255"):
        checks.unit_pixels("data", 255.0 * torch.arange(2.0).view(2, 1, 1, 1))
