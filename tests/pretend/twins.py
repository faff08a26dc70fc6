"""One run on the CPU and its twin on the pretend device: equal in all, each where its inputs are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.pretend.context import pretend_cuda
from tests.pretend.tags import CPU, CUDA

Result = TypeVar("Result")


def twins(run: Callable[[torch.device], Result], *, home: torch.device | None = None, **close: float) -> Result:
    """``run(device)`` on the CPU and on the pretend device: equal, and there; returns the CPU's.

    Args:
        run: makes its inputs on the device, and returns tensors, modules, numbers, and what holds them.
        home: where the results on the pretend device belong, by default there; the CPU for reports.
        close: ``rtol`` and ``atol`` of ``torch.testing.assert_close``; without them tensors are equal bit for bit.
    """
    result = run(CPU)
    here = list(leaves(result))
    with pretend_cuda():
        there = list(leaves(run(CUDA)))
        for path, leaf in there:
            if isinstance(leaf, Tensor):
                assert leaf.device == (home or CUDA), f"{path} is on {leaf.device}, want {home or CUDA}"
    assert here and [path for path, _ in there] == [path for path, _ in here]
    for (path, ours), (_, wanted) in zip(there, here, strict=True):
        _assert_equal(path, ours, wanted, **({"rtol": 0.0, "atol": 0.0} | close))  # outside, both are the CPU's
    return result


def leaves(value: Any, path: str = "result") -> Iterator[tuple[str, Any]]:
    """(where, what) for each tensor, number and string in ``value``; times, which differ from run to run, apart."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if type(value).__module__.startswith("robustlab.") and hasattr(value, "__dict__"):
        value = vars(value)
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key != "seconds":
                yield from leaves(part, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from leaves(part, f"{path}[{i}]")
    elif isinstance(value, (Tensor, str, int, float)):
        yield path, value


def _assert_equal(path: str, ours: Any, wanted: Any, rtol: float, atol: float) -> None:
    if isinstance(wanted, Tensor):
        torch.testing.assert_close(
            ours, wanted, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{path}: {text}"
        )
    elif isinstance(wanted, float):
        close = math.isclose(ours, wanted, rel_tol=rtol, abs_tol=atol) or (math.isnan(ours) and math.isnan(wanted))
        assert close, f"{path}: {ours} on the GPU, {wanted} on the CPU"
    else:
        assert ours == wanted, f"{path}: {ours!r} on the GPU, {wanted!r} on the CPU"
