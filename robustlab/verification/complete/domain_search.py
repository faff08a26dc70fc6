"""The search of branch and bound: domains that are bounded, attacked, looked at and split, until none is open.

What it follows, and what is different, stands in :mod:`~robustlab.verification.complete.branch_and_bound`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.graph.folding import folded
from robustlab.graph.node import Graph
from robustlab.graph.time_limit import OutOfTime, time_limit
from robustlab.verification.complete.boxes import bound_boxes, clipped, effects, mixed, with_mix
from robustlab.verification.complete.branching import (
    Domains,
    ReluRule,
    closed,
    finite,
    halves,
    joined,
    known_of,
    numbered,
    relu_to_split,
    select,
    whole,
)
from robustlab.verification.complete.common_boxes import common_box, lowest_first, parts
from robustlab.verification.complete.descent import EVALUATIONS, descend, evolve, lowest_points, stacked
from robustlab.verification.complete.leaf import leaf_minimum
from robustlab.verification.complete.query import Case, Clock, Replay, Verdict, graph_device, relative
from robustlab.verification.complete.refining import costs, refining_costs, refining_pays
from robustlab.verification.complete.rules import Branching, relu_rule
from robustlab.verification.propagation.alpha_crown import AlphaScope, optimized_bound
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.forward import MOST
from robustlab.verification.propagation.joint import together
from robustlab.verification.propagation.layers import Layers, layer_bounds
from robustlab.verification.propagation.region import Box

TOGETHER = 2**23  # numbers that all domains of a batch may have at the widest node, so that a step takes no second
_THIN = 1e-9  # boxes without a side longer than this are not split
FIRST_AGAIN = 256  # domains before the second attack
ISLANDS = 4  # populations of an attack by evolution in each case, at most
KEPT, STARTS = 256, 32  # points that are remembered, and those of a case from which it is attacked
CHEAP = 64.0  # times the price of linear bounds alone that is always paid for refined ones
WORK = 2.0**32  # multiplications of an attack, about


def solve(
    graph: Graph,
    cases: list[Case],
    replay: Replay,
    clock: Clock,
    *,
    branching: Branching = "auto",
    alpha: AlphaScope = "output",
    batch: int = 256,
    memory: float | None = 2.0,
    steps: int | None = None,
    progress: bool = False,
) -> Verdict:
    """Decide a query.

    Args:
        graph: in float64.
        cases, replay, clock: as in :mod:`~robustlab.verification.complete.query`.
        branching, alpha: as in :func:`~robustlab.verification.branch_and_bound`.
        batch: domains that are split at once.
        memory: GB of open domains at which to give up (``"unknown"``); None for no limit.
        steps: ascent steps of α-CROWN on each domain; None takes 0 for input splits, 10 for ReLU splits.
        progress: show a bar.

    Returns:
        The verdict; details count domains and leaves.
    """
    if not cases:
        return Verdict("verified")
    rule = relu_rule(branching, alpha, graph, cases)
    if steps is None:
        steps = 0 if rule is None else 10
    with time_limit(clock.end):
        search = None
        try:
            search = _Search(folded(graph), relative(graph, cases), replay, clock, rule, alpha, batch, memory, steps)
            return search.run(progress)
        except OutOfTime:  # in the middle of it
            if search is None or search.witness is None:
                return Verdict("timeout", None, search.count if search else {})
            return Verdict("falsified", search.witness, search.count)


class _Search:
    def __init__(
        self, graph: Graph, cases: list[Case], replay: Replay, clock: Clock, rule: ReluRule | None, alpha: AlphaScope,
        batch: int, memory: float | None, steps: int,
    ) -> None:  # fmt: skip
        self.graph, self.cases, self.replay, self.clock = graph, cases, replay, clock
        self.rule, self.alpha, self.steps = rule, alpha, steps  # no rule: inputs are split
        self.most = float("inf") if memory is None else 1e9 * memory
        self.low, self.high, self.C, self.d = (part.to(graph_device(graph)) for part in stacked(cases))
        self.least = self.low.new_tensor([case.least for case in cases])
        varying = int((self.low < self.high).any(dim=0).sum())
        self.few = rule is None and varying <= MOST
        numbers = graph.widest * max(self.C.shape[1], 8 * (1 + varying) if self.few else 1)
        self.batch = max(1, min(batch, TOGETHER // numbers, together(graph) if alpha == "joint" else batch))
        self.refine = True
        self.dear = False  # whether that costs so much that cases do not leave their common box
        self.work = sum(costs(graph))
        self.attacks = 0
        self.lowest = self.low[:0, 0], self.low[:0, 0].long(), self.low[:0]  # lowest margins, their cases and points
        self.witness: Tensor | None = None
        self.tie = False  # whether no proof is possible: a point is too close, or a domain was given up
        self.count = {"domains": 0.0, "leaves": 0.0}

    def run(self, progress: bool) -> Verdict:
        """Bound and branch until nothing is open, or the time is over."""
        from tqdm import tqdm

        domains = whole(self.graph, self.low, self.high, signs=self.rule is not None)
        self.dear = self.few and refining_costs(self.graph, domains) > CHEAP
        pool = self._bound(domains)
        again, step = 0.0, 0
        with tqdm(disable=None if progress else True, leave=False, desc="branch and bound") as bar:
            while self.witness is None and len(pool["bound"]):
                if self.clock.over:
                    return Verdict("timeout", None, self.count)
                if sum(part.nbytes for part in pool.values()) > self.most:
                    return Verdict("unknown", None, self.count)
                if self.count["domains"] >= again:
                    again = max(FIRST_AGAIN, 2 * self.count["domains"])
                    self._attack(pool["case"].unique())
                    continue
                now, rest = lowest_first(pool, self.batch, together=self.dear)
                if self.few and step in (4**i for i in range(1 + step.bit_length())):
                    self.dear = (price := refining_costs(self.graph, now)) > CHEAP
                    self.refine = not self.dear or refining_pays(self.graph, now, self.C, self.d, price)
                pool = joined([rest, self._bound(halves(self.graph, now))])
                step += 1
                bar.set_postfix(open=len(pool["bound"]))
                bar.update(len(now["bound"]))
        if self.witness is not None:
            return Verdict("falsified", self.witness, self.count)
        return Verdict("unknown" if self.tie else "verified", None, self.count)

    def _attack(self, alive: Tensor) -> None:
        """Look for a counterexample in the cases that are open, from random points and from the lowest known."""
        cases, seed = [self.cases[i] for i in alive.tolist()], self.attacks
        starts = lowest_points(self.low[alive], self.high[alive], alive, self.lowest, STARTS)
        runs = int(4 * WORK / self.work)  # runs of the network; a step of descent costs about three
        restarts = max(2, min(100, runs // 150) // len(cases))
        known = starts[:, : restarts // 2] if seed else None  # at first, nothing is known
        tries = descend(self.graph, cases, restarts=restarts, seed=seed, starts=known)
        self.witness = self.replay(tries[:100])
        islands = min(ISLANDS, runs // (4 * EVALUATIONS * len(cases))) if self.few else 0
        for i in range(islands):
            for case, start in zip(cases, starts, strict=True):
                if self.witness is None:
                    found = evolve(self.graph, case, seed=islands * seed + i, starts=start if i else None)
                    self.witness = self.replay(found[:10])
        self.attacks += 1

    def _bound(self, domains: Domains) -> Domains:
        """Close the domains whose bound is positive; the others get a bound and what to split."""
        self.count["domains"] += len(domains["case"])
        domains = {key: value for key, value in domains.items() if key not in ("side", "node", "place")}
        if self.rule is not None:
            return self._bound_signs(domains)
        return joined([self._bound_boxes(select(domains, some)) for some in parts(domains, 2 * self.batch)])

    def _bound_boxes(self, domains: Domains) -> Domains:
        """Of boxes alone."""
        case, low, high = domains["case"], domains["low"].flatten(1), domains["high"].flatten(1)
        box = Box(domains["low"], domains["high"])
        found = bound_boxes(self.graph, box, self.C[case], self.d[case], refine=self.refine)
        wanted = self._wanted(case)
        weights, bound = mixed(found.coef, found.constant, low, high)
        numbers = finite(found.layers)[found.which] & bound.isfinite() & found.coef.flatten(1).isfinite().all(dim=1)
        self._look(domains, (weights[:, None] @ found.coef)[:, 0])
        at, to = clipped(*with_mix(found, weights), low, high, wanted)
        at, to = (torch.where(numbers[:, None], new, old) for new, old in ((at, low), (to, high)))
        left = ~numbers | ((bound <= wanted) & (at <= to).all(dim=1))
        share = effects(self.graph, found, weights) / (high - low).clamp_min(torch.finfo(low.dtype).tiny)
        if self.dear:
            at, to, share = common_box(found.which, left, at, to, share)
        open_ = left.nonzero().flatten()
        side = (share.nan_to_num(0.0) * (to - at) + 1e-12 * (to - at)).argmax(dim=1)
        domains = dict(domains, low=at.reshape(domains["low"].shape), high=to.reshape(domains["high"].shape))
        refined = torch.full_like(left, self.refine)
        domains = select(dict(domains, bound=bound, side=side, refined=refined), open_)
        thin = (high - low)[open_].amax(dim=1) <= _THIN  # before clipping: a new box gets bounds of its own
        if bool(thin.any()):
            self.tie = True  # no counterexample, and nothing left to split
            domains = select(domains, (~thin).nonzero().flatten())
        return domains

    def _wanted(self, case: Tensor) -> Tensor:
        """What a bound must be above; after a tie there is nothing to prove, only to find."""
        return torch.zeros_like(self.least[case]) if self.tie else self.least[case]

    def _bound_signs(self, domains: Domains) -> Domains:
        """Of domains with signs that are assumed."""
        graph, case = self.graph, domains["case"]
        region = Box(domains["low"], domains["high"])
        signs = {i: domains[f"sign:{i}"] for i in graph.relus if f"sign:{i}" in domains}
        with torch.no_grad():
            layers = layer_bounds(graph, region, BoundOptions(), splits=signs)
        found = optimized_bound(
            graph, region, self.C[case], layers, steps=self.steps, splits=signs,
            slopes=numbered(domains, "slope"), multipliers=numbered(domains, "multiplier"),
            joint=BoundOptions() if self.alpha == "joint" else None,
        )  # fmt: skip
        bound, row = (found.lower + self.d[case]).max(dim=1)
        open_ = (~closed(domains, graph, layers, bound, self._wanted(case))).nonzero().flatten()
        domains["bound"], domains["row"] = bound, row
        for i, slope in found.slopes.items() if self.steps else ():
            domains[f"slope:{i}"] = slope
        for i, multiplier in found.multipliers.items():
            domains[f"multiplier:{i}"] = multiplier
        left = select(domains, open_)
        if not len(open_):
            left["node"] = left["place"] = left["row"]
            return left
        slope = found.coef[open_].flatten(2)[torch.arange(len(open_)), row[open_]]  # the row that decides
        self._look(left, slope)
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
        order = margin.argsort()[:KEPT]
        seen = zip(self.lowest, (margin, case, points), strict=True)
        margin, case, points = (torch.cat([kept, new[order]]) for kept, new in seen)
        order = margin.argsort()[:KEPT]
        self.lowest = margin[order], case[order], points[order]

    def _choose_relu(self, domains: Domains, layers: Layers, slopes: dict[int, Tensor]) -> Domains:
        """Domains without an open ReLU are solved as they are."""
        C = self.C[domains["case"], domains["row"]]
        assert self.rule is not None
        chosen = relu_to_split(self.graph, domains, layers, slopes, C, self.rule)
        domains["node"], domains["place"], score = chosen
        done = score < 0
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
