# Written by `python -m book.generate` from the catalogue and the modules' `__all__`.

from robustlab.defenses.aggregation.krum import krum as krum
from robustlab.defenses.aggregation.krum import krum_scores as krum_scores
from robustlab.defenses.aggregation.krum import multi_krum as multi_krum
from robustlab.defenses.aggregation.median import coordinate_median as coordinate_median
from robustlab.defenses.aggregation.norm_clipping import norm_clipping as norm_clipping
from robustlab.defenses.aggregation.trimmed_mean import trimmed_mean as trimmed_mean
from robustlab.defenses.certified.rab import noisy_models as noisy_models
from robustlab.defenses.certified.rab import rab as rab
from robustlab.defenses.certified.rab import vote_certificate as vote_certificate
from robustlab.defenses.certified.rab_neighbor import neighbor_probabilities as neighbor_probabilities
from robustlab.defenses.certified.rab_neighbor import rab_neighbor as rab_neighbor
from robustlab.defenses.certified.sanitization_bound import SanitizationBound as SanitizationBound
from robustlab.defenses.certified.sanitization_bound import sanitization_bound as sanitization_bound
from robustlab.defenses.certified.sanitization_bound import sanitizer as sanitizer
from robustlab.defenses.certified.smoothing.certify_dataset import certify_dataset as certify_dataset
from robustlab.defenses.certified.smoothing.higher_order_smoothing import higher_order_radius as higher_order_radius
from robustlab.defenses.certified.smoothing.higher_order_smoothing import (
    higher_order_smoothing as higher_order_smoothing,
)
from robustlab.defenses.certified.smoothing.pixeldp import pixeldp as pixeldp
from robustlab.defenses.certified.smoothing.pixeldp import pixeldp_radius as pixeldp_radius
from robustlab.defenses.certified.smoothing.randomized_smoothing import randomized_smoothing as randomized_smoothing
from robustlab.defenses.certified.smoothing.randomized_smoothing import smoothed_prediction as smoothed_prediction
from robustlab.defenses.certified.smoothing.renyi_smoothing import renyi_radius as renyi_radius
from robustlab.defenses.certified.smoothing.renyi_smoothing import renyi_smoothing as renyi_smoothing
from robustlab.defenses.certified.smoothing.votes import Smoothed as Smoothed
from robustlab.defenses.detection.activation_clustering import activation_clustering as activation_clustering
from robustlab.defenses.detection.feature_squeezing import Squeezed as Squeezed
from robustlab.defenses.detection.feature_squeezing import feature_squeezing as feature_squeezing
from robustlab.defenses.detection.kernel_density import Density as Density
from robustlab.defenses.detection.kernel_density import kernel_density as kernel_density
from robustlab.defenses.detection.mahalanobis import NearestClass as NearestClass
from robustlab.defenses.detection.mahalanobis import mahalanobis as mahalanobis
from robustlab.defenses.detection.neural_cleanse import Patches as Patches
from robustlab.defenses.detection.neural_cleanse import neural_cleanse as neural_cleanse
from robustlab.defenses.detection.spectral_signatures import spectral_signatures as spectral_signatures
from robustlab.defenses.detection.strip import strip as strip
from robustlab.defenses.detection.temporal_dependency import temporal_dependency as temporal_dependency
from robustlab.defenses.detection.tnd_data_free import tnd_data_free as tnd_data_free
from robustlab.defenses.detection.tnd_data_limited import tnd_data_limited as tnd_data_limited
from robustlab.defenses.purification.fine_pruning import fine_pruning as fine_pruning
from robustlab.defenses.purification.fine_tuning import fine_tuning as fine_tuning
from robustlab.defenses.purification.mode_connectivity import mode_connectivity as mode_connectivity
from robustlab.defenses.purification.unlearn import unlearn as unlearn
from robustlab.defenses.training.adversarial_training import OverfittingCheck as OverfittingCheck
from robustlab.defenses.training.adversarial_training import adversarial_training as adversarial_training
from robustlab.defenses.training.adversarial_training import robust_validation as robust_validation
from robustlab.defenses.training.cat import cat as cat
from robustlab.defenses.training.convex_adversarial_training import (
    convex_adversarial_training as convex_adversarial_training,
)
from robustlab.defenses.training.crown_ibp import crown_ibp as crown_ibp
from robustlab.defenses.training.ensemble_adversarial_training import (
    ensemble_adversarial_training as ensemble_adversarial_training,
)
from robustlab.defenses.training.ibp_training import ibp_training as ibp_training
from robustlab.defenses.training.robust_self_training import pseudo_label as pseudo_label
from robustlab.defenses.training.robust_self_training import robust_self_training as robust_self_training
from robustlab.defenses.training.sdp_training import sdp_training as sdp_training
from robustlab.defenses.training.singleprop import singleprop as singleprop
from robustlab.defenses.training.smooth_adv import smooth_adv as smooth_adv
from robustlab.defenses.training.sprout import sprout as sprout
from robustlab.defenses.training.stability_training import stability_training as stability_training
from robustlab.defenses.training.topology_training import TopologyTraining as TopologyTraining
from robustlab.defenses.training.topology_training import topology_training as topology_training
from robustlab.defenses.training.tradeoff import Tradeoff as Tradeoff
from robustlab.defenses.training.tradeoff import architectures as architectures
from robustlab.defenses.training.tradeoff import tradeoff as tradeoff
from robustlab.defenses.training.trades import trades as trades
from robustlab.defenses.training.trim import trim as trim
from robustlab.defenses.training.unsupervised_adversarial_training import (
    unsupervised_adversarial_training as unsupervised_adversarial_training,
)
