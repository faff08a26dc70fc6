"""What a printer and a camera make of a color: a quadratic map, fitted to a chart of colors that was printed and seen.

Xu et al., "Adversarial T-shirt! Evading person detectors in a physical world" (2020), section 3. A color on the screen
is another one on cloth. A chart of colors is printed and photographed, and each channel of what is seen is a quadratic
polynomial of the three that were meant, by least squares:

    t_color(c) = W·(1, c_1, c_2, c_3, c_1², c_2², c_3², c_1·c_2, c_1·c_3, c_2·c_3)

Nothing is printed here: :func:`dull_print` is a printer of our own scope, which the map does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacks.physical.printing import printable_colors


@dataclass(frozen=True, eq=False)
class ColorMap:
    """A quadratic map of colors, clipped to [0, 1].

    Attributes:
        weights: (3, 10), one row per channel that is seen, in the order of the formula above.
    """

    weights: Tensor

    @classmethod
    def fitted(cls, meant: Tensor, seen: Tensor) -> ColorMap:
        """The map of least squares from colors (P, 3) that were printed to those (P, 3) that a camera saw.

        Raises:
            ValueError, TypeError: for other shapes or colors, or a chart that does not determine the map.
        """
        for name, colors in (("meant", meant), ("seen", seen)):
            checks.floats(colors, name)
            if colors.dim() != 2 or colors.shape[1] != 3 or not bool(((colors >= 0) & (colors <= 1)).all()):
                raise ValueError(f"{name}: want colors (P, 3) in [0, 1], got shape {tuple(colors.shape)}, or others")
        if seen.shape != meant.shape:
            raise ValueError(f"seen: want as many colors as were meant, {len(meant)}, got {len(seen)}")
        terms = _terms(meant.double().T).T
        if len(meant) < 10 or int(torch.linalg.matrix_rank(terms)) < 10:
            raise ValueError(
                f"meant: want colors that determine ten weights, such as all of 3 levels, got {len(meant)}"
            )
        return cls(torch.linalg.lstsq(terms, seen.to(terms)).solution.T.to(meant.dtype))

    def __call__(self, images: Tensor) -> Tensor:
        """What is seen of colors (…, 3, h, w)."""
        there = torch.einsum("ij,...jhw->...ihw", self.weights.to(images), _terms(images.movedim(-3, 0)).movedim(0, -3))
        return there.clamp(0, 1)


def dull_print(images: Tensor) -> Tensor:
    """A simulated printer on cloth, of colors (…, 3, h, w): inks mix, bend, and reach neither black nor white.

    seen = 0.08 + 0.8·(M c)^1.2,   M = [[.85, .1, .05], [.08, .84, .08], [.04, .12, .84]]
    """
    mix = images.new_tensor([[0.85, 0.10, 0.05], [0.08, 0.84, 0.08], [0.04, 0.12, 0.84]])
    inks = torch.einsum("ij,...jhw->...ihw", mix, images).clamp_min(1e-6)  # at 0 the power has no slope
    return 0.08 + 0.8 * inks**1.2


def printed_chart(levels: int = 5) -> tuple[Tensor, Tensor]:
    """A chart (levels³, 3) of all colors of so many levels, and what :func:`dull_print` makes of it."""
    meant = printable_colors(levels, low=0.0, high=1.0)
    return meant, dull_print(meant.T[:, :, None])[:, :, 0].T


def _terms(colors: Tensor) -> Tensor:
    """(10, …) of colors (3, …)."""
    r, g, b = colors
    return torch.stack([torch.ones_like(r), r, g, b, r * r, g * g, b * b, r * g, r * b, g * b])
