"""Parts of a training set: held out for validation, or without labels."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.pairs import Pairs, read_labeled

UNLABELED = -1
"""The label of a sample whose class is not known."""


def hide_labels(data: Pairs, *, labeled: int) -> tuple[Tensor, Tensor]:
    """The training inputs with the labels of the first rows alone; those of the rest are −1, and out of reach.

    In the embedded sets every block of ten holds each class once, so that what stays labeled is balanced.

    Args:
        data: a Dataset, whose training part is taken, a pair (x, y), or a loader of pairs.
        labeled: how many samples keep their label, 1 to N.

    Returns:
        (x, y): inputs (N, ...) and int64 labels (N,), a copy.

    Raises:
        ValueError, TypeError: for wrong data, or more labels than there are.

    >>> from robustlab import data
    >>> x, y = data.hide_labels(data.load("mnist5k"), labeled=500)
    """
    x, y = read_labeled(data)
    checks.at_least("labeled", labeled, 1, integer=True)
    checks.at_most("labeled", labeled, len(y))
    return x, torch.where(torch.arange(len(y), device=y.device) < labeled, y, UNLABELED)


def hold_out(data: Pairs, *, n: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The training data in two: what to train on, and the last n samples, on which choices may be made.

    Whatever is chosen by looking at it (an epoch, a weight, an ε) needs such a part; test data are for the end. In the
    embedded sets every block of ten holds each class once, so that a multiple of ten is balanced.

    Args:
        data: a Dataset, whose training part is taken, a pair (x, y), or a loader of pairs.
        n: how many are held out, 1 to N − 1.

    Returns:
        ((x, y) to train on, (x, y) held out): views of the data.

    Raises:
        ValueError, TypeError: for wrong data, or a part that would be empty.

    >>> from robustlab import data
    >>> train, validation = data.hold_out(data.load("mnist5k"), n=500)
    """
    x, y = read_labeled(data)
    checks.at_least("n", n, 1, integer=True)
    checks.at_most("n", n, len(y) - 1)
    return (x[:-n], y[:-n]), (x[-n:], y[-n:])
