"""Checks of arguments: one clear error that names the argument, the value seen and the value wanted."""

from __future__ import annotations

import inspect
import math
import numbers
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class HasTensors(Protocol):
    """A model that is no module, such as a :class:`robustlab.graph.node.Graph`."""

    def tensors(self) -> Iterator[Tensor]: ...


def warn(message: str) -> None:
    """Warns of what is legal but hardly meant, at the caller's line from which the library was entered."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("robustlab", "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


@contextmanager
def scores_are_judged() -> Iterator[None]:
    """For who reports on scores by itself: inside the block there is no warning of them, nor of their gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="model: its outputs sum to one")
        warnings.filterwarnings("ignore", message="loss: .* has a gradient of exactly 0")
        yield


def positive(name: str, value: float | Tensor) -> None:
    """Raises unless ``value`` is a number (or a tensor of numbers) that is finite and above 0."""
    number = _number(name, value)
    if not _finite_and(number > 0, number):
        raise ValueError(f"{name}: want finite and above 0, got {value}")


def not_negative(name: str, value: float | Tensor) -> None:
    """Raises unless ``value`` is a number (or a tensor of numbers) that is finite and at least 0."""
    number = _number(name, value)
    if not _finite_and(number >= 0, number):
        raise ValueError(f"{name}: want finite and at least 0, got {value}")


def _number(name: str, value: float | Tensor) -> float | Tensor:
    """As Python's float, whose checks cost a hundredth of a tensor's; tensors of several numbers stay."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Tensor)):  # NumPy's scalars are Real too
        raise TypeError(f"{name}: want a number, got {value!r}")
    return value.to(torch.float64) if isinstance(value, Tensor) and value.dim() else float(value)


def _finite_and(holds: bool | Tensor, number: float | Tensor) -> bool:
    """Whether all numbers are finite and it ``holds`` of all."""
    if isinstance(number, Tensor):
        return bool((number.isfinite() & holds).all())
    return bool(holds) and math.isfinite(number)


def at_least(name: str, value: float, low: float, *, integer: bool = False) -> None:
    """Raises unless ``value`` is a finite number (an integer if asked) of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if integer else numbers.Real):
        raise TypeError(f"{name}: want {'an integer' if integer else 'a number'}, got {value!r}")
    if not math.isfinite(value) or value < low:
        raise ValueError(f"{name}: want at least {low}, got {value}")


def at_most(name: str, value: float, high: float) -> None:
    """Raises ValueError unless ``value`` is at most ``high``."""
    if not value <= high:
        raise ValueError(f"{name}: want at most {high}, got {value}")


def below(name: str, value: float, high: float) -> None:
    """Raises ValueError unless ``value`` is below ``high``."""
    if not value < high:
        raise ValueError(f"{name}: want below {high}, got {value}")


def takes(name: str, function: Callable[..., object], wanted: str, *args: object, **named: object) -> None:
    """Raises unless the caller's ``function`` can be called so; of ``wanted`` the error says how it will be called."""
    if not callable(function):
        raise TypeError(f"{name}: want a function of {wanted}, got {type(function).__name__}")
    try:
        taken = inspect.signature(getattr(function, "forward", function))  # a module's own call takes anything
    except (TypeError, ValueError):  # compiled code does not always say what it takes
        return
    try:
        taken.bind(*args, **named)
    except TypeError:
        raise TypeError(f"{name}: want a function of {wanted}, got one of {taken}") from None


def one_of(name: str, value: object, wanted: Collection[object]) -> None:
    """Raises ValueError unless ``value`` is one of ``wanted``."""
    if value not in wanted:
        raise ValueError(f"{name}: want one of {sorted(map(str, wanted))}, got {value!r}")


def per_sample(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """A finite number, or one per sample, as a float tensor (N,) beside ``like`` (N, ...); float32 beside half.

    It must be above 0, but for ``eps``, which may be 0: a ball of radius 0 is x alone, while a step of 0 leads nowhere.
    """
    given = value if isinstance(value, (numbers.Real, Tensor)) and not isinstance(value, bool) else None
    if given is None:
        raise TypeError(f"{name}: want a number or a tensor of one per sample, got {value!r}")
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision would round what a step is
    tensor = torch.as_tensor(given, dtype=dtype, device=like.device).detach()
    if tensor.dim() and tensor.shape != like.shape[:1]:
        raise ValueError(f"{name}: want a number or shape ({like.shape[0]},), got shape {tuple(tensor.shape)}")
    (not_negative if name == "eps" else positive)(name, tensor)
    return tensor.expand(like.shape[0])


def same_shape(name: str, value: object, x: Tensor) -> None:
    """Raises ValueError unless ``value`` is a tensor of the shape of ``x``."""
    if not isinstance(value, Tensor) or value.shape != x.shape:
        raise ValueError(
            f"{name}: want a tensor of the shape of x {tuple(x.shape)}, got {getattr(value, 'shape', value)}"
        )


def pictures(x: Tensor) -> None:
    """Raises ValueError unless ``x`` is (N, C, H, W)."""
    if x.dim() != 4:
        raise ValueError(f"x: want images (N, C, H, W), got shape {tuple(x.shape)}")


def unit_pixels(name: str, x: Tensor) -> None:
    """Warns where ``x`` looks like images (N, C, H, W) in 0 … 255. Other inputs, such as features, have any range."""
    if x.dim() == 4 and x.shape[1] in (1, 3, 4) and x.numel():
        least, most = span_of(x.detach())
        if least >= 0 and 1.5 < most <= 255:
            warn(
                f"{name}: images of this library are in [0, 1], got values in [{least:g}, {most:g}]; "
                f"if these are bytes, and the model was not trained on them, say {name} / 255"
            )


def bound(name: str, value: float | Tensor) -> float | Tensor:
    """One end of a box: a number, or a tensor that broadcasts with a sample; returns a float or the tensor, detached.

    Raises:
        TypeError, ValueError: for another type, or NaN.
    """
    if isinstance(value, Tensor):
        end: float | Tensor = value.detach() if value.dim() else float(value)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        end = float(value)
    else:
        raise TypeError(f"{name}: want numbers or tensors (low, high), got {value!r}")
    if bool(end.isnan().any()) if isinstance(end, Tensor) else math.isnan(end):
        raise ValueError(f"{name}: want numbers, got NaN")
    return end


def floats(x: object, name: str = "x") -> None:
    """Raises unless ``x`` is a floating (N, ...) tensor. Its values are left to :func:`images`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: want a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: want a floating dtype, got {x.dtype}; for images say {name}.float() / 255")
    if x.dim() < 2:
        raise ValueError(f"{name}: want shape (N, ...), a batch of samples, got shape {tuple(x.shape)}")


def images(
    x: object, bounds: tuple[float | Tensor, float | Tensor], name: str = "x", *, strict: bool = False,
    takes: str | None = "Victim(model, bounds={})",
) -> tuple[float, float]:  # fmt: skip
    """Raises unless ``x`` is a floating (N, ...) tensor inside the box, without NaN; returns its least and most value.

    The ends of the box are taken as the dtype of ``x`` holds them: 0.3 in float32 is inside [0, 0.3]. So is what passes
    an end by no more than ``(x - mean) / std`` is rounded, unless that is ``strict``. Of an empty batch the values are
    ∞ and −∞. ``takes`` is what the error advises for another box: where the caller gives it, and None for who has but
    one.
    """
    floats(x, name)
    assert isinstance(x, Tensor)
    if x.numel() == 0:
        return math.inf, -math.inf
    values = x.detach()
    low, high = ends = end_beside(bounds[0], values), end_beside(bounds[1], values)
    if not strict:
        slack = 2 * torch.finfo(x.dtype).eps
        low, high = low - slack * _magnitude(low), high + slack * _magnitude(high)
    span = span_of(values)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        inside = bool(((low <= values) & (values <= high)).all())
    else:
        inside = low <= span[0] and span[1] <= high
    if not inside:
        _outside(name, values, span, ends, takes)
    return span


def _magnitude(end: float | Tensor) -> float | Tensor:
    return end.abs() if isinstance(end, Tensor) else abs(end)


def span_of(x: Tensor) -> tuple[float, float]:
    """The least and the most value of a batch that is not empty; NaN where there is one."""
    least, most = torch.aminmax(x)
    return float(least), float(most)


def _outside(
    name: str, x: Tensor, span: tuple[float, float], ends: tuple[float | Tensor, float | Tensor], takes: str | None
) -> None:
    """Raises, and says what is likely meant."""
    if bool(x.isnan().any()):
        rows = x.flatten(1).isnan().any(dim=1).nonzero().flatten().tolist()
        raise ValueError(f"{name}: want numbers, got NaN in rows {rows[:10]}")
    text = ", ".join("one per channel" if isinstance(end, Tensor) else f"{end:g}" for end in ends)
    hints = []
    low, high = ends
    numbers_alone = not isinstance(low, Tensor) and not isinstance(high, Tensor)
    if numbers_alone and max(low - span[0], span[1] - high) < (high - low) / 10:
        hints.append(f"if resizing or rounding has overshot, say {name}.clamp({low:g}, {high:g})")
        likely_box = "(low, high)"
    elif span[0] >= 0 and 1 < span[1] <= 255:
        hints.append(f"if these are bytes, say {name} / 255")
        likely_box = "(0, 255)"
    else:
        likely_box = "(-1, 1)" if span[0] >= -1 and span[1] <= 1 else "(low, high)"
    if takes is not None:
        hints.append(f"{takes.format(likely_box)} takes them as they are")
    advice = "; ".join(["", *hints])
    raise ValueError(f"{name}: want values in [{text}], got values in [{span[0]}, {span[1]}]{advice}")


TO_NCHW = "if that is (N, H, W, C), say x.permute(0, 3, 1, 2)"


def channels_last(x: Tensor) -> bool:
    """Whether images look like (N, H, W, C): few channels at the end, and more than any image has in their place."""
    return x.dim() == 4 and x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4


def likely(x: Tensor, width: float, span: tuple[float, float]) -> None:
    """Warns where inputs ``x`` (N, ...) of that ``span``, in a box of that width, are hardly what is meant."""
    if channels_last(x):
        warn(f"x: want images (N, C, H, W), got shape {tuple(x.shape)}; {TO_NCHW}")
    least, most = span
    if 0 < most - least < width / 200:
        warn(
            f"bounds: the box is {width:g} wide, but x spans only [{least:g}, {most:g}]; "
            "steps of attacks are in widths of the box: give the range of valid inputs"
        )


def are_probabilities(output: Tensor) -> bool:
    """Whether all rows (N, K) are in [0, 1] and sum to one, up to 1e-3 (half precision), and are not 0 and 1 alone."""
    if not bool(((output.sum(dim=1) - 1).abs() < 1e-3).all()):  # nearly always the end of it
        return False
    return bool(((output - 0.5).abs() <= 0.501).all() & ((output != 0) & (output != 1)).any())


def scores(output: Tensor, advice: str = 'say Victim(model, output="probs"), or give the logits') -> None:
    """Warns where what a model gives for logits (N, K) are probabilities, of which losses would saturate."""
    if output.numel() and are_probabilities(output):
        warn(f"model: its outputs sum to one, as probabilities do; {advice}")


def radius(eps: float | Tensor, x: Tensor, norm: str, bounds: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """ε as :func:`per_sample` gives it, but no more than the box's diameter in ℓ1, ℓ2 or ℓ∞, and a warning if it were.

    A ball of that radius holds the whole box, wherever its center; of larger ones the squares may overflow.
    """
    value = per_sample("eps", eps, x)
    low, high = end_beside(bounds[0], x), end_beside(bounds[1], x)
    most = float(value.max()) if x.numel() else 0.0
    plain = not isinstance(low, Tensor) and not isinstance(high, Tensor)
    if x.numel() and not (plain and most <= high - low):  # no ball that fits between two sides holds the box
        side = torch.as_tensor(high - low, dtype=value.dtype, device=x.device).expand(x.shape[1:]).flatten()
        whole = float(torch.linalg.vector_norm(side, {"l1": 1.0, "l2": 2.0, "linf": math.inf}[norm]))
        if most > whole * (1 + 1e-6):
            bytes_ = 1 <= most <= 255 and float(side.max()) <= 1
            meant = f"; did you mean {most:g}/255?" if bytes_ else "; radii are in units of x"
            warn(f"eps: a ball of radius {most:g} in {norm} holds the whole box, whose diameter is {whole:g}{meant}")
            value = value.clamp_max(whole * (1 + 1e-6))
    return value


def end_beside(end: float | Tensor, x: Tensor) -> float | Tensor:
    """An end of the box as the dtype of ``x`` holds it: a number, or a tensor on its device.

    Raises:
        ValueError: where it does not broadcast with a sample.
    """
    if not isinstance(end, Tensor) or not end.dim():
        return float(torch.tensor(float(end), dtype=x.dtype))
    try:
        end.expand(x.shape[1:])
    except RuntimeError:
        shapes = tuple(end.shape), tuple(x.shape[1:])
        each = end.numel() == x.shape[1] and x.dim() == 4
        advice = f"; for one per channel say end.reshape({x.shape[1]}, 1, 1)" if each else ""
        raise ValueError(
            f"bounds: want ends that broadcast with a sample of shape {shapes[1]}, got {shapes[0]}{advice}"
        ) from None
    return end.to(x)


def finite(name: str, x: Tensor) -> None:
    """Raises ValueError for NaN or infinity."""
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name}: want finite values, got NaN or infinity")


def at_home(model: object, x: Tensor, name: str = "x", *, device: bool = True) -> None:
    """Raises unless ``x`` has the dtype and the device of the model's weights; tokens (int32, int64) have any dtype.

    Args:
        model: a module, or a graph read from one; anything else has no weights to compare with.
        x: inputs (N, ...).
        name: of the argument.
        device: whether the device matters.

    Raises:
        TypeError: for another dtype. ValueError: for another device.
    """
    weight = next((w for w in _weights(model) if w.is_floating_point()), None)
    if weight is None:
        return
    if weight.dtype != x.dtype and x.dtype not in (torch.int32, torch.int64):
        short = str(weight.dtype).removeprefix("torch.")
        raise TypeError(
            f"{name}: want the model's dtype {weight.dtype}, got {x.dtype}; "
            f"say {name}.to(torch.{short}) or model.to({x.dtype}) (for example model.double() or x.float())"
        )
    if device and weight.device != x.device:
        raise ValueError(f"{name}: want the model's device {weight.device}, got {x.device}")


def _weights(model: object) -> Iterator[Tensor]:
    if isinstance(model, torch.nn.Module):
        yield from chain(model.parameters(), model.buffers())
    elif isinstance(model, HasTensors):
        yield from model.tensors()


def labels(name: str, value: int | Tensor, x: Tensor) -> Tensor:
    """Labels as int64 (N,) on the device of ``x``; a single integer stands for all."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, Tensor)):
        raise TypeError(f"{name}: want an integer or an integer tensor, got {value!r}")
    label = torch.as_tensor(value, device=x.device)
    one_hot = label.dim() == 2 and label.shape[0] == x.shape[0] and label.shape[1] > 1
    hint = f"; if these are one-hot, say {name}.argmax(1)" if one_hot else ""
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"{name}: want integers, got {label.dtype}{hint}")
    if label.dim() == 0 and name == "target":
        label = label.expand(x.shape[0])
    if label.shape != x.shape[:1]:
        raise ValueError(f"{name}: want shape ({x.shape[0]},), got shape {tuple(label.shape)}{hint}")
    return label.to(torch.int64)


def toward(value: int | Tensor, x: Tensor, target: int | Tensor | None) -> Tensor:
    """The labels (N,) at which an untargeted attack on ``x`` aims; one integer stands for all."""
    if target is not None:
        raise ValueError("toward: want None beside a target, got both")
    every = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return labels("toward", torch.full(x.shape[:1], int(value)) if every else value, x)


def other_than_y(name: str, label: Tensor, y: Tensor) -> None:
    """Raises ValueError where ``label`` (N,) is ``y`` (N,), and names the rows."""
    if bool((label == y).any()):
        rows = (label == y).nonzero().flatten().tolist()
        raise ValueError(f"{name}: want a label other than y, got {name} = y in rows {rows[:10]}")


def in_classes(name: str, label: Tensor, classes: int) -> None:
    """Raises ValueError unless all labels are in 0 … classes − 1."""
    wrong = (label < 0) | (label >= classes)
    if bool(wrong.any()):
        first = wrong.nonzero()[:5]
        where = f"in rows {first.flatten().tolist()}" if label.dim() == 1 else f"at {first.tolist()}"
        raise ValueError(f"{name}: want labels in 0 … {classes - 1}, got {label[wrong][:5].tolist()} {where}")
