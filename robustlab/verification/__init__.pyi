# Written by `python -m book.generate` from the catalogue and the modules' `__all__`.

from robustlab.graph.interval import Bounds as Bounds
from robustlab.graph.node import Graph as Graph
from robustlab.graph.read_onnx import read_onnx as read_onnx
from robustlab.graph.trace import trace as trace
from robustlab.verification.complete.branch_and_bound import branch_and_bound as branch_and_bound
from robustlab.verification.complete.milp import milp as milp
from robustlab.verification.complete.reluplex import reluplex as reluplex
from robustlab.verification.complete.verify import verify as verify
from robustlab.verification.complete.vnnlib import read_vnnlib as read_vnnlib
from robustlab.verification.duals.lagrangian_dual import lagrangian_dual as lagrangian_dual
from robustlab.verification.estimates.clever import clever as clever
from robustlab.verification.propagation.alpha_crown import alpha_crown as alpha_crown
from robustlab.verification.propagation.certify import bounds as bounds
from robustlab.verification.propagation.certify import certified_radius as certified_radius
from robustlab.verification.propagation.certify import certify as certify
from robustlab.verification.propagation.cnn_cert import cnn_cert as cnn_cert
from robustlab.verification.propagation.crown import crown as crown
from robustlab.verification.propagation.fast_lin import fast_lin as fast_lin
from robustlab.verification.propagation.fast_lip import fast_lip as fast_lip
from robustlab.verification.propagation.fast_lip import lipschitz_bound as lipschitz_bound
from robustlab.verification.propagation.ibp import ibp as ibp
from robustlab.verification.propagation.lirpa import lirpa as lirpa
from robustlab.verification.propagation.region import Ball as Ball
from robustlab.verification.propagation.region import Box as Box
from robustlab.verification.propagation.wong_kolter import wong_kolter as wong_kolter
