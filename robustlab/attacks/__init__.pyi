from robustlab.attacks.whitebox.cw import cw as cw
from robustlab.attacks.whitebox.deepfool import deepfool as deepfool
from robustlab.attacks.whitebox.fgsm import bim as bim
from robustlab.attacks.whitebox.fgsm import fgsm as fgsm
from robustlab.attacks.whitebox.lbfgs import lbfgs as lbfgs
from robustlab.attacks.whitebox.pgd import pgd as pgd
