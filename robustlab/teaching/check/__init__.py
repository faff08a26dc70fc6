"""Checks of your own code while you write it: ``from robustlab.teaching.check.finding import Wrong
from robustlab.teaching.check.gradient_attacks import fgsm, pgd
from robustlab.teaching.check.linear_bounds import crown, intervals
from robustlab.teaching.check.minimum_norm import affine_optimum, bisection, deepfool
from robustlab.teaching.check.onto_sets import ConvexSet, projection

__all__ = [
    "ConvexSet",
    "Wrong",
    "affine_optimum",
    "bisection",
    "crown",
    "deepfool",
    "fgsm",
    "intervals",
    "pgd",
    "projection",
]
