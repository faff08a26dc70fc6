"""What CUDA allows of an operation whose tensors are on two devices, and when the host waits for it.

Written after PyTorch's own checks: ``TensorIterator::compute_types``, ``TensorAdvancedIndexing.cpp``, and the check of
a common device that is generated for every other operator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.pretend.tags import on_cuda


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


# Elementwise operations of two operands: one of them may be a number in the CPU's memory, a tensor of no dimension.
# Those of three operands (clamp, lerp, addcmul, addcdiv) have no such exception.
_BINARY = _words(
    """add sub rsub mul div true_divide floor_divide remainder fmod pow float_power atan2 arctan2 hypot copysign
    nextafter xlogy special_xlogy special_xlog1py logaddexp logaddexp2 heaviside ldexp gcd lcm maximum minimum fmax fmin
    eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor bitwise_left_shift
    bitwise_right_shift igamma igammac mse_loss smooth_l1_loss"""
)
INDEXING = _words("index index_put index_put_ _index_put_impl_ _unsafe_index _unsafe_index_put")
CROSSING = _words("copy_ copy _copy_from fill_ _foreach_copy_")  # between devices by their nature
# Here the host reads a value of the GPU, or has to learn a size from it.
_WAITS = _words(
    """_local_scalar_dense is_nonzero equal nonzero argwhere masked_select _unique _unique2 unique_dim
    unique_consecutive bincount _linalg_check_errors"""
)


def check(name: str, args: Sequence[Any], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> None:
    """Raises as CUDA would where ``tensors``, all those in the arguments of the operation, may not meet.

    Args:
        name: the operation's name in ATen, in-place forms with their underscore.
        args, kwargs: its arguments.
        tensors: of which some are on the GPU and some are not.
    """
    if name in CROSSING:
        return
    if name in INDEXING:
        _check_index(args[0], args[1], args[2:3])
        return
    outside = [t for t in tensors if not on_cuda(t)]
    numbers_outside = all(t.dim() == 0 for t in outside)
    plain = name.rstrip("_")
    if plain in _BINARY:
        written = [kwargs.get("out"), args[0] if name.endswith("_") else None]
        allowed = numbers_outside and not any(t is w for t in outside for w in written)
    elif name == "where" or name.startswith("_foreach_"):
        allowed = numbers_outside
    elif plain == "masked_fill":
        allowed = on_cuda(args[0]) == on_cuda(args[1])  # the value has no dimension and may be anywhere
    else:
        allowed = False
    if not allowed:
        raise _mixed(name, tensors)


def copies(name: str, args: Sequence[Any]) -> bool:
    """Whether this operation on two devices copies an operand from one to the other, for which the host waits."""
    if name in INDEXING:
        return any(index is not None and on_cuda(index) != on_cuda(args[0]) for index in args[1])
    return name in ("copy_", "_copy_from") or (name == "fill_" and on_cuda(args[1]))


def waits(name: str, args: Sequence[Any]) -> bool:
    """Whether the host waits for the GPU in this operation on tensors of the pretend device."""
    if name in _WAITS or (name == "repeat_interleave" and len(args) == 1):
        return True
    if name not in INDEXING:
        return False
    indices = [index for index in args[1] if index is not None]
    if not any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        return False
    if len(indices) > 1 or len(args) < 3:
        return True
    number = args[2].numel() == 1 and not on_cuda(args[2]) and not (len(args) > 3 and args[3])
    return not number  # a number into a mask is a masked_fill_; else the mask becomes indices, whose count is asked for


def _check_index(values: Tensor, indices: Sequence[Tensor | None], source: Sequence[Tensor]) -> None:
    if not on_cuda(values) and any(index is not None and on_cuda(index) for index in indices):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    for value in source:
        if value.dim() and on_cuda(value) != on_cuda(values):
            raise _mixed("index_put_", [values, value])


def _mixed(name: str, tensors: Sequence[Tensor]) -> RuntimeError:
    shown = ", ".join(f"{tuple(t.shape)} on {'cuda:0' if on_cuda(t) else 'cpu'}" for t in tensors)
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
        f"(in {name}: {shown})"
    )
