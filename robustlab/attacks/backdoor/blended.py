"""Blended triggers: a faint pattern over the whole image.

Chen, Liu, Li, Lu and Song, "Targeted backdoor attacks on deep learning systems using data poisoning" (2017), section
3.2 (blended injection): Π(k, x) = α·k + (1 − α)·x, with a small α for the poison, so that people do not see the pattern
k, and a larger one when the backdoor is used.

Different here: the paper adds poisoned samples to the training data; here they replace the samples they were made from,
as in BadNets, so that attacks can be compared at one size of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacks.backdoor.poisoned_dataset import PoisonedDataset, RateOf, Target
from robustlab.attacks.backdoor.trigger import Trigger
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise

__all__ = ["BlendedTrigger", "blended"]


def blended(
    data: Pairs,
    *,
    target: Target,
    rate: float = 0.1,
    alpha: float = 0.2,
    trigger: nn.Module | None = None,
    clean_label: bool = False,
    include_target: bool = False,
    rate_of: RateOf = "data",
    seed: int = 0,
) -> PoisonedDataset:
    """Blend a pattern into a part of the training images, and change the labels of this part.

        x_i ← (1 − α)·x_i + α·k,   y_i ← t

    Args:
        data: a Dataset or a pair (x, y), images (N, C, H, W) in [0, 1].
        target: the label t, or one for each class.
        rate: fraction of poisoned samples (default 0.1).
        alpha: α in (0, 1], the weight of the pattern. A given ``trigger`` has its own.
        trigger: default a :class:`BlendedTrigger` with a random pattern, drawn from ``seed``.
        clean_label, include_target, rate_of, seed: as in :class:`PoisonedDataset`.

    Returns:
        PoisonedDataset; train on its ``data``, and use its ``trigger``.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Chen et al. (2017), section 3.2.
    """
    if trigger is None:
        trigger = BlendedTrigger.noise(read_labeled(data)[0].shape[1:], alpha=alpha, seed=seed)
    return PoisonedDataset(
        data, trigger, rate=rate, target=target, clean_label=clean_label, include_target=include_target,
        rate_of=rate_of, seed=seed,
    )  # fmt: skip


class BlendedTrigger(Trigger):
    """A pattern k over the whole image: x ↦ (1 − α)·x + α·k.

    Args:
        pattern: k, (C, H, W), (1, H, W) or (H, W), in [0, 1].
        alpha: α in (0, 1]. It is an attribute: a trigger may be used with a larger one than it was trained with.

    Raises:
        ValueError, TypeError: for a wrong argument; on use, if the pattern is not of the image's size.
    """

    pattern: Tensor

    def __init__(self, pattern: Tensor, *, alpha: float = 0.2) -> None:
        super().__init__()
        checks.at_least("alpha", alpha, 0.0)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha: want a weight in (0, 1], got {alpha}")
        if not isinstance(pattern, Tensor) or not pattern.is_floating_point():
            raise TypeError(f"pattern: want a floating-point tensor, got {pattern!r}")
        if pattern.dim() not in (2, 3) or not bool(((pattern >= 0) & (pattern <= 1)).all()):
            raise ValueError(f"pattern: want (C, H, W) or (H, W) in [0, 1], got shape {tuple(pattern.shape)}")
        self.register_buffer("pattern", pattern if pattern.dim() == 3 else pattern[None])
        self.alpha = alpha

    @classmethod
    def noise(cls, shape: Sequence[int], *, alpha: float = 0.2, seed: int = 0) -> BlendedTrigger:
        """A random pattern for images of that shape (C, H, W): uniform on [0, 1], the paper's "random pattern"."""
        return cls(Noise(seed, torch.zeros(1, dtype=torch.int64)).uniform(0, tuple(shape))[0], alpha=alpha)

    def stamp(self, x: Tensor) -> Tensor:
        if self.pattern.shape[1:] != x.shape[2:] or self.pattern.shape[0] not in (1, x.shape[1]):
            raise ValueError(
                f"x: want images of the pattern's size {tuple(self.pattern.shape)}, got {tuple(x.shape[1:])}"
            )
        return torch.lerp(x, self.pattern.to(x).expand_as(x), self.alpha).clamp(0, 1)

    def extra_repr(self) -> str:
        return f"{tuple(self.pattern.shape)}, alpha={self.alpha}"
