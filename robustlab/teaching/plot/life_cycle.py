"""The life cycle of a model and its attackers: our own drawing of the survey's figure 1."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustlab.teaching.plot.diagram import Box, arrow, canvas, line, node, panel, words
from robustlab.teaching.plot.theme import COLORS

_POISON, _BACKDOOR, _EVASION = COLORS["plum"], COLORS["orange"], COLORS["blue"]


def lifecycle() -> Figure:
    """Draw the two phases of a model's life, and which attacker acts where.

    The upper panel is the training phase (data, training, validation) with poisoning and backdoor
    attacks; the lower one the deployment phase (frozen model, adjustments, three kinds of access)
    with evasion attacks; the strip below names threats that the survey leaves out.

    Returns:
        A matplotlib figure, 7.2 inches wide.

    Source: Chen and Liu, figure 1, redrawn.
    """
    figure, axes = canvas(97)
    panel(axes, Box(1, 55.5, 98, 40.5), "Training phase")
    panel(axes, Box(1, 10.6, 98, 37.9), "Deployment phase")
    _training(axes)
    _deployment(axes)
    arrow(axes, (34, 55.5), (34, 48.5), width=2.2)
    words(axes, (32, 52), "freeze and deploy", across="right", italic=True)
    arrow(axes, (66, 48.5), (66, 55.5), width=2.2)
    words(axes, (68, 52), "new data, updated model", across="left", italic=True)
    node(
        axes,
        Box(1, 1, 98, 7.5),
        "Outside the survey: privacy and integrity of data and model",
        "model stealing  ·  membership inference  ·  data leakage  ·  model injection",
        color=COLORS["muted"],
        dashed=True,
    )
    return figure


def _training(axes: Axes) -> None:
    data = node(axes, Box(4, 78, 27, 11), "Data", "collection and\npre-processing")
    fit = node(axes, Box(36.5, 78, 27, 11), "Model and training", "selection, tuning,\noptimization")
    check = node(axes, Box(69, 78, 27, 11), "Validation", "accuracy on\nheld-out data")
    arrow(axes, data.on_right(), fit.on_left())
    arrow(axes, fit.on_right(), check.on_left())
    poison = node(
        axes,
        Box(4, 58, 43.5, 11.5),
        "Poisoning attack",
        "can: change, add, delete training data\nwants: errors on clean test data",
        color=_POISON,
        filled=True,
    )
    backdoor = node(
        axes,
        Box(52.5, 58, 43.5, 11.5),
        "Backdoor attack",
        "can: stamp a trigger Δ, relabel as t\nwants: label t wherever Δ shows",
        color=_BACKDOOR,
        filled=True,
    )
    arrow(axes, (12, poison.top), (12, data.bottom), color=_POISON, width=2)
    # A backdoor enters through the data as well: its path turns left under the training box.
    line(axes, [(74, backdoor.top), (74, 73.75), (23, 73.75)], color=_BACKDOOR)
    arrow(axes, (23, 73.55), (23, data.bottom), color=_BACKDOOR, width=2)


def _deployment(axes: Axes) -> None:
    frozen = node(axes, Box(4, 29.25, 23, 11), "Frozen model", "architecture and\nparameters fixed")
    adjust = node(axes, Box(32, 29.25, 24, 11), "Adjustments", "compression,\ncalibration, ...")
    arrow(axes, frozen.on_right(), adjust.on_left())
    access = Box(61, 22.8, 35, 23.9)
    panel(axes, access)
    arrow(axes, adjust.on_right(), access.on_left())
    notes = {
        "White box": "weights are public",
        "Gray box": "parts are known",
        "Black box": "outputs only",
    }
    for place, (title, note) in enumerate(notes.items()):
        row = node(axes, Box(62.3, 39.25 - 7.5 * place, 32.4, 6))
        words(axes, (row.left + 2, row.middle[1]), title, bold=True, size=8.6, across="left")
        words(axes, (row.right - 2, row.middle[1]), note, across="right")
    evasion = node(
        axes,
        Box(4, 12.4, 92, 7),
        "Evasion attack",
        "can: change the input, guided by gradients, scores or labels   ·   wants: an error on that input",
        color=_EVASION,
        filled=True,
    )
    arrow(axes, (78.5, evasion.top), (78.5, access.bottom), color=_EVASION, width=2)
