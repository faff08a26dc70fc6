"""One instance of the verification competition: an ONNX network and a VNN-LIB property.

Answers are in the competition's words (Brix et al., "The third international verification of neural networks
competition", 2022): ``sat`` with a witness, ``unsat``, ``unknown``, ``timeout``. A witness is replayed by ONNX's own
reference evaluator, in the file's numbers, before it is told.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustlab.graph.node import Graph
from robustlab.graph.onnx_reader import network_input
from robustlab.graph.read_onnx import load_onnx, read_onnx
from robustlab.verification.complete.branch_and_bound import solve
from robustlab.verification.complete.query import Case, Clock, Replay, Verdict
from robustlab.verification.complete.vnnlib import read_vnnlib

if TYPE_CHECKING:
    from onnx import ModelProto

Reference = Callable[[Tensor], Tensor]
"""From one flat input in float32 to the flat output in float64."""

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
        ValueError: if a file is not understood, or the two do not fit together, or the graph that was read differs from
            the network at one of four points.

    Source: Bunel et al. (2018); Xu et al. (2021).
    """
    clock = Clock(timeout)
    proto, cases = load_onnx(network), read_vnnlib(specification)
    graph = read_onnx(proto)
    name, shape = network_input(proto)
    sizes = int(np.prod(shape)), int(np.prod(graph.output_shape))
    for case in cases:
        if sizes != (len(case.low), case.C.shape[1]):
            raise ValueError(
                f"specification: want {sizes[0]} inputs and {sizes[1]} outputs, which the network has, "
                f"got {len(case.low)} and {case.C.shape[1]}"
            )
    reference = _reference(proto, name, shape)
    _compare(graph, reference, cases, clock, Path(network).name)
    outputs: list[Tensor] = []
    replay = _replay(reference, cases, outputs)
    verdict: Verdict = solve(graph.to(torch.device(device)), cases, replay, clock, memory=memory, progress=progress)
    if verdict.witness is None:
        return WORDS.get(verdict.status, verdict.status), None
    pairs = [("X", verdict.witness), ("Y", outputs[0])]
    lines = [f"({letter}_{i} {float(v)!r})" for letter, values in pairs for i, v in enumerate(values)]
    return "sat", "(" + "\n ".join(lines) + ")"


def _reference(proto: ModelProto, name: str, shape: tuple[int, ...]) -> Reference:
    """ONNX's own evaluator, in the file's numbers."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):
        """At rest, as all that we read is; below opset 14 the evaluator's own mixes in the input's statistics."""

        op_domain = ""

        def _run(self, x: Any, gain: Any, offset: Any, mean: Any, variance: Any, *, epsilon: Any, **_: Any) -> Any:
            gain, offset, mean, variance = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (gain, offset, mean, variance))
            return ((gain * (x - mean) / np.sqrt(variance + epsilon) + offset).astype(x.dtype),)

    evaluator = ReferenceEvaluator(proto, new_ops=[BatchNormalization])

    def run(x: Tensor) -> Tensor:
        try:
            (y,) = evaluator.run(None, {name: x.numpy().reshape(shape)})
        except Exception as error:  # of any kind: its operators are written in NumPy
            raise ValueError(f"network: ONNX's reference evaluator cannot run it: {error}") from error
        return torch.from_numpy(np.asarray(y)).flatten().double()

    return run


def _compare(graph: Graph, reference: Reference, cases: list[Case], clock: Clock, name: str) -> None:
    """Refuse a graph that is another function than the file, on the smallest box around all cases.

    The search trusts the graph, and only counterexamples are replayed: what was misread could be ``unsat``. Four points
    are few enough for the evaluator, which is slow; where it needs seconds for each, there are fewer.
    """
    if not cases:
        return
    low = torch.stack([case.low for case in cases]).amin(0)
    high = torch.stack([case.high for case in cases]).amax(0)
    inside = torch.rand(low.shape, dtype=low.dtype, generator=torch.Generator().manual_seed(0))
    patience = Clock(5.0)
    for share in (inside, torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.5)):
        if clock.over or (share is not inside and patience.over):
            return
        x = (low + share * (high - low)).float()
        wanted = reference(x)
        got = graph(x.double().reshape(1, *graph.input_shape)).flatten()
        gap = float((got - wanted).abs().max()) if got.shape == wanted.shape else torch.inf
        if not gap <= 1e-3 * (1 + float(wanted.abs().max())):
            raise ValueError(
                f"network: {name} was read as another function: outputs differ by {gap:.3g} from those of ONNX's "
                "reference evaluator; want a network of operators that are read as they are meant"
            )


def _replay(reference: Reference, cases: list[Case], outputs: list[Tensor]) -> Replay:
    """Ask the reference evaluator; the outputs at the witness are left in ``outputs``."""

    def ask(points: Tensor) -> Tensor | None:
        for point in points.cpu():
            x = point.to(torch.float32)
            answer = reference(x)
            for case in cases:
                # The box is met up to the rounding of its ends to float32.
                inside = bool(((x >= case.low.float()) & (x <= case.high.float())).all())
                if inside and float(case.margin(answer[None])[0]) <= 0:
                    outputs[:] = [answer]
                    return x
        return None

    return ask
