"""How unlike the clients are, and what that does to a backdoor.

Zawad, Ali, Chen, Anwar, Zhou, Baracaldo, Tian and Yan, "Curse or redemption? How data heterogeneity affects the
robustness of federated learning" (2021). The paper moves a heterogeneity index between clients that hold all classes
(0) and clients of one class each (1),

    HI(c) = 1 − (c − 1)/(K − 1)        c: most classes per client,  K: classes there are,

and asks how well a backdoor of some malicious clients gets into the global model. Its claims: heterogeneity makes the
attack weaker and harder to foretell; but *when* a malicious client trains on its poison, within its own training, and
which data it poisons, makes it strong again.

The formula is that of the paper as Jimenez et al., "Non-IID data in federated learning: a survey with taxonomy,
metrics, methods, frameworks and future directions" (2024), equation 8, quote it; there c is the largest number of
classes that a client holds. With ``knob="classes"`` all clients hold c, evenly, and ours is that number.

Different here: the knob is the Dirichlet α or c. At α = ½ some client already holds a little of every class, so that
the largest number is K and the index 0. There c is the *effective* number of classes, the exponential of the entropy
of a client's labels, averaged over clients. Digits and small nets stand for the paper's LEAF data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Result
from robustlab.attacks.backdoor.badnets import PatchTrigger
from robustlab.attacks.backdoor.trigger import stamped
from robustlab.attacks.federated.malicious_update import MixedBatches, watch_backdoor
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.models.probing import count_outputs
from robustlab.training.clients import Client, LocalTraining, Pair, Turn, local_update
from robustlab.training.federated import simulate
from robustlab.training.splits import dirichlet_split, label_split
from robustlab.training.updates import Delta

__all__ = ["Heterogeneity", "heterogeneity", "heterogeneity_index"]

Knob = Literal["alpha", "classes"]
Timing = Literal["first", "spread", "last"]
Whose = Literal["own", "even"]
KNOBS = get_args(Knob)
TIMINGS = get_args(Timing)
WHOSE = get_args(Whose)


@dataclass(frozen=True, eq=False, repr=False)
class Heterogeneity(Result):
    """What :func:`heterogeneity` saw, one entry per value of the knob.

    Attributes:
        values: of the knob.
        index: HI of the division.
        main, backdoor: accuracy, and attack success without images of the target class, after each round:
            (values, rounds).
        model: the last global model of each value.
    """

    values: tuple[float, ...]
    index: Tensor
    main: Tensor
    backdoor: Tensor
    model: tuple[nn.Module, ...]


def heterogeneity(
    data: Pairs,
    *,
    model: nn.Module,
    test: Pairs,
    target: int = 0,
    values: Sequence[float] = (100.0, 1.0, 0.1),
    knob: Knob = "alpha",
    clients: int = 10,
    malicious: int = 2,
    timing: Timing = "spread",
    part: float = 0.5,
    share: float = 0.3,
    poison_on: Whose = "own",
    rounds: int = 10,
    selected: int | None = None,
    local: LocalTraining | None = None,
    trigger: nn.Module | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Heterogeneity:
    """Divide the data more and more unevenly, and see how well a backdoor gets into the global model.

        index(value) = 1 − (c̄ − 1)/(K − 1),   backdoor(value) = P( ŷ(trigger(x)) = t | y ≠ t ) after each round

    Args:
        data: a Dataset, whose training part is divided, or a pair (x, y); images (N, C, H, W) in [0, 1].
        model: the global model at first, logits (N, K). It is copied.
        test: test data, or a Dataset, whose test part is used.
        target: the label t.
        values: of the knob, α or c.
        knob: ``"alpha"``, :func:`~robustlab.training.splits.dirichlet_split`, or ``"classes"``, the paper's,
            :func:`~robustlab.training.splits.label_split`.
        clients, malicious: how many, and how many of them (the first) put the trigger on a part of each batch. They do
            not scale what they send.
        timing: when in its own training a malicious client trains on poison: in the ``"first"`` or the ``"last"`` part
            of it, or ``"spread"`` over all. The number of poisoned samples is the same.
        part: of the training, in (0, 1], for ``"first"`` and ``"last"``.
        share: of the samples of all batches that are poisoned; at most ``part``.
        poison_on: what a malicious client trains on: its ``"own"`` part of the division, or as many samples of all
            clients' data, drawn ``"even"`` over the classes, as if it had gathered them.
        rounds, selected, seed, progress: as :func:`~robustlab.training.federated.simulate` takes them.
        local: how all clients train; None is :class:`~robustlab.training.clients.LocalTraining`.
        trigger: default a white square in the corner.

    Returns:
        Heterogeneity.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Zawad et al. (2021), whose index Jimenez et al. (2024), equation 8, quote. Departure: see the module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    x, y = read_labeled(data)
    checks.at_home(model, x, "data")
    classes = count_outputs(model, x)
    checks.in_classes("y", y, classes)
    checks.at_least("target", target, 0, integer=True)
    checks.below("target", target, classes)
    checks.one_of("knob", knob, KNOBS)
    checks.one_of("timing", timing, TIMINGS)
    checks.one_of("poison_on", poison_on, WHOSE)
    checks.at_least("malicious", malicious, 0, integer=True)
    checks.positive("part", part)
    checks.at_most("part", part, 1)
    checks.positive("share", share)
    checks.at_most("share", share, 1 if timing == "spread" else part)
    trigger = PatchTrigger().to(x.device) if trigger is None else trigger
    local = LocalTraining() if local is None else local
    bad = partial(_poisoned, trigger=trigger, target=target, timing=timing, part=part, share=share, local=local)
    index, main, backdoor, models = [], [], [], []
    for value in values:
        if knob == "alpha":
            rows = dirichlet_split(y, clients, alpha=value, seed=seed, at_least=2)
        else:
            rows = label_split(y, clients, classes=int(value), seed=seed)
        index.append(heterogeneity_index(y, rows))
        if poison_on == "even":
            rows = [_evenly(y, len(own), seed, i) if i < malicious else own for i, own in enumerate(rows)]
        team = [Client((x[own], y[own]), bad if i < malicious else None) for i, own in enumerate(rows)]
        result = simulate(
            model, team, rounds=rounds, selected=selected, honest=local, seed=seed, progress=progress,
            on_round=watch_backdoor(test, trigger, target),
        )  # fmt: skip
        main.append([seen["main"] for seen in result.monitor])
        backdoor.append([seen["backdoor"] for seen in result.monitor])
        models.append(result.model)
    seen_index, seen_main, seen_backdoor = (
        torch.tensor(numbers, device=x.device) for numbers in (index, main, backdoor)
    )
    return Heterogeneity(tuple(values), seen_index, seen_main, seen_backdoor, tuple(models))


def heterogeneity_index(y: Tensor, rows: Sequence[Tensor]) -> float:
    """HI = 1 − (c̄ − 1)/(K − 1): 0 where each client holds all classes evenly, 1 where each holds one.

    c̄ is the mean over clients of exp(entropy of its labels), which is c where each holds c classes evenly.

    Args:
        y: (N,) labels of K ≥ 2 classes.
        rows: of each client, as the functions of :mod:`robustlab.training.splits` give them.

    Raises:
        ValueError: for one class, or no clients.
    """
    labels, code = y.unique(return_inverse=True)
    if len(labels) < 2 or not len(rows):
        raise ValueError(f"y: want at least 2 classes, and clients, got {len(labels)} and {len(rows)}")
    counts = torch.stack([torch.bincount(code[own], minlength=len(labels)) for own in rows]).double()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    effective = torch.special.entr(shares).sum(dim=1).exp().mean()
    return float(1 - (effective - 1) / (len(labels) - 1))


def _evenly(y: Tensor, n: int, seed: int, client: int) -> Tensor:
    """So many rows, of each class as many as of any other up to one, as far as it has them."""
    order = Noise(seed, y.new_full((1,), client, dtype=torch.int64)).permutation(0, len(y))[0]
    labels, code = y[order].unique(return_inverse=True)
    members = torch.nn.functional.one_hot(code, len(labels))
    rank = (members.cumsum(dim=0) * members).sum(dim=1)  # first, second, … of its class in this order
    return order[rank.argsort(stable=True)[:n]].sort().values


class _Timed(MixedBatches):
    """Poison in one part of the training alone, as fit tells how far it is."""

    first, last = 0.0, 1.0

    def set_progress(self, fraction: float) -> None:
        self.now = self.first <= fraction < self.last

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        if self.now:
            return super().__call__(model, x, y, ids=ids, seed=seed)
        return nn.functional.cross_entropy(model(x), y)


def _poisoned(
    model: nn.Module, data: Pair, turn: Turn, /, *, trigger: nn.Module, target: int, timing: Timing, part: float,
    share: float, local: LocalTraining,
) -> Delta:  # fmt: skip
    """A client that puts the trigger on a part of its batches; one of target images alone has nothing to poison."""
    x, y = data
    if not bool((y != target).any()):
        return local(model, data, turn)
    dense = share if timing == "spread" else share / part
    objective = _Timed(stamped(trigger, x[y != target]), target, share=dense)
    if timing != "spread":
        objective.first, objective.last = (0.0, part) if timing == "first" else (1 - part, 1.0)
    return local_update(model, data, seed=turn.seed, objective=objective, **vars(local))
