"""The one reader of labeled data: a Dataset, a pair (x, y), a torch DataLoader, or a torch Dataset of pairs.

What needs all data at once reads them whole (:func:`read_pair`, :func:`read_labeled`, :func:`read_inputs`), a loader's
too. What does not goes over :func:`portions`: data in memory are one portion, each batch of a loader is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, TypeGuard

import torch
import torch.utils.data
from torch import Tensor, nn

from robustlab import checks
from robustlab.data.dataset import Dataset

Loader: TypeAlias = torch.utils.data.DataLoader[Any] | torch.utils.data.Dataset[Any]
Pairs: TypeAlias = Dataset | tuple[Tensor, Tensor] | Loader
Part = Literal["train", "test"]
WISH = "want a Dataset, a pair (x, y) of tensors, or a torch DataLoader of such pairs"


def streamed(data: object) -> TypeGuard[Loader]:
    """Whether the data come batch by batch: a torch DataLoader, or a torch Dataset of pairs."""
    return isinstance(data, torch.utils.data.DataLoader | torch.utils.data.Dataset)


def count(loader: Loader) -> int:
    """How many samples a loader has; −1 where it does not say."""
    source = loader.dataset if isinstance(loader, torch.utils.data.DataLoader) else loader
    return len(source) if hasattr(source, "__len__") else -1


def beside(x: Tensor | Pairs, y: Tensor | None, name: str = "x") -> Pairs:
    """What a function with arguments (x, y) was given: the two tensors as a pair, or what stands in the place of x.

    Raises:
        TypeError: if y is missing beside a tensor, or stands beside what has labels itself.
    """
    if isinstance(x, Tensor):
        if y is None:
            raise TypeError("y: want labels (N,) beside x, got None")
        return x, y
    if y is not None and isinstance(x, Dataset | tuple | torch.utils.data.DataLoader | torch.utils.data.Dataset):
        raise TypeError(f"y: want None beside {name} that has labels itself, got {type(y).__name__}")
    if y is not None:
        raise TypeError(f"{name}: want a torch.Tensor, got {type(x).__name__}")
    return x


def read_pair(data: Pairs, name: str = "data", part: Part = "train") -> tuple[Tensor, Tensor]:
    """All inputs (N, ...) and labels or targets (N, ...), without the caller's graph.

    Args:
        data: a Dataset, a pair of tensors, or a loader, whose batches are collected.
        name: of the caller's argument, for errors.
        part: of a Dataset.

    Raises:
        TypeError, ValueError: for anything else, different lengths, or no samples; the message names the argument.
    """
    read = list(portions(data, name, part))
    x, y = read[0] if len(read) == 1 else (torch.cat(parts) for parts in zip(*read, strict=True))
    return x, y


def read_labeled(data: Pairs, name: str = "data", part: Part = "train") -> tuple[Tensor, Tensor]:
    """As :func:`read_pair`, for a classifier: finite inputs (N, ...) and labels (N,) of any integer dtype, as int64.

    Raises:
        TypeError, ValueError: as :func:`read_pair`; also for inputs that are not finite and for labels below 0.
    """
    x, y = read_pair(data, name, part)
    checks.finite(name, x)
    label = checks.labels("y", y, x)
    if bool((label < 0).any()):
        raise ValueError(f"y: want labels of at least 0, got {label[label < 0][:5].tolist()}")
    return x, label


def read_inputs(data: Pairs | Tensor, name: str = "x", part: Part = "train") -> Tensor:
    """Finite inputs (N, ...): a tensor of them, or those of labeled data, whose labels are not looked at.

    Raises:
        TypeError, ValueError: as :func:`read_pair`, but for a tensor without samples.
    """
    if isinstance(data, Tensor):
        x = _free(data)
    else:
        if not isinstance(data, Dataset | tuple | list) and not streamed(data):
            raise TypeError(f"{name}: want a torch.Tensor, got {type(data).__name__}")
        x, _ = read_pair(data, name, part)
    checks.finite(name, x)
    return x


def portions(
    data: Pairs, name: str = "data", part: Part = "train", batch_size: int = 250
) -> Iterator[tuple[Tensor, Tensor]]:
    """The data in memory as one portion (x, y), or a loader's batches one after the other.

    A loader's random draws (an order, augmentations) begin at the global random state, which they do not move.

    Args:
        data, name, part: as :func:`read_pair`.
        batch_size: of a torch Dataset, which does not come in batches itself.

    Raises:
        TypeError, ValueError: as :func:`read_pair`, when the portion is reached.
    """
    if not streamed(data):
        if isinstance(data, Dataset):
            data = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        yield _checked(data, name)
        return
    empty = True
    for batch in _draws(data, batch_size):
        empty = False
        yield _checked(batch, name)
    if empty:
        raise ValueError(f"{name}: want at least one sample, got a loader without any")


def labeled_portions(data: Pairs, name: str, *, like: object, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The test data for a classifier, as :func:`portions`: labels are int64 (n,), a loader's batches beside the model.

    Args:
        data, name, batch_size: as :func:`portions`.
        like: the model, to whose device batches are moved. Data in memory stay where they are.
    """
    weight = next(like.parameters(), None) if isinstance(like, nn.Module) else None
    for x, y in portions(data, name, "test", int(batch_size)):
        if weight is not None and streamed(data):
            x, y = x.to(weight.device), y.to(weight.device)
        yield x, checks.labels("y", y, x)


def _draws(loader: Any, batch_size: int) -> Iterator[Any]:
    """The batches of a loader, which has a random state of its own while it works."""
    if not isinstance(loader, torch.utils.data.DataLoader):
        loader = torch.utils.data.DataLoader(loader, batch_size=batch_size)
    own, batches = torch.get_rng_state(), None
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(own)
            batches = iter(loader) if batches is None else batches
            batch = next(batches, None)
            own = torch.get_rng_state()
        if batch is None:
            return
        yield batch


def _checked(pair: Any, name: str) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        held = f" of {', '.join(type(part).__name__ for part in pair)}" if isinstance(pair, tuple | list) else ""
        raise TypeError(f"{name}: {WISH}, got {type(pair).__name__}{held}")
    x, y = pair
    if not x.dim() or not y.dim() or len(x) != len(y) or not len(x):
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"{name}: want as many inputs as labels, at least one, got shapes {shapes}")
    return _free(x), _free(y)


def _free(tensor: Tensor) -> Tensor:
    """Without its graph; what was made in inference mode is copied, to be of use outside it."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()
