"""Which tensors are on the pretend device: those whose storage is marked."""

from __future__ import annotations

import torch
from torch import Tensor

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_MARK = "pretends_cuda"


def on_cuda(tensor: Tensor) -> bool:
    """Whether this tensor pretends to be on the GPU; inside ``vmap`` and ``grad``, whether the one below it does."""
    storage = _storage(tensor)
    return storage is not None and getattr(storage, _MARK, False)


def put(tensor: Tensor, cuda: bool) -> Tensor:
    """Mark this tensor, with all that shares its storage; returns it."""
    storage = _storage(tensor)
    if storage is not None:
        setattr(storage, _MARK, cuda)
    return tensor


def device_of(tensor: Tensor) -> torch.device:
    """The device that the tensor reports; a real one that is no CPU as it is."""
    return CUDA if on_cuda(tensor) else tensor.device


def wants_cuda(device: object) -> bool:
    """Whether an argument ``device=`` names the pretend GPU, the only one."""
    wanted = device if isinstance(device, torch.device) else torch.device(device)  # type: ignore[call-overload]
    if wanted.type == "cuda" and wanted.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    return bool(wanted.type == "cuda")


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    functorch = torch._C._functorch
    with torch._C.DisableTorchFunction():
        while functorch.is_functorch_wrapped_tensor(tensor):
            tensor = functorch.get_unwrapped(tensor)
        # PyTorch keeps one Python object for a storage as long as that lives, and so what is written on it.
        return tensor.untyped_storage() if tensor.layout == torch.strided else None
