"""A print on the shirt of a person in a frame, as the cloth folds, under light, blur and noise of a camera.

Xu et al., "Adversarial T-shirt! Evading person detectors in a physical world" (2020), section 3. A frame i shows a
person whose shirt bears control points, in the paper the corners of a checkerboard. What lies on the sheet at a control
point is seen in the frame where that was found; between them a thin-plate spline is the smoothest deformation that
says so (:mod:`robustlab.attacks.physical.thin_plate`). With the region M_i of the cloth in frame x_i, a picture is

    x_i' = t_env( x_i ∘ (1 − M_i) + M_i ∘ t_TPS,i( t_color(δ + μ·v) ) ),   v ∼ N(0, 1)

Different here: a frame is rendered, and its control points are known instead of found. Each picture draws its own
folds, moving every control point a little, where the paper takes the deformations of many frames of one moving person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacks.physical.camera import Camera, Rendered, within
from robustlab.attacks.physical.optics import looked_up, places
from robustlab.attacks.physical.scenes import Scenes
from robustlab.attacks.physical.thin_plate import spline
from robustlab.data.people import sheet_points
from robustlab.geometry.keyed import Noise


@dataclass(frozen=True, eq=False)
class Shirts(Scenes):
    """One texture on the shirts of the persons in N frames; each frame is seen with its own control points.

    Attributes:
        seen: (N, m, 2), where the control points of each frame's shirt are seen, in units of half the image.
        meant: (m, 2), where they are on the sheet [−1, 1]²; None means those of the rendered shirts.
        folds: each is seen beside its place by up to so much in each direction, in units of half the shirt's size.
        color: what printer and camera make of colors (…, 3, h, w), differentiable; None leaves them.
        grain: μ, the standard deviation of noise on the texture, drawn for each picture.
        camera: what it adds.

    Raises:
        ValueError, TypeError: for limits out of their range, or control points of another shape, by name.
    """

    seen: Tensor
    meant: Tensor | None = None
    folds: float = 0.1
    color: Callable[[Tensor], Tensor] | None = None
    grain: float = 0.02
    camera: Camera = field(default_factory=lambda: Camera(tilt=0.03, gain=(0.75, 1.2), noise=0.02))

    def __post_init__(self) -> None:
        within("folds", (0.0, self.folds), 0.0, 0.5)
        within("grain", (0.0, self.grain), 0.0, 0.5)
        checks.floats(self.seen, "seen")
        sheet = sheet_points() if self.meant is None else self.meant
        if sheet.dim() != 2 or sheet.shape[1] != 2 or len(sheet) < 3:
            raise ValueError(f"meant: want at least three control points (m, 2), got {tuple(sheet.shape)}")
        if self.seen.dim() != 3 or self.seen.shape[1:] != sheet.shape:
            raise ValueError(f"seen: want control points (N, {len(sheet)}, 2), got {tuple(self.seen.shape)}")
        if not bool((self.seen.isfinite() & (self.seen.abs() <= 2)).all()):
            raise ValueError("seen: want control points within [−2, 2], two pictures wide, got others or NaN")

    def texture_size(self, images: Tensor) -> None:
        """A sheet has any resolution; raises unless each image has its control points."""
        if len(images) != len(self.seen):
            raise ValueError(f"scenes: want control points of each of the {len(images)} frames, got {len(self.seen)}")

    def of(self, rows: Tensor) -> Shirts:
        """The scenes of some of the frames, each as often as it is named."""
        return replace(self, seen=self.seen[rows.to(self.seen.device)])

    def before(self, images: Tensor, mask: Tensor, noise: Noise, number: int) -> Rendered:
        """The spline is solved and looked up here, once for each picture; a texture then takes one look-up."""
        self.texture_size(images)
        n, _, height, width = images.shape
        picture = self.camera.picture(images, noise, number)
        sheet = (sheet_points() if self.meant is None else self.meant).to(images)
        seen = self.seen.to(images)
        low, high = seen.amin(dim=1, keepdim=True), seen.amax(dim=1, keepdim=True)
        seen = seen + noise.uniform((number, 5), sheet.shape, images.dtype, -self.folds, self.folds) * (high - low) / 2
        at = places(height, width, images).reshape(1, -1, 2)
        reach = 0.25 * (high - low)  # far away a spline may come back to the sheet, and there is no need to ask it
        near = ((at >= low - reach) & (at <= high + reach)).all(dim=2)
        some = near.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : int(near.sum(dim=1).max())]
        there = spline(seen, sheet.expand(n, -1, -1), at[0][some])
        where = images.new_full((n, height * width, 2), 9.0).scatter(1, some[..., None].expand(-1, -1, 2), there)
        where = where.masked_fill(~near[..., None], 9.0).reshape(n, height, width, 2)  # 9 is outside of the sheet
        cover = looked_up(mask.to(images).expand(n, *mask.shape), where)
        around = images * (1 - cover)
        grain = self.grain * noise.normal((number, 6), (images.shape[1], *mask.shape[1:]), images.dtype)

        def render(texture: Tensor) -> Tensor:
            cloth = (texture + grain).clamp(0, 1)
            cloth = (cloth if self.color is None else self.color(cloth)) * mask
            return picture(around + looked_up(cloth, where))

        return render
