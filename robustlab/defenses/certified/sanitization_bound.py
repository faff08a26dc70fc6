"""A bound on what any poison can do to a classifier whose training data are sanitized.

Steinhardt, Koh and Liang, "Certified defenses for data poisoning attacks" (2017), algorithm 1. A defender keeps what
lies in F = F₀ ∪ F₁ (:mod:`robustlab.defenses.certified.feasible`) and trains a linear classifier by the hinge loss.
Whatever the γn poisons in F are, by weak duality the loss of training is at most

    max_poison min_θ L(θ; clean) + γ·L(θ; poison)  ≤  U(θ) = L(θ; clean) + γ·max_{(x, y) ∈ F} [1 − y(⟨w, x⟩ + b)]₊

for every θ = (w, b) with ‖θ‖₂ ≤ max_norm. U is convex, and dual averaging looks for its minimum: θ ← z/λ with z the sum
of the negative subgradients g and λ = max(√Σ‖g‖²/lr, ‖z‖/max_norm). The worst point of each step is a candidate poison;
all together play against θ, so that they nearly reach the bound.

Different here: the bound starts at +∞ (the published code begins at 10,000, a false bound where no iterate is below); λ
grows with the subgradients, where the code keeps 1/lr; the maximum over F is in closed form, in the plane of w and u
around μ_y, where the paper's third direction has become the origin; where that plane is a line, no direction is drawn
at random. With x ≥ 0 the paper and its code call a solver of convex programs; here two multipliers are searched for.

For centroids that are computed from the poisoned data the paper solves a semidefinite program for a given split of the
poisons over classes, and its code takes the largest value over 200 random splits, which bounds none of the others. Here
``oracle="data"`` confines each poison to a fixed set that holds the moved one for every split: with k poisons, x̄ their
mean in class y and μ̂_y the moved mean, ‖x̄ − μ̂_y‖ = n_y/(n_y + k)·‖x̄ − μ_y‖, hence ‖x − μ_y‖ ≤ R_y(1 + k/n_y), and as
much for the slab, after the turn of u. For the sphere alone that is the smallest such set; with the slab it is larger
than the program's. Like the paper's it assumes that all points that move a centroid pass the defense themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.results import Result
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.defenses.certified.feasible import Feasible
from robustlab.defenses.certified.hinge import DualAveraging, train_linear, with_one
from robustlab.progress import bar

__all__ = ["SanitizationBound", "sanitization_bound", "sanitizer"]

Oracle = Literal["fixed", "data"]
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False, repr=False)
class SanitizationBound(Result):
    """A bound on the loss of training, and the attack that came out of its search.

    Attributes:
        bound: no poison of the given rate makes the least mean hinge loss larger.
        clean_loss: what the clean data have of it, at ``weight`` and ``bias``.
        poison_loss: the largest loss of a point of the feasible set there.
        weight, bias: (d,) and (); the θ of the bound.
        attack: candidate poisons, points (m, d) and their labels (m,), m = ⌊γn⌋.
        survives: (m,) bool, whether the defense lets them through, its centroids moved where ``oracle="data"``.
        attack_loss: mean hinge loss per clean row after training on the clean data and the poisons that survive, as
            far as training came: at most ``bound``.
        attack_least: what no training on them ends below, so that the attack causes a loss between the two.
        attack_weight, attack_bias: the θ of that training.
        feasible: the sets that hold every poison.
        history: (steps,), U at each iterate.
    """

    bound: float
    clean_loss: float
    poison_loss: float
    weight: Tensor
    bias: Tensor
    attack: tuple[Tensor, Tensor]
    survives: Tensor
    attack_loss: float
    attack_least: float
    attack_weight: Tensor
    attack_bias: Tensor
    feasible: Feasible
    history: Tensor


def sanitizer(
    data: Pairs, *, sphere: bool = True, slab: bool = True, quantile: float = 0.7, nonnegative: bool = False
) -> Feasible:
    """The sphere and the slab of each class, so wide that they hold a share of its rows.

    Args:
        data: rows (N, d) and labels 0 or 1.
        sphere, slab: which of the two are used; one at least.
        quantile: of the distances to the mean, and of those along u, in (0, 1]; 0.7 is the paper's.
        nonnegative: whether x ≥ 0 is known of every row and required of every point.

    Raises:
        ValueError, TypeError: for other data, or an argument out of its range.

    Source: Steinhardt et al. (2017), equations 4 and 5.
    """
    x, y = _table(data, nonnegative)
    if not sphere and not slab:
        raise ValueError("sphere, slab: want at least one, got neither")
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile: want a share in (0, 1], got {quantile}")
    center = torch.stack([x[y == c].mean(dim=0) for c in (0, 1)])
    apart = center[1] - center[0]
    if slab and not bool(apart.norm() > 0):
        raise ValueError("slab: want classes of different means, got equal ones, between which there is no direction")
    direction = apart / apart.norm().clamp_min(torch.finfo(apart.dtype).tiny)
    away = [x[y == c] - center[c] for c in (0, 1)]
    far = torch.full_like(center[:, 0], torch.inf)
    radius = torch.stack([part.norm(dim=1).quantile(quantile) for part in away]) if sphere else far
    width = torch.stack([(part @ direction).abs().quantile(quantile) for part in away]) if slab else far
    return Feasible(center, direction, radius, width, nonnegative)


def sanitization_bound(
    data: Pairs,
    *,
    rate: float,
    oracle: Oracle = "fixed",
    slab: bool = True,
    quantile: float = 0.7,
    nonnegative: bool = False,
    max_norm: float = 10.0,
    steps: int = 1000,
    lr: float | None = None,
    progress: bool = False,
) -> SanitizationBound:
    """Bound the hinge loss of training on sanitized data that hold any poison of a given rate.

        bound = min over iterates θ of  1/n Σ_i [1 − y_i(⟨w, x_i⟩ + b)]₊ + γ·max_{(x, y) ∈ F} [1 − y(⟨w, x⟩ + b)]₊

    Args:
        data: the clean training data: rows (n, d) and labels 0 or 1, which stand for y = −1 and +1.
        rate: γ, poisons per clean row, at least 0.
        oracle: the means behind sphere and slab are those of the clean data (``"fixed"``), or those of what the
            defender received, which the poison moves (``"data"``).
        slab: whether the defense has the slab beside the sphere.
        quantile: of the clean rows within the sphere, and within the slab.
        nonnegative: x ≥ 0 is known of every row, as of counts; a poison must keep it too, and the bound gets smaller.
        max_norm: of (w, b), the bias included, as in the paper's code.
        steps: of dual averaging, at least 1.
        lr: rate of the steps, a length of θ, above 0; None takes max_norm/2.
        progress: show a bar in a terminal.

    Returns:
        A :class:`SanitizationBound`, computed in float64. It bounds the loss of *training*: the test loss only as far
        as that is near the clean rows'. Rows that the defense takes away only lower the loss.

    Raises:
        ValueError, TypeError: for other data, or an argument out of its range.

    Source:
        Steinhardt et al. (2017), algorithm 1 and section 4.
    """
    checks.not_negative("rate", rate)
    checks.one_of("oracle", oracle, get_args(Oracle))
    checks.positive("max_norm", max_norm)
    checks.at_least("steps", steps, 1, integer=True)
    lr = max_norm / 2 if lr is None else lr
    checks.positive("lr", lr)
    kept = sanitizer(data, slab=slab, quantile=quantile, nonnegative=nonnegative)
    x, y = _table(data, nonnegative)
    feasible = kept if oracle == "fixed" else _widened(kept, y, rate)
    rows, sign = with_one(x), 2.0 * y.to(x.dtype) - 1
    signs = torch.tensor([-1.0, 1.0], dtype=x.dtype, device=x.device)

    descent = DualAveraging(torch.zeros_like(rows[0]), max_norm, lr)
    points, classes, history = [], [], []
    for _ in bar(range(steps), show=progress, label="sanitization_bound"):
        theta = descent.theta
        margin = sign * (rows @ theta)
        found, reach = feasible.farthest(-signs[:, None] * theta[:-1])
        loss = 1 + reach - signs * theta[-1]
        worst = loss.argmax()
        points.append(found[worst])
        classes.append(worst)
        history.append((1 - margin).clamp_min(0).mean() + rate * loss[worst].clamp_min(0))

        down = (sign * (margin < 1)) @ rows / len(rows)
        pull = rate * signs[worst] * (loss[worst] > 0)  # in this order: a number times a bool is float32
        down = down + pull * with_one(found[worst][None])[0]
        descent.step(history[-1], down)

    best, lowest = descent.best, descent.lowest
    clean = (1 - sign * (rows @ best)).clamp_min(0).mean()
    attack = _spread(torch.stack(points), torch.stack(classes), int(rate * len(x) + 1e-9))
    survives = _sanitized(kept, x, y, attack, oracle)
    passed, labels = attack[0][survives], attack[1][survives]
    # Training has no maximum over F, so that it can afford more steps.
    trained = train_linear(
        torch.cat([x, passed]), torch.cat([y, labels]), n=len(x), start=best, max_norm=max_norm, steps=4 * steps, lr=lr
    )
    return SanitizationBound(
        float(lowest), float(clean), float((lowest - clean) / rate) if rate else 0.0, best[:-1], best[-1], attack,
        survives, trained.loss, trained.least, trained.weight, trained.bias, feasible, torch.stack(history),
    )  # fmt: skip


def _table(data: Pairs, nonnegative: bool) -> tuple[Tensor, Tensor]:
    """Rows in float64 and labels, checked."""
    x, y = read_labeled(data)
    checks.floats(x, "data")
    checks.finite("data", x)
    if x.dim() != 2 or not len(x):
        raise ValueError(f"data: want rows (N, d), not empty, got shape {tuple(x.shape)}; say x.flatten(1) for images")
    checks.in_classes("data", y, 2)
    if not 0 < int(y.sum()) < len(y):
        raise ValueError(f"data: want both classes, 0 and 1, got {int(y.sum())} of {len(y)} rows of class 1")
    if nonnegative and bool((x < 0).any()):
        raise ValueError(f"nonnegative: want rows of at least 0, got a least value of {float(x.min()):g}")
    return x.double(), y


def _widened(kept: Feasible, y: Tensor, rate: float) -> Feasible:
    """Sets around the clean means that hold every poison which passes the defense around the moved ones.

    k/n_y is at most γn/n_y in either class. Both means together move by at most h = γn·max_y R_y/n_y, which turns u by
    an angle of sine h/‖μ₊ − μ₋‖ at most; a turn of 90° or more leaves nothing of the slab.
    """
    count = torch.stack([(y == 0).sum(), (y == 1).sum()])
    more = rate * len(y) / count
    sine = (kept.radius * more).max() / (kept.center[1] - kept.center[0]).norm()
    turn = 2 * torch.sin(torch.asin(sine.clamp_max(1)) / 2)
    width = torch.where(sine < 1, (kept.width + kept.radius * turn) * (1 + more), torch.inf)
    return Feasible(kept.center, kept.direction, kept.radius * (1 + more), width, kept.nonnegative)


def _spread(points: Tensor, classes: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """m of the worst points, evenly from the second half of the steps, when θ has come to rest."""
    # They often alternate, and every second step has one of two; multiples of the golden ratio are even for any period.
    steps = torch.arange(len(points) // 2, len(points), device=points.device)
    order = steps[(steps.double() * _GOLDEN % 1).argsort()]
    chosen = order[torch.arange(m, device=points.device) % len(order)]
    return points[chosen], classes[chosen]


def _sanitized(kept: Feasible, x: Tensor, y: Tensor, attack: tuple[Tensor, Tensor], oracle: Oracle) -> Tensor:
    """(m,) bool: which poisons the defense lets through."""
    if oracle == "fixed" or not len(attack[0]):
        return kept.keeps(*attack)
    rows, labels = torch.cat([x, attack[0]]), torch.cat([y, attack[1]])
    center = torch.stack([rows[labels == c].mean(dim=0) for c in (0, 1)])
    apart = center[1] - center[0]
    moved = Feasible(center, apart / apart.norm(), kept.radius, kept.width, kept.nonnegative)
    return moved.keeps(*attack)
