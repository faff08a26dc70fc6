"""Poisoning of linear regression by gradients through the training.

Jagielski, Oprea, Biggio, Liu, Nita-Rotaru and Li, "Manipulating machine learning: Poisoning attacks and countermeasures
for regression learning" (2018), Algorithm 1. The attacker adds points D_p, and chooses their features *and* responses
such that the model trained on everything is as wrong as possible:

    maximize over D_p  W(θ*)   subject to   θ* = argmin_θ L(D ∪ D_p, θ)

The training is convex, so its optimality condition ∇_θ L(D ∪ D_p, θ*) = 0 says how θ* moves with a poison (x_c, y_c).

For the LASSO the condition is differentiated on the weights that are not zero, since the others do not move. Different
here: a line search tries all its step lengths in one batch of refits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacks.poisoning.added_rows import (
    INITS,
    Groups,
    Start,
    check_table,
    mix_in,
    round_one_hot,
    starting_rows,
)
from robustlab.data.pairs import Pairs, read_pair
from robustlab.models.linear import (
    PENALTIES,
    LinearModel,
    Moments,
    Penalty,
    fit_moments,
    mean_squared_error,
    moments,
    regularizer,
    table,
)

STEPS = 12  # lengths that a line search tries: 1, 1/2, …, 1/2048 of the box's side


def regression_poisoning(
    data: Pairs,
    *,
    rate: float,
    penalty: Penalty = "ridge",
    lam: float = 1e-3,
    validation: tuple[Tensor, Tensor] | None = None,
    init: Start = "inv_flip",
    optimize: Literal["xy", "x", "none"] = "xy",
    passes: int = 10,
    tol: float = 1e-5,
    one_hot: Groups = (),
    seed: int = 0,
) -> Poisoned:
    """Add points that make a ridge or LASSO model as wrong as possible.

        z_c ← best of z_c and clip(z_c + η ∇_c W / max|∇_c W|, 0, 1), η ∈ {1, ½, ¼, …}, after a refit of θ* for each
        ∇_c W = −2/N · (s w + r v_w, −s),  v = (v_w, v_b) = H⁻¹ ∇_θ W,  s = v_w·x_c + v_b,  r = w·x_c + b − y_c

    for one poison z_c = (x_c, y_c) after the other, over and over; H is the Hessian of L.

    Args:
        data: a pair (x, y): clean features (n, d) and responses (n,), both in [0, 1].
        rate: number of poisons as a fraction of n, in (0, 1]: round(rate·n) rows are added. The paper counts them among
            all rows of the poisoned table: its 20 % is a rate of 0.25 here.
        penalty: the victim's, ``"ridge"`` or ``"lasso"``; see :func:`robustlab.models.linear.fit_linear`.
        lam: the victim's λ, above 0.
        validation: (x, y) on which W is the mean squared error. None (the default) makes W the victim's own loss, with
            its penalty, on the clean rows.
        init: poisons start as clean rows with another response: ``"inv_flip"`` 1 − y, ``"b_flip"`` 1 − y rounded to
            0 or 1; ``"influence"`` is ``"b_flip"`` for rows drawn in proportion to leverage times change of y.
        optimize: ``"xy"`` moves features and responses, ``"x"`` features alone, ``"none"`` neither: the bare start.
        passes: most passes over the poisons, default 10.
        tol: stop after a pass that gains less than this part of W.
        one_hot: groups of columns that are made one-hot again at the end: the largest becomes 1.
        seed: of the rows that poisons start from.

    Returns:
        :class:`~robustlab.attacker.poisoned_data.Poisoned`: the clean rows and the poisons, mixed. Its
        ``details["objective"]`` is W before the first pass and after each, with one-hot columns not yet rounded; it
        never falls.

    Raises:
        ValueError, TypeError: for an argument out of its range, before any work.

    Source:
        Jagielski et al. (2018), Algorithm 1, with the initializations and the rounding of its section IV.
    """
    x, y = read_pair(data)
    p = check_table(x, y, rate, one_hot)
    for name, given, wanted in (
        ("penalty", penalty, PENALTIES),
        ("init", init, INITS),
        ("optimize", optimize, ("xy", "x", "none")),
    ):
        checks.one_of(name, given, wanted)
    checks.positive("lam", lam)
    checks.at_least("passes", passes, 1, integer=True)
    checks.at_least("tol", tol, 0.0)
    if validation is not None:
        table(*validation)
    goal = moments(x, y) if validation is None else moments(*(part.detach() for part in validation))
    goal_lam = lam if validation is None else 0.0
    poison, original_y = starting_rows(x, y, p, init, seed)
    rows = len(x) + p
    data = moments(torch.cat([x, poison[:, :-1]]), torch.cat([y, poison[:, -1]]))
    model = fit_moments(data, penalty, lam)
    reached = [outer_value(model, goal, penalty, goal_lam)]
    lengths = 0.5 ** torch.arange(STEPS, dtype=x.dtype, device=x.device)
    for _ in range(0 if optimize == "none" else passes):
        value = reached[-1]
        for c in range(p):
            outer = outer_gradient(model, goal, penalty, goal_lam)
            slope = poison_gradient(poison[c : c + 1], model, outer, data, rows, penalty, lam)[0]
            if optimize == "x":
                slope[-1] = 0
            direction = slope / slope.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)
            points = (poison[c] + lengths[:, None] * direction).clamp(0, 1)
            tried = _exchange(data, poison[c], points, rows)
            models = fit_moments(tried, penalty, lam, model.weight)
            values = outer_value(models, goal, penalty, goal_lam)
            best = values.argmax()
            if values[best] > value:
                value, poison[c] = values[best], points[best]
                data, model = Moments(*(part[best] for part in tried)), LinearModel(*(part[best] for part in models))
        reached.append(value)
        if reached[-1] - reached[-2] <= tol * reached[-2]:
            break
    objective = tuple(float(value) for value in reached)
    features = round_one_hot(poison[:, :-1], one_hot)
    return mix_in(x, y, features, poison[:, -1], original_y=original_y, seed=seed, details={"objective": objective})


def poison_gradient(
    poison: Tensor, model: LinearModel, outer: Tensor, data: Moments, rows: int, penalty: Penalty, lam: float
) -> Tensor:
    """How W changes with each poison when the model is trained again: ∂W/∂(x_c, y_c).

    Args:
        poison: (p, d + 1), rows (x_c, y_c) of the training data.
        model: θ*, the minimizer of L on that data.
        outer: ∇_θ W at θ*, (d + 1,), the bias last.
        data: moments of the training data, poisons included.
        rows: N, the number of its rows.
        penalty, lam: of the training.

    Returns:
        (p, d + 1).
    """
    w, x, second = model.weight, poison[:, :-1], data.second.clone()
    # H for (w, b): second moments of (x, 1), where `data` has those of (x, y)
    second[-1], second[:, -1] = data.mean, data.mean
    second[-1, -1] = 1
    hessian = 2 * second
    moves = torch.ones_like(outer, dtype=torch.bool)
    if penalty == "ridge":
        hessian.diagonal()[:-1].add_(lam)
    else:
        moves[:-1] = w != 0
    hessian = torch.where(moves[:, None] & moves, hessian, 0)
    v = torch.linalg.pinv(hessian, hermitian=True) @ torch.where(moves, outer, 0)
    s, r = x @ v[:-1] + v[-1], model(x) - poison[:, -1]
    return -2 / rows * torch.cat([s[:, None] * w + r[:, None] * v[:-1], -s[:, None]], dim=1)


def outer_value(model: LinearModel, goal: Moments, penalty: Penalty, lam: float) -> Tensor:
    """W for each of a stack of models: the squared error on the goal's data, plus λ Ω(w)."""
    return mean_squared_error(model, goal) + lam * regularizer(model, penalty)


def outer_gradient(model: LinearModel, goal: Moments, penalty: Penalty, lam: float) -> Tensor:
    """∇_θ W, (d + 1,), the bias last."""
    w, b = model
    mean_residual = w @ goal.mean[:-1] + b - goal.mean[-1]
    by_weight = goal.second[:-1, :-1] @ w + b * goal.mean[:-1] - goal.second[:-1, -1]
    shrink = w if penalty == "ridge" else torch.sign(w)
    return torch.cat([2 * by_weight + lam * shrink, 2 * mean_residual[None]])


def _exchange(data: Moments, old: Tensor, new: Tensor, rows: int) -> Moments:
    """The moments after one row `old` became each of the rows `new` (k, d + 1)."""
    second = data.second + (new[:, :, None] * new[:, None, :] - old[:, None] * old) / rows
    return Moments(data.mean + (new - old) / rows, second)
