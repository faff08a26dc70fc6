from robustlab import attacks as attacks
from robustlab import data as data
from robustlab import defenses as defenses
from robustlab import evaluation as evaluation
from robustlab import models as models
from robustlab import verification as verification
from robustlab import zoo as zoo
from robustlab.attacker.victim import Victim as Victim
from robustlab.training.fit import fit as fit

__version__: str
