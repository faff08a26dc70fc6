"""What an assignment hands out and takes back: numbers, texts, tensors and small networks in one safetensors file.

Nothing is ever unpickled. A network is a description: the names of its layers, their sizes and their tensors, of the
few kinds in :data:`LAYERS`, so that a file from a stranger can hold no code.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Linear": (nn.Linear, ("in_features", "out_features")),
    "Conv2d": (nn.Conv2d, ("in_channels", "out_channels", "kernel_size", "stride", "padding")),
    "BatchNorm1d": (nn.BatchNorm1d, ("num_features",)),
    "BatchNorm2d": (nn.BatchNorm2d, ("num_features",)),
    "Dropout": (nn.Dropout, ("p",)),
    "Flatten": (nn.Flatten, ()),
    "ReLU": (nn.ReLU, ()),
}
"""Layers that a network may have, with the arguments that make one; all others keep PyTorch's defaults."""

MAX_TREE = 4 * 2**20
"""Bytes that a file may have beside its tensors: read as lists and numbers, they take twenty times as many."""
_MALFORMED = ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError  # RecursionError, too
INSTRUCTOR = "instructor"
"""The name that gets the variant which the instructor's copy solves; no student's variant is like it."""


def pack(values: Mapping[str, Any]) -> bytes:
    """Values as the bytes of a safetensors file.

    Args:
        values: name → a tensor, an ``nn.Sequential`` of :data:`LAYERS`, a number, a text, a bool, None, or lists,
            tuples and dicts (with texts as keys) of these. Tuples come back as lists.

    Raises:
        TypeError: a value is of another type, and says where.
        ValueError: there are more than `MAX_TREE` bytes beside the tensors.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_plain(dict(values), tensors, "values"))
    if len(tree) > MAX_TREE:
        raise ValueError(f"values: want at most {MAX_TREE} bytes of numbers and texts, got {len(tree)}: use tensors")
    return save(tensors, metadata={"values": tree})


def unpack(raw: bytes) -> dict[str, Any]:
    """The values that :func:`pack` wrote.

    Raises:
        ValueError: these bytes are no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    size = int.from_bytes(raw[:8], "little")
    if size > 2 * MAX_TREE:
        raise ValueError(f"raw: want what pack wrote, got a header of {size} bytes")
    try:
        tensors = load(raw)
        header = json.loads(raw[8 : 8 + size])
        values = _whole(json.loads(header["__metadata__"]["values"]), tensors)
    except (SafetensorError, *_MALFORMED) as error:
        raise ValueError(f"raw: want what pack wrote, got {len(raw)} bytes that are not: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"raw: want what pack wrote, got a {type(values).__name__} instead of values by name")
    return values


def load(folder: str | Path, student: str) -> dict[str, Any]:
    """The variant of a student: that of the files ``folder/NN.safetensors`` which the name chooses.

    Args:
        folder: where the variants lie, such as ``"variants"``.
        student: the name under which you hand in; capitals and spaces around it do not matter.

    Raises:
        ValueError: the folder holds no variants.
    """
    files = sorted(Path(folder).glob("[0-9]*.safetensors"))
    own = Path(folder) / f"{INSTRUCTOR}.safetensors"
    if student.strip().lower() == INSTRUCTOR and own.exists():
        return unpack(own.read_bytes())
    if not files:
        raise ValueError(f"folder: want one with variants, such as 00.safetensors, got {folder}")
    return unpack(files[variant_number(student, len(files))].read_bytes())


def variant_number(student: str, count: int) -> int:
    """Which of ``count`` variants belongs to a name: its SHA-256, modulo the count.

    A letter with its accent is the same whether a system writes it as one sign or as two.
    """
    name = unicodedata.normalize("NFC", student.strip().lower())
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count


def _plain(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """A value for JSON, in which tensors are names."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, nn.Sequential):
        return {"$network": [_layer(part, tensors, f"{where}[{i}]") for i, part in enumerate(value)]}
    if isinstance(value, Mapping):
        return {str(key): _plain(part, tensors, f"{where}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, tensors, f"{where}[{i}]") for i, part in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where}: want tensors, networks, numbers and texts, got a {type(value).__name__}")


def _layer(part: nn.Module, tensors: dict[str, Tensor], where: str) -> list[Any]:
    kind = type(part).__name__
    if kind not in LAYERS or type(part) is not LAYERS[kind][0]:
        raise TypeError(f"{where}: want a layer of {sorted(LAYERS)}, got {kind}")
    sizes = {name: getattr(part, name) for name in LAYERS[kind][1]}
    return [kind, sizes, _plain(part.state_dict(), tensors, where)]


def _whole(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_whole(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$network" in value:
        return nn.Sequential(*[_built(part, tensors) for part in value["$network"]]).eval()
    return {key: _whole(part, tensors) for key, part in value.items()}


def _built(part: list[Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A layer without memory of its own, which then takes the tensors of the file: a lie about sizes costs nothing."""
    kind, sizes, state = part
    with torch.device("meta"):
        layer = LAYERS[kind][0](**sizes)
    layer.load_state_dict(_whole(state, tensors), assign=True)
    return layer.requires_grad_(True)


def linear_network(weight: Tensor, bias: Tensor | None = None) -> nn.Sequential:
    """x ↦ W·x + b of a flattened x, as a network that can be handed out."""
    return relu_network([(weight, torch.zeros_like(weight[:, 0]) if bias is None else bias)])


def relu_network(layers: list[tuple[Tensor, Tensor]]) -> nn.Sequential:
    """Fully connected layers (W, b) with ReLU between them, of a flattened x."""
    parts: list[nn.Module] = [nn.Flatten()]
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        linear.load_state_dict({"weight": weight, "bias": bias})
        parts += [nn.ReLU()] * (len(parts) > 1) + [linear]
    return nn.Sequential(*parts).eval()


def peak_network(center: Tensor, slope: Tensor, height: float) -> nn.Sequential:
    """Two logits with z₁ − z₀ = height − Σ_i slope_i·|x_i − center_i|: the loss of class 0 has one known maximum.

    Args:
        center: where the peak is, of the shape of one input.
        slope: how steeply it falls on both sides, positive, the same shape.
        height: of the peak.
    """
    c, a = center.flatten(), slope.flatten()
    eye = torch.eye(len(c), dtype=c.dtype)
    first = torch.cat([eye, -eye]), torch.cat([-c, c])
    fall = -torch.cat([a, a])
    second = torch.stack([torch.zeros_like(fall), fall]), torch.tensor([0.0, height], dtype=c.dtype)
    return relu_network([first, second])
