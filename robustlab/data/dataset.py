"""The one shape in which every data set of the book arrives: tensors in [0, 1], labels, class names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustlab import checks


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set, held whole in memory.

    Args:
        name: what :func:`robustlab.data.load` was asked for.
        x_train, x_test: float inputs of shape (N, ...); images are (N, C, H, W) in raw pixels [0, 1]. Texts are int64
            token ids (N, L).
        y_train, y_test: int64 labels of shape (N,), in 0 ... len(classes) - 1.
        classes: the names of the classes, in the order of the labels.

    Raises:
        TypeError: if inputs are neither floating point nor int64, or labels are not int64.
        ValueError: if lengths, sample shapes or labels disagree.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if not x.is_floating_point() and x.dtype != torch.int64:
                raise TypeError(f"x_{part}: want a floating dtype, or int64 token ids, got {x.dtype}")
            if y.dtype != torch.int64:
                raise TypeError(f"y_{part}: want torch.int64, got {y.dtype}")
            if y.dim() != 1 or len(x) != len(y):
                raise ValueError(f"y_{part}: want shape ({len(x)},) as x_{part} has rows, got shape {tuple(y.shape)}")
            checks.in_classes(f"y_{part}", y, len(self.classes))
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                f"x_test: want samples of shape {tuple(self.x_train.shape[1:])}, as in x_train, "
                f"got {tuple(self.x_test.shape[1:])}"
            )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one input, such as (1, 28, 28)."""
        return tuple(self.x_train.shape[1:])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dataset:
        """The same data on another device, or with inputs of another floating-point dtype."""
        device = self.x_train.device if device is None else torch.device(device)
        return replace(
            self,
            x_train=self.x_train.to(device=device, dtype=dtype or self.x_train.dtype),
            x_test=self.x_test.to(device=device, dtype=dtype or self.x_test.dtype),
            y_train=self.y_train.to(device),
            y_test=self.y_test.to(device),
        )

    def subset(self, n_train: int | None = None, n_test: int | None = None) -> Dataset:
        """The first `n_train` training and `n_test` test samples (None keeps all).

        The embedded sets are ordered so that every block of ten holds each class once: there the first
        n samples are balanced (of ``sign_digits32``, the first 1,630 and 410). The tensors are views of the originals.

        Raises:
            ValueError: if more samples are asked for than there are, or fewer than one.
        """
        n_train = len(self.x_train) if n_train is None else n_train
        n_test = len(self.x_test) if n_test is None else n_test
        for argument, wanted, there in (("n_train", n_train, len(self.x_train)), ("n_test", n_test, len(self.x_test))):
            if not 1 <= wanted <= there:
                raise ValueError(f"{argument}: want a number from 1 to {there}, got {wanted}")
        return replace(
            self,
            x_train=self.x_train[:n_train],
            y_train=self.y_train[:n_train],
            x_test=self.x_test[:n_test],
            y_test=self.y_test[:n_test],
        )

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {len(self.x_train)} train, {len(self.x_test)} test, "
            f"samples {self.sample_shape}, {len(self.classes)} classes)"
        )
