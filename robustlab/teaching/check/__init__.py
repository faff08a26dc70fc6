"""Checks of your own code while you write it: ``from robustlab.teaching import check; check.pgd(my_pgd)``.

A check runs your function on small random models on which the right answer is known in closed form. If it is wrong, the
check says what the result looks like, what the likely cause is, and a first hint; ``hints=2`` shows one more.
"""

from robustlab.teaching.check.aggregation import aggregation
from robustlab.teaching.check.backdoor_rates import backdoor_rates
from robustlab.teaching.check.black_box import black_box
from robustlab.teaching.check.dual_value import dual_value
from robustlab.teaching.check.exact_minimum import exact_minimum
from robustlab.teaching.check.farthest_point import farthest_point
from robustlab.teaching.check.features import spectral_scores
from robustlab.teaching.check.finding import Wrong
from robustlab.teaching.check.gradient_attacks import fgsm, pgd
from robustlab.teaching.check.hard_label import hard_label
from robustlab.teaching.check.hue_tube import hue_tube
from robustlab.teaching.check.linear_bounds import crown, intervals
from robustlab.teaching.check.minimum_norm import affine_optimum, bisection, deepfool
from robustlab.teaching.check.onto_budget import onto_budget
from robustlab.teaching.check.onto_sets import ConvexSet, projection
from robustlab.teaching.check.shrinkage import shrinkage
from robustlab.teaching.check.slope_maxima import slope_maxima
from robustlab.teaching.check.slopes import slope_estimate
from robustlab.teaching.check.smoothing import certify, lower_bound
from robustlab.teaching.check.surrogate import surrogate
from robustlab.teaching.check.temporal_score import temporal_score
from robustlab.teaching.check.texture import texture
from robustlab.teaching.check.triggers import trigger_search, trigger_size
from robustlab.teaching.check.trimmed_fit import trimmed_fit
from robustlab.teaching.check.worst_margins import worst_margins
from robustlab.teaching.check.worst_of import worst_of

__all__ = [
    "ConvexSet",
    "Wrong",
    "affine_optimum",
    "aggregation",
    "backdoor_rates",
    "bisection",
    "black_box",
    "certify",
    "crown",
    "deepfool",
    "dual_value",
    "exact_minimum",
    "farthest_point",
    "fgsm",
    "hard_label",
    "hue_tube",
    "intervals",
    "lower_bound",
    "onto_budget",
    "pgd",
    "projection",
    "shrinkage",
    "slope_estimate",
    "slope_maxima",
    "spectral_scores",
    "surrogate",
    "temporal_score",
    "texture",
    "trigger_search",
    "trigger_size",
    "trimmed_fit",
    "worst_margins",
    "worst_of",
]
