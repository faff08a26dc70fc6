"""What CUDA allows of an operation whose tensors are on two devices.

Written after PyTorch's own checks: ``TensorIterator::compute_types``, ``TensorAdvancedIndexing.cpp``, and the check of
a common device that is generated for every other operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.pretend.tags import on_cuda

# Elementwise operations of two operands: one of them may be a number in CPU memory, a tensor of no dimension.
# Those of three operands (clamp, lerp, addcmul, addcdiv) have no such exception.
_BINARY = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "true_divide",
        "floor_divide",
        "remainder",
        "fmod",
        "pow",
        "float_power",
        "atan2",
        "arctan2",
        "hypot",
        "copysign",
        "nextafter",
        "xlogy",
        "special_xlogy",
        "special_xlog1py",
        "logaddexp",
        "logaddexp2",
        "heaviside",
        "ldexp",
        "gcd",
        "lcm",
        "maximum",
        "minimum",
        "fmax",
        "fmin",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "not_equal",
        "less",
        "less_equal",
        "greater",
        "greater_equal",
        "logical_and",
        "logical_or",
        "logical_xor",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "bitwise_left_shift",
        "bitwise_right_shift",
        "__and__",
        "__or__",
        "__xor__",
        "__lshift__",
        "__rshift__",
        "__iand__",
        "__ior__",
        "__ixor__",
        "__ilshift__",
        "__irshift__",
        "igamma",
        "igammac",
    ]
)
# Between devices by their nature.
CROSSING = frozenset(["copy_", "copy", "_copy_from", "fill_", "_foreach_copy_"])
INDEXING = frozenset(["index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"])
# Operations after which the host has waited for the GPU: it read a value, or had to learn a size.
_WAITS = frozenset(
    [
        "_local_scalar_dense",
        "is_nonzero",
        "equal",
        "nonzero",
        "masked_select",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "bincount",
        "_linalg_check_errors",
        "masked_scatter_backward",
        "argwhere",
    ]
)


def check(name: str, args: Sequence[Any], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> None:
    """Raises as CUDA would where ``tensors``, all those in the arguments of the operation, may not meet."""
    if name in CROSSING:
        return
    if name in INDEXING:
        _check_index(args[0], args[1], args[2:3])
        return
    numbers = [t for t in tensors if t.dim() == 0 and not on_cuda(t)]
    arrays = [t for t in tensors if t.dim() or on_cuda(t)]
    plain = name if name in _BINARY else name.rstrip("_")
    if plain in _BINARY:
        written = [args[0], kwargs.get("out")] if name.endswith("_") else [kwargs.get("out")]
        if any(number is w for number in numbers for w in written):
            raise _mixed(name, tensors)
        if len(numbers) < len(tensors) and len({on_cuda(t) for t in arrays}) == 1:
            return
    elif name == "where" or name.startswith("_foreach_"):
        if len({on_cuda(t) for t in arrays}) == 1:
            return
    elif plain == "masked_fill":
        if on_cuda(args[0]) == on_cuda(args[1]):
            return  # the value has no dimension and may be anywhere
    raise _mixed(name, tensors)


def waits(name: str, args: Sequence[Any]) -> bool:
    """Whether the host waits for the GPU in this operation on tensors of the pretend device."""
    if name in _WAITS or (name == "repeat_interleave" and len(args) == 1):
        return True
    if name in ("index", "_unsafe_index"):
        return any(_is_mask(index) for index in args[1])
    if name in ("index_put", "index_put_", "_index_put_impl_") and any(_is_mask(index) for index in args[1]):
        value, accumulate = args[2], len(args) > 3 and args[3]
        whole = sum(index is not None for index in args[1]) == 1 and on_cuda(args[0]) == all(
            on_cuda(index) for index in args[1] if index is not None
        )
        filled = whole and not accumulate and value.numel() == 1 and not on_cuda(value)
        return not filled  # a number into a mask is a masked_fill_
    return False


def copies(name: str, args: Sequence[Any]) -> bool:
    """Whether this operation on two devices first copies an operand from one to the other, for which the host waits."""
    if name in INDEXING:
        return any(index is not None and on_cuda(index) != on_cuda(args[0]) for index in args[1])
    return name in ("copy_", "_copy_from") or (name == "fill_" and on_cuda(args[1]))


def _check_index(values: Tensor, indices: Sequence[Tensor | None], source: Sequence[Tensor]) -> None:
    if not on_cuda(values) and any(index is not None and on_cuda(index) for index in indices):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    for value in source:
        if value.dim() and on_cuda(value) != on_cuda(values):
            raise _mixed("index_put_", [values, value])


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _mixed(name: str, tensors: Sequence[Tensor]) -> RuntimeError:
    shown = ", ".join(f"{tuple(t.shape)} on {'cuda:0' if on_cuda(t) else 'cpu'}" for t in tensors)
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
        f"(in {name}: {shown})"
    )
