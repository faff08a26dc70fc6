"""Min-max attacks: one perturbation against the worst of several models, images or transformations.

Wang, Zhang, Liu, Chen, Xu, Fardad and Li, "Adversarial attack generation empowered by min-max optimization" (2021),
equation (2) and algorithm 1 (APGDA). There are K domains, each with the attacker's loss F_k, small where it is fooled.
An attack on their mean may gain in easy ones what it loses in hard ones. So the weights w of the domains are an
opponent's, who takes those that hurt most, and γ keeps them near the mean:

    minimize_{‖δ‖ ≤ ε}  maximize_{w ≥ 0, Σ w = 1}   Σ_k w_k·F_k(δ) − γ/2·‖w − 1/K‖²

Both sides take turns. The attacker descends in δ, and the opponent answers at the new δ: it ascends in w, where the
slope of the objective is F_k(δ) − γ·(w_k − 1/K):

    δ ← P( δ + α·v(−∇ Σ_k w_k F_k(δ)) )          P: onto the ball, v: the steepest unit step
    w ← P_Δ( w + β·(F(δ) − γ·(w − 1/K)) )         P_Δ: onto the simplex, exactly

γ = 0 is the worst domain alone, γ → ∞ the mean. The best answer to a δ has a closed form, w*(δ) = P_Δ(1/K + F(δ)/γ),
and with it the value of δ that the attacker minimizes; of all δ tried the one of smallest value is returned.

Different here: the signs are those of the derivation above (in the authors' code they differ from task to task, and
the margin loss compares the label's logit with itself, less 10⁴); steps go along the steepest unit step of the norm
instead of the gradient; every task has one δ for all images. So the paper's ensemble attack, which has a δ for each
image, is this on one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.composition import boxed, gradient_through
from robustlab.attacker.live import Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import UniversalResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.universal.one_for_all import one_for_all
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import onto_simplex
from robustlab.progress import bar

__all__ = ["MinMaxResult", "minmax_universal"]

Transform = Callable[[Tensor], Tensor]
AXIS = {"models": 0, "transforms": 1, "images": 2}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MinMaxResult(UniversalResult):
    """One perturbation, and the weights that the opponent gave the domains.

    Attributes:
        weights: (K,), ≥ 0 and of sum 1, when δ was tried; 0 for an image of which a model says NaN.
        fooled: (M, T, N) bool: whether each of M models under each of T transformations says something else of each
            image than without δ. ``success`` is that all of them do.
    """

    weights: Tensor
    fooled: Tensor


def minmax_universal(
    victim: Model | Sequence[Model],
    x: Tensor,
    y: Tensor | None = None,
    *,
    over: Literal["images", "models", "transforms"] = "images",
    transforms: Sequence[Transform] | None = None,
    norm: Literal["l2", "linf"] = "linf",
    eps: float,
    steps: int = 40,
    step_size: float | None = None,
    weight_step: float = 0.02,
    gamma: float = 4.0,
    loss: LossName | LossFunction = "ce",
    seed: int = 0,
    progress: bool = False,
    trace: bool = False,
) -> MinMaxResult:
    """One perturbation against the worst of K domains.

        minimize_{‖δ‖_p ≤ ε}  maximize_{w ∈ Δ}  Σ_k w_k·F_k(δ) − γ/2·‖w − 1/K‖²

    Args:
        victim: a Victim or a model with logits (N, K), or a list of them, with one box.
        x: (N, ...), in the box: the images that δ is made from.
        y: (N,) labels, checked and not used, since fooling is against what the model says without δ.
        over: what the domains are: ``"images"``, ``"models"`` or ``"transforms"``. F_k is the mean of the loss over
            all else: of a model, say, that over images and transformations.
        transforms: differentiable functions of a batch of images, which the models see in the place of x + δ, clipped
            to the box; None is the identity alone.
        norm: ``"linf"`` or ``"l2"``.
        eps: radius ε ≥ 0 of the one δ, in units of x.
        steps: number of turns, at least 1.
        step_size: α > 0; None means 2.5·ε/steps.
        weight_step: β > 0, the opponent's; in units of 1/loss. Keep β·γ below 1: beyond 2 the weights swing.
        gamma: γ ≥ 0, how much the opponent is held to the mean; in units of the loss.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`), against what the model says without δ.
        seed: accepted for uniformity; the method starts at δ = 0 and is deterministic.
        progress: show a bar in a terminal.
        trace: keep ``result.trace["loss"]`` and ``["weights"]``, (steps + 1, K), of every δ tried.

    Returns:
        MinMaxResult. Cost for each sample, model and transformation: ``steps`` + 1 queries and gradients, and 1 query
        for the final check; for each model 1 query at x; and with transforms 1 query of each of them at x.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Wang et al. (2021), equation (2), algorithm 1 and sections 4.1 to 4.3.
    """
    checks.one_of("over", over, tuple(AXIS))
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("weight_step", weight_step)
    checks.at_least("gamma", gamma, 0.0)
    if step_size is not None:
        checks.positive("step_size", step_size)
    ball, g, victims, views = get_norm(norm), attacker_loss(loss), _victims(victim), _views(transforms)
    first = 2 * len(views) - 1 if transforms is not None else len(views) - 1
    with ExitStack() as stack:
        opened = (one_for_all(v, x, y, norm, eps, loss=g, first_round=max(0, first)) for v in victims)
        sessions = [stack.enter_context(each) for each in opened]
        lost = torch.stack([session.lost for session in sessions]).any(dim=0)
        domains = _domains(sessions, views, (~lost).nonzero().flatten(), asked=transforms is not None)
        alpha, delta = 2.5 * eps / steps if step_size is None else step_size, sessions[0].x.new_zeros(1, *x.shape[1:])
        count = {"models": len(sessions), "transforms": len(views), "images": int((~lost).sum())}[over]
        weights = delta.new_full((count,), 1 / max(count, 1))
        best, least, kept, told = delta, torch.inf, weights, list[tuple[Tensor, Tensor]]()
        for _ in bar(range(steps + 1 if count and len(x) else 0), show=progress, label="minmax_universal"):
            if not _affords(domains):
                break
            losses, grads, met = _look(domains, delta, over, g)
            if told:  # the opponent answers each move of δ, and has not moved before the first
                weights = answered(weights, losses, weight_step, gamma)
            told.append((losses, weights))
            worth = float(worst(losses, gamma)[0])
            if worth < least:
                best, least, kept = delta, worth, weights
                for of_model in domains:  # any of which may be interrupted
                    of_model[0].session.keep_shared(delta[0], met.flatten(0, 1).all(dim=0), of_model[0].live)
            grad = torch.einsum("mtn,mtn...->...", _shares(weights, over).expand_as(met), grads)[None]
            delta = ball.project(delta + alpha * ball.steepest(-grad), eps)
        return _wrapped(domains, best[0], kept, lost, over, told if trace else [])


def answered(weights: Tensor, losses: Tensor, step: float, gamma: float) -> Tensor:
    """The opponent's weights (K,) after a step of ascent: P_Δ( w + β·(F − γ·(w − 1/K)) )."""
    return onto_simplex((weights + step * (losses - gamma * (weights - 1 / len(weights))))[None])[0]


def worst(losses: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The opponent's best answer to losses F (K,): its value max_w Σ w·F − γ/2·‖w − 1/K‖², and that w.

    w = P_Δ(1/K + F/γ);   γ = 0: all weight on a largest one
    """
    even = torch.full_like(losses, 1 / len(losses))
    if gamma == 0:
        best = torch.zeros_like(losses).index_fill_(0, losses.argmax(), 1.0)
    else:
        best = onto_simplex((even + losses / gamma)[None])[0]
    return best @ losses - gamma / 2 * (best - even).square().sum(), best


@dataclass(frozen=True)
class _Domain:
    """The samples of one model under one transformation; ``live.y`` is what it says there without δ."""

    session: Session
    live: Live
    view: Transform
    each: int  # transformations of this model


def _domains(sessions: list[Session], views: list[Transform], rows: Tensor, *, asked: bool) -> list[list[_Domain]]:
    """One for each model and transformation; ``asked``: what is said of the transformed images must be."""
    found = []
    for session in sessions:
        of_model = []
        for view in views:
            live = session.of(rows)
            if asked and len(live):
                live.y = session.ask(view(live.x), live).logits.argmax(dim=1)
            of_model.append(_Domain(session, live, view, len(views)))
        found.append(of_model)
    return found


def _look(domains: list[list[_Domain]], delta: Tensor, over: str, g: LossFunction) -> tuple[Tensor, Tensor, Tensor]:
    """F (K,) at δ, each loss's gradient in δ, (M, T, n, ...), and where the goal is met, (M, T, n)."""
    answers = [
        [
            gradient_through(
                d.session, d.live, d.live.x + delta,
                lambda points, d=d: d.view(boxed(points, d.session.low, d.session.high)), g,  # type: ignore[misc]
            )
            for d in of_model
        ]
        for of_model in domains
    ]  # fmt: skip
    losses, grads, met = (
        torch.stack([torch.stack([getattr(answer, name) for answer in of_model]) for of_model in answers])
        for name in ("loss", "grad", "met")
    )
    return losses.mean(dim=[axis for axis in range(3) if axis != AXIS[over]]), grads, met


def _shares(weights: Tensor, over: str) -> Tensor:
    """The weights along the axis of the domains, to broadcast with (M, T, n)."""
    shape = [1, 1, 1]
    shape[AXIS[over]] = len(weights)
    return weights.reshape(shape)


def _affords(domains: list[list[_Domain]]) -> bool:
    """Whether every sample has a query left for each transformation, and one for each at the end."""
    firsts = [of_model[0] for of_model in domains]
    return all(first.session.all_can_pay(first.live, 2 * first.each - 1) for first in firsts)


def _wrapped(
    domains: list[list[_Domain]], delta: Tensor, weights: Tensor, lost: Tensor, over: str,
    told: list[tuple[Tensor, Tensor]],
) -> MinMaxResult:  # fmt: skip
    """Ask every domain once more about δ."""
    rows = (~lost).nonzero().flatten()
    fooled = torch.zeros(len(domains), len(domains[0]), len(lost), dtype=torch.bool, device=lost.device)
    for m, of_model in enumerate(domains):
        for t, d in enumerate(of_model):
            if len(rows):
                points = d.view(d.session.moved(d.live, delta))
                fooled[m, t, rows] = d.session.ask(boxed(points, d.session.low, d.session.high), d.live).met
    if over == "images":
        weights = delta.new_zeros(len(lost)).index_put_((rows,), weights)
    trace = {"loss": torch.stack([f for f, _ in told]), "weights": torch.stack([w for _, w in told])} if told else None
    all_fooled, sessions = fooled.flatten(0, 1).all(dim=0), [of_model[0].session for of_model in domains]
    result = vars(sessions[0].universal_result(delta, success=all_fooled, trace=trace))
    for name in ("queries", "gradients"):
        result[name] = torch.stack([getattr(session, name) for session in sessions]).sum(dim=0)
    return MinMaxResult(**result, weights=weights, fooled=fooled)


def _victims(given: Model | Sequence[Model]) -> list[Victim]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        return [Victim.of(given)]
    if not given:
        raise ValueError("victim: want at least one model, got an empty list")
    victims = [Victim.of(model) for model in given]
    for other in victims[1:]:
        for here, there in zip(victims[0].bounds, other.bounds, strict=True):
            if not torch.equal(torch.as_tensor(here), torch.as_tensor(there)):
                raise ValueError(f"victim: want models with one box, got bounds {victims[0].bounds} and {other.bounds}")
    return victims


def _views(transforms: Sequence[Transform] | None) -> list[Transform]:
    if transforms is None:
        return [lambda points: points]
    if not isinstance(transforms, Sequence) or not transforms or not all(callable(each) for each in transforms):
        raise TypeError(f"transforms: want a list of at least one function of a batch, got {transforms!r}")
    return list(transforms)
