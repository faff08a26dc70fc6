"""Input normalization as a layer, so that attacks and verifiers speak raw pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std, per channel.

    Args:
        mean, std: one number for all channels, or one per channel (dimension 1 of the batch), in units of the
            raw input. They are buffers: they follow ``.to()`` and ``.double()`` and are saved with the model.

    Raises:
        ValueError: if the two have different lengths, are not finite, or a std is not positive; on use, if
            the input has another number of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        mean_, std_ = (torch.as_tensor(v, dtype=torch.get_default_dtype()).reshape(-1) for v in (mean, std))
        if len(mean_) != len(std_) or not len(mean_):
            raise ValueError(f"mean, std: want one number each, or one per channel, got {len(mean_)} and {len(std_)}")
        if not bool(torch.isfinite(mean_).all()):
            raise ValueError(f"mean: want finite numbers, got {mean}")
        if not bool(((std_ > 0) & torch.isfinite(std_)).all()):
            raise ValueError(f"std: want finite numbers above 0, got {std}")
        self.register_buffer("mean", mean_)
        self.register_buffer("std", std_)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.mean.numel()
        if channels > 1 and (x.dim() < 2 or x.shape[1] != channels):
            raise ValueError(f"x: want {channels} channels in dimension 1, got shape {tuple(x.shape)}")
        shape = (1, channels, *[1] * (x.dim() - 2))
        return (x - self.mean.view(shape)) / self.std.view(shape)

    def extra_repr(self) -> str:
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"
