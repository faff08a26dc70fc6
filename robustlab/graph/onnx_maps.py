"""The rules of ONNX operators on maps: convolutions and their transposes, pooling, padding, resizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustlab.graph.affine import Pad, Rearrange, Reduce, Reshape
from robustlab.graph.conv import Conv, around, average_pool, far_ends
from robustlab.graph.onnx_reader import OnnxReader, name_of
from robustlab.graph.pool import MaxPool
from robustlab.graph.transposed import Along, ConvTranspose

if TYPE_CHECKING:
    from onnx import NodeProto

Ends = tuple[tuple[int, ...], tuple[int, ...]]
"""Padding at the beginning and at the far end of each dimension."""


def conv(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, group: int = 1,
    kernel_shape: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None, auto_pad: bytes = b"NOTSET", pads: Sequence[int] | None = None,
) -> int:  # fmt: skip
    """With padding before it where the two ends differ."""
    x, weight = given[0], given[1]
    bias = given[2] if len(given) > 2 else None
    kernel = _kernel(node, weight, kernel_shape)
    stride, dilation = _numbers(node, kernel, strides), _numbers(node, kernel, dilations)
    begins, ends = _padding(node, reader.shape(x)[1:], kernel, stride, dilation, auto_pad, pads)
    if begins != ends:
        x, begins = reader.add(node, Pad(around(begins, ends)), x), (0,) * len(kernel)
    return reader.add(node, Conv(weight, bias, stride, begins, dilation, group), x)


def conv_transpose(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, group: int = 1,
    kernel_shape: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None, auto_pad: bytes = b"NOTSET", pads: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
) -> int:  # fmt: skip
    """With what its padding cuts off cut off behind it, where the two ends differ."""
    x, weight = given[0], given[1]
    bias = given[2] if len(given) > 2 else None
    kernel = _kernel(node, weight, kernel_shape)
    stride, dilation = _numbers(node, kernel, strides), _numbers(node, kernel, dilations)
    if auto_pad not in (b"NOTSET", b"VALID"):
        raise ValueError(f"model: want ConvTranspose with explicit pads, got {auto_pad.decode()} at {name_of(node)!r}")
    begins, ends = _padding(node, reader.shape(x)[1:], kernel, stride, dilation, auto_pad, pads)
    more = tuple(output_padding or (0,) * len(kernel))
    cut = begins if begins == ends else (0,) * len(kernel)
    place = reader.add(node, ConvTranspose(weight, bias, stride, cut, more, dilation, group), x)
    if begins == ends:
        return place
    return reader.add(node, Pad(tuple(-n for n in around(begins, ends))), place)


def max_pool(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None, dilations: Sequence[int] | None = None, auto_pad: bytes = b"NOTSET",
    pads: Sequence[int] | None = None, ceil_mode: int = 0,
) -> int:  # fmt: skip
    """Of images, or of sequences as images of one row."""
    x, kernel = given[0], tuple(kernel_shape)
    channels, *size = reader.shape(x)
    if len(kernel) not in (1, 2) or len(kernel) != len(size):
        raise ValueError(f"model: want MaxPool in one or two dimensions, got kernel {kernel} at node {name_of(node)!r}")
    stride, dilation = _numbers(node, kernel, strides), _numbers(node, kernel, dilations)
    begins, ends = _padding(node, size, kernel, stride, dilation, auto_pad, pads)
    if ceil_mode:
        ends = far_ends(size, kernel, stride, begins, ends, dilation)
    _some_inside(reader, node, (channels, *size), kernel, stride, dilation, begins, ends)
    if len(size) == 1:
        x = reader.add(node, Reshape((channels, 1, *size)), x)
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
        begins, ends = (0, *begins), (0, *ends)
    place = reader.add(node, MaxPool(kernel, stride, begins, dilation, None if begins == ends else ends), x)  # type: ignore[arg-type]
    return reader.add(node, Reshape((channels, reader.shape(place)[-1])), place) if len(size) == 1 else place


def average(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None, dilations: Sequence[int] | None = None, auto_pad: bytes = b"NOTSET",
    pads: Sequence[int] | None = None, ceil_mode: int = 0, count_include_pad: int = 0,
) -> int:  # fmt: skip
    """As a convolution."""
    place, kernel = given[0], tuple(kernel_shape)
    shape = reader.shape(place)
    stride, dilation = _numbers(node, kernel, strides), _numbers(node, kernel, dilations)
    begins, ends = _padding(node, shape[1:], kernel, stride, dilation, auto_pad, pads)
    beyond = far_ends(shape[1:], kernel, stride, begins, ends, dilation) if ceil_mode else ends
    _some_inside(reader, node, shape, kernel, stride, dilation, begins, beyond)
    reader.builder.room(name_of(node), (shape[0], *kernel))
    for op in average_pool(
        shape, kernel, stride, begins, torch.empty(0, dtype=reader.dtype), ends=ends, dilation=dilation,
        ceil_mode=bool(ceil_mode), counts=bool(count_include_pad),
    ):  # fmt: skip
        place = reader.add(node, op, place)
    return int(place)


def global_average(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    """The mean over all of a map."""
    shape = reader.shape(given[0])
    dims = tuple(range(2, len(shape) + 1))
    return reader.add(node, Reduce(dims, True, 1 / prod(shape[1:])), given[0])


_MOVED = (b"reflect", b"edge", b"wrap")


def pad(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, mode: bytes = b"constant",
    pads: Sequence[int] | None = None, value: float = 0.0,
) -> int:  # fmt: skip
    """By a constant, or by the numbers of the value itself; what is negative cuts off."""
    x, places, constant, axes = [*given, None, None, None][:4]
    numbers = [int(n) for n in ((pads or ()) if places is None else places.tolist())]
    number = value if constant is None else float(constant)
    rank = len(reader.shape(x)) + int(reader.batched)
    if axes is not None or len(numbers) != 2 * rank or mode not in (b"constant", *_MOVED):
        raise ValueError(
            f"model: want Pad of all axes in one of the modes constant, reflect, edge, wrap, got {mode.decode()} at "
            f"node {name_of(node)!r}"
        )
    begin, end = numbers[:rank], numbers[rank:]
    if reader.batched:
        if begin[0] or end[0]:
            raise ValueError(f"model: want Pad that leaves the batch alone, got node {name_of(node)!r}")
        begin, end = begin[1:], end[1:]
    if mode == b"constant":
        return reader.add(node, Pad(around(begin, end), number), x)
    wish = [n + a + b for n, a, b in zip(reader.shape(x), begin, end, strict=True)]
    reader.builder.room(name_of(node), wish)
    if min(numbers) < 0:
        raise ValueError(f"model: want pads of at least 0 in mode {mode.decode()}, got node {name_of(node)!r}")
    order = [
        np.pad(np.arange(n), (a, b), mode=mode.decode())  # type: ignore[call-overload]
        for n, a, b in zip(reader.shape(x), begin, end, strict=True)
    ]
    return _taken(reader, node, x, order)


def resize(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, mode: bytes = b"nearest",
    coordinate_transformation_mode: bytes = b"half_pixel", nearest_mode: bytes = b"round_prefer_floor",
    cubic_coeff_a: float = -0.75, axes: Sequence[int] | None = None, scales: Sequence[float] | None = None,
) -> int:  # fmt: skip
    """Resize and Upsample: the nearest number, or the average of the nearest two in each dimension."""
    old = node.op_type == "Upsample" or reader.opset < 11
    if old:  # scales alone, from the corner
        coordinate_transformation_mode, nearest_mode = b"asymmetric", b"floor"
        factors, sizes = (given[1] if len(given) > 1 else torch.tensor(scales or ())), None
    else:
        factors, sizes = [*given, None, None, None][2:4]
    if mode not in (b"nearest", b"linear"):
        raise ValueError(
            f"model: of {node.op_type} nearest and linear are known, got {mode.decode()} at {name_of(node)!r}"
        )
    x = given[0]
    whole = ((1,) if reader.batched else ()) + reader.shape(x)
    along = [a % len(whole) for a in axes] if axes is not None else list(range(len(whole)))
    by_size = sizes is not None and sizes.numel() > 0
    stated = sizes if by_size else factors
    numbers = [] if stated is None else stated.tolist()
    if len(numbers) != len(along):
        raise ValueError(f"model: want a scale or a size per axis, got {numbers} at node {name_of(node)!r}")
    found: dict[int, NDArray[Any]] = {}
    for axis, number in zip(along, numbers, strict=True):
        n = whole[axis]
        out, scale = (int(number), number / n) if by_size else (_scaled(node, n, number), number)
        if out == n and scale == 1:
            continue
        if out < 1:
            raise ValueError(f"model: want sizes of at least 1, got {out} at node {name_of(node)!r}")
        reader.builder.room(name_of(node), (out, n))
        found[reader.dim(axis, x)] = _matrix(node, n, out, scale, mode, coordinate_transformation_mode, nearest_mode)
    if found and all(len(matrix) == matrix.shape[1] for matrix in found.values()):
        # ONNX's text moves the numbers by such scales, ONNX Runtime leaves them as they are.
        raise ValueError(f"model: want a size that changes, or scales of 1, got {numbers} at node {name_of(node)!r}")
    if mode == b"nearest":
        order = [
            found[dim].argmax(axis=1) if dim in found else np.arange(n) for dim, n in enumerate(reader.shape(x), 1)
        ]
        reader.builder.room(name_of(node), [len(index) for index in order])
        return _taken(reader, node, x, order)
    for dim, matrix in found.items():
        x = reader.add(node, Along(torch.from_numpy(matrix).to(reader.dtype), dim), x)
    return int(x)


def _scaled(node: NodeProto, n: int, scale: float) -> int:
    """floor(n·scale), where rounding does not decide it."""
    exact, rounded = floor(n * scale), floor(np.float32(n) * np.float32(scale))
    if exact != rounded:
        raise ValueError(f"model: want sizes, since {scale:g} of {n} is nearly whole, got node {name_of(node)!r}")
    return exact


def _matrix(
    node: NodeProto, n: int, out: int, scale: float, mode: bytes, coordinates: bytes, rounding: bytes
) -> NDArray[Any]:
    """(out, n): how one dimension is resized."""

    def places(kind: Any) -> NDArray[Any]:
        i: NDArray[Any] = np.arange(out, dtype=kind)
        s = kind(scale)
        if coordinates == b"asymmetric":
            return i / s
        if coordinates == b"align_corners":
            return i * kind(n - 1) / kind(max(out - 1, 1))
        if coordinates == b"half_pixel" or (coordinates == b"pytorch_half_pixel" and out > 1):
            return (i + kind(0.5)) / s - kind(0.5)
        if coordinates == b"pytorch_half_pixel":
            return 0 * i
        raise ValueError(
            f"model: of coordinates asymmetric, align_corners, half_pixel and pytorch_half_pixel are known, got "
            f"{coordinates.decode()} at node {name_of(node)!r}"
        )

    matrix, rows = np.zeros((out, n)), np.arange(out)
    if mode == b"linear":
        at = places(np.float64).clip(0, n - 1)
        first = np.floor(at).astype(int)
        np.add.at(matrix, (rows, first), 1 - (at - first))
        np.add.at(matrix, (rows, np.minimum(first + 1, n - 1)), at - first)
        return matrix
    rules: dict[bytes, Callable[[NDArray[Any]], NDArray[Any]]] = {
        b"round_prefer_floor": lambda at: np.ceil(at - at.dtype.type(0.5)),
        b"round_prefer_ceil": lambda at: np.floor(at + at.dtype.type(0.5)),
        b"floor": np.floor,
        b"ceil": np.ceil,
    }
    if rounding not in rules:
        raise ValueError(f"model: nearest_mode {rounding.decode()} of node {name_of(node)!r} is not known")
    nearest = rules[rounding]
    double, single = (nearest(places(kind)).clip(0, n - 1).astype(int) for kind in (np.float64, np.float32))
    if (double != single).any():
        raise ValueError(f"model: rounding decides which number is the nearest at node {name_of(node)!r}")
    matrix[rows, double] = 1
    return matrix


def _taken(reader: OnnxReader, node: NodeProto, x: int, order: Sequence[NDArray[Any]]) -> int:
    """The numbers at these places of each dimension."""

    def take(t: Tensor) -> Tensor:
        for dim, index in enumerate(order, 1):
            t = t.index_select(dim, torch.from_numpy(np.asarray(index, dtype=np.int64)).to(t.device))
        return t

    return reader.add(node, Rearrange.of(take, reader.shape(x)), x)


def _kernel(node: NodeProto, weight: Tensor, stated: Sequence[int] | None) -> tuple[int, ...]:
    """Of the weights; a file that states another contradicts itself."""
    kernel = tuple(weight.shape[2:])
    if stated is not None and tuple(stated) != kernel:
        raise ValueError(
            f"model: want {node.op_type} with the kernel_shape {list(kernel)} of its weights, got {list(stated)} at "
            f"node {name_of(node)!r}"
        )
    return kernel


def _numbers(node: NodeProto, kernel: tuple[int, ...], stated: Sequence[int] | None) -> tuple[int, ...]:
    """Strides or dilations, 1 where none are stated."""
    found = tuple(stated or (1,) * len(kernel))
    if len(found) != len(kernel) or min(found) < 1:
        raise ValueError(f"model: want a stride and a dilation per dimension, got {found} at node {name_of(node)!r}")
    return found


def _padding(
    node: NodeProto, size: Sequence[int], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...],
    auto_pad: bytes, pads: Sequence[int] | None,
) -> Ends:  # fmt: skip
    """As it is stated, or as much as makes as many windows as there are strides."""
    rank = len(kernel)
    given = list(pads or [0] * (2 * rank))
    known = auto_pad in (b"NOTSET", b"VALID", b"SAME_UPPER", b"SAME_LOWER")
    # VALID is no padding, SAME says how much: other pads beside them contradict them.
    if not known or (auto_pad != b"NOTSET" and any(given)) or len(given) != 2 * rank or min(given) < 0:
        raise ValueError(
            f"model: want a padding of at least 0 per end, or auto_pad, got pads {given} and auto_pad "
            f"{auto_pad.decode()} at node {name_of(node)!r}"
        )
    if auto_pad in (b"NOTSET", b"VALID"):
        return tuple(given[:rank]), tuple(given[rank:])
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    total = [(-(n // -s) - 1) * s + r - n for n, s, r in zip(size, stride, reach, strict=True)]
    # There runtimes do not agree with each other, or with ONNX's text.
    if min(total) < 0 or (node.op_type != "Conv" and max(dilation) > 1):
        raise ValueError(
            f"model: want explicit pads where strides leave gaps, or pooling has dilations, got auto_pad "
            f"{auto_pad.decode()} at node {name_of(node)!r}"
        )
    less, more = tuple(n // 2 for n in total), tuple(n - n // 2 for n in total)
    return (less, more) if auto_pad == b"SAME_UPPER" else (more, less)


def _some_inside(
    reader: OnnxReader, node: NodeProto, shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    dilation: Sequence[int], begins: Sequence[int], ends: Sequence[int],
) -> None:  # fmt: skip
    """Refuse windows of padding alone, and padding beyond measure."""
    wide = [n + a + b for n, a, b in zip(shape[1:], begins, ends, strict=True)]
    reader.builder.room(name_of(node), (shape[0], *wide))
    for n, k, s, d, a, b in zip(shape[1:], kernel, stride, dilation, begins, ends, strict=True):
        starts = np.arange(-a, n + b - d * (k - 1), s)
        reader.builder.room(name_of(node), (len(starts), k))
        places = starts[:, None] + d * np.arange(k)
        if not ((places >= 0) & (places < n)).any(axis=1).all():
            raise ValueError(f"model: want {node.op_type} with windows that see the map, got node {name_of(node)!r}")
