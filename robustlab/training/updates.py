"""Updates: what a client of federated learning sends to the server, and what the server makes of many of them.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-efficient learning of deep networks from
decentralized data" (2017), algorithm 1. A client receives the global model G and returns the difference L − G to its
own model L; the server adds a weighted sum of the differences to G.

Differences are kept in float64. For a model in float32 that makes L − G exact but for numbers that differ by a factor
above 2²⁹, so that a model which is sent whole comes out as the very same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustlab import checks

Divide = Literal["selected", "total", "samples"]
Statistics = Literal["together", "keep"]
DIVIDES = get_args(Divide)
STATISTICS = get_args(Statistics)

Rule = Callable[[Tensor], Tensor]
"""A robust aggregator: vectors (n, d), one per client, to one vector (d,)."""


@dataclass(frozen=True, eq=False, repr=False)
class Delta:
    """The difference of two models of the same kind, by the names of ``model.state_dict()``.

    Attributes:
        parameters: differences of all parameters, float64.
        statistics: of floating-point buffers, such as the running mean and variance of batch norm, float64.
        counters: of integer buffers, such as the number of batches that batch norm has seen, int64.
    """

    parameters: dict[str, Tensor]
    statistics: dict[str, Tensor]
    counters: dict[str, Tensor]

    def vector(self, statistics: bool = False) -> Tensor:
        """All parameters, and if asked all statistics after them, as one vector (d,)."""
        parts = [*self.parameters.values(), *(self.statistics.values() if statistics else ())]
        return torch.cat([part.flatten() for part in parts])

    def norm(self) -> float:
        """ℓ2 norm of the parameters' difference."""
        return float(torch.linalg.vector_norm(self.vector()))

    def scaled(self, factor: float, *, statistics: bool = True) -> Delta:
        """The difference times a factor; counters, and without ``statistics`` the statistics, stay as they are."""
        factors = {"parameters": factor, "statistics": factor if statistics else 1.0}
        grown = {group: {n: f * t for n, t in getattr(self, group).items()} for group, f in factors.items()}
        return Delta(grown["parameters"], grown["statistics"], dict(self.counters))

    def refilled(self, vector: Tensor) -> Delta:
        """The same names with the values of a vector of parameters and statistics, as :meth:`vector` lays them out."""
        named = {**self.parameters, **self.statistics}
        split = vector.split([value.numel() for value in named.values()])
        values = {name: part.reshape(named[name].shape) for name, part in zip(named, split, strict=True)}
        return Delta(
            {name: values[name] for name in self.parameters},
            {name: values[name] for name in self.statistics},
            dict(self.counters),
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, name))} {name}" for name in ("parameters", "statistics", "counters"))
        return f"Delta({sizes}, norm {self.norm():.4g})"


def difference(after: nn.Module | Mapping[str, Tensor], before: nn.Module | Mapping[str, Tensor]) -> Delta:
    """L − G: what leads from one model to another.

    Args:
        after: L, a module or its state.
        before: G, likewise, with the same names. At least one of the two is a module, which tells parameters from
            buffers.

    Returns:
        Delta, on the device of ``before``, in memory of its own.

    Raises:
        TypeError, ValueError: if neither is a module, or names or shapes disagree.
    """
    model = next((given for given in (before, after) if isinstance(given, nn.Module)), None)
    if model is None:
        raise TypeError("after: want a torch.nn.Module in one of after and before, got none")
    new, old = (given.state_dict() if isinstance(given, nn.Module) else given for given in (after, before))
    if {name: t.shape for name, t in new.items()} != {name: t.shape for name, t in old.items()}:
        raise ValueError("after: want the tensors of before by name and shape, got others")
    trained = dict(model.named_parameters(remove_duplicate=False))
    groups: tuple[dict[str, Tensor], ...] = ({}, {}, {})
    for name, value in old.items():
        real = value.is_floating_point()
        dtype = torch.float64 if real else torch.int64
        kind = 0 if name in trained else 1 if real else 2
        groups[kind][name] = new[name].detach().to(value.device, dtype) - value.detach().to(dtype)
    return Delta(*groups)


@torch.no_grad()
def apply_delta(model: nn.Module, delta: Delta) -> None:
    """G ← G + δ, in place, rounded once to the model's dtype.

    A running variance that would fall below 0, as scaled or noisy updates can make it, is set to 0 with a warning:
    batch norm would take its root.

    Raises:
        ValueError: for other names or shapes than the model's, before anything is changed.
    """
    state = model.state_dict()
    changes = {**delta.parameters, **delta.statistics, **delta.counters}
    if {name: t.shape for name, t in changes.items()} != {name: t.shape for name, t in state.items()}:
        raise ValueError("delta: want the names and shapes of the model's state, got others")
    moved = {name: state[name].to(change.dtype) + change.to(state[name].device) for name, change in changes.items()}
    for name, value in moved.items():  # all sums before the first is written: names may share a tensor
        if name.endswith("running_var") and bool((value < 0).any()):
            checks.warn(f"delta: {name} would be below 0 in {int((value < 0).sum())} places; it is 0 there now")
        state[name].copy_(value.clamp_min(0) if name.endswith("running_var") else value)


def aggregate(
    deltas: Sequence[Delta],
    weights: Sequence[float] | Tensor,
    *,
    rule: Rule | None = None,
    statistics: Statistics = "together",
) -> Delta:
    """What the server adds to the global model.

        Σ_i w_i·δ_i                          without a rule
        (Σ_i w_i) · rule(δ_1, …, δ_n)        with one, which treats all clients alike

    Args:
        deltas: of n clients, of the same model.
        weights: w (n,), the server's own factors, at least 0 and not all 0; :func:`server_weights` gives those of
            papers.
        rule: a robust aggregator such as :func:`robustlab.defenses.krum`: vectors (n, d) to one (d,).
        statistics: ``"together"`` aggregates the buffers of batch norm as the parameters, in one vector with them;
            ``"keep"`` leaves those of the server. Counters take the largest of the clients' in either case, or with
            ``"keep"`` none.

    Returns:
        Delta.

    Raises:
        ValueError, TypeError: for no deltas, deltas of different models, or wrong weights; NaN and infinity in a delta
            name the client. For a rule that gives anything else than one finite vector.

    Source:
        McMahan et al. (2017), algorithm 1.
    """
    if not deltas:
        raise ValueError("deltas: want at least one, got none")
    checks.one_of("statistics", statistics, STATISTICS)
    w = _weights(weights, len(deltas), deltas[0])
    names = [{name: t.shape for name, t in {**d.parameters, **d.statistics, **d.counters}.items()} for d in deltas]
    if any(other != names[0] for other in names):
        raise ValueError("deltas: want updates of one model, got different names or shapes")
    stacked = torch.stack([delta.vector(statistics == "together") for delta in deltas])
    broken = (~stacked.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"deltas: want finite updates, got NaN or infinity from {broken[:10]}")
    merged = w @ stacked if rule is None else w.sum() * _ruled(rule, stacked)
    first = deltas[0]
    if statistics == "keep":
        merged = torch.cat([merged, *(torch.zeros_like(t).flatten() for t in first.statistics.values())])
    filled = first.refilled(merged)
    most = {name: torch.stack([delta.counters[name] for delta in deltas]).amax(dim=0) for name in first.counters}
    counters = most if statistics == "together" else {name: torch.zeros_like(t) for name, t in most.items()}
    return Delta(filled.parameters, filled.statistics, counters)


def server_weights(
    sizes: Sequence[int], *, eta: float = 1.0, divide: Divide = "selected", total: int | None = None
) -> tuple[float, ...]:
    """The factor with which the server takes each selected client's update into the sum.

        "selected"   η / n                 n: clients selected in this round (DBA, equation 1)
        "total"      η / n_total           n_total: clients there are (the code of model replacement)
        "samples"    η · |D_i| / Σ_j |D_j| (federated averaging)

    An attacker's γ is the reciprocal of its own factor, so that the first two must never be mixed.

    Args:
        sizes: number of samples |D_i| of each selected client.
        eta: η > 0, the server's learning rate; 1 replaces the model by the clients' mean.
        divide: one of the three.
        total: n_total, which ``"total"`` needs.

    Returns:
        n factors.

    Raises:
        ValueError, TypeError: for a wrong argument.
    """
    checks.positive("eta", eta)
    checks.one_of("divide", divide, DIVIDES)
    if not len(sizes) or min(sizes) < 0 or not sum(sizes):
        raise ValueError(f"sizes: want the clients' numbers of samples, not all 0, got {list(sizes)[:10]}")
    if divide == "samples":
        return tuple(eta * size / sum(sizes) for size in sizes)
    if divide == "total":
        if total is None:
            raise ValueError('total: want the number of all clients beside divide="total", got None')
        checks.at_least("total", total, len(sizes), integer=True)
    return (eta / (total if divide == "total" and total else len(sizes)),) * len(sizes)


def _ruled(rule: Rule, stacked: Tensor) -> Tensor:
    """What a rule makes of vectors (n, d); in their dtype, to which it may not have kept: models are rounded to it."""
    merged: object = rule(stacked)
    if not isinstance(merged, Tensor):
        raise TypeError(f"rule: want a tensor {tuple(stacked.shape[1:])}, got {type(merged).__name__}")
    if merged.shape != stacked.shape[1:]:
        raise ValueError(f"rule: want a vector {tuple(stacked.shape[1:])}, got shape {tuple(merged.shape)}")
    if not bool(merged.isfinite().all()):
        raise ValueError("rule: want a finite vector, got NaN or infinity from finite updates")
    return merged.to(stacked)


def _weights(weights: Sequence[float] | Tensor, n: int, like: Delta) -> Tensor:
    device = next(iter({**like.parameters, **like.statistics}.values())).device
    w = torch.as_tensor(weights, dtype=torch.float64).to(device)
    if w.shape != (n,):
        raise ValueError(f"weights: want one per update, ({n},), got shape {tuple(w.shape)}")
    if not bool((w.isfinite() & (w >= 0)).all()):
        raise ValueError(f"weights: want finite numbers of at least 0, got {w.tolist()[:10]}")
    if not float(w.sum()):
        raise ValueError("weights: want a sum above 0, got weights that sum to 0")
    return w
