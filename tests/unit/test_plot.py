"""Figures come out, without text that overlaps, and bad input is named."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Bbox

from robustlab.teaching import plot


@pytest.fixture(autouse=True)
def clean_figures() -> Iterator[None]:
    plt.switch_backend("Agg")
    with plt.rc_context():
        plot.style()
        yield
    plt.close("all")


@pytest.mark.parametrize("draw", [plot.lifecycle, plot.taxonomy])
def test_nothing_in_a_diagram_collides_or_leaves_it(draw) -> None:
    figure = draw()
    assert overlaps(figure) == []


def test_the_check_for_collisions_sees_them() -> None:
    figure = plot.taxonomy()
    first = figure.axes[0].texts[0]
    figure.axes[0].text(*first.get_position(), "planted", fontsize=9)
    assert overlaps(figure)
    figure = plot.lifecycle()
    box = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)][2]
    box.set_x(box.get_x() + 10)
    assert overlaps(figure)


def test_lifecycle_and_taxonomy_name_what_the_survey_names() -> None:
    life = " ".join(text.get_text() for text in plot.lifecycle().axes[0].texts)
    for word in ("Poisoning", "Backdoor", "Evasion", "White box", "Gray box", "Black box", "model stealing",
                 "membership inference", "data leakage", "model injection", "Validation"):  # fmt: skip
        assert word in life
    kinds = " ".join(text.get_text() for text in plot.taxonomy().axes[0].texts)
    for word in ("White box", "Soft-label", "Hard-label", "Transfer", "surrogate", "queries"):
        assert word in kinds


def test_colors_are_readable_on_white() -> None:
    """WCAG asks for a contrast of 3:1 for graphics; those that carry white type need 4.5:1."""
    for name in ("ink", "muted", "blue", "orange", "teal", "plum", "gold", "red"):
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(plot.COLORS[name])]
        luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
        contrast = 1.05 / (luminance + 0.05)
        assert contrast >= (3.0 if name == "gold" else 4.5), (name, contrast)


def test_lines_differ_in_dash_and_marker() -> None:
    cycle = list(plt.rcParams["axes.prop_cycle"])
    assert len({str(entry["linestyle"]) for entry in cycle}) == len(cycle)
    assert len({entry["marker"] for entry in cycle}) == len(cycle)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 8, 8), (3, 3, 8, 8)])
def test_image_grid_draws_every_image(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    figure = plot.image_grid({"x": images, "δ": images - 0.5}, signed=("δ",), titles={"x": ["a", "b", "c"]})
    assert [len(axes.images) for axes in figure.axes] == [1] * 6
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["a", "b", "c"]


def test_image_grid_shows_a_perturbation_on_one_symmetric_scale() -> None:
    delta = torch.zeros(2, 1, 4, 4)
    delta[0, 0, 0, 0], delta[1, 0, 0, 0] = -0.3, 0.1
    figure = plot.image_grid({"δ": delta}, signed=("δ",))
    for axes in figure.axes:
        assert axes.images[0].get_clim() == pytest.approx((-0.3, 0.3))


def test_image_grid_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="rows"):
        plot.image_grid({})
    with pytest.raises(ValueError, match="rows"):
        plot.image_grid({"a": torch.rand(2, 4, 4), "b": torch.rand(3, 4, 4)})
    with pytest.raises(ValueError, match="titles"):
        plot.image_grid({"a": torch.rand(2, 4, 4)}, titles={"a": ["only one"]})


def test_curve_shows_mean_and_range_of_runs() -> None:
    axes = plot.robust_accuracy_curve({"net": [[1.0, 0.4], [0.8, 0.2]]}, [0.0, 0.1], chance=0.1)
    assert axes.lines[0].get_ydata() == pytest.approx([0.9, 0.3])
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.2) and heights.max() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="'net' has 1 values, want 2"):
        plot.robust_accuracy_curve({"net": [1.0]}, [0.0, 0.1])


def test_small_multiples_draws_each_value_and_blanks_the_rest() -> None:
    drawn: list[float] = []
    figure = plot.small_multiples([1, 2, 3, 4, 5], lambda axes, value: drawn.append(value), label="v = {}", columns=3)
    assert drawn == [1, 2, 3, 4, 5]
    assert [axes.get_title("left") for axes in figure.axes][:5] == [f"v = {k}" for k in drawn]
    assert not figure.axes[5].axison
    with pytest.raises(ValueError, match="values"):
        plot.small_multiples([], lambda axes, value: None)


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs that collide: texts that meet, boxes that cross, and a text or box across an edge."""
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    words = [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts]
    patches = [patch for axes in figure.axes for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    boxes = [(f"box {place}", patch.get_window_extent()) for place, patch in enumerate(patches)]
    edge = ("figure", figure.bbox)
    meeting = [(a, b) for (a, one), (b, other) in combinations(words, 2) if one.overlaps(other)]
    crossing = [*combinations(boxes, 2), *product(words, boxes), *product([*words, *boxes], [edge])]
    return meeting + [(a, b) for (a, one), (b, other) in crossing if crosses(one, other)]


def crosses(one: Bbox, other: Bbox) -> bool:
    """Whether two rectangles share some points, and neither holds the other."""
    shared = Bbox.intersection(one, other)
    if shared is None or shared.width <= 0 or shared.height <= 0:
        return False
    return not any(abs(shared.width - b.width) + abs(shared.height - b.height) < 1e-6 for b in (one, other))
