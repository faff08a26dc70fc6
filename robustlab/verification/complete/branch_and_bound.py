"""Branch and bound: where a bound does not decide, split the problem and bound the parts.

Bunel, Turkaslan, Torr, Kohli and Mudigonda, "A unified view of piecewise linear neural network verification" (2018);
Xu et al., "Fast and complete" (2021), for bounds by α-CROWN on whole batches of subproblems; Wang et al., "Beta-CROWN"
(2021), for multipliers of the split constraints. A *domain* is a box of inputs and, for some ReLUs, an assumed sign.

    bound    a linear lower bound of every margin on each domain; positive: the domain is closed
    attack   where the whole is not closed, and again whenever the work has doubled, from the lowest points found by
             then: a counterexample ends the search
    look     the point where a linear bound is least may be a counterexample
    branch   every open domain is cut in two, the domains with the lowest bounds first

Networks with few inputs are split in the input: along the side that, halved, would bring the bound up most. Their boxes
are clipped by their own linear bounds before. Hidden layers are bounded by what goes forward from the inputs, and by
backward passes too where, on a sample of domains, these save more splits than they cost (a lattice of thousands of
neurons over two inputs is better split; a deep net of few neurons better bounded). Cases that have one box, as those of
one label, share the bounds of its hidden layers, and keep their box in common where these are dear. Of a neuron's
interval, passes bound the end nearer to 0 first, and the other only where the neuron is not stable by then.

Others are split at ReLUs: at the one whose relaxation costs the bound most, or at the one that BaBSR ranks first. Where
every ReLU of a domain is decided the network is linear there, and a linear program in x gives the exact answer.

Different here: bounds of hidden layers are computed anew on each domain (Xu et al. keep the root's), which pays for the
small networks of this book. Where slopes of hidden layers are optimized too, the halves of a domain start from its
bounds.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.verification.complete.domain_search import solve as solve
from robustlab.verification.complete.rules import Branching
from robustlab.verification.complete.verify import verify
from robustlab.verification.propagation.alpha_crown import AlphaScope


def branch_and_bound(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["linf"] = "linf",
    eps: float | Tensor,
    branching: Branching = "auto",
    alpha: AlphaScope = "output",
    timeout: float | None = 60.0,
    memory: float | None = 2.0,
    processes: int = 1,
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
        branching: what is split, and by which rule. ``"inputs"``: the side of the box whose halving would bring the
            bound up most, to first order. ``"sensitivity"``: the ReLU whose relaxation costs the bound most.
            ``"babsr"``: the ReLU that by Bunel et al. (2020) promises the largest step, estimated from the constant of
            the layer before it and from the line above it. ``"auto"`` (default): inputs where at most 16 vary or there
            is no ReLU, else ReLUs by their sensitivity.
        alpha: which slopes are optimized where ReLUs are split. ``"output"`` (default): those of the pass from the
            output. ``"joint"``: those of hidden layers together with them, as in
            :func:`~robustlab.verification.alpha_crown`, in two or three times the time of a domain, and not always for
            fewer domains; ``branching="auto"`` is then ``"sensitivity"``.
        timeout: seconds for each sample (default 60), None for no limit; then nothing is known of it.
        memory: GB that the open domains of a sample may take (default 2), None for no limit; then the same.
        processes: how many samples are decided at a time, each by a process of its own (default 1: none), as in
            :func:`robustlab.verification.verify`.
        box: the range of valid inputs (default (0, 1)).
        progress: show a bar with the number of open domains.

    Returns:
        A Certificate: per sample verified, falsified with a counterexample that was replayed on the model, or neither.

    Raises:
        ValueError, TypeError: naming the argument, or the operator that is not known.

    Source: Bunel et al. (2018), algorithm 1; Bunel et al. (2020), section 4; Xu et al. (2021); Wang et al. (2021).
    """
    return verify(
        model,
        x,
        y,
        norm=norm,
        eps=eps,
        method="branch_and_bound",
        branching=branching,
        alpha=alpha,
        timeout=timeout,
        memory=memory,
        processes=processes,
        box=box,
        progress=progress,
    )
