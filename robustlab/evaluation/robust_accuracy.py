"""Robust accuracy against one attack, as a curve over its budget.

For a norm and a radius ε the robust accuracy is the share of samples that keep their label everywhere in the ball,

    RA(ε) = P( ŷ_θ(x + δ) = y  for all ‖δ‖ ≤ ε with x + δ in the box ),

and an attack bounds it from above: a sample counts as robust as long as nobody has fooled the model on it. Balls are
nested, so one number per sample says everything that is known: the smallest distance at which it was fooled. Hence the
curve never rises, a sample that fell at one ε is not attacked again at a larger one, and an attack that finds minimal
distances gives the whole curve in one run.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.results import AttackResult, Result
from robustlab.attacker.session import part_of
from robustlab.attacker.victim import Victim
from robustlab.data.pairs import Pairs, beside, count, labeled_portions, streamed
from robustlab.evaluation.found_distance import found_distance
from robustlab.geometry.norms import Norm, NormName, get_norm
from robustlab.intervals import wilson
from robustlab.progress import bar

__all__ = ["RobustAccuracy", "evaluate"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Attack = Callable[..., AttackResult]


@dataclass(frozen=True, eq=False, repr=False)
class RobustAccuracy(Result):
    """A curve of robust accuracy. Everything is on the CPU; E counts the radii, the clean point at ε = 0 included.

    Attributes:
        attack, norm: what the samples had to withstand.
        eps: (E,) float64, rising from 0.
        radius: (N,) float64, the smallest distance at which each sample was fooled: 0 where the model is wrong at x, ∞
            where the attack failed. An upper bound of the robust radius.
        queries, gradients: (N,) int64, spent on each sample over the whole curve.
        confidence: level of the intervals.
    """

    attack: str
    norm: NormName
    eps: Tensor
    radius: Tensor
    queries: Tensor
    gradients: Tensor
    confidence: float

    def __len__(self) -> int:
        return self.eps.shape[0]

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.radius.shape[0]

    @property
    def survivors(self) -> Tensor:
        """(E, N) bool: which samples nobody has fooled within each ε."""
        return self.radius > self.eps[:, None]

    @property
    def correct(self) -> Tensor:
        """(E,) int64: how many survive."""
        return self.survivors.sum(dim=1)

    @property
    def accuracy(self) -> Tensor:
        """(E,) float64: the share that survives; the first entry is the clean accuracy."""
        return self.correct.double() / self.n

    @property
    def low(self) -> Tensor:
        """(E,) lower ends of Wilson's intervals, for the population that the samples were drawn from."""
        return wilson(self.correct, self.n, self.confidence)[0]

    @property
    def high(self) -> Tensor:
        """(E,) upper ends of Wilson's intervals."""
        return wilson(self.correct, self.n, self.confidence)[1]

    def summary(self) -> str:
        """A table: a line for each ε with the accuracy in percent and its interval."""
        lines = [
            f"{self.attack} in {self.norm}, {self.n} samples, {100 * self.confidence:g} % intervals; "
            f"mean queries {self.queries.double().mean():.1f}, mean gradients {self.gradients.double().mean():.1f}"
        ]
        points = zip(self.eps.tolist(), self.accuracy.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
        lines += [f"eps {e:<8.4g} {100 * a:5.1f} %  [{100 * lo:.1f}, {100 * hi:.1f}]" for e, a, lo, hi in points]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None, *, label: str | None = None) -> Axes:
        """Draw the curve with its intervals.

        Args:
            ax: where to draw (default: a new figure).
            label: name of the curve (default: the attack's).
        """
        from robustlab.teaching.plot import robust_accuracy_curve

        name = label or self.attack
        return robust_accuracy_curve(
            {name: self.accuracy.numpy()}, self.eps.tolist(), bands={name: (self.low.numpy(), self.high.numpy())},
            axes=ax, xlabel=f"budget ε ({self.norm})",
        )  # fmt: skip


def evaluate(
    model: Victim | Callable[[Tensor], Tensor],
    x: Tensor | Pairs,
    y: Tensor | None = None,
    *,
    attack: Attack,
    eps: float | Iterable[float],
    norm: NormName = "linf",
    batch_size: int = 250,
    seed: int = 0,
    confidence: float = 0.95,
    progress: bool = False,
    **attack_kwargs: object,
) -> RobustAccuracy:
    """The robust accuracy of a model under an attack, for several ε.

        RA(ε) ≤ (1/N) · #{ n : argmax f_θ(x_n) = y_n, and the attack fooled nobody on x_n within ‖δ‖ ≤ ε }

    An attack with an argument ``eps`` is run at each ε, from the smallest up, on the samples that are still standing.
    An attack without one (minimum norm) is run once. What a success says about a sample is its distance, at every ε.
    Samples are known by their place in the data, so the curve does not depend on ``batch_size`` (in float32, up to the
    rounding of sums).

    Args:
        model: a Victim, or a model with logits (N, K).
        x: inputs (N, ...) in the box; or, in the place of x and y, a Dataset, whose test part is taken, or a torch
            DataLoader, of which only one batch at a time is held, on the model's device.
        y: (N,) labels.
        attack: a function with the signature of :mod:`robustlab.attacks`; ``functools.partial`` may bind arguments.
        eps: radii in units of the inputs (ℓ0: elements), each finite and ≥ 0. They are sorted, and 0 is added.
        norm: of the radii; passed on to an attack that has such an argument.
        batch_size: samples attacked at a time; bounds the memory.
        seed: passed on to an attack that has such an argument.
        confidence: level of the Wilson intervals.
        progress: show a bar in a terminal.
        attack_kwargs: further arguments of the attack. A tensor with N rows is cut along with the data.

    Returns:
        RobustAccuracy. Targeted attacks (``target=``) fool only where they reach their target. Cost: that of the attack
        on each sample that is attacked, and one query per sample for the clean accuracy.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work; the attack's own.
        RuntimeError: if the attack claims a success outside its ball.

    Source:
        Robust accuracy as in Madry et al. (2018), section 5; intervals by Wilson (1927).
    """
    data = beside(x, y)
    ball, radii = get_norm(norm), _radii(eps)
    checks.at_least("batch_size", batch_size, 1, integer=True)
    wilson(0, 1, confidence)  # a wrong level is refused now, not after the work
    has_budget, arguments = _arguments(attack, {"norm": norm, "seed": seed, "ids": None}, attack_kwargs)
    run = _Run(attack, _name(attack), ball, radii, has_budget, arguments, int(batch_size), progress)
    victim, first, found = Victim.of(model), 0, []
    for inputs, label in labeled_portions(data, "x", like=victim.model, batch_size=batch_size):
        found.append(run.over(victim, inputs, label, first, count(data) if streamed(data) else len(inputs)))
        first += len(inputs)
    radius, spent = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    return RobustAccuracy(
        attack=run.name,
        norm=ball.name,
        eps=torch.tensor([0.0, *radii], dtype=torch.float64),
        radius=radius,
        queries=spent[0],
        gradients=spent[1],
        confidence=float(confidence),
    )


@dataclass(frozen=True)
class _Run:
    """The checked arguments of one evaluation."""

    attack: Attack
    name: str
    ball: Norm
    radii: list[float]
    has_budget: bool
    arguments: dict[str, object]
    batch_size: int
    progress: bool

    def over(self, victim: Victim, x: Tensor, y: Tensor, first: int, total: int) -> tuple[Tensor, Tensor]:
        """Attack n samples, the first of which is number ``first`` of ``total``: radii (n,) and counts (2, n)."""
        rows = torch.arange(len(x))
        radius = torch.full((len(x),), torch.inf, dtype=torch.float64)
        spent = torch.zeros(2, len(x), dtype=torch.int64)
        for part in rows.split(self.batch_size):
            with victim.session(x[part], y[part], access="hard") as session:
                wrong = torch.ones(len(part), dtype=torch.bool)
                wrong[session.active.cpu()] = False
            # A call leaves inference mode, in which the caller may be: what was made outside it changes outside it.
            radius[part[wrong]] = 0.0
            spent[0, part] += session.queries.cpu()
        for bound in self.radii if self.has_budget else self.radii[:1]:
            standing = (radius > (bound if self.has_budget else 0.0)).nonzero().flatten()
            parts = standing.split(self.batch_size) if standing.numel() else ()
            label = f"{self.name} eps {bound:g}" if self.has_budget else self.name
            for part in bar(parts, show=self.progress, label=label):
                given = {key: part_of(value, part + first, total) for key, value in self.arguments.items()}
                given |= {"ids": part + first} if "ids" in given else {}
                given |= {"eps": bound} if self.has_budget else {}
                result = self.attack(victim, x[part], y[part], **given)
                limit = bound if self.has_budget else None
                radius[part] = found_distance(result, x[part], self.ball, self.name, limit, victim.bounds)
                spent[:, part] += torch.stack([result.queries, result.gradients]).cpu()
        return radius, spent


def _radii(eps: float | Iterable[float]) -> list[float]:
    """The positive radii, rising, each once."""
    try:
        values = sorted({float(e) for e in ([eps] if isinstance(eps, float | numbers.Real) else eps)})
    except (TypeError, ValueError):
        raise TypeError(f"eps: want a number or several, got {eps!r}") from None
    if not values or not all(math.isfinite(e) and e >= 0 for e in values):
        raise ValueError(f"eps: want at least one radius, each finite and not negative, got {eps!r}")
    return [e for e in values if e > 0]


def _arguments(attack: Attack, offered: dict[str, object], wanted: dict[str, object]) -> tuple[bool, dict[str, object]]:
    """Whether the attack has a budget, and its arguments: those offered that it knows, and all that are wanted."""
    if not callable(attack):
        raise TypeError(f"attack: want a function, got {attack!r}")
    parameters = inspect.signature(attack).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in wanted:
        if key in ("x", "y", "ids") or not (takes_any or key in parameters):
            known = sorted(set(parameters) - {"victim", "x", "y", "ids", "eps", *offered})
            raise TypeError(f"{key}: want an argument of {_name(attack)} that is not set here ({known}), got {key!r}")
    return "eps" in parameters, {k: v for k, v in offered.items() if takes_any or k in parameters} | wanted


def _name(attack: Attack) -> str:
    function = attack
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
