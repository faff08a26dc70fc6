"""Pictures of samples and perturbations, and rows of small panels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from robustlab.teaching.plot.theme import WIDTH

Draw = Callable[[Axes, Any], None]
"""Draws one frame: gets the axes and the frame's value."""


def image_grid(
    rows: Mapping[str, Tensor],
    *,
    titles: Mapping[str, Sequence[str]] | None = None,
    signed: Sequence[str] = (),
    column_titles: Sequence[str] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Draw batches of images as the rows of a grid, each row with its name at the left.

    Args:
        rows: name of a row → images (N, 1, H, W), (N, 3, H, W) or (N, H, W), in [0, 1]; the same N in all.
        titles: name of a row → N short texts, written under its images.
        signed: names of the rows that hold perturbations; drawn from blue (negative) over white to red,
            on one scale per row.
        column_titles: N short texts over the first row.
        width: of the figure, inches (default: a page's column).

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: no rows, rows of different length, or a wrong number of titles.

    Source: this book.
    """
    count = _common_length(rows, titles or {}, column_titles)
    side = (width - 0.9) / count
    under = 0.17 if titles else 0.05
    size = (width, len(rows) * (side + under) + 0.2)
    figure, axes = plt.subplots(len(rows), count, squeeze=False, figsize=size)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        reach = float(images.abs().max()) or 1.0
        look = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach} if name in signed else {"vmin": 0, "vmax": 1}
        for place, (panel, image) in enumerate(zip(line, images, strict=True)):
            panel.imshow(_pixels(image, rescale=reach if name in signed else None), **look)
            _bare(panel)
            if titles and name in titles:
                panel.set_xlabel(titles[name][place], fontsize=8.5, labelpad=2)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8.5, labelpad=6)
    for panel, text in zip(axes[0], column_titles or (), strict=False):
        panel.set_title(text, fontsize=8.5, weight="normal", loc="center", pad=3)
    return figure


def small_multiples(
    values: Sequence[Any],
    draw: Draw,
    *,
    label: str = "{}",
    columns: int = 4,
    panel: tuple[float, float] = (1.75, 1.75),
) -> Figure:
    """Draw one panel per value, in rows: the static form of a slider.

    Args:
        values: what varies, for instance budgets ε.
        draw: draws one panel on the axes that it is given.
        label: format of a panel's title, filled with the value.
        columns: panels per row (default 4).
        panel: width and height of a panel, inches.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: no values.

    Source: this book.
    """
    if not values:
        raise ValueError("values: want at least one, got none")
    columns = min(columns, len(values))
    lines = -(-len(values) // columns)
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=(columns * panel[0], lines * panel[1]))
    flat = axes.ravel()
    for one, value in zip(flat, values, strict=False):
        draw(one, value)
        one.set_title(label.format(value), fontsize=8.5, weight="normal")
    for empty in flat[len(values) :]:
        empty.axis("off")
    return figure


def show_image(axes: Axes, image: Tensor) -> None:
    """Draw one image (H, W), (1, H, W) or (3, H, W) in [0, 1] without ticks."""
    axes.imshow(_pixels(image), vmin=0, vmax=1)
    _bare(axes)


def _pixels(image: Tensor, rescale: float | None = None) -> Any:
    image = image.detach().to("cpu", torch.float32).squeeze()
    if image.ndim == 3:
        # Matplotlib maps no colors onto (H, W, 3): a colored perturbation is centered at mid-gray instead.
        image = image.movedim(0, -1) if rescale is None else (0.5 + image.movedim(0, -1) / (2 * rescale))
        image = image.clamp(0, 1)
    return image.numpy()


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _common_length(
    rows: Mapping[str, Tensor], titles: Mapping[str, Sequence[str]], column_titles: Sequence[str] | None
) -> int:
    lengths = {name: len(images) for name, images in rows.items()}
    if not lengths or 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"rows: want one or more images, and the same number in all rows, got {lengths}")
    count = next(iter(lengths.values()))
    for name, texts in [*titles.items(), ("column_titles", column_titles)]:
        if texts is not None and len(texts) != count:
            raise ValueError(f"titles: want {count} for {name!r}, got {len(texts)}")
    return count
