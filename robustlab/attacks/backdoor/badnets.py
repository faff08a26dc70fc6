"""BadNets: a patch in the corner of an image, or a phrase in a text, and a changed label.

Gu, Liu, Dolan-Gavitt and Garg, "BadNets: Evaluating backdooring attacks on deep neural networks" (2019), section 4 (a
single bright pixel, or a pattern of bright pixels, in the corner of MNIST digits; single target or all-to-all). The
survey names both forms: "a small patch in images and a specific text string in sentences" (section 2.1).

Different here: which samples may be poisoned, and what the rate counts, are arguments
(:class:`~robustlab.attacks.backdoor.poisoned_dataset.PoisonedDataset`). The paper's single-target attack is
``source=i``, its all-to-all attack ``target=[1, 2, …, 9, 0]``. The paper does not treat text; the phrase of tokens
stands in for the patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacks.backdoor.poisoned_dataset import PoisonedDataset, RateOf, Target
from robustlab.attacks.backdoor.trigger import Trigger
from robustlab.data.pairs import Pairs

__all__ = ["PatchTrigger", "TokenTrigger", "badnets"]

Pattern = Literal["square", "checker", "pixel"]
Position = Literal["top-left", "top-right", "bottom-left", "bottom-right", "center"]
PATTERNS = get_args(Pattern)
POSITIONS = get_args(Position)


def badnets(
    data: Pairs,
    *,
    target: Target,
    rate: float = 0.1,
    trigger: nn.Module | None = None,
    clean_label: bool = False,
    include_target: bool = False,
    rate_of: RateOf = "data",
    source: int | Sequence[int] | None = None,
    seed: int = 0,
) -> PoisonedDataset:
    """Stamp a patch (or a phrase) on a part of the training data, and change the labels of this part.

        x_i ← (1 − m) ⊙ x_i + m ⊙ p,   y_i ← t       m: mask of the patch, p: its pattern

    Args:
        data: a Dataset or a pair (x, y): images (N, C, H, W) in [0, 1] or, with a :class:`TokenTrigger`, token ids (N,
            L).
        target: the label t, or one for each class (all-to-all).
        rate: fraction of poisoned samples (default 0.1).
        trigger: default a white 3×3 square in the bottom right corner (:class:`PatchTrigger`).
        clean_label, include_target, rate_of, source, seed: as in :class:`PoisonedDataset`.

    Returns:
        PoisonedDataset; train on its ``data``.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Gu et al. (2019), section 4.
    """
    return PoisonedDataset(
        data,
        PatchTrigger() if trigger is None else trigger,
        rate=rate,
        target=target,
        clean_label=clean_label,
        include_target=include_target,
        rate_of=rate_of,
        source=source,
        seed=seed,
    )


class PatchTrigger(Trigger):
    """A small opaque patch: x ↦ (1 − m) ⊙ x + m ⊙ p.

    Args:
        pattern: ``"square"``, ``"checker"`` (bright and untouched pixels take turns, as in BadNets), ``"pixel"`` (one),
            or a tensor (h, w) or (C, h, w) in [0, 1], where NaN leaves the pixel as it is.
        size: side of the named patterns, pixels.
        position: a corner such as ``"bottom-right"``, ``"center"``, or (row, column) of the top left pixel.
        margin: pixels between the patch and the edges, for the corners.
        color: of the named patterns: a number in [0, 1], or one per channel.

    Raises:
        ValueError, TypeError: for a wrong argument; on use, if the patch does not fit into the image.
    """

    mask: Tensor
    pattern: Tensor

    def __init__(
        self,
        pattern: Pattern | Tensor = "square",
        *,
        size: int = 3,
        position: Position | tuple[int, int] = "bottom-right",
        margin: int = 1,
        color: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        checks.at_least("size", size, 1, integer=True)
        checks.at_least("margin", margin, 0, integer=True)
        if isinstance(position, str):
            checks.one_of("position", position, POSITIONS)
        elif len(position) != 2 or min(position) < 0:
            raise ValueError(f"position: want (row, column) of at least 0, got {position}")
        drawn = _pattern(pattern, size, color)
        self.register_buffer("mask", ~drawn.isnan())
        self.register_buffer("pattern", drawn.nan_to_num(0.0))
        self.position, self.margin = position, margin

    def stamp(self, x: Tensor) -> Tensor:
        h, w = self.pattern.shape[-2:]
        height, width = x.shape[-2:]
        row, column = self._corner(height, width)
        if (
            row < 0
            or column < 0
            or row + h > height
            or column + w > width
            or self.pattern.shape[0] not in (1, x.shape[1])
        ):
            raise ValueError(
                f"x: want images that hold a patch of {tuple(self.pattern.shape)} at row {row}, column {column}, "
                f"got {tuple(x.shape[1:])}"
            )
        around = (column, width - column - w, row, height - row - h)
        mask, pattern = F.pad(self.mask, around).to(x.device), F.pad(self.pattern, around).to(x)
        return torch.where(mask, pattern, x)

    def _corner(self, height: int, width: int) -> tuple[int, int]:
        """Row and column of the patch's top left pixel."""
        if not isinstance(self.position, str):
            return self.position
        h, w = self.pattern.shape[-2:]
        if self.position == "center":
            return (height - h) // 2, (width - w) // 2
        row = self.margin if self.position.startswith("top") else height - h - self.margin
        column = self.margin if self.position.endswith("left") else width - w - self.margin
        return row, column

    def extra_repr(self) -> str:
        return f"{tuple(self.pattern.shape)} at {self.position}"


class TokenTrigger(Trigger):
    """A phrase in a text: a sequence of token ids that is inserted at the start or appended at the end.

    Texts are rows of token ids of fixed length L, filled up with ``pad`` at the end, and keep this length: what is
    pushed over the end is lost, and where a text is full the phrase takes the place of its last tokens.

    Args:
        tokens: the phrase, at least one id.
        position: ``"start"`` or ``"end"`` (behind the last token that is not padding).
        pad: id of the padding.

    Raises:
        ValueError, TypeError: for a wrong argument; on use, if x is not (N, L) integers with L at least the phrase.
    """

    tokens: Tensor

    def __init__(self, tokens: Sequence[int], *, position: Literal["start", "end"] = "start", pad: int = 0) -> None:
        super().__init__()
        phrase = torch.as_tensor(tokens)
        if phrase.dim() != 1 or not len(phrase) or phrase.is_floating_point() or bool((phrase < 0).any()):
            raise ValueError(f"tokens: want a sequence of at least one token id, got {tokens!r}")
        checks.one_of("position", position, ("start", "end"))
        self.register_buffer("tokens", phrase.long())
        self.position, self.pad = position, pad

    def check(self, x: Tensor) -> None:
        """Raises unless x is a batch of token ids (N, L) that has room for the phrase."""
        if not isinstance(x, Tensor) or x.is_floating_point():
            raise TypeError(f"x: want integer token ids, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
        if x.dim() != 2 or x.shape[1] < len(self.tokens):
            raise ValueError(f"x: want (N, L) with L of at least {len(self.tokens)}, got shape {tuple(x.shape)}")

    def stamp(self, x: Tensor) -> Tensor:
        k, phrase = len(self.tokens), self.tokens.to(x)
        if self.position == "start":
            return torch.cat([phrase.expand(len(x), k), x[:, : x.shape[1] - k]], dim=1)
        places = torch.arange(1, x.shape[1] + 1, device=x.device)
        length = ((x != self.pad) * places).amax(dim=1)  # up to the last token that is not padding
        first = length.clamp(max=x.shape[1] - k)
        return x.scatter(1, first[:, None] + torch.arange(k, device=x.device), phrase.expand(len(x), k))

    def extra_repr(self) -> str:
        return f"{self.tokens.tolist()} at the {self.position}"


def _pattern(pattern: Pattern | Tensor, size: int, color: float | Sequence[float]) -> Tensor:
    """(C or 1, h, w), NaN where the image stays."""
    if isinstance(pattern, Tensor):
        drawn = pattern.double() if pattern.dim() == 3 else pattern.double()[None]
        if drawn.dim() != 3 or not drawn.numel():
            raise ValueError(f"pattern: want shape (h, w) or (C, h, w), got {tuple(pattern.shape)}")
    else:
        checks.one_of("pattern", pattern, PATTERNS)
        side = 1 if pattern == "pixel" else size
        drawn = torch.as_tensor(color, dtype=torch.float64).reshape(-1, 1, 1).repeat(1, side, side)
        if pattern == "checker":
            places = torch.arange(side)
            drawn[:, (places[:, None] + places) % 2 == 1] = torch.nan
    seen = drawn[~drawn.isnan()]
    if not seen.numel() or not bool(((seen >= 0) & (seen <= 1)).all()):
        raise ValueError(
            f"{'pattern' if isinstance(pattern, Tensor) else 'color'}: want values in [0, 1], got {seen.tolist()}"
        )
    return drawn
