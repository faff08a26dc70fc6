"""Feature squeezing.

Xu, Evans and Qi, "Feature squeezing: detecting adversarial examples in deep neural networks" (2018), section IV: an
input is compared with coarser versions of itself, of which an honest one is read alike,

    score(x) = max_s ‖f(x) − f(s(x))‖₁,   f = softmax(logits)

over the squeezers s: rounding to 2^b levels, and medians of w × w pixels.

Different here: their third squeezer, non-local means for color images, is left out. The threshold is the order
statistic of clean inputs' scores that keeps the stated rate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Detection
from robustlab.data.pairs import Pairs
from robustlab.defenses.detection.by_score import Scored, judged, read_x_and_clean

__all__ = ["Squeezed", "feature_squeezing"]


class Squeezed(nn.Module):
    """How far a model's probabilities move when its input is squeezed: images (N, C, H, W) to (N,) in [0, 2].

    Rounding has no useful derivative: an adaptive attacker takes ``straight=True``, which is the backward pass
    differentiable approximation with the identity, or the attack ``square``, which needs none; see
    :func:`robustlab.attacks.bypass_detectors`.

    Args:
        model: logits (N, K).
        bits: b ≥ 1 of the rounding; None leaves it out.
        window: w ≥ 2 of the medians; None leaves them out.
        straight: pass gradients through each squeezer as if it were the identity; default False.
    """

    def __init__(self, model: nn.Module, bits: int | None, window: int | None, *, straight: bool = False) -> None:
        super().__init__()
        self.model, self.bits, self.window, self.straight = model, bits, window, straight

    def forward(self, x: Tensor) -> Tensor:
        plain = self.model(x).softmax(dim=1)
        moved = [(plain - self.model(squeezed).softmax(dim=1)).abs().sum(dim=1) for squeezed in self.squeeze(x)]
        return torch.stack(moved).amax(dim=0)

    def squeeze(self, x: Tensor) -> list[Tensor]:
        """The coarser versions of x."""
        found = [] if self.bits is None else [round_to(x, self.bits)]
        found += [] if self.window is None else [medians(x, self.window)]
        return [x + (squeezed - x).detach() for squeezed in found] if self.straight else found


def feature_squeezing(
    model: nn.Module,
    x: Tensor | Pairs,
    clean: Tensor | Pairs,
    *,
    bits: int | None = 1,
    window: int | None = 2,
    rejection_rate: float = 0.05,
    batch_size: int = 500,
) -> Detection[Scored]:
    """Flag the images that a model reads differently once they are squeezed.

    Args:
        model: logits (N, K) of images in [0, 1]. It is only looked at.
        x: images to be judged, (N, C, H, W), or labeled data (of a Dataset the test part), whose labels are not looked
            at.
        clean: clean images that set the threshold, or labeled data (of a Dataset the training part); they should be
            none that the model was trained on.
        bits: b, images are rounded to 2^b levels; default 1, the authors' choice for MNIST (4 or 5 for colors).
        window: w, medians are taken over w × w pixels; default 2. At least one of the two is needed.
        rejection_rate: share of clean images that may be flagged, in (0, 1), default 0.05 as in the paper. Fewer than
            1/rejection_rate − 1 clean images set no threshold, and nothing is flagged.
        batch_size: images in one forward.

    Returns:
        A Detection; ``details.score`` is the score as a module. The ``false_alarm_rate`` is the rejection rate.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Xu et al. (2018), section IV. Departures: see the module.
    """
    x, clean = read_x_and_clean(model, x, clean, rejection_rate, batch_size)
    checks.pictures(x)
    for name, images in (("x", x), ("clean", clean)):
        checks.images(images, (0.0, 1.0), name, takes=None)
    if bits is None and window is None:
        raise ValueError("bits, window: want at least one of the two, got None for both")
    if bits is not None:
        checks.at_least("bits", bits, 1, integer=True)
    if window is not None:
        checks.at_least("window", window, 2, integer=True)
        checks.at_most("window", window, min(x.shape[2:]))
    return judged(Squeezed(model, bits, window), x, clean, rejection_rate, batch_size)


def round_to(x: Tensor, bits: int) -> Tensor:
    """Images in [0, 1] with 2^bits levels."""
    return (x * (2**bits - 1)).round() / (2**bits - 1)


def medians(x: Tensor, window: int) -> Tensor:
    """Medians over windows of images (N, C, H, W), which are mirrored at the border, each edge pixel twice.

    Of an even number of pixels it is the upper one of the two in the middle. A pixel is the center of its window, or
    the first one behind it. So SciPy's ``median_filter`` has both.
    """
    before, after = window // 2, (window - 1) // 2
    rows, columns = (_mirrored(size, before, after, x.device) for size in x.shape[2:])
    patches = x[:, :, rows][:, :, :, columns].unfold(2, window, 1).unfold(3, window, 1).flatten(4)
    return patches.kthvalue(window**2 // 2 + 1, dim=4).values


def _mirrored(size: int, before: int, after: int, device: torch.device) -> Tensor:
    place = torch.arange(-before, size + after, device=device)
    place = torch.where(place < 0, -1 - place, place)
    return torch.where(place >= size, 2 * size - 1 - place, place)
