"""Small one-stage detectors of one kind of object: a score and a box from every cell of a grid.

Both answer with (boxes (N, J, 4) in pixels, scores (N, J) in [0, 1]), J the cells, most of which see nothing and have a
score near 0; ``robustlab.models.boxes.kept`` tells which of them one would be told.

Source: Redmon and Farhadi, "YOLO9000: better, faster, stronger" (2017), for the box from an anchor; Tian et al.,
"FCOS: fully convolutional one-stage object detection" (2019), for the box by its distances from a point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.models.boxes import overlap, present
from robustlab.models.normalize import Normalize
from robustlab.models.registry import register


class Detector(nn.Module, ABC):
    """A body of convolutions, and five numbers from each of its cells.

    Attributes:
        stride: pixels per cell.
        reach: in training a cell answers for an object whose center is at most so many cells away in each direction.
    """

    def __init__(self, body: nn.Module, width: int, stride: int, reach: float) -> None:
        super().__init__()
        self.normalize, self.body = Normalize(0.4, 0.25), body
        self.head = nn.Conv2d(width, 5, 1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias[0], -4.0)  # most cells see nothing
        self.stride, self.reach = stride, reach

    @abstractmethod
    def boxes(self, numbers: Tensor, centers: Tensor) -> Tensor:
        """Boxes (N, J, 4) from numbers (N, J, 4) of cells with centers (J, 2)."""

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, J, 4), log-odds (N, J), and the cells' centers (J, 2) in pixels."""
        told = self.head(self.body(self.normalize(x)))
        rows, columns = told.shape[2:]
        down = (torch.arange(rows, device=x.device, dtype=x.dtype) + 0.5) * self.stride
        right = (torch.arange(columns, device=x.device, dtype=x.dtype) + 0.5) * self.stride
        centers = torch.stack(torch.meshgrid(down, right, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
        told = told.flatten(2).transpose(1, 2)
        return self.boxes(told[..., 1:], centers), told[..., 0], centers

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, J, 4) in pixels and scores (N, J)."""
        boxes, odds, _ = self.seen(x)
        return boxes, odds.sigmoid()


class AnchorDetector(Detector):
    """A box is an anchor of a usual size, moved within reach of its cell and scaled: the form of YOLO's second version.

    center = cell + stride·tanh(a)·1.5,   size = anchor·exp(b)
    """

    anchor: Tensor

    def __init__(self, body: nn.Module, width: int, stride: int, anchor: Sequence[float]) -> None:
        super().__init__(body, width, stride, 0.75)
        self.register_buffer("anchor", torch.tensor(anchor))

    def boxes(self, numbers: Tensor, centers: Tensor) -> Tensor:
        middle = centers + 1.5 * self.stride * numbers[..., :2].tanh()
        half = 0.5 * self.anchor * numbers[..., 2:].clamp(-3, 3).exp()
        return torch.cat([middle - half, middle + half], dim=-1)


class PointDetector(Detector):
    """A box is told by the distances of its four sides from the cell's center, without an anchor: the form of FCOS.

    side = center ∓ 4·stride·softplus(a)
    """

    def __init__(self, body: nn.Module, width: int, stride: int) -> None:
        super().__init__(body, width, stride, 1.0)

    def boxes(self, numbers: Tensor, centers: Tensor) -> Tensor:
        away = 4 * self.stride * F.softplus(numbers)
        return torch.cat([centers - away[..., :2], centers + away[..., 2:]], dim=-1)


class _Widened(nn.Module):
    """x + relu(bn(conv(x))), of a dilated convolution: a wide field at full resolution."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.bn(self.conv(x)))


def _strided(channels: Sequence[int]) -> tuple[list[nn.Module], int]:
    """Convolutions that halve the resolution, and the channels of the last one; raises for none or a width below 1."""
    if not channels:
        raise ValueError("channels: want at least one convolution, got none")
    body, width = list[nn.Module](), 3
    for out in channels:
        checks.at_least("channels", out, 1, integer=True)
        body += _stage(width, out, stride=2)
        width = out
    return body, width


def _stage(width: int, out: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(width, out, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


@register
def anchor_detector(
    *, channels: Sequence[int] = (10, 18, 26), anchor: Sequence[float] = (20.0, 44.0), seed: int = 0
) -> AnchorDetector:
    """Strided convolutions down to cells of 2^k pixels, two more with a wider field, and one anchor.

    With the defaults it has 8×8 cells on images of 64×64 and about 18,000 weights.

    Args:
        channels: numbers of channels of the k strided convolutions.
        anchor: width and height of the usual box, in pixels.
        seed: of the initial weights (default 0).

    Raises:
        ValueError: if a size is not positive.
    """
    for size in anchor:
        checks.positive("anchor", size)
    body, width = _strided(channels)
    body += _stage(width, width) + _stage(width, width, dilation=2)
    return AnchorDetector(nn.Sequential(*body), width, 2 ** len(channels), anchor)


@register
def point_detector(
    *, channels: Sequence[int] = (12, 20), dilations: Sequence[int] = (1, 2, 4, 8), seed: int = 0
) -> PointDetector:
    """Two strided convolutions, residual blocks with ever wider fields, and boxes without anchors.

    With the defaults it has 16×16 cells on images of 64×64 and about 17,000 weights.

    Args:
        channels: numbers of channels of the k strided convolutions.
        dilations: of the residual blocks.
        seed: of the initial weights (default 0).

    Raises:
        ValueError: if a size is not a positive integer.
    """
    for dilation in dilations:
        checks.at_least("dilations", dilation, 1, integer=True)
    body, width = _strided(channels)
    body += [_Widened(width, dilation) for dilation in dilations]
    return PointDetector(nn.Sequential(*body), width, 2 ** len(channels))


def detection_training(model: Detector, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
    """The objective of a detector, for :func:`robustlab.training.fit.fit`.

        Σ_cells BCE(odds, answers for somebody) / max(1, answering cells)  +  2·mean over those of 1 − IoU

    A cell answers for the figure whose center is nearest, if it is within the model's ``reach``; of all cells the
    cross-entropy is weighted by (p − t)², so that the many easy ones count little.

    Args:
        model: a :class:`Detector`.
        x: (N, 3, H, W).
        y: (N, P, 4) boxes in pixels, filled up with zeros.
        ids, seed: not used.

    Source:
        Lin et al., "Focal loss for dense object detection" (2017), for the weights; Tian et al. (2019) for who answers.
    """
    boxes, odds, centers = model.seen(x)
    there = present(y)
    middle = (y[..., :2] + y[..., 2:]) / 2
    away = (centers[None, :, None] - middle[:, None]).abs().amax(dim=-1) / model.stride  # (N, J, P)
    least, whose = away.masked_fill(~there[:, None], torch.inf).min(dim=2)
    answers = least <= model.reach
    wish = answers.to(odds)
    weight = (odds.detach().sigmoid() - wish).square()
    score = F.binary_cross_entropy_with_logits(odds, wish, weight, reduction="sum")
    truth = y.gather(1, whose[..., None].expand(-1, -1, 4))[answers]
    fit = overlap(boxes[answers][:, None], truth[:, None])[:, 0, 0]
    count = answers.sum().clamp_min(1)
    return (4 * score + 2 * (1 - fit).sum()) / count
