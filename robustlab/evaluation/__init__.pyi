# Written by `python -m book.generate` from the catalogue and the modules' `__all__`.

from robustlab.defenses.robustness_claim import Claim as Claim
from robustlab.evaluation.adaptive.bpda import bpda as bpda
from robustlab.evaluation.adaptive.eot import eot as eot
from robustlab.evaluation.adaptive.eot_attack import EotResult as EotResult
from robustlab.evaluation.adaptive.eot_attack import eot_attack as eot_attack
from robustlab.evaluation.adaptive.random_views import RandomViews as RandomViews
from robustlab.evaluation.adaptive.random_views import Views as Views
from robustlab.evaluation.hygiene.checklist import ChecklistReport as ChecklistReport
from robustlab.evaluation.hygiene.checklist import checklist as checklist
from robustlab.evaluation.protocol.autoattack import autoattack as autoattack
from robustlab.evaluation.protocol.report import AttackRun as AttackRun
from robustlab.evaluation.protocol.report import AutoAttackReport as AutoAttackReport
from robustlab.evaluation.protocol.transfer_matrix import TransferMatrix as TransferMatrix
from robustlab.evaluation.protocol.transfer_matrix import transfer_matrix as transfer_matrix
from robustlab.evaluation.protocol.unrestricted import Contest as Contest
from robustlab.evaluation.protocol.unrestricted import Submission as Submission
from robustlab.evaluation.protocol.unrestricted import unanimous as unanimous
from robustlab.evaluation.protocol.unrestricted import unrestricted as unrestricted
from robustlab.evaluation.robust_accuracy import RobustAccuracy as RobustAccuracy
from robustlab.evaluation.robust_accuracy import evaluate as evaluate
