"""Linear forms on the value of one node: what a backward pass carries from the output to the input.

A form is ⟨coef, value⟩ for the value of one sample. Those of a whole batch stand in one tensor, each with the number
of the sample that it belongs to, so that a sample with many unstable neurons costs no more in company than alone.

A neuron of a convolutional layer looks at a small window of the layer before. Its form is then stored as that window
alone, (C, kh, kw) instead of (C, H, W), with the place of the window's corner; going back through another convolution
makes the window larger (the receptive field of the neuron) until it is as large as the map and is written out in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Window:
    """Where the windows of R forms lie in their map.

    All channels of a place, and both signs, share one window, so there are fewer windows than forms.

    Attributes:
        corner: (U, 2) row and column of the upper left corner of each window; it may lie outside the map.
        sample: (U,) the sample that each window lies in.
        owner: (R,) int64, the window of each form.
        low, high: smallest and largest corner that can occur, known without looking at ``corner``.
    """

    corner: Tensor
    sample: Tensor
    owner: Tensor
    low: tuple[int, int]
    high: tuple[int, int]

    def moved(self, stride: Sequence[int], shift: Sequence[int]) -> Window:
        """The windows with corners stride·corner + shift."""
        device = self.corner.device
        corner = self.corner * torch.tensor(stride, device=device) + torch.tensor(shift, device=device)
        low, high = ((at[0] * stride[0] + shift[0], at[1] * stride[1] + shift[1]) for at in (self.low, self.high))
        return replace(self, corner=corner, low=low, high=high)

    def margins(self, size: Sequence[int], shape: Sequence[int]) -> tuple[int, int, int, int]:
        """How far windows of ``size`` may stick out of the map: (left, right, top, bottom), as ``F.pad`` wants it."""
        before = [max(0, -low) for low in self.low]
        after = [max(0, high + k - n) for high, k, n in zip(self.high, size, shape[-2:], strict=True)]
        return before[1], after[1], before[0], after[0]


@dataclass(frozen=True, eq=False)
class Forms:
    """R linear forms on the value of one node.

    Attributes:
        coef: (R, *shape of the node), or windows (R, C, kh, kw).
        sample: (R,) int64, the sample whose value each form is applied to.
        window: where the windows lie; None for forms written out in full.
        group: first sample and forms per sample, where samples that follow each other have equally many forms, one
            after the other: then little is copied for each form.
        loose: whether coefficients outside the map may be other than 0, which nothing there multiplies.
    """

    coef: Tensor
    sample: Tensor
    window: Window | None = None
    group: tuple[int, int] | None = None
    loose: bool = False

    def to(self, coef: Tensor) -> Forms:
        """Forms of the same samples, in the same windows, with other coefficients."""
        return replace(self, coef=coef)

    def inside(self, shape: Sequence[int]) -> Forms:
        """The same forms on a node of ``shape``, with coefficients of 0 outside the map."""
        if not self.loose:
            return self
        return replace(self, coef=self.coef * self.pick(self.coef.new_ones(1, 1, *shape[1:])), loose=False)

    def pick(self, values: Tensor) -> Tensor:
        """``values`` (N, *shape) as each form meets them: of its sample, in its window; 0 outside the map."""
        if self.group is not None and len(self.sample) == self.group[1] and values.shape[0] > 1:  # one sample
            values = values[self.group[0]][None]
        if self.window is None:
            return values if values.shape[0] == 1 else values.index_select(0, self.sample)
        kh, kw = self.coef.shape[-2:]
        left, right, top, bottom = self.window.margins((kh, kw), values.shape)
        views = F.pad(values, (left, right, top, bottom)).unfold(2, kh, 1).unfold(3, kw, 1)
        row, column = self.window.corner.unbind(1)
        sample = self.window.sample if values.shape[0] > 1 else torch.zeros_like(row)
        return views[sample, :, row + top, column + left].index_select(0, self.window.owner)

    def dot(self, values: Tensor) -> Tensor:
        """⟨coef, values⟩ for values as ``pick`` gives them (or that broadcast), (R,)."""
        return torch.linalg.vecdot(self.coef.flatten(1), values.expand_as(self.coef).flatten(1))

    def by_sample(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and values that broadcast against each other.

        They are (n, forms of each, *shape) and (n, 1, *shape) where forms in full stand in groups, else (R, *shape) and
        what ``pick`` gives.
        """
        if self.group is None or self.window is not None or values.shape[0] <= 1:
            return self.coef, self.pick(values)
        first, each = self.group
        coef = self.coef.unflatten(0, (-1, each))
        return coef, values[first : first + len(coef)].unsqueeze(1)

    def against(self, values: Tensor) -> Tensor:
        """⟨coef, values⟩ for the values (N, *shape) of all samples, (R,)."""
        alone = values.shape[0] == 1
        if self.window is not None or self.coef.shape[1:] != values.shape[1:] or (self.group is None and not alone):
            return self.dot(self.pick(values))
        first, each = (0, len(self.sample)) if alone or self.group is None else self.group
        rows = self.coef.flatten(1).unflatten(0, (-1, each)) if len(self.sample) else self.coef.flatten(1)[None]
        return torch.linalg.vecdot(rows, values[first : first + len(rows)].flatten(1)[:, None]).flatten()

    def full(self, shape: Sequence[int]) -> Forms:
        """The same forms written out over a node of ``shape``."""
        if self.window is None:
            return self
        rows, channels, kh, kw = self.coef.shape
        left, right, top, bottom = self.window.margins((kh, kw), shape)
        height, width = shape[-2] + top + bottom, shape[-1] + left + right
        corner = self.window.corner.index_select(0, self.window.owner)
        inside = torch.arange(kh, device=corner.device)[:, None] * width + torch.arange(kw, device=corner.device)
        place = ((corner[:, 0] + top) * width + corner[:, 1] + left)[:, None] + inside.flatten()
        padded = self.coef.new_zeros(rows, channels, height * width)
        padded = padded.scatter(2, place[:, None].expand(-1, channels, -1), self.coef.flatten(2))
        padded = padded.reshape(rows, channels, height, width)
        coef = padded[..., top : height - bottom, left : width - right]
        return Forms(coef, self.sample, group=self.group)

    def plus(self, other: Forms, shape: Sequence[int]) -> Forms:
        """The sum of two sets of forms on the same node, where two branches of the graph meet."""
        if self.window is other.window and self.coef.shape == other.coef.shape:
            return replace(self, coef=self.coef + other.coef, loose=self.loose or other.loose)
        joint = self._joined(other, shape)
        if joint is not None:
            return joint
        whole = self.full(shape)
        return whole.to(whole.coef + other.full(shape).coef)

    def _joined(self, other: Forms, shape: Sequence[int]) -> Forms | None:
        """The sum in the smallest windows that hold both; None where their distance varies, or they fill the map.

        Both branches start at the same neurons. With equal strides, the windows of one lie at the same place in those
        of the other for all forms.
        """
        a, b = self.window, other.window
        if a is None or b is None:
            return None
        shift = [p - q for p, q in zip(b.low, a.low, strict=True)]  # the way from our corner to the other's
        if shift != [p - q for p, q in zip(b.high, a.high, strict=True)]:
            return None
        ours, theirs = self.coef.shape[2:], other.coef.shape[2:]
        first = [min(0, d) for d in shift]
        last = [max(m, d + n) for m, d, n in zip(ours, shift, theirs, strict=True)]
        if any(q - p >= n for p, q, n in zip(first, last, shape[-2:], strict=True)):
            return None

        def placed(forms: Forms, at: Sequence[int]) -> Tensor:
            (top, left), (kh, kw) = (d - p for d, p in zip(at, first, strict=True)), forms.coef.shape[2:]
            bottom, right = last[0] - at[0] - kh, last[1] - at[1] - kw
            return F.pad(forms.coef, (left, right, top, bottom))

        coef, loose = placed(self, (0, 0)) + placed(other, shift), self.loose or other.loose
        return replace(self, coef=coef, window=a.moved((1, 1), first), loose=loose)


def units(sample: Tensor, place: Tensor, shape: Sequence[int], sign: Tensor, only: int | None = None) -> Forms:
    """The forms ±e_place on a node of ``shape``: one neuron each.

    Args:
        sample, place: (R,) int64, the sample and the flat index of the neuron.
        shape: of the node.
        sign: (R,) of +1 and −1.
        only: the one sample of all, where that is known.
    """
    group = None if only is None else (only, len(place))
    if len(shape) == 3:
        channels, height, width = shape
        channel, spot = place // (height * width), place % (height * width)
        coef = sign.new_zeros(len(place), channels).scatter(1, channel[:, None], sign[:, None])
        own, owner = torch.unique(sample * (height * width) + spot, return_inverse=True)
        where, spot = own // (height * width), own % (height * width)
        corner = torch.stack([spot // width, spot % width], dim=1)
        window = Window(corner, where, owner, (0, 0), (height - 1, width - 1))
        return Forms(coef[:, :, None, None], sample, window, group)
    size = 1
    for length in shape:
        size *= length
    coef = sign.new_zeros(len(place), size).scatter(1, place[:, None], sign[:, None])
    return Forms(coef.reshape(-1, *shape), sample, group=group)
