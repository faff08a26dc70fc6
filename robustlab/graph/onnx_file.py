"""ONNX files: the bytes, and the tensors that stand in files beside them.

Exporters put large tensors into a second file (``net.onnx.data``) and name it in the first. A stranger's file may name
any file, so a name is looked up in the folder of the model alone, without ``..`` and without following links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from robustlab.graph.files import inflated, named, read_file

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

LARGEST = 2**31
"""Bytes of all constants of a network, those in other files and those that are computed from others."""


def load_onnx(model: str | Path | bytes) -> ModelProto:
    """The ONNX model of a file, or of its bytes; either may be compressed with gzip.

    Tensors in files beside the model are read too (``external data``), from its folder and those below it.

    Raises:
        ImportError: if the package ``onnx`` is not installed.
        ValueError: with the file's name, if it is no ONNX model, or names data that are not there.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX files are read by the package onnx: python -m pip install onnx") from error
    from google.protobuf.message import DecodeError

    folder, name = None, "model"
    if not isinstance(model, bytes):
        folder, name = Path(model).parent, Path(model).name
    with named(name):
        raw = read_file(Path(model)) if not isinstance(model, bytes) else inflated(model)
        try:
            proto = onnx.load_from_string(raw)
        except (DecodeError, RuntimeError) as error:
            raise ValueError(f"want an ONNX model, got none ({error})") from error
        if not proto.HasField("graph"):
            raise ValueError("want an ONNX model, got one without a graph")
        _fill(proto, folder)
    return proto


def inside(proto: ModelProto) -> Iterator[TensorProto]:
    """All tensors of a model: initializers, and the values of attributes."""
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (*attribute.sparse_tensors, *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor")
                                                        else [])):  # fmt: skip
                yield from (sparse.values, sparse.indices)
            graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def size(tensor: TensorProto) -> int:
    """Bytes that a tensor says it has.

    Raises:
        ValueError: for dimensions below 0, kinds that are not known, or more than ``LARGEST``.
    """
    from onnx import helper

    try:
        each = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        raise ValueError(f"tensor {tensor.name!r}: want a kind of ONNX's list, got {tensor.data_type}") from None
    if any(n < 0 for n in tensor.dims):
        raise ValueError(f"tensor {tensor.name!r}: want dimensions of at least 0, got {list(tensor.dims)}")
    found = each * prod(tensor.dims)
    if found > LARGEST:
        raise ValueError(f"tensor {tensor.name!r}: want at most {LARGEST:,} bytes, got {found:,}")
    return found


def _fill(proto: ModelProto, folder: Path | None) -> None:
    """Put the data of other files into their tensors."""
    from onnx import TensorProto

    total = 0
    for tensor in inside(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if folder is None:
            raise ValueError(f"tensor {tensor.name!r} is in another file: want the model's path, got its bytes")
        with named(f"tensor {tensor.name!r}"):
            total += size(tensor)
            if total > LARGEST:
                raise ValueError(f"want at most {LARGEST:,} bytes of data in all, got more")
            tensor.raw_data = _external(tensor, folder)
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT


def _external(tensor: TensorProto, folder: Path) -> bytes:
    """The bytes of one tensor."""
    entries: dict[str, Any] = {entry.key: entry.value for entry in tensor.external_data}
    where = entries.get("location", "")
    parts = PurePosixPath(where).parts
    if not parts or "\0" in where or "\\" in where or where.startswith("/") or ".." in parts or ":" in where:
        raise ValueError(f"want data in the model's folder, got the location {where!r}")
    place = folder
    for part in parts:
        place = place / part
        if place.is_symlink():
            raise ValueError(f"want data in a file, got the link {where!r}")
    want = size(tensor)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", want))
    except ValueError:
        raise ValueError(f"want whole numbers for offset and length, got {entries}") from None
    if offset < 0 or length != want:
        raise ValueError(f"want {want} bytes, as its dimensions say, got {length} from {offset} of {where!r}")
    try:
        with open(place, "rb", opener=_as_it_is) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"want data in a file, got {where!r}, which is none")
            if os.fstat(file.fileno()).st_size < offset + length:
                raise ValueError(f"want {length} bytes from {offset} of {where!r}, got a file that is shorter")
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise ValueError(f"data {where!r} beside the model cannot be read: {error.strerror or error}") from error


def _as_it_is(path: str, flags: int) -> int:
    """Open a file, but no link, and do not wait for one that is a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
