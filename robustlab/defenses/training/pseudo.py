"""Labels from a model for the samples that have none, as objectives for partly labeled data take them."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.parts import UNLABELED


class PseudoLabels:
    """Labels by the samples' rows in the data, for those rows whose own label is −1; None where there are none."""

    def __init__(self, labels: Tensor | None, wanted: bool = True) -> None:
        if labels is not None and not (
            isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.dim() == 1
        ):
            shown = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"pseudo_labels: want int64 labels (N,), one for each row of the data, got {shown}")
        self.labels, self.wanted = labels, wanted

    def check(self, y: Tensor, classes: int) -> None:
        """Raises unless each row of the data has a label of its own or one of these, in 0 … classes − 1."""
        missing = y == UNLABELED
        checks.in_classes("data", y.masked_fill(missing, 0), classes)
        if not self.wanted or not bool(missing.any()):
            return
        if self.labels is None:
            raise ValueError(
                f"pseudo_labels: want labels for the {int(missing.sum())} rows of the data without one, got None; "
                "say pseudo_labels=pseudo_label(teacher, data)"
            )
        if len(self.labels) != len(y):
            raise ValueError(f"pseudo_labels: want {len(y)}, one for each row of the data, got {len(self.labels)}")
        checks.in_classes("pseudo_labels", self.labels.to(y.device)[missing], classes)

    def fill(self, y: Tensor, ids: Tensor) -> Tensor:
        """The labels of a batch; of a row that has none and gets none, 0."""
        other: Tensor | int = 0
        if self.labels is not None and self.wanted:
            self.labels = self.labels.to(y.device)
            other = self.labels[ids]
        return torch.where(y == UNLABELED, other, y)
