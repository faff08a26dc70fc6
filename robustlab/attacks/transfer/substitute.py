"""A substitute of one's own, trained on labels that are bought from the victim.

Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, "Practical black-box attacks against machine learning" (2017),
algorithm 1; Papernot, McDaniel and Goodfellow, "Transferability in machine learning" (2016), which makes it cheaper.
Who may ask the victim ŷ for labels alone trains a net F on what it says, and asks where F learns most, along the
Jacobian J_F of the class that the victim names. From a first set S_0, in rounds ρ = 0, 1, …

    label S_ρ by the victim,    train F on S_ρ,
    S_{ρ+1} = S_ρ ∪ { x + λ_ρ·sign(J_F(x)[ŷ(x)]) : x ∈ S_ρ },        λ_ρ = λ·(−1)^⌊ρ/τ⌋

The set doubles in each round. After σ rounds only κ new points are kept, drawn evenly from all by reservoir sampling
(2016, algorithm 1), so that R rounds cost |S_0|·2^σ + κ·(R − 1 − σ) queries. Then any attack on F makes the
adversarial examples, of which the victim is asked once.

J_F(x)[k] is the gradient of F's probability of class k; that of its logarithm has the same sign. What leaves the box is
clipped. As the victim is taken to say the same each time, a point is paid for once. Different here: the papers go back
and forth between an epoch of 10 passes and the augmentation as here, with plain SGD; this trains by Adam on a one-cycle
schedule, from the weights of the round before. The papers attack F by the fast gradient sign or JSMA; this takes the
steps of :func:`robustlab.attacks.ensemble_transfer`, or any attack that is given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustlab import checks, models
from robustlab.attacker.live import Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult, PhysicalResult, UniversalResult, keep_so_far
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.transfer.bought_labels import Bought, as_computed, augmented, first_set, reservoir
from robustlab.attacks.transfer.on_surrogates import descend
from robustlab.data.pairs import Pairs
from robustlab.geometry.keyed import derive_seed
from robustlab.geometry.norms import ProperNorm, get_norm
from robustlab.models.probing import first_logits
from robustlab.progress import bar
from robustlab.training.fit import fit

__all__ = ["SubstituteResult", "substitute"]

Attack = Callable[..., AttackResult]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SubstituteResult(AttackResult):
    """An attack's result, and what it was made with.

    Attributes:
        net: the substitute, in evaluation mode; untrained where no sample had to be worked on.
        points, labels: (M, ...) and (M,), what it was trained on and what the victim said of it, in the order in which
            they were asked about. ``known=(points, labels)`` of another call takes them as they are.
        bought: how many of these labels this call has paid for, one query each. ``queries`` holds only what each
            sample has cost itself, so that all queries are ``bought + queries.sum()``.
    """

    net: nn.Module
    points: Tensor
    labels: Tensor
    bought: int

    def summary(self) -> str:
        """One line: how many succeeded, at which median distances, at what cost."""
        return f"{super().summary()}; {self.bought} labels bought"


def substitute(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    pool: Pairs | Tensor | None = None,
    known: tuple[Tensor, Tensor] | None = None,
    net: nn.Module | None = None,
    classes: int = 10,
    rounds: int = 6,
    epochs: int = 10,
    lr: float = 5e-3,
    shift: float = 0.1,
    turn: int = 3,
    doublings: int = 3,
    fresh: int = 400,
    norm: Literal["l2", "linf"] = "linf",
    eps: float | Tensor | None,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    loss: LossName | LossFunction = "ce",
    attack: Attack | None = None,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> SubstituteResult:
    """Train a substitute on labels of the victim, craft on it, then ask the victim once.

        minimize_δ g(F(x + δ))  subject to ‖δ‖_p ≤ ε, x + δ ∈ box;        F ≈ ŷ by labels alone

    Args:
        victim: a Victim, of which labels alone are asked, or a model; under hard access any callable, a forest, say,
            that tells the labels (N,) of a batch.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the victim's prediction.
        pool: S_0, inputs (M, ...) of which the victim is asked, or labeled data, whose own labels are not looked at.
            None takes x, or what is ``known`` alone.
        known: points (M, ...) and the labels (M,) that the victim gave them before: a part of S_0 that costs nothing.
        net: the architecture of F, with logits (N, K) for all labels of the victim; a copy of it is trained. None is a
            small CNN for images of at least 10 pixels per side, else 100 ReLUs, with ``classes`` outputs.
        classes: K of that net.
        rounds: number of trainings, at least 1; the set is augmented between two of them.
        epochs: passes over the set in each.
        lr: learning rate at its peak.
        shift: λ > 0, by which the augmentation moves each element, in units of x.
        turn: τ ≥ 1, rounds after which the sign of λ turns.
        doublings: σ ≥ 0, rounds in which the set doubles.
        fresh: κ ≥ 1, the new points of each round after that.
        norm: ``"linf"`` or ``"l2"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,); None beside ``attack``.
        steps: number K ≥ 1 of steps on the substitute, all of which are taken.
        step_size: α > 0, a number or (N,); None means ε/K.
        loss: attacker's loss g, minimized.
        attack: another attack on F, in the place of these steps: ``attack(victim of F, x, y, ids=…)`` and ``target=``
            where there is one; ``functools.partial`` binds the rest. It brings its own radius.
        target: a label, or (N,), for a targeted attack.
        seed: of the net's initial weights, of its trainings and of the reservoir.
        ids: (N,) identities for the randomness of ``attack``; None means 0 … N − 1.
        progress: show a bar in a terminal.

    Returns:
        SubstituteResult. Each sample costs 2 queries and no gradient, 1 query where the goal is met at x; a label of
        the set costs 1 query, which is of no sample (``bought``), nor of a budget, which is each sample's.

        What ends the attack with an error loses no label: :func:`robustlab.attacker.results.so_far` of the error is a
        SubstituteResult of all that was bought.

    Raises:
        ValueError, TypeError: for a wrong argument, before any query; where the victim says a label that the net does
            not have, when it does.

    Source:
        Papernot et al. (2017), algorithm 1; Papernot et al. (2016), equations (5) and (6) and algorithm 1.
    """
    counts = {"rounds": rounds, "epochs": epochs, "turn": turn, "fresh": fresh, "steps": steps, "classes": classes}
    for name, count in counts.items():
        checks.at_least(name, count, 2 if name == "classes" else 1, integer=True)
    checks.at_least("doublings", doublings, 0, integer=True)
    checks.one_of("norm", norm, ("l2", "linf"))
    for name, length in (("lr", lr), ("shift", shift)):
        checks.positive(name, length)
    victim, ball, g = Victim.of(victim), get_norm(norm), attacker_loss(loss)
    checks.images(x, victim.bounds)
    radius, alpha = _lengths(victim, x, norm, eps, steps, step_size, attack)
    new, bought = first_set(victim, x, pool, known)
    own = _net(net, x, classes, seed)
    outputs = _outputs(own, x, y=y, target=target, known=bought.labels)
    with victim.session(x, y, target=target, ids=ids, access="hard") as session, _kept(bought, session, own):
        at = session.live(eps=radius, alpha=alpha)
        for rho in bar(range(rounds if len(at) else 0), show=progress, label="substitute"):
            bought.buy(victim, new, outputs)
            seen = as_computed(bought.points), bought.labels
            if len(seen[1]):  # else the victim says NaN of all
                fit(own, seen, epochs=epochs, lr=lr, seed=derive_seed(seed, rho))
            chosen = reservoir(len(seen[1]), fresh, seed, rho).to(x.device) if rho >= doublings else slice(None)
            if rho + 1 < rounds:
                way = shift * (-1) ** (rho // turn)
                new = augmented(victim, own, seen[0][chosen], seen[1][chosen], way).to(x.dtype)
        crafting = Victim(own, bounds=victim.bounds)
        if attack is None:
            descend(crafting, session, at, ball, g, steps, label="substitute")
        else:
            at.points = _crafted(attack, crafting, session, at)
        return _beside(bought, session.result(at.points), own)


def _crafted(attack: Attack, crafting: Victim, session: Session, at: Live) -> Tensor:
    """What another attack makes of the samples at work, on the substitute."""
    if not len(at):
        return at.x
    aim = {} if at.target is None else {"target": at.target}
    result = attack(crafting, at.x, at.y, ids=session.ids[at.rows], **aim)
    if not isinstance(result, AttackResult):
        raise TypeError(f"attack: want a function that returns an AttackResult, got {type(result).__name__}")
    return result.x_adv


@contextmanager
def _kept(bought: Bought, session: Session, net: nn.Module) -> Iterator[None]:
    """What ends the attack with an error carries the labels."""
    try:
        yield
    except BaseException as error:
        vars(error).pop("so_far", None)  # what the question, or the attack on the substitute, had when it was cut short
        with suppress(Exception):
            keep_so_far(error, _beside(bought, session.so_far(), net))
            error.add_note(
                f"{bought.paid} labels that were bought are not lost: known=(points, labels) of so_far(error)"
            )
        raise


def _beside(
    bought: Bought, result: AttackResult | UniversalResult | PhysicalResult, net: nn.Module
) -> SubstituteResult:
    """What the session has found, with the net and what it was trained on."""
    return SubstituteResult(**vars(result), net=net, points=bought.points, labels=bought.labels, bought=bought.paid)


def _net(net: nn.Module | None, x: Tensor, classes: int, seed: int) -> nn.Module:
    """A copy of the architecture, or the default, in the dtype that the attack computes in."""
    if net is not None and not isinstance(net, nn.Module):
        raise TypeError(f"net: want a module with logits (N, K), got {type(net).__name__}")
    shape = tuple(x.shape[1:])
    if net is None:
        kind = "small_cnn" if len(shape) == 3 and min(shape[1:]) >= 10 else "mlp"
        more = {} if kind == "small_cnn" else {"hidden": (100,)}
        net = models.build(kind, in_shape=shape, classes=classes, seed=seed, **more)
    with torch.inference_mode(False):
        copied = copy.deepcopy(net).to(x.device, as_computed(x).dtype).eval()
        for parameter in copied.parameters():
            parameter.requires_grad_(True)
    return copied


def _outputs(net: nn.Module, x: Tensor, **labels: Any) -> int:
    """How many classes the net has; what is known of the labels must be among them."""
    try:
        count = first_logits(net, as_computed(x.detach().new_zeros(1, *x.shape[1:]))).shape[1]
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"net: want logits (N, K) of samples of shape {tuple(x.shape[1:])}, got {error}") from error
    for name, label in labels.items():
        if label is not None:
            checks.in_classes(name, label if name == "known" else checks.labels(name, label, x), count)
    return count


def _lengths(
    victim: Victim, x: Tensor, norm: ProperNorm, eps: float | Tensor | None, steps: int,
    step_size: float | Tensor | None, attack: Attack | None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """ε and α per sample; None where another attack brings its own."""
    if attack is not None:
        if not callable(attack):
            raise TypeError(f"attack: want a function that returns an AttackResult, got {attack!r}")
        if eps is not None or step_size is not None:
            raise ValueError("eps: want None beside attack, which brings its own, got both")
        return None, None
    if eps is None:
        raise ValueError("eps: want a radius, or an attack that brings its own, got None")
    radius = checks.radius(eps, x, norm, victim.bounds)
    return radius, (radius + (radius == 0)) / steps if step_size is None else checks.per_sample(
        "step_size", step_size, x
    )
