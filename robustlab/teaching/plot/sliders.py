"""A slider that works in a web page without a kernel."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from robustlab.teaching.plot.images import Draw

_VIEW = "application/vnd.jupyter.widget-view+json"


def slider(
    values: Sequence[Any],
    draw: Draw,
    *,
    name: str,
    alt: str,
    label: str = "{}",
    panel: tuple[float, float] = (2.7, 2.7),
    dpi: int = 110,
) -> None:
    """Show one frame at a time, chosen by a slider, with all frames drawn beforehand.

    The slider and the stack of pictures are linked in the browser, so the published page moves them
    without a kernel. The output's text is fixed and the frames travel as widget state, so strict nbval
    has nothing unstable to compare. Paper and readers without scripts see no slider: put it directly
    after the cell that shows the same ``values`` and ``draw`` as `small_multiples` (a test asks for it).

    Args:
        values: what varies, one frame each.
        draw: draws one frame on the axes that it is given.
        name: what the slider moves, for instance ``"budget ε"``.
        alt: what the pictures show, for readers who cannot see them; the value is added to it.
        label: format of a value.
        panel: width and height of a frame, inches.
        dpi: resolution; frames count toward the notebook's size.

    Raises:
        ValueError: fewer than two values.
        ImportError: ipywidgets is not installed (``pip install "robustlab[book]"``).

    Source: this book.
    """
    if len(values) < 2:
        raise ValueError(f"values: want at least two, got {len(values)}")
    import ipywidgets  # optional: only notebooks need it
    from IPython.display import display

    texts = [label.format(value) for value in values]
    frames = [
        ipywidgets.HTML(_picture(_png(value, draw, panel, dpi), f"{alt}, {name} {text}"))
        for value, text in zip(values, texts, strict=True)
    ]
    handle = ipywidgets.SelectionSlider(
        options=texts, value=texts[0], description=name, style={"description_width": "initial"}
    )
    stack = ipywidgets.Stack(frames, selected_index=0)
    ipywidgets.jslink((handle, "index"), (stack, "selected_index"))
    box = ipywidgets.VBox([handle, stack])
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    # The default text of a widget holds all its children, and so every byte of the pictures.
    display({_VIEW: view, "text/plain": f"Slider: {name} from {texts[0]} to {texts[-1]}"}, raw=True)


def _png(value: Any, draw: Draw, panel: tuple[float, float], dpi: int) -> bytes:
    figure, axes = plt.subplots(figsize=panel, dpi=dpi)
    try:
        draw(axes, value)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
    finally:
        plt.close(figure)  # else the inline backend would show it a second time
    return buffer.getvalue()


def _picture(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}">'
