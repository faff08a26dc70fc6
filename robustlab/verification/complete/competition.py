"""One instance of the verification competition: an ONNX network and a VNN-LIB property.

Answers are in the competition's words (Brix et al., "The third international verification of neural networks
competition", 2022): ``sat`` with a witness, ``unsat``, ``unknown``, ``timeout``. A witness is replayed by ONNX's own
reference evaluator, in the file's numbers, before it is told.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustlab.verification.complete.branch_and_bound import solve
from robustlab.verification.complete.query import Case, Clock, Replay, Verdict
from robustlab.verification.complete.vnnlib import read_vnnlib
from robustlab.verification.graph.onnx_reader import network_input
from robustlab.verification.graph.read_onnx import load_onnx, read_onnx

WORDS = {"verified": "unsat", "falsified": "sat"}


def check(
    network: str | Path,
    specification: str | Path,
    *,
    timeout: float | None = None,
    memory: float | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> tuple[str, str | None]:
    """Decide a property of a network by branch and bound.

    Args:
        network: an ONNX file, perhaps compressed (``.gz``).
        specification: a VNN-LIB 1.0 file, perhaps compressed.
        timeout: seconds, reading included; None for no limit.
        memory: GB that open domains may take before the answer is ``unknown``; None for no limit.
        device: where bounds are computed.
        progress: show a bar.

    Returns:
        The answer, and for ``sat`` the witness as the competition writes it, ``((X_0 …) … (Y_0 …) …)``.

    Raises:
        ValueError: if a file is not understood, or the two do not fit together.

    Source: Bunel et al. (2018); Xu et al. (2021).
    """
    clock = Clock(timeout)
    proto, cases = load_onnx(network), read_vnnlib(specification)
    graph = read_onnx(proto).to(torch.device(device))
    name, shape = network_input(proto)
    sizes = int(np.prod(shape)), int(np.prod(graph.output_shape))
    for case in cases:
        if sizes != (len(case.low), case.C.shape[1]):
            raise ValueError(
                f"specification: want {sizes[0]} inputs and {sizes[1]} outputs, which the network has, "
                f"got {len(case.low)} and {case.C.shape[1]}"
            )
    outputs: list[Tensor] = []
    replay = _replay(proto, name, shape, cases, outputs)
    verdict: Verdict = solve(graph, cases, replay, clock, memory=memory, progress=progress)
    if verdict.witness is None:
        return WORDS.get(verdict.status, verdict.status), None
    pairs = [("X", verdict.witness), ("Y", outputs[0])]
    lines = [f"({letter}_{i} {float(v)!r})" for letter, values in pairs for i, v in enumerate(values)]
    return "sat", "(" + "\n ".join(lines) + ")"


def _replay(proto: object, name: str, shape: tuple[int, ...], cases: list[Case], outputs: list[Tensor]) -> Replay:
    """Ask the reference evaluator; the outputs at the witness are left in ``outputs``."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(proto)

    def ask(points: Tensor) -> Tensor | None:
        for point in points.cpu():
            x = point.to(torch.float32)
            (y,) = evaluator.run(None, {name: x.numpy().reshape(shape)})
            answer = torch.from_numpy(np.asarray(y)).flatten().double()
            for case in cases:
                # The box is met up to the rounding of its ends to float32.
                inside = bool(((x >= case.low.float()) & (x <= case.high.float())).all())
                if inside and float(case.margin(answer[None])[0]) <= 0:
                    outputs[:] = [answer]
                    return x
        return None

    return ask
