"""ZO-Min-Max: poisoning a model whose gradients nobody sees.

Liu, Lu, Chen, Feng, Xu, Al-Dujaili, Hong and O'Reilly, "Min-max optimization without gradients: Convergence and
applications to black-box evasion and poisoning attacks" (2020), algorithm 1 and its poisoning problem. All poisoned
samples are moved by one common δ, which the attacker chooses against a learner who trains on the result:

    maximize over ‖δ‖∞ ≤ ε   minimize over θ   F(δ, θ) = 1/N Σ_i ℓ(θ; x_i + δ·1[i poisoned], y_i) + λ‖θ‖²

Both take one step a turn, neither waits for the other to converge: θ goes down, δ goes up and is projected. The
attacker sees values of F alone; the learner may have gradients (one-sided) or not (two-sided). Different here: the
model is any classifier and starts where the caller's is, the whole data enter every step, and with ``bounds`` the moved
samples stay in their box.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from robustlab import checks
from robustlab.attacker.estimators import Directions, forward
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacks.poisoning.added_rows import rate_to_count
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.models.modes import evaluating
from robustlab.models.probing import count_outputs

Order = Literal["zeroth", "first"]
ORDERS = get_args(Order)


def zo_minmax(
    data: Pairs,
    *,
    model: nn.Module,
    rate: float,
    eps: float,
    steps: int = 100,
    queries: int = 10,
    mu: float = 1e-3,
    attack_rate: float = 0.05,
    model_rate: float = 0.05,
    attacker: Order = "zeroth",
    learner: Order = "first",
    lam: float = 1e-3,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    seed: int = 0,
) -> Poisoned:
    """Move round(rate·n) training samples by one common δ that makes what is learned from them as bad as possible.

        θ ← θ − β ∇̂_θ F(δ, θ),      δ ← clip(δ + α ∇̂_δ F(δ, θ), −ε, ε)
        ∇̂ f(v) = 1/q Σ_i d/μ · (f(v + μ u_i) − f(v)) · u_i,   u_i uniform on the unit sphere

    Args:
        data: a Dataset, whose training part is used, or a pair (x, y); x (N, ...).
        model: the learner's classifier with logits (N, K), which also says where θ starts. It is not changed.
        rate: poisoned samples as a fraction of N, in (0, 1]; rows are drawn evenly without replacement.
        eps: ε, in units of x, above 0.
        steps: turns, at least 1.
        queries: q, directions a gradient: q + 1 values of F each.
        mu: μ, step of the differences, above 0.
        attack_rate, model_rate: α and β, above 0.
        attacker, learner: ``"zeroth"`` or ``"first"``, how each gets its gradient. ``attacker="first"`` is the
            white-box twin, for comparison.
        lam: λ, at least 0.
        bounds: box that the moved samples are clipped to, inside F too; None for none.
        seed: of the rows and the directions.

    Returns:
        :class:`~robustlab.attacker.poisoned_data.Poisoned`, with ``details``: ``delta`` (shape of a sample),
        ``model_state`` (θ at the end, by name), ``objective`` (F after each turn) and ``queries``, the values of F that
        the attacker asked for.

    Raises:
        ValueError, TypeError: for an argument out of its range, before any work.

    Source:
        Liu et al. (2020), algorithm 1 with its random gradient estimator, on its poisoning problem.
    """
    x, y = read_labeled(data)
    count = rate_to_count(rate, len(x))
    _check(eps, steps, queries, mu, attack_rate, model_rate, attacker, learner, lam)
    checks.at_home(model, x, "data")
    if bounds is not None:
        checks.images(x, bounds, takes="bounds={}")
    checks.in_classes("y", y, count_outputs(model, x))
    start = Noise(seed, torch.zeros(1, dtype=torch.int64, device=x.device))
    rows = start.permutation(0, len(x))[0, :count]

    def estimate(f: Callable[[Tensor], Tensor], at: Tensor, draw: tuple[int, int]) -> Tensor:
        """∇̂ f of points (k, d) to values (k,): for the estimator this is a batch of one sample."""
        directions = Directions(start, draw, queries, at[None], "sphere")
        return forward(lambda points: f(points[0])[None], at[None], directions, mu)[0]

    with evaluating(model, device=x.device):
        game = _Game(model, x, y, rows, lam, bounds or (-torch.inf, torch.inf))
        theta = torch.cat([p.detach().flatten() for p in model.parameters()])
        delta = torch.zeros(x[0].numel(), dtype=x.dtype, device=x.device)
        objective: list[Tensor] = []
        for step in range(steps):
            of_theta = game.given_delta(delta)
            if learner == "first":
                slope = _autograd(of_theta, theta)
            else:
                slope = estimate(vmap(of_theta), theta, (1, step))
            theta = theta - model_rate * slope
            objective.append(of_theta(theta))
            of_delta = game.given_theta(theta)
            if attacker == "first":
                slope = _autograd(of_delta, delta[None])[0]
            else:
                slope = estimate(of_delta, delta, (2, step))
            delta = (delta + attack_rate * slope).clamp(-eps, eps)
        changed = x.clone()
        changed[rows] = game.moved(delta[None])[0]
    return Poisoned(
        changed, y.clone(), is_poison=~game.rest, original_y=y.clone(),
        details={
            "delta": delta.reshape(x.shape[1:]), "model_state": game.named(theta),
            "objective": tuple(torch.stack(objective).tolist()),
            "queries": steps * (queries + 1) if attacker == "zeroth" else 0,
        },
    )  # fmt: skip


class _Game:
    """F(δ, θ) as each player sees it, the other's move given. Differences of values are small, so they are float64."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, rows: Tensor, lam: float, bounds: tuple[float, float]
    ) -> None:
        self.model, self.x, self.y, self.rows, self.lam, self.bounds = model, x, y, rows, lam, bounds
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.rest = torch.ones(len(x), dtype=torch.bool, device=x.device).index_fill(0, rows, False)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters that a vector stands for, by name."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(self.shapes[name]) for name, part in zip(self.shapes, parts, strict=True)}

    def moved(self, deltas: Tensor) -> Tensor:
        """The poisoned samples for each of k perturbations (k, d): (k, count, ...)."""
        return (self.x[self.rows] + deltas.reshape(-1, 1, *self.x.shape[1:])).clamp(*self.bounds)

    def given_delta(self, delta: Tensor) -> Callable[[Tensor], Tensor]:
        """F of one vector of parameters."""
        inputs = torch.cat([self.moved(delta[None])[0], self.x[self.rest]])
        labels = torch.cat([self.y[self.rows], self.y[self.rest]])

        def of_theta(vector: Tensor) -> Tensor:
            z = functional_call(self.model, self.named(vector), (inputs,))
            return F.cross_entropy(z.double(), labels) + self.lam * vector.square().sum()

        return of_theta

    def given_theta(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        """F of each of k perturbations (k, d), without the part that does not depend on them."""
        parameters = self.named(theta)

        def of_delta(deltas: Tensor) -> Tensor:
            z = functional_call(self.model, parameters, (self.moved(deltas).flatten(0, 1),))
            losses = F.cross_entropy(z.double(), self.y[self.rows].repeat(len(deltas)), reduction="none")
            return losses.reshape(len(deltas), -1).sum(dim=1) / len(self.x)

        return of_delta


def _autograd(function: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    with torch.enable_grad():
        point = vector.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(point).sum(), point)
    return slope


def _check(
    eps: float, steps: int, queries: int, mu: float, attack_rate: float, model_rate: float, attacker: Order,
    learner: Order, lam: float,
) -> None:  # fmt: skip
    for name, value in (("eps", eps), ("mu", mu), ("attack_rate", attack_rate), ("model_rate", model_rate)):
        checks.positive(name, value)
    for name, count in (("steps", steps), ("queries", queries)):
        checks.at_least(name, count, 1, integer=True)
    for name, order in (("attacker", attacker), ("learner", learner)):
        checks.one_of(name, order, ORDERS)
    checks.at_least("lam", lam, 0.0)
