"""What is asked of the output: matrices C whose product with the logits is to be bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.graph.forms import Forms


def margins(y: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """C with rows e_y − e_j for every j ≠ y: the margins z_y − z_j, all positive where the prediction is y.

    Args:
        y: (N,) labels.
        classes: K, the number of logits.
        dtype: of the result.

    Returns:
        (N, K − 1, K), the other classes in ascending order.
    """
    eye = torch.eye(classes, dtype=dtype, device=y.device)
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y[:, None])
    return eye[y][:, None] - eye[others]


def as_forms(C: Tensor, samples: int) -> Forms:
    """The rows of C, (N, M, K) or (M, K) for all, as N·M forms on the output, sample by sample."""
    C = C.expand(samples, *C.shape[-2:])
    sample = torch.arange(samples, device=C.device).repeat_interleave(C.shape[1])
    return Forms(C.reshape(-1, C.shape[-1]), sample, group=(0, C.shape[1]) if C.shape[1] else None)
