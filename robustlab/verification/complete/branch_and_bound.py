"""Branch and bound: where a bound does not decide, split the problem and bound the parts.

Bunel, Turkaslan, Torr, Kohli and Mudigonda, "A unified view of piecewise linear neural network verification" (2018);
Xu et al., "Fast and complete" (2021), for bounds by α-CROWN on whole batches of subproblems; Wang et al., "Beta-CROWN"
(2021), for multipliers of the split constraints. A *domain* is a box of inputs and, for some ReLUs, an assumed sign.

    bound    a linear lower bound of every margin on each domain; positive: the domain is closed
    attack   where the whole is not closed, projected gradient descent first: a counterexample ends the search
    look     the point where a linear bound is least may be a counterexample
    branch   every open domain is cut in two, the domains with the lowest bounds first

Networks with few inputs are split in the input: along the side with the largest |slope of the linear bound| · width,
not the longest one. Others are split at ReLUs: at the one whose relaxation costs the bound most. Where every ReLU of a
domain is decided the network is linear there, and a linear program in x gives the exact answer.

Different here: bounds of hidden layers are computed anew on each domain (Xu et al. keep the root's), which pays for the
small networks of this book.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.graph.node import Graph
from robustlab.graph.time_limit import OutOfTime, time_limit
from robustlab.verification.complete.branching import (
    Domains,
    closed,
    costly_relu,
    halves,
    joined,
    known_of,
    numbered,
    select,
    sensitive_side,
    whole,
)
from robustlab.verification.complete.descent import descend, stacked
from robustlab.verification.complete.leaf import leaf_minimum
from robustlab.verification.complete.query import Case, Clock, Replay, Verdict, graph_device, relative
from robustlab.verification.complete.verify import verify
from robustlab.verification.propagation.alpha_crown import optimized_bound
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import Layers, layer_bounds
from robustlab.verification.propagation.region import Box

FEW_INPUTS = 12  # up to so many inputs that vary, these are split
TOGETHER = 2**23  # numbers that all domains of a batch may have at the widest node, so that a step takes no second
_THIN = 1e-9  # boxes without a side longer than this are not split


def branch_and_bound(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["linf"] = "linf",
    eps: float | Tensor,
    timeout: float | None = 60.0,
    memory: float | None = 2.0,
    box: tuple[float, float] = (0.0, 1.0),
    progress: bool = False,
) -> Certificate:
    """Decide by branch and bound whether labels are kept on ℓ∞ balls.

    Args:
        model: from (N, ...) to (N, K). Complete for affine layers and ReLUs, and for any network with few inputs; else
            there may be no answer.
        x: (N, ...) in the box.
        y: (N,) labels; None takes the model's own prediction.
        norm: ``"linf"``.
        eps: ε > 0, one number or one per sample, in the units of x.
        timeout: seconds for each sample (default 60), None for no limit; then nothing is known of it.
        memory: GB that the open domains of a sample may take (default 2), None for no limit; then the same.
        box: the range of valid inputs (default (0, 1)).
        progress: show a bar with the number of open domains.

    Returns:
        A Certificate: per sample verified, falsified with a counterexample that was replayed on the model, or neither.

    Raises:
        ValueError, TypeError: naming the argument, or the operator that is not known.

    Source: Bunel et al. (2018), algorithm 1; Xu et al. (2021); Wang et al. (2021).
    """
    return verify(
        model,
        x,
        y,
        norm=norm,
        eps=eps,
        method="branch_and_bound",
        timeout=timeout,
        memory=memory,
        box=box,
        progress=progress,
    )


def solve(
    graph: Graph,
    cases: list[Case],
    replay: Replay,
    clock: Clock,
    *,
    split: Literal["auto", "input", "relu"] = "auto",
    batch: int = 256,
    memory: float | None = 2.0,
    steps: int | None = None,
    progress: bool = False,
) -> Verdict:
    """Decide a query.

    Args:
        graph: in float64.
        cases, replay, clock: as in :mod:`~robustlab.verification.complete.query`.
        split: ``"input"``, ``"relu"``, or ``"auto"``: by the number of inputs that vary.
        batch: domains that are split at once.
        memory: GB of open domains at which to give up (``"unknown"``); None for no limit.
        steps: ascent steps of α-CROWN on each domain; None takes 0 for input splits, 10 for ReLU splits.
        progress: show a bar.

    Returns:
        The verdict; details count domains and leaves.
    """
    checks.one_of("split", split, ("auto", "input", "relu"))
    if not cases:
        return Verdict("verified")
    if split == "auto":
        varying = max(int((case.low < case.high).sum()) for case in cases)
        split = "input" if varying <= FEW_INPUTS or not graph.relus else "relu"
    if steps is None:
        steps = 0 if split == "input" else 10
    with time_limit(clock.end):
        search = None
        try:
            search = _Search(graph, relative(graph, cases), replay, clock, split, batch, memory, steps)
            return search.run(progress)
        except OutOfTime:  # in the middle of it
            if search is None or search.witness is None:
                return Verdict("timeout", None, search.count if search else {})
            return Verdict("falsified", search.witness, search.count)


class _Search:
    def __init__(
        self,
        graph: Graph,
        cases: list[Case],
        replay: Replay,
        clock: Clock,
        split: Literal["input", "relu"],
        batch: int,
        memory: float | None,
        steps: int,
    ) -> None:
        self.graph, self.cases, self.replay, self.clock = graph, cases, replay, clock
        self.split, self.steps = split, steps
        self.batch = max(1, min(batch, TOGETHER // (graph.widest * max(1, *(len(case.d) for case in cases)))))
        self.most = float("inf") if memory is None else 1e9 * memory
        self.low, self.high, self.C, self.d = (part.to(graph_device(graph)) for part in stacked(cases))
        self.least = self.low.new_tensor([case.least for case in cases])
        self.witness: Tensor | None = None
        self.tie = False  # whether no proof is possible: a point is too close, or a domain was given up
        self.count = {"domains": 0.0, "leaves": 0.0}

    def run(self, progress: bool) -> Verdict:
        """Bound and branch until nothing is open, or the time is over."""
        from tqdm import tqdm

        pool = self._bound(whole(self.graph, self.low, self.high, signs=self.split == "relu"))
        if self.witness is None and len(pool["bound"]):
            cases = [self.cases[i] for i in pool["case"].tolist()]
            tries = descend(self.graph, cases, restarts=max(2, 100 // len(cases)))
            self.witness = self.replay(tries[:100])
        with tqdm(disable=None if progress else True, leave=False, desc="branch and bound") as bar:
            while self.witness is None and len(pool["bound"]):
                if self.clock.over:
                    return Verdict("timeout", None, self.count)
                if sum(part.nbytes for part in pool.values()) > self.most:
                    return Verdict("unknown", None, self.count)
                order = pool["bound"].argsort()
                now, rest = select(pool, order[: self.batch]), select(pool, order[self.batch :])
                pool = joined([rest, self._bound(halves(self.graph, now))])
                bar.set_postfix(open=len(pool["bound"]))
                bar.update(len(now["bound"]))
        if self.witness is not None:
            return Verdict("falsified", self.witness, self.count)
        return Verdict("unknown" if self.tie else "verified", None, self.count)

    def _bound(self, domains: Domains) -> Domains:
        """Close the domains whose bound is positive; the others get a bound and what to split."""
        graph, case = self.graph, domains["case"]
        self.count["domains"] += len(case)
        region = Box(domains["low"], domains["high"])
        signs = {i: domains[f"sign:{i}"] for i in graph.relus if f"sign:{i}" in domains}
        with torch.no_grad():
            layers = layer_bounds(graph, region, BoundOptions(), splits=signs)
        found = optimized_bound(
            graph, region, self.C[case], layers, steps=self.steps, splits=signs,
            slopes=numbered(domains, "slope"), multipliers=numbered(domains, "multiplier"),
        )  # fmt: skip
        bound, row = (found.lower + self.d[case]).max(dim=1)
        wanted = 0.0 if self.tie else self.least[case]  # after a tie there is nothing to prove, only to find
        open_ = (~closed(domains, graph, layers, bound, wanted)).nonzero().flatten()
        domains = {key: value for key, value in domains.items() if key not in ("side", "node", "place")}
        domains["bound"], domains["row"] = bound, row
        for i, slope in found.slopes.items() if self.steps else ():
            domains[f"slope:{i}"] = slope
        for i, multiplier in found.multipliers.items():
            domains[f"multiplier:{i}"] = multiplier
        left = select(domains, open_)
        if not len(open_):
            left["side"] = left["node"] = left["place"] = left["row"]
            return left
        slope = found.coef[open_].flatten(2)[torch.arange(len(open_)), row[open_]]  # of the row that decides
        self._look(left, slope)
        if self.split == "input":
            return self._choose_side(left, slope)
        slopes = {i: part[open_, left["row"]] for i, part in found.slopes.items()}
        return self._choose_relu(left, known_of(layers, open_), slopes)

    def _look(self, domains: Domains, slope: Tensor) -> None:
        """Ask at the point where each linear bound is least, and at each center."""
        low, high = domains["low"].flatten(1), domains["high"].flatten(1)
        points = torch.cat([torch.where(slope > 0, low, high), (low + high) / 2])
        case = domains["case"].repeat(2)
        with torch.no_grad():
            y = self.graph(points.reshape(-1, *self.graph.input_shape)).flatten(1)
        margin = ((self.C[case] @ y[:, :, None])[:, :, 0] + self.d[case]).amax(dim=1)
        self.tie |= bool((margin <= self.least[case]).any())
        hits = (margin <= 0).nonzero().flatten()
        if len(hits):
            self.witness = self.replay(points[hits[margin[hits].argsort()[:10]]])

    def _choose_side(self, domains: Domains, slope: Tensor) -> Domains:
        domains["side"] = sensitive_side(domains, slope)
        thin = (domains["high"] - domains["low"]).flatten(1).amax(dim=1) <= _THIN
        if bool(thin.any()):
            self.tie = True  # no counterexample, and nothing left to split
            domains = select(domains, (~thin).nonzero().flatten())
        return domains

    def _choose_relu(self, domains: Domains, layers: Layers, slopes: dict[int, Tensor]) -> Domains:
        """Domains without an open ReLU are solved as they are."""
        C = self.C[domains["case"], domains["row"]]
        domains["node"], domains["place"], cost = costly_relu(self.graph, domains, layers, slopes, C)
        done = cost < 0
        for i in done.nonzero().flatten():
            self._leaf(select(domains, i[None]), known_of(layers, i[None]))
        return select(domains, (~done).nonzero().flatten())

    def _leaf(self, domain: Domains, layers: Layers) -> None:
        """A domain on which no ReLU is open."""
        self.count["leaves"] += 1
        if self.witness is not None or self.clock.over:
            self.tie = True  # not decided
            return
        case = int(domain["case"])
        box, signs = Box(domain["low"], domain["high"]), numbered(domain, "sign")
        value, point = leaf_minimum(self.graph, layers, box, signs, self.C[case], self.d[case])
        if value is None or not value > self.cases[case].least:
            if point is not None:
                self.witness = self.replay(point[None])
            self.tie = True
