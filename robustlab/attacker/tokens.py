"""Questions about tokens: the gradient where a model turns them into vectors, and as many points as each sample has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.live import Live
from robustlab.attacker.losses import LossFunction
from robustlab.attacker.session import Answer, Session
from robustlab.models.probing import Layer, find_layer


def embedding_layer(model: object, layer: Layer | None) -> nn.Module:
    """The layer that turns tokens into vectors: a module of the model or its name; None is its first ``nn.Embedding``.

    Raises:
        TypeError, ValueError: naming the argument ``layer``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"layer: want a model that is a torch.nn.Module, got {type(model).__name__}")
    if layer is not None:
        return find_layer(model, layer)[1]
    found = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    if found is None:
        raise ValueError("layer: want the module that turns tokens into vectors, got None, and no nn.Embedding")
    return found


def gradient_at(session: Session, live: Live, points: Tensor, layer: nn.Module, loss: LossFunction) -> Answer:
    """Scores, loss, and the gradient of the loss with respect to what a layer gives at ``points``, (n, T, ...).

    Tokens have no gradient; their vectors have one. One query and one gradient each.

    Raises:
        ValueError: if the layer is not asked exactly once per forward, or gives no row for each token.
    """
    session._need("white")
    seen: list[Tensor] = []

    def catch(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_(True))
        return seen[-1]

    handle = layer.register_forward_hook(catch)
    try:  # cuDNN's recurrent layers have no gradient in evaluation mode, PyTorch's own have one
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            answer = session._read(session._inside(points), False)
            value = loss(answer, live.y, live.target, session.kappa)
            if len(seen) != 1 or seen[0].shape[:2] != points.shape:
                shapes = [tuple(part.shape) for part in seen]
                raise ValueError(f"layer: want one that gives {tuple(points.shape)} vectors once, got shapes {shapes}")
            if not value.requires_grad:
                raise ValueError("model: want an output that is differentiable in the layer's, got one that is cut off")
            (grad,) = torch.autograd.grad(value.sum(), seen)
    finally:
        handle.remove()
    answer, value, grad = answer.detach(), value.detach(), grad.nan_to_num(0.0, 0.0, 0.0)
    live._differentiated += 1
    return Answer(answer, session._count(live, answer), value, grad)


class Told(NamedTuple):
    """Of m points per sample: the loss (n, m), ∞ where nothing was asked, and whether the goal is met."""

    loss: Tensor
    met: Tensor


def ask_some(
    session: Session, live: Live, points: Tensor, asked: Tensor, loss: LossFunction, *, probe: bool = False
) -> Told:
    """The loss of those of m points per sample (n, m, ...) that a mask (n, m) names; one query for each, in order.

    Where the budget of a sample ends before, the first are asked that it can pay, one query being kept for the final
    check. NaN counts as ∞. Of a ``probe``, which need not be a point that the attack may return, no goal is looked at.
    """
    session._need("soft")
    order = asked.cumsum(dim=1)
    if session.budget is not None:
        left = session.budget - 1 - session.queries[live.rows]
        asked = asked & (order <= left[:, None])
    n, m = asked.shape
    value = torch.full((n, m), torch.inf, dtype=torch.float64, device=points.device)
    met = torch.zeros(n, m, dtype=torch.bool, device=points.device)
    sample, _ = asked.nonzero(as_tuple=True)
    if not len(sample):
        return Told(value, met)
    target = None if live.target is None else live.target[sample]
    each = Live(session, live.rows[sample], y=live.y[sample], target=target)
    answer = session._answer(points[asked])
    if not probe:
        met[asked] = session.met(answer, each)
    value[asked] = loss(answer, each.y, each.target, session.kappa).double().nan_to_num(torch.inf, torch.inf)
    spent, rows = session.queries[live.rows], live.rows  # all that was asked before is booked now
    never = torch.iinfo(torch.int64).max
    first = torch.where(met, spent[:, None] + order, never).amin(dim=1)
    session._first_success.scatter_reduce_(0, rows, first, "amin")
    session._queries.index_add_(0, rows, asked.sum(dim=1))
    session._most = never  # samples differ in what they were asked
    return Told(value, met)


def checked_changes(changes: int | float) -> int | float:
    """How many tokens may be changed: an integer of at least 0, or a share in [0, 1].

    Raises:
        ValueError, TypeError: naming the argument ``changes``.
    """
    if isinstance(changes, int) and not isinstance(changes, bool):
        checks.at_least("changes", changes, 0, integer=True)
        return changes
    checks.at_least("changes", changes, 0.0)
    checks.at_most("changes", changes, 1.0)
    return changes


def allowed_changes(changes: int | float, movable: Tensor) -> Tensor:
    """(N,): how many of the movable tokens (N, T) may be changed; a share is rounded up."""
    words = movable.sum(dim=1)
    if isinstance(changes, int):
        return words.clamp_max(changes)
    return (words.double() * changes - 1e-9).ceil().long()
