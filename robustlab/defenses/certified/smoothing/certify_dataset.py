"""Smoothing certificates of a data set, which take minutes to hours: what is done is kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.defenses.certified.smoothing.votes import Smoothed
from robustlab.files import RunFiles, digest, require_writable
from robustlab.progress import bar

__all__ = ["certify_dataset"]

_KEPT = ("verified", "radius", "prediction", "p_lower", "counts")


def certify_dataset(
    method: Callable[..., Smoothed],
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    file: str | os.PathLike[str],
    rows: int = 20,
    progress: bool = True,
    **told: Any,
) -> Smoothed:
    """Certify sample after sample into a file, from which an interrupted run goes on.

    The result is that of one call: each sample has draws of its own, keyed by the seed and its id. So a data set can
    also be split over machines, each with its ids and its file.

    Args:
        method: :func:`~robustlab.defenses.randomized_smoothing`, :func:`~robustlab.defenses.renyi_smoothing`,
            :func:`~robustlab.defenses.pixeldp` or :func:`~robustlab.defenses.higher_order_smoothing`.
        model, x, y: as of the method.
        file: written after every ``rows`` samples, whole or not at all. If it is there, its samples are not done again.
        rows: samples between two writings, at least 1.
        progress: show a bar over the data set in a terminal.
        told: what else the method takes, ``sigma`` and the like.

    Returns:
        The method's Smoothed, of all samples.

    Raises:
        ValueError: for a file that cannot be written, or that belongs to another method, model, input or setting.
        Anything that the method raises; the samples before are in the file.
    """
    checks.floats(x)
    checks.at_least("rows", rows, 1, integer=True)
    path = Path(file)
    require_writable(path, "file")
    ids = torch.as_tensor(told.pop("ids", torch.arange(len(x))))
    run = {
        "method": method.__name__, "settings": json.dumps(told, sort_keys=True, default=_told),
        "model": digest(model.state_dict()), "inputs": digest({"x": x, "ids": ids} | ({} if y is None else {"y": y})),
    }  # fmt: skip
    files = RunFiles("file", "certify_dataset", run)
    done = files.read(path)[0] if path.exists() else {}
    if done and set(done) != set(_KEPT):
        raise files.unlike(path, f"it holds {sorted(done)[:9]}")
    first = len(next(iter(done.values()))) if done else 0
    part = method(model, x[:0], None if y is None else y[:0], ids=ids[:0], **told)
    for start in bar(range(first, len(x), rows), show=progress, label=method.__name__):
        among = slice(start, start + rows)
        part = method(model, x[among], None if y is None else y[among], ids=ids[among], **told)
        new = {name: getattr(part, name).cpu() for name in _KEPT}
        done = {name: torch.cat([done[name], value]) if start else value for name, value in new.items()}
        files.write(path, done)
    found = {name: value.to(x.device) for name, value in done.items()} or {name: getattr(part, name) for name in _KEPT}
    return Smoothed(
        falsified=torch.zeros_like(found["verified"]), norm=part.norm, method=part.method, confidence=part.confidence,
        **found,
    )  # fmt: skip


def _told(value: object) -> str:
    return digest({"": value}) if isinstance(value, Tensor) else repr(value)
