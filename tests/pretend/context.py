"""Enters the pretend device, and replaces for that time what PyTorch asks the real one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack

from tests.pretend.functions import Functions
from tests.pretend.operations import Operations
from tests.pretend.tags import CPU, CUDA, on_cuda, put, wants_cuda


class Gpu:
    """The pretend device, and what was done since it was entered or :meth:`reset`."""

    device = CUDA

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    @property
    def operations(self) -> Counter[str]:
        """Dispatched operations of PyTorch: name → how often."""
        return self._operations.operations

    @property
    def synchronisations(self) -> Counter[str]:
        """Where the host would have waited for the GPU, ``"file:line operation"`` → how often; copies included."""
        return self._operations.synchronisations

    def reset(self) -> None:
        """Count from zero."""
        self.operations.clear()
        self.synchronisations.clear()


@contextmanager
def pretend_cuda() -> Iterator[Gpu]:
    """A GPU for this thread: ``torch.cuda.is_available()``, and ``.to("cuda")`` works. Not to be nested."""
    operations = Operations()
    functions = Functions(operations)
    with ExitStack() as stack:
        for owner, name, value in _replacements(operations, functions):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(operations)
        stack.enter_context(functions)
        yield Gpu(operations)


def _replacements(operations: Operations, functions: Functions) -> Iterator[tuple[Any, str, Any]]:
    yield torch, "Generator", _generators()
    yield torch.autograd, "_engine_run_backward", _backward_in(functions)
    yield torch.autograd.function.BackwardCFunction, "apply", _with_gradients_placed()
    yield torch.backends.cudnn, "is_acceptable", lambda tensor: False  # no kernels of its own
    random = operations.random
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "a pretend GPU",
        "get_device_capability": lambda device=None: (8, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda device=None: operations.waited("synchronize"),
        "empty_cache": lambda: None,
        "device": lambda device: nullcontext(),
        "manual_seed": lambda seed: random.manual_seed(seed) and None,
        "manual_seed_all": lambda seed: random.manual_seed(seed) and None,
        "initial_seed": random.initial_seed,
        "get_rng_state": lambda device="cuda": random.get_state(),
        "get_rng_state_all": lambda: [random.get_state()],
        "set_rng_state": lambda state, device="cuda": random.set_state(state) and None,
        "set_rng_state_all": lambda states: random.set_state(states[0]) and None,
    }.items():
        yield torch.cuda, name, value
    stream = SimpleNamespace(is_capturing=lambda: False, synchronize=lambda: operations.waited("synchronize"))
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "current_device_index": lambda: 0,
        "current_stream": lambda device=None: stream,
        "synchronize": lambda device=None: operations.waited("synchronize"),
    }.items():
        yield torch.accelerator, name, value


def _generators() -> type[torch.Generator]:
    """``torch.Generator`` that may be told ``"cuda"``; it draws on the CPU and says otherwise."""
    real = torch.Generator

    class AsReal(type(real)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, real)

    class Generator(real, metaclass=AsReal):  # type: ignore[valid-type]
        def __new__(cls, device: Any = CPU) -> Any:
            made = super().__new__(cls, CPU)
            made.place = CUDA if wants_cuda(device) else CPU
            return made

        @property
        def device(self) -> torch.device:
            return self.place  # type: ignore[no-any-return,attr-defined]

    return Generator


def _backward_in(functions: Functions) -> Callable[..., Any]:
    """The engine, with the mode on: ``torch.autograd.grad`` is itself a call during which it is off.

    Zeros that stand for a gradient that no one has computed are made where the differentiated values are.
    """
    real = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        cuda = any(isinstance(t, Tensor) and on_cuda(t) for t in outputs)
        with nullcontext() if functions in _get_current_function_mode_stack() else functions:
            return functions.operations.at_home(cuda, real, outputs, *args, **kwargs)

    return run


def _with_gradients_placed() -> Callable[..., Any]:
    """Zeros that the engine makes for an output without a gradient are where its other gradients are."""
    real = torch.autograd.function.BackwardCFunction.apply

    def apply(self: Any, *grads: Any) -> Any:
        given = [grad for grad in grads if isinstance(grad, Tensor)]
        if any(on_cuda(grad) for grad in given):
            for grad in given:
                put(grad, True)
        return real(self, *grads)

    return apply
