"""What every training-phase attack on data returns: tampered training data, and the truth about it kept aside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.victim import Victim
from robustlab.data.dataset import Dataset


class Poisoned:
    """Training data after tampering.

    Whoever trains or defends gets :attr:`data`, two plain tensors, or iterates over the pairs (x_i, y_i). Neither leads
    to the truth: which samples are poisoned is known to this object alone, and it enters a defense's evaluation only by
    :meth:`robustlab.attacker.results.Detection.score`::

        poisoned = badnets(mnist, target=0, rate=0.1)
        fit(model, poisoned.data, epochs=5)
        found = detector(model, *poisoned.data)
        found.score(poisoned.is_poison)

    Args:
        x: (N, ...) inputs after tampering.
        y: (N,) labels, or real targets, after tampering.
        is_poison: (N,) bool; the samples that the attacker changed or added.
        original_y: (N,) labels before tampering; for an added sample the label that its source had, or its own.
        row: (N,) int64, the row of the original data that each sample comes from, −1 for one that was added. None means
            0 … N − 1: nothing added, deleted or moved. Every sample that is no poison equals its original bit for bit,
            except for those that an attack names as cover.
        details: what else the attack has to say, such as its loss or its targets.

    Raises:
        ValueError, TypeError: if lengths or dtypes disagree.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        is_poison: Tensor,
        original_y: Tensor,
        row: Tensor | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        row = torch.arange(len(x), device=x.device) if row is None else row
        for name, value in (("y", y), ("is_poison", is_poison), ("original_y", original_y), ("row", row)):
            if value.shape != (len(x),):
                raise ValueError(f"{name}: want shape ({len(x)},), got {tuple(value.shape)}")
        if is_poison.dtype != torch.bool:
            raise TypeError(f"is_poison: want torch.bool, got {is_poison.dtype}")
        self.x, self.y = x, y
        self.is_poison, self.original_y, self.row = is_poison, original_y, row
        self.details: dict[str, Any] = dict(details or {})

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """(x, y): all that a trainer or a defense is given."""
        return self.x, self.y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.x, self.y, strict=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples of shape {tuple(self.x.shape[1:])})"


def training_part(base: Any, name: str = "base") -> tuple[Tensor, Tensor]:
    """(x, y) of a Dataset's training part, or the pair itself, without the caller's graph; y is int64.

    Raises:
        TypeError, ValueError: for anything else, different lengths, no samples, inputs that are not finite, or labels
            that are not classes; the message names the argument, or ``y``.
    """
    return _part(base, name, "train")


def testing_part(test: Any) -> tuple[Tensor, Tensor]:
    """(x, y) of a Dataset's test part, or the pair itself; as :func:`training_part`."""
    return _part(test, "test", "test")


def class_labels(y: Any, x: Tensor) -> Tensor:
    """Class labels as int64 (N,) on the device of ``x`` (N, ...); they may be of any integer dtype.

    Raises:
        TypeError, ValueError: for other dtypes or shapes, or labels below 0.
    """
    label = checks.labels("y", y, x)
    if bool((label < 0).any()):
        raise ValueError(f"y: want labels of at least 0, got {label[label < 0][:5].tolist()}")
    return label


def inputs_for(model: Any, x: Any, name: str = "x") -> Tensor:
    """The inputs x (N, ...) without their graph, if the model can be shown them: finite, and of its dtype.

    Integers of 32 and 64 bits may be tokens, and pass.

    Raises:
        TypeError, ValueError: where it cannot; the message names the argument.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: want a torch.Tensor, got {type(x).__name__}")
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    dtype = next((p.dtype for p in weights if p.is_floating_point()), None)
    if dtype is not None and x.dtype not in (dtype, torch.int32, torch.int64):
        raise TypeError(f"{name}: want the model's dtype {dtype}, got {x.dtype}; say model.double() or x.to({dtype})")
    finite(name, x)
    with torch.inference_mode(False):  # in which a tensor made in inference mode has to be copied to be of use
        return x.clone() if x.is_inference() else x.detach()


def count_outputs(model: Any, x: Tensor) -> int:
    """K, by showing the model one sample of x (N, ...); nothing of it is changed.

    Raises:
        ValueError: if it does not give logits (N, K).
    """
    weight = next(model.parameters(), x) if isinstance(model, nn.Module) else x
    with torch.inference_mode(False), torch.no_grad(), Victim(model, access="soft").held(weight.device):
        logits = model(x[:1].to(weight.device))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: want logits (N, K), got {shown} for one sample")
    return logits.shape[1]


def _part(given: Any, name: str, part: str) -> tuple[Tensor, Tensor]:
    if isinstance(given, Dataset):
        given = getattr(given, f"x_{part}"), getattr(given, f"y_{part}")
    if not (isinstance(given, tuple) and len(given) == 2 and all(isinstance(v, Tensor) for v in given)):
        raise TypeError(f"{name}: want a Dataset or a pair (x, y) of tensors, got {type(given).__name__}")
    x, y = given
    if len(x) != len(y) or not len(x):
        raise ValueError(f"{name}: want as many inputs as labels, at least one, got {len(x)} and {len(y)}")
    finite(name, x)
    return x.detach(), class_labels(y, x)


def finite(name: str, x: Tensor) -> None:
    """Raises ValueError for NaN or infinity."""
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name}: want finite inputs, got NaN or infinity")
