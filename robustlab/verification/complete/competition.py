"""One instance of the verification competition: an ONNX network and a VNN-LIB property.

Answers are in the competition's words (Brix et al., "The third international verification of neural networks
competition", 2022): ``sat`` with a witness, ``unsat``, ``unknown``, ``timeout``. A witness is replayed by ONNX's own
reference evaluator, in the file's numbers, before it is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustlab.graph.files import named
from robustlab.graph.node import Graph
from robustlab.graph.onnx_file import load_onnx
from robustlab.graph.onnx_reader import network_input
from robustlab.graph.read_onnx import read_onnx
from robustlab.graph.time_limit import OutOfTime, tick, time_limit
from robustlab.verification.complete.branch_and_bound import solve
from robustlab.verification.complete.query import Case, Clock, Verdict
from robustlab.verification.complete.vnnlib import Property, read_vnnlib

if TYPE_CHECKING:
    from onnx import ModelProto

Reference = Callable[[Tensor], Tensor]
"""From one flat input in float32 to the flat output in float64."""

WORDS = {"verified": "unsat", "falsified": "sat"}
TOGETHER = 256  # cases that are searched at once


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
        specification: a VNN-LIB file, perhaps compressed.
        timeout: seconds, reading included; None for no limit. The answer is then ``timeout``, within a second.
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
    network, specification = Path(network), Path(specification)
    try:
        with time_limit(clock.end):
            return _decide(network, specification, clock, memory, torch.device(device), progress)
    except OutOfTime:
        return "timeout", None


def _decide(
    network: Path, specification: Path, clock: Clock, memory: float | None, device: torch.device, progress: bool
) -> tuple[str, str | None]:
    unsafe = read_vnnlib(specification)
    proto = load_onnx(network)
    with named(network.name):
        graph = read_onnx(proto)
        name, shape = network_input(proto)
        reference = _reference(proto, name, shape)
    sizes = int(np.prod(shape)), int(np.prod(graph.output_shape))
    if not unsafe.outputs:  # a property of inputs alone
        unsafe = replace(unsafe, outputs=sizes[1])
    if sizes != (unsafe.inputs, unsafe.outputs):
        raise ValueError(
            f"{specification.name}: want {sizes[0]} inputs and {sizes[1]} outputs, which the network has, "
            f"got {unsafe.inputs} and {unsafe.outputs}"
        )
    asked = _Asked(reference, unsafe)
    status, several, first = "verified", iter(unsafe), True
    while cases := list(islice(several, TOGETHER)):
        if first:
            _compare(graph, reference, cases, clock, network.name)
        first = False
        verdict: Verdict = solve(
            graph.to(device), cases, partial(asked, cases), clock, memory=memory, progress=progress
        )
        if verdict.witness is not None:
            return "sat", asked.written
        if verdict.status != "verified" and status != "timeout":
            status = verdict.status
        if clock.over:
            status = "timeout" if status == "verified" else status
            break
    return WORDS.get(status, status), None


class _Asked:
    """Ask the reference evaluator about candidates; the first that violates nothing of the file is written down.

    The network reads float32. What is written of an input is the number in the case's box that is nearest to the one
    it read, and rounds to it; so that the pair, as it is written, is unsafe in exact arithmetic.
    """

    def __init__(self, reference: Reference, unsafe: Property) -> None:
        self.reference, self.unsafe = reference, unsafe
        self.written = ""

    def __call__(self, cases: list[Case], points: Tensor) -> Tensor | None:
        for point in points.cpu().double():
            tick()
            x = point.float()
            answer: Tensor | None = None
            for case in cases:
                inside = x.double().clamp(case.low, case.high)
                if not bool((inside.float() == x).all()):
                    continue
                answer = self.reference(x) if answer is None else answer
                if float(case.margin(answer[None])[0]) <= 0 and self._is_unsafe(inside, answer):
                    return x
        return None

    def _is_unsafe(self, x: Tensor, y: Tensor) -> bool:
        if not bool(y.isfinite().all()):
            return False
        values = {f"{letter}_{i}": v for letter, part in (("X", x), ("Y", y)) for i, v in enumerate(part.tolist())}
        if not self.unsafe.holds(values):
            return False
        self.written = "(" + "\n ".join(f"({name} {value!r})" for name, value in values.items()) + ")"
        return True


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

    try:
        evaluator = ReferenceEvaluator(proto, new_ops=[BatchNormalization])
    except Exception as error:  # any kind of error, see below
        raise ValueError(f"ONNX's reference evaluator cannot read it: {error}") from error

    def run(x: Tensor) -> Tensor:
        try:
            (y,) = evaluator.run(None, {name: x.numpy().reshape(shape)})
        except Exception as error:  # any kind of error: its operators are written in NumPy
            raise ValueError(f"network: ONNX's reference evaluator cannot run it: {error}") from error
        return torch.from_numpy(np.asarray(y)).flatten().double()

    return run


def _compare(graph: Graph, reference: Reference, cases: list[Case], clock: Clock, name: str) -> None:
    """Refuse a graph that is another function than the file, on the smallest box around some cases.

    The search trusts the graph, and only counterexamples are replayed: what was misread could be ``unsat``. Four points
    are few enough for the evaluator, which is slow; where it needs seconds for each, there are fewer.
    """
    low = torch.stack([case.low for case in cases]).amin(0)
    high = torch.stack([case.high for case in cases]).amax(0)
    inside = torch.rand(low.shape, dtype=low.dtype, generator=torch.Generator().manual_seed(0))
    patience = Clock(5.0)
    for share in (inside, torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.5)):
        if clock.over or (share is not inside and patience.over):
            return
        x = (low + share * (high - low)).float()
        wanted = reference(x)
        if not bool(wanted.isfinite().all()):
            raise ValueError(f"network: {name} gives NaN or infinity at a point of the box; want numbers there")
        got = graph(x.double().reshape(1, *graph.input_shape)).flatten()
        gap = float((got - wanted).abs().max()) if got.shape == wanted.shape else torch.inf
        if not gap <= 1e-3 * (1 + float(wanted.abs().max())):
            raise ValueError(
                f"network: {name} was read as another function: outputs differ by {gap:.3g} from those of ONNX's "
                "reference evaluator; want a network of operators that are read as they are meant"
            )
