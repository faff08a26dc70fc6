"""Bounds need the arithmetic that their rounding margins were made for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 means float32: no TF32 in products and convolutions, no autocast. Also a decorator.

    TF32, on by default in cuDNN's convolutions, keeps 10 bits of 23; float32 bounds are widened for 23.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        try:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
            yield
        finally:
            torch.set_float32_matmul_precision(products)
            torch.backends.cudnn.allow_tf32 = convolutions
