"""What the user of the pretend device calls: getters, factories, moves, NumPy, generators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.pretend.operations import Operations
from tests.pretend.tags import CPU, CUDA, device_of, on_cuda, put, wants_cuda

Args, Kwargs = tuple[Any, ...], dict[str, Any]


class Functions(TorchFunctionMode):
    """Answers for the GPU where PyTorch would look at the real device; all else goes through as it is."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Args = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, args, kwargs)
        if kwargs.get("device") is not None and _known(kwargs["device"]):
            return self._factory(func, args, kwargs)
        cuda = any(isinstance(a, Tensor) and on_cuda(a) for a in args)
        if kwargs.get("generator") is not None:
            _check_generator(kwargs["generator"], cuda)
        return self.operations.at_home(cuda, func, *args, **kwargs)  # what it makes inside is beside its arguments

    # Factories and moves -----------------------------------------------------------------------------------------

    def _factory(self, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        """A function that makes a tensor where ``device=`` says."""
        cuda = wants_cuda(kwargs["device"])
        if kwargs.get("generator") is not None:
            _check_generator(kwargs["generator"], cuda)
        out = self.operations.at_home(cuda, func, *args, **{**kwargs, "device": CPU})
        return put(out, cuda) if isinstance(out, Tensor) else out

    def _move(
        self, x: Tensor, cuda: bool | None, dtype: torch.dtype | None = None, copy: bool = False, **layout: Any
    ) -> Tensor:
        """``x`` on the device wanted (None: where it is), as it stands or, with another device or ``copy``, copied."""
        dtype = x.dtype if dtype is None else dtype
        if cuda is None or cuda == on_cuda(x):
            return x.to(dtype, copy=copy, **layout)
        self.operations.waited("copy to the GPU" if cuda else "copy to the CPU")
        if torch.is_grad_enabled() and x.requires_grad:
            moved: Tensor = _Move.apply(x, cuda)  # type: ignore[no-untyped-call]
        else:
            moved = put(x.detach().clone(), cuda)
        return moved.to(dtype, **layout)

    def _to(self, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
        x, *rest = args
        kwargs = dict(kwargs)
        layout = {k: kwargs.pop(k) for k in ("memory_format",) if kwargs.get(k) is not None}
        copy = bool(kwargs.pop("copy", False))
        other = rest[0] if rest and isinstance(rest[0], Tensor) else kwargs.get("other")
        if other is not None:
            return self._move(x, on_cuda(other), other.dtype, copy, **layout)
        if len(rest) > 2 or (len(rest) == 2 and isinstance(rest[1], bool)):
            rest, flags = [r for r in rest if not isinstance(r, bool)], [r for r in rest if isinstance(r, bool)]
            copy = copy or (len(flags) > 1 and flags[1])
        kwargs.pop("non_blocking", None)
        device, dtype, *_ = torch._C._nn._parse_to(*rest, **kwargs)
        if device is not None and not _known(device):
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        return self._move(x, None if device is None else wants_cuda(device), dtype, copy, **layout)

    def _cuda(self, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
        device = args[1] if len(args) > 1 else kwargs.get("device")
        return self._move(args[0], wants_cuda("cuda" if device is None else device))

    def _cpu(self, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
        return self._move(args[0], False)

    def _type_as(self, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
        return self._move(args[0], on_cuda(args[1]), args[1].dtype)

    def _type(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        x, kind = args[0], args[1] if len(args) > 1 else kwargs.get("dtype")
        if kind is None:
            name = func(x)
            return name.replace("torch.", "torch.cuda.", 1) if on_cuda(x) else name
        if isinstance(kind, str):
            return self._move(x.type(kind.replace("torch.cuda.", "torch.", 1)), ".cuda." in kind)
        return func(*args, **kwargs)

    def _as_tensor(self, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
        given = (
            dict(zip(("data" if func is torch.as_tensor else "obj", "dtype", "device"), args, strict=False)) | kwargs
        )
        device, data = given.pop("device", None), next(iter(given.values()))
        if isinstance(data, Tensor):
            return self._move(data, None if device is None else wants_cuda(device), given.get("dtype"))
        if device is None or not wants_cuda(device):
            return func(**given)  # type: ignore[no-any-return]
        self.operations.waited("copy to the GPU")
        return put(func(**given).clone(), True)

    def _tensor(self, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
        """``torch.tensor`` and ``new_tensor``: on the device of the tensor given, unless another is named."""
        device = kwargs.get("device")
        data = next((a for a in (*args, kwargs.get("data")) if isinstance(a, Tensor)), None)
        cuda = wants_cuda(device) if device is not None else data is not None and on_cuda(data)
        if cuda:
            self.operations.waited("copy to the GPU")
        return put(func(*args, **{**kwargs, **({} if device is None else {"device": CPU})}), cuda)

    def _deepcopy(self, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
        out = put(func(*args, **kwargs), on_cuda(args[0]))
        if out.is_leaf and out.grad is not None:
            put(out.grad, on_cuda(args[0]))
        return out

    def _pin_memory(self, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
        if on_cuda(args[0]):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return args[0].clone()  # type: ignore[no-any-return]

    def _plain(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Only reads its arguments, as ``Module.to`` has them read, and makes no tensor."""
        return func(*args, **kwargs)

    # Getters -----------------------------------------------------------------------------------------------------

    def _device(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        return device_of(args[0]) if isinstance(args[0], Tensor) else func(*args, **kwargs)

    def _is_cuda(self, func: Any, args: Args, kwargs: Kwargs) -> bool:
        return on_cuda(args[0])

    def _is_cpu(self, func: Any, args: Args, kwargs: Kwargs) -> bool:
        return not on_cuda(args[0]) and func(*args, **kwargs)

    def _get_device(self, func: Any, args: Args, kwargs: Kwargs) -> int:
        return 0 if on_cuda(args[0]) else -1

    def _repr(self, func: Any, args: Args, kwargs: Kwargs) -> str:
        shown: str = func(*args, **kwargs)
        return shown[:-1] + f", device='{CUDA}')" if on_cuda(args[0]) and shown.endswith(")") else shown

    def _set_grad(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        if isinstance(args[1], Tensor) and on_cuda(args[0]) != on_cuda(args[1]):
            raise RuntimeError("assigned grad has data located on a different device")
        return func(*args, **kwargs)

    # To the host -------------------------------------------------------------------------------------------------

    def _numpy(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        if not on_cuda(args[0]):
            return func(*args, **kwargs)
        if kwargs.get("force"):
            return self._move(args[0].detach(), False).numpy()
        raise TypeError(
            f"can't convert {CUDA} device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def _tolist(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        if on_cuda(args[0]):
            self.operations.waited("tolist")
        return func(*args, **kwargs)


class _Move(torch.autograd.Function):
    """A copy on the other device; the gradient goes back to where ``x`` is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cuda: bool) -> Tensor:
        ctx.source = on_cuda(x)
        return put(x.clone(), cuda)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return put(grad.clone(), ctx.source), None


def _known(device: Any) -> bool:
    """Whether it is the CPU or the GPU; ``meta`` is left as it is."""
    return isinstance(device, int) or torch.device(device).type in ("cpu", "cuda")


def _check_generator(generator: torch.Generator, cuda: bool) -> None:
    want, found = "cuda" if cuda else "cpu", generator.device.type
    if want != found:
        raise RuntimeError(f"Expected a '{want}' device type for generator but found '{found}'")


# Getters are compared by ==, as keys of a dictionary are: each look at ``Tensor.device.__get__`` makes a new object.
_HANDLERS: dict[Any, Callable[[Functions, Any, Args, Kwargs], Any]] = {
    Tensor.device.__get__: Functions._device,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: Functions._is_cuda,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: Functions._is_cpu,  # type: ignore[attr-defined]
    Tensor.grad.__set__: Functions._set_grad,  # type: ignore[attr-defined]
    Tensor.get_device: Functions._get_device,
    torch.get_device: Functions._get_device,
    Tensor.__repr__: Functions._repr,
    Tensor.to: Functions._to,
    Tensor.cuda: Functions._cuda,
    Tensor.cpu: Functions._cpu,
    Tensor.type: Functions._type,
    Tensor.type_as: Functions._type_as,
    Tensor.numpy: Functions._numpy,
    Tensor.__array__: Functions._numpy,
    Tensor.tolist: Functions._tolist,
    Tensor.pin_memory: Functions._pin_memory,
    Tensor.new_tensor: Functions._tensor,
    Tensor.__deepcopy__: Functions._deepcopy,
    torch._C._nn._parse_to: Functions._plain,
    torch.tensor: Functions._tensor,
    torch.as_tensor: Functions._as_tensor,
    torch.asarray: Functions._as_tensor,
}
