"""AutoAttack: one number for the robust accuracy of a model, by four attacks without parameters to tune.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
(2020), section 6; the ℓ1 version is that of Croce and Hein, "Mind the box" (2021). For a norm and a radius ε, one after
the other attacks the samples that nobody has fooled yet,

    name        attack                                                                             runs
    apgd-ce     APGD on the cross-entropy, 100 steps                                               1 (ℓ1: 5)
    apgd-t      APGD on the targeted DLR loss, toward each of the 9 (ℓ1: 5) likeliest wrong labels 1
    fab-t       FAB toward each of the 9 likeliest wrong labels, 100 steps                         1
    square      Square Attack, 5,000 queries                                                       1

and the robust accuracy is the share that is left. It bounds the truth from above: a sample that is left was not fooled,
which is no proof that it cannot be. In ℓ1, APGD shrinks its ball from 3ε to ε. ``version="plus"`` adds apgd-dlr (the
untargeted DLR loss) and fab (all classes at once), and 5 runs each of apgd-ce, apgd-dlr and fab.

The protocol's warnings stand in ``report.flags``: what was noticed that makes the number doubtful.

Different here: an answer of FAB counts if it is within ε and FAB's own distance plays no other part; Square is left out
in ℓ1, and for inputs that are not images; with fewer than four classes the margin takes the place of a DLR loss that
does not exist. ``report.flags`` says so where it happens. ``version="rand"`` does not exist: a randomized model calls
for expectation over its randomness, which :func:`robustlab.evaluation.eot` supplies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import attacker_loss, rivals
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks import apgd, fab, square
from robustlab.data.pairs import Pairs, beside, labeled_portions, streamed
from robustlab.evaluation.found_distance import found_distance
from robustlab.evaluation.protocol.flags import first_look, zero_gradients
from robustlab.evaluation.protocol.report import AutoAttackReport, report_of
from robustlab.evaluation.protocol.state import State, fingerprint
from robustlab.geometry.keyed import derive_seed
from robustlab.geometry.norms import ProperNorm, get_norm
from robustlab.intervals import wilson
from robustlab.progress import bar

Member = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
Version = Literal["standard", "plus"]
VERSIONS: dict[Version, tuple[Member, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
}
_STEPS, _QUERIES = 100, 5000


def autoattack(
    model: Victim | Callable[[Tensor], Tensor],
    x: Tensor | Pairs,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float,
    version: Version = "standard",
    attacks: Sequence[Member] | None = None,
    batch_size: int = 250,
    seed: int = 0,
    confidence: float = 0.95,
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> AutoAttackReport:
    """The robust accuracy of a model under AutoAttack.

        RA(ε) ≤ (1/N) · #{ n : argmax f_θ(x_n) = y_n, and no attack of the sequence fooled f_θ within ‖δ‖ ≤ ε }

    Samples are known by their place in the data, so the outcome does not depend on ``batch_size`` (in float32, up to
    the rounding of sums), nor on an interruption.

    Args:
        model: a Victim, or a model with logits (N, K); white access is needed.
        x: inputs (N, ...) in the box; or, in the place of x and y, a Dataset, whose test part is taken, or a torch
            DataLoader, of which only one batch at a time is held, on the model's device.
        y: (N,) labels.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius ε ≥ 0 in units of the inputs.
        version: ``"standard"`` or ``"plus"``.
        attacks: names of the table above, to run these instead, in this order.
        batch_size: samples attacked at a time; bounds the memory.
        seed: of all attacks.
        confidence: level of Wilson's interval.
        state: a file that is written after every batch. If it is there already, and belongs to this run (same data,
            model, norm, ε, attacks and seed), the run goes on from it. Each batch of a loader has a file of its own,
            ``state`` with its number behind it.
        progress: show a bar in a terminal.

    Returns:
        AutoAttackReport; that of a loader keeps no ``x_adv``. Cost for a sample that nobody fools, with ten classes:
        about 7,900 queries and 1,900 gradients in ℓ∞ and ℓ2.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Croce and Hein (2020), section 6; Croce and Hein (2021), section 5, for ℓ1.
    """
    data = beside(x, y)
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.not_negative("eps", eps)
    if isinstance(eps, Tensor) and eps.numel() != 1:
        raise ValueError(f"eps: want one number for all samples, got shape {tuple(eps.shape)}")
    eps = float(eps)
    checks.one_of("version", version, VERSIONS)
    names = _names(VERSIONS[version] if attacks is None else attacks)
    checks.at_least("batch_size", batch_size, 1, integer=True)
    wilson(0, 1, confidence)  # a wrong level is refused now, not after the work
    victim, parts, first = Victim.of(model), list[State](), 0
    run = {"norm": norm, "eps": eps, "attacks": names, "version": version, "seed": int(seed)}
    for inputs, label in labeled_portions(data, "x", like=victim.model, batch_size=batch_size):
        file = f"{os.fspath(state)}.{len(parts)}" if state is not None and streamed(data) else state
        marks = fingerprint(victim, inputs, label) if state is not None else {}
        kept = State.begin(file, inputs, len(names), {**run, **marks}, victim.bounds)
        _look(victim, inputs, label, kept, batch_size, parts[0] if parts else None)
        used = [name for name in names if name != "square" or (norm != "l1" and inputs.dim() == 4)]
        for k, name in enumerate(used, start=1):
            rows = ((kept.broken_by < 0) & (kept.seen_by < k)).nonzero().flatten()
            plan = _plan(name, norm, eps, version, kept.classes, derive_seed(seed, k))
            for rest in bar(
                rows.split(int(batch_size)) if len(rows) else (), show=progress, label=f"autoattack {name}"
            ):
                start = time.perf_counter()
                _attack(victim, inputs, label, rest, first, plan, norm, eps, k, kept)
                kept.seconds[k] += time.perf_counter() - start
                kept.save()
        if streamed(data):
            kept.x_adv = None  # what a loader yields is not kept
        parts.append(kept)
        first += len(inputs)
    return report_of(names, used, norm, eps, State.joined(parts), confidence)


def _names(attacks: Sequence[Member]) -> list[Member]:
    known = VERSIONS["plus"]
    if isinstance(attacks, str) or not attacks or not all(name in known for name in attacks):
        raise ValueError(f"attacks: want some of {list(known)}, got {attacks!r}")
    if len(set(attacks)) != len(attacks):
        raise ValueError(f"attacks: want each once, got {list(attacks)}")
    return list(attacks)


def _look(victim: Victim, x: Tensor, y: Tensor, kept: State, batch_size: int, before: State | None) -> None:
    """The clean check and, where no part came before, the first flags, unless they are known."""
    if bool((kept.seen_by >= 0).all()):
        return
    start = time.perf_counter()
    if before is None:
        kept.flags, kept.classes, paid = first_look(victim, x[:batch_size], y[:batch_size])
        kept.queries[0, : len(paid)] += paid
    else:
        kept.classes = before.classes
    loss = attacker_loss("dlr" if kept.classes > 2 else "margin")
    for part in torch.arange(len(x)).split(int(batch_size)):
        with victim.session(x[part], y[part]) as session:
            kept.flat += zero_gradients(session, loss)
        # A call leaves inference mode, in which the caller may be: what was made outside it changes outside it.
        kept.right += len(session.active)
        correct = torch.zeros(len(part), dtype=torch.bool)
        correct[session.active.cpu()] = True
        kept.broken_by[part[~correct]] = 0
        kept.queries[0, part] += session.queries.cpu()
        kept.gradients[0, part] += session.gradients.cpu()
    kept.seen_by.fill_(0)
    kept.seconds[0] = time.perf_counter() - start
    kept.save()


Run = partial[AttackResult]


def _plan(name: Member, norm: ProperNorm, eps: float, version: Version, classes: int, seed: int) -> tuple[Run, int]:
    """The attack called ``name``, and toward how many of the likeliest wrong labels it is to be run; 0: toward none."""
    l1, many = norm == "l1", 5 if version == "plus" else 1
    gradient = partial(apgd, norm=norm, eps=eps, seed=seed, steps=_STEPS, multi_eps=l1)
    boundary = partial(fab, norm=norm, eps=eps, seed=seed, steps=_STEPS)
    plans: dict[Member, tuple[Run, int]] = {
        "apgd-ce": (partial(gradient, loss="ce", restarts=5 if l1 else many), 0),
        "apgd-dlr": (partial(gradient, loss="dlr" if classes > 2 else "margin", restarts=5 if l1 else many), 0),
        "apgd-t": (partial(gradient, loss="dlr" if classes > 3 else "margin"), 5 if l1 else 9),
        "fab": (partial(boundary, restarts=many), 0),
        "fab-t": (boundary, 9),
    }
    if norm != "l1":
        plans["square"] = partial(square, norm=norm, eps=eps, seed=seed, queries=_QUERIES), 0
    run, labels = plans[name]
    return run, min(labels, classes - 1)


def _attack(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    part: Tensor,
    first: int,
    plan: tuple[Run, int],
    norm: ProperNorm,
    eps: float,
    k: int,
    kept: State,
) -> None:
    """The k-th attack on the samples ``part``; each of its runs gets those that the runs before have left.

    ``first`` is the number of x[0] among all samples.
    """
    (run, labels), minimum_norm = plan, plan[0].func is fab
    toward: list[Tensor | None] = [None]
    if labels:
        with victim.session(x[part], y[part], access="soft") as session:
            assert session.clean is not None
            ranked = rivals(session.clean, session.y)
        kept.queries[k, part] += session.queries.cpu()
        toward = list(ranked[:, :labels].T)
    left = torch.arange(len(part))
    for label in toward:
        rows = part[left]
        aim = {} if label is None else {"toward": label[left.to(label.device)]}
        result = run(victim, x[rows], y[rows], ids=rows + first, **aim)
        distance = found_distance(
            result, x[rows], get_norm(norm), run.func.__name__, None if minimum_norm else eps, victim.bounds
        )
        won = distance <= eps
        kept.queries[k, rows] += result.queries.cpu()
        kept.gradients[k, rows] += result.gradients.cpu()
        kept.broken_by[rows[won]] = k
        assert kept.x_adv is not None
        kept.x_adv[rows[won]] = result.x_adv[won.to(x.device)]
        left = left[~won]
        if not len(left):
            break
    kept.seen_by[part] = k
