"""The trigger of the input-aware backdoor: a pattern and a mask that two small nets make for each image.

Nguyen and Tran, "Input-aware dynamic backdoor attack" (2020), section 3.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacks.backdoor.trigger import Trigger
from robustlab.geometry.keyed import Noise

__all__ = ["InputAwareTrigger"]


class InputAwareTrigger(Trigger):
    """x ↦ x + (p(x) − x) ⊙ m(x): a pattern and a mask that are functions of the image.

    Both nets are small convolutional encoders and decoders; the mask's last step, ½ + ½·tanh(20u − 10) of a sigmoid u,
    leaves little between 0 and 1.

    Args:
        channels: of the images.
        width: channels of the nets' first layer.
        seed: of the initial weights.
    """

    def __init__(self, channels: int = 1, *, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        checks.at_least("channels", channels, 1, integer=True)
        checks.at_least("width", width, 1, integer=True)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self.pattern, self.mask = _Painter(channels, channels, width), _Painter(channels, 1, width)

    def stamp(self, x: Tensor) -> Tensor:
        return self.put(x, x)

    def put(self, x: Tensor, source: Tensor) -> Tensor:
        """The images x with the triggers that were made for the images ``source``."""
        pattern, mask = self.parts(source)
        return (x + (pattern - x) * mask).clamp(0, 1)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p(x), (N, C, H, W), and m(x), (N, 1, H, W), both in [0, 1] and of x's dtype."""
        given = x.to(next(self.parameters()).dtype)
        return self.pattern(given).to(x.dtype), sharpen(self.mask(given)).to(x.dtype)

    def cross(self, x: Tensor, *, seed: int = 0) -> Tensor:
        """Each image with the trigger of another one of the batch, at a distance that ``seed`` draws."""
        self.check(x)
        if len(x) < 2:
            raise ValueError(f"x: want at least 2 images to exchange triggers, got {len(x)}")
        distance = int(Noise(seed, torch.zeros(1, dtype=torch.int64)).integers(0, (), len(x) - 1)) + 1
        return self.put(x, x.roll(distance, dims=0))


def sharpen(u: Tensor) -> Tensor:
    """½ + ½·tanh(20u − 10): close to a step at u = ½, with a gradient."""
    return 0.5 + 0.5 * torch.tanh(20 * u - 10)


class _Painter(nn.Module):
    """Two strided convolutions down, two up: images (N, C, H, W) to (N, out, H, W) in (0, 1)."""

    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.up1 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.up2 = nn.Conv2d(width, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        half = F.relu(self.down1(x))
        deep = F.relu(self.down2(half))
        deep = F.relu(self.up1(F.interpolate(deep, size=half.shape[2:])))
        return torch.sigmoid(self.up2(F.interpolate(deep, size=x.shape[2:])))
