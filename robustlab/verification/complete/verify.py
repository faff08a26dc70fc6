"""One door to the complete verifiers: is a label kept on a whole ℓ∞ ball?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.attacker.victim import Victim
from robustlab.graph.arithmetic import full_precision
from robustlab.graph.node import Graph
from robustlab.graph.time_limit import OutOfTime, time_limit
from robustlab.graph.tracing import trace
from robustlab.verification.complete.processes import answers
from robustlab.verification.complete.query import Clock, Replay, Verdict, graph_device, label_cases
from robustlab.verification.complete.rounding import rounding_error
from robustlab.verification.complete.rules import Branching, check_branching
from robustlab.verification.propagation.alpha_crown import AlphaScope
from robustlab.verification.propagation.layers import interval_layers
from robustlab.verification.propagation.region import Box

__all__ = ["verify"]

SolverName = Literal["branch_and_bound", "milp", "reluplex"]
METHODS = get_args(SolverName)

_TOO_ROUGH = 0.01  # what rounding may change, as a share of the outputs, if no more can be made of it


@full_precision()
def verify(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["linf"] = "linf",
    eps: float | Tensor,
    method: SolverName = "branch_and_bound",
    branching: Branching = "auto",
    alpha: AlphaScope = "output",
    timeout: float | None = 60.0,
    memory: float | None = 2.0,
    processes: int = 1,
    box: tuple[float, float] = (0.0, 1.0),
    progress: bool = False,
) -> Certificate:
    """Decide, sample by sample, whether labels are kept on ℓ∞ balls.

    Label y is kept if f_y(x′) > f_k(x′) for all k ≠ y and all x′ in the box with ‖x′ − x‖∞ ≤ ε. A complete verifier
    answers that with yes or with an x′, given time:

    * verified: for every k the solver has shown f_y − f_k > r + 1e-6·s on the ball, in float64. Here r is what the
      model may lose there by rounding in its own dtype, so that the model that runs keeps its label; s is 1, or a power
      of two near the outputs where these are not within a factor of 2¹⁰ of 1. Where r is not known to be below 1 % of
      the outputs, as in deep networks or with enormous weights in float32, it is left out, and ``method`` ends in
      ``in exact arithmetic``: what is shown is then shown of the function;
    * falsified: there is an x′ in the ball whose label, asked of the model itself, is not y;
    * unknown: time or memory ran out, what decides is that close to a tie, or the model may overflow on the ball.

    Args:
        model: from (N, ...) to (N, K), with operators that the method knows.
        x: (N, ...) in the box.
        y: (N,) labels; None takes the model's own prediction.
        norm: ``"linf"``, the only one.
        eps: ε > 0, one number or one per sample, in the units of x.
        method: ``"branch_and_bound"`` (default), ``"milp"`` or ``"reluplex"``.
        branching, alpha: of branch and bound alone: as in :func:`robustlab.verification.branch_and_bound`.
        timeout: seconds for each sample (default 60); None for no limit.
        memory: GB that the open domains of branch and bound may take (default 2); None for no limit.
        processes: how many samples are decided at a time, each by a process of its own; 1 (default) decides one after
            the other in this process. Answers do not depend on it, but for what time runs out on. A sample whose
            process dies is unknown, with a warning that says why. Scripts need ``if __name__ == "__main__":`` then.
        box: the range of valid inputs (default (0, 1)).
        progress: show a bar, where the method has one.

    Returns:
        A Certificate; the radius is ε where verified, else 0; counterexamples are (N, ...), NaN where there is none.

    Raises:
        ValueError, TypeError: naming the argument that is wrong, or the operator that the method does not know.

    Source: Katz et al. (2017); Tjeng et al. (2019); Bunel et al. (2018).
    """
    checks.one_of("method", method, METHODS)
    if norm != "linf":
        raise ValueError(f"norm: complete verifiers want 'linf', got {norm!r}")
    checks.images(x, box, strict=True, takes="box={}")
    radius = checks.per_sample("eps", eps, x)
    checks.radius(eps, x, norm, box)  # tells of a ball wider than the box
    exact = torch.as_tensor(eps, dtype=torch.float64).expand(len(x))  # a number is not rounded to the dtype of x
    if timeout is not None:
        checks.positive("timeout", timeout)
    if memory is not None:
        checks.positive("memory", memory)
    checks.at_least("processes", processes, 1, integer=True)
    options = _options(method, branching, alpha, progress, memory)
    victim = Victim(model, bounds=box)
    status, witnesses = ["unknown"] * len(x), torch.full_like(x, torch.nan)
    graph = trace(model, x).to(torch.float64) if len(x) else None
    if graph is not None:
        graph.require_finite()
    rows, tasks, replays = [], [], []
    with victim.session(x, y) as session:
        for i in range(len(x)):
            assert graph is not None and session.clean is not None
            label = int(session.y[i])
            if bool(session.lost[i]):
                continue
            if int(session.clean[i].argmax()) != label:
                status[i], witnesses[i] = "falsified", x[i]
                continue
            low, high = ball(x[i], float(exact[i]), box)
            largest = float(session.clean[i].abs().max())
            tasks.append(Task(graph, low, high, label, largest, x.dtype, method, timeout, options))
            replays.append(_replay(model, x[i], label, low, high))
            rows.append(i)
        found = _decided(tasks, replays, rows, processes)
    for i, (verdict, _) in zip(rows, found, strict=True):
        status[i] = verdict.status
        if verdict.witness is not None:
            witnesses[i] = verdict.witness.to(x)
    only_exact = any(rough and verdict.status == "verified" for verdict, rough in found)
    verified, falsified = (
        torch.tensor([s == word for s in status], dtype=torch.bool, device=x.device)
        for word in ("verified", "falsified")
    )
    return Certificate(
        verified=verified,
        falsified=falsified,
        radius=torch.where(verified, radius, 0.0),
        norm=norm,
        method=f"{method}, in exact arithmetic" if only_exact else method,
        counterexample=witnesses if bool(falsified.any()) else None,
    )


def _options(
    method: SolverName, branching: Branching, alpha: AlphaScope, progress: bool, memory: float | None
) -> dict[str, Any]:
    """What the method's own solver is given."""
    check_branching(branching, alpha)
    if method == "branch_and_bound":
        return {"branching": branching, "alpha": alpha, "progress": progress, "memory": memory}
    if (branching, alpha) != ("auto", "output"):
        raise ValueError(f"branching, alpha: want 'auto' and 'output' with {method!r}, got {branching!r} and {alpha!r}")
    return {}


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked of one sample.

    Attributes:
        graph: in float64.
        low, high: the ends of its ball.
        label: to be kept.
        largest: of the absolute logits at its center.
        dtype: in which the model runs.
        method, timeout, options: as ``verify`` was given them.
        device: where the bounds are computed, if that is not where the graph is.
    """

    graph: Graph
    low: Tensor
    high: Tensor
    label: int
    largest: float
    dtype: torch.dtype
    method: SolverName
    timeout: float | None
    options: dict[str, Any]
    device: torch.device | None = None

    def apart(self) -> Task:
        """The same for another process: all on the CPU."""
        quiet = {key: value for key, value in self.options.items() if key != "progress"}
        return replace(self, graph=self.graph.to("cpu"), options=quiet, device=graph_device(self.graph))


def _decided(
    tasks: Sequence[Task], replays: Sequence[Replay], rows: Sequence[int], processes: int
) -> list[tuple[Verdict, bool]]:
    """What :func:`decide` finds of each task, here or on processes."""
    if processes == 1 or not tasks:
        return [decide(task, replay) for task, replay in zip(tasks, replays, strict=True)]
    return answers(
        decide_apart, [task.apart() for task in tasks], replays,
        rows=rows, processes=processes, timeout=tasks[0].timeout, lost=(Verdict("unknown"), False),
    )  # fmt: skip


def decide(task: Task, replay: Replay) -> tuple[Verdict, bool]:
    """The verdict, and whether rounding is left out of it."""
    clock, verdict, too_rough = Clock(task.timeout), Verdict("timeout"), False
    solve = import_module(f"robustlab.verification.complete.{task.method}").solve
    with suppress(OutOfTime), time_limit(clock.end):
        errors = _rounding(task.graph, task.low, task.high, task.dtype)
        if not bool(errors.isfinite().all()):
            return Verdict("unknown"), False
        if too_rough := float(errors.max()) > _TOO_ROUGH * task.largest:
            errors *= torch.finfo(torch.float64).eps / torch.finfo(task.dtype).eps  # float64's, in which we prove
        cases = label_cases(task.low.flatten(), task.high.flatten(), task.label, len(errors), errors)
        verdict = solve(task.graph, cases, replay, clock, **task.options)
    return verdict, too_rough


@full_precision()
def decide_apart(task: Task, replay: Replay) -> tuple[Verdict, bool]:
    """The same in another process."""
    assert task.device is not None
    return decide(replace(task, graph=task.graph.to(task.device)), replay)


def _rounding(graph: Graph, low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding may change in each output on a ball, (K,) on the CPU; ∞ where a number may leave the dtype."""
    box = Box(*(end.reshape(1, *graph.input_shape).to(graph_device(graph)) for end in (low, high)))
    layers = interval_layers(graph, box)
    errors = rounding_error(graph, layers, dtype)[0].cpu()
    largest = torch.stack([bounds.largest.amax() for bounds in layers]).amax()
    return errors if bool(largest <= torch.finfo(dtype).max) else torch.full_like(errors, torch.inf)  # NaN neither


def ball(x: Tensor, eps: float, box: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The ends of the ℓ∞ ball within the box, float64 on the CPU."""
    center = x.detach().double().cpu()
    return (center - eps).clamp(*box), (center + eps).clamp(*box)


def _replay(model: nn.Module, x: Tensor, y: int, low: Tensor, high: Tensor) -> Replay:
    """Ask the model itself, in its own dtype, at the nearest points that are in the ball in that dtype too."""
    inside = tuple(_inward(end, x, sign) for end, sign in ((low, 1.0), (high, -1.0)))

    def ask(points: Tensor) -> Tensor | None:
        candidates = points.reshape(-1, *x.shape).to(x).clamp(*inside)
        wrong = model(candidates).argmax(dim=1) != y
        return candidates[int(wrong.int().argmax())] if bool(wrong.any()) else None

    return ask


def _inward(end: Tensor, x: Tensor, sign: float) -> Tensor:
    """An end of the ball in the dtype of x, rounded towards the inside."""
    near = end.to(x)
    beyond = (near.double() - end.to(x.device)) * sign < 0
    return torch.where(beyond, torch.nextafter(near, x), near)
