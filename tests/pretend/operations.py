"""What is computed on the pretend device: results inherit it, devices are not mixed, and operations are counted."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend import rules
from tests.pretend.tags import on_cuda, put

_OWN = re.compile(r"/torch/|/tests/pretend/(?!test_)")


class Operations(TorchDispatchMode):
    """Sees each operation that PyTorch dispatches, those of the backward pass and of composite functions as well.

    Attributes:
        operations: how often each operation was dispatched; of all of them, since bookkeeping on the CPU costs too.
        synchronisations: where the host would have waited for the GPU: ``"file:line operation"`` → how often.
        random: the GPU's own generator of random numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = Counter[str]()
        self.synchronisations = Counter[str]()
        self.random = torch._C.Generator("cpu")
        self._home = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch._dynamo, which takes a second

    def at_home(self, cuda: bool, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        """``func(*args, **kwargs)``; what has no tensor among its arguments is made on the GPU (or on the CPU)."""
        before, self._home = self._home, cuda
        try:
            return func(*args, **kwargs)
        finally:
            self._home = before

    def waited(self, what: str) -> None:
        """Count a synchronisation, by the line outside PyTorch and this package that asked for it."""
        frame = sys._getframe(1)
        while frame.f_back is not None and _OWN.search(frame.f_code.co_filename):
            frame = frame.f_back
        place = "/".join(frame.f_code.co_filename.split("/")[-2:])
        self.synchronisations[f"{place}:{frame.f_lineno} {what}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, draws = _known(func)
        with torch._C.DisableTorchFunction():
            self.operations[name] += 1
            tensors = list(_tensors(args))
            if kwargs:
                tensors += _tensors(kwargs.values())
            places = [on_cuda(t) for t in tensors]
            cuda = any(places) if places else self._home
            if not cuda:
                return func(*args, **kwargs)
            mixed = not all(places)
            if mixed:
                rules.check(name, args, kwargs, tensors)
                if rules.copies(name, args):
                    self.waited(f"{name} between devices")
                if name in rules.CROSSING or name in rules.INDEXING:
                    cuda = places[0]
            if rules.waits(name, args):
                self.waited(name)
            if draws and kwargs.get("generator") is None:
                with self._own_random():
                    out = func(*args, **kwargs)
            else:
                out = func(*args, **kwargs)
            if cuda:
                for result in _tensors((out,)):
                    if not (mixed and any(result is t for t in tensors)):
                        put(result, True)
        return out

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        """The GPU does not draw from the CPU's generator."""
        host = torch.default_generator
        before = host.get_state()
        host.set_state(self.random.get_state())
        try:
            yield
        finally:
            self.random.set_state(host.get_state())
            host.set_state(before)


@cache
def _known(func: Any) -> tuple[str, bool]:
    """Its name in ATen, and whether it draws random numbers."""
    return func._schema.name.partition("::")[2], torch.Tag.nondeterministic_seeded in func.tags


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
