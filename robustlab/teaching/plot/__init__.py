"""Figures that several chapters share. Importing this package imports matplotlib."""

from robustlab.teaching.plot.curves import robust_accuracy_curve
from robustlab.teaching.plot.images import image_grid, show_image, small_multiples
from robustlab.teaching.plot.life_cycle import lifecycle
from robustlab.teaching.plot.sliders import slider
from robustlab.teaching.plot.theme import COLORS, style
from robustlab.teaching.plot.threat_taxonomy import taxonomy

__all__ = [
    "COLORS",
    "image_grid",
    "lifecycle",
    "robust_accuracy_curve",
    "show_image",
    "slider",
    "small_multiples",
    "style",
    "taxonomy",
]
