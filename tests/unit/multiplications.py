"""How many multiplications the products and convolutions of a piece of code make, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class _Counting(TorchDispatchMode):
    """Sees what autograd calls, too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func._schema.name.removeprefix("aten::")
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            self.count += result.numel() * args[1 if name.startswith("add") or name == "baddbmm" else 0].shape[-1]
        elif name == "convolution":
            value, weight, transposed = args[0], args[1], args[6]
            self.count += (value if transposed else result).numel() * weight[0].numel()
        elif name == "convolution_backward":
            grad, value, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
            self.count += (value if transposed else grad).numel() * weight[0].numel() * sum(wanted[:2])
        return result


def multiplications(run: Callable[[], object]) -> int:
    """Their number in one call of ``run``."""
    with _Counting() as counting:
        run()
    return counting.count
