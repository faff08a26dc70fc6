"""Shipped checkpoints, each with the recipe that reproduces it: ``python -m robustlab.zoo list``."""

from robustlab.zoo.recipes import Backdoor, Recipe, recipe
from robustlab.zoo.shipped import info, load, names, trigger
from robustlab.zoo.training import Measurement, check, measure, train

__all__ = [
    "Backdoor", "Measurement", "Recipe", "check", "info", "load", "measure", "names", "recipe", "train", "trigger",
]  # fmt: skip
