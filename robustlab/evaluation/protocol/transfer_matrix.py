"""Which model's adversarial examples fool which other: surrogates × targets, with intervals.

For a surrogate s, or an ensemble, and a target t, the transfer rate is the share

    R(s, t) = P( t is fooled by x_adv made on s  |  s and t both read x rightly )

Only samples that both classify rightly count. On those that the target reads wrongly anyway nothing has been
transferred: counted as successes they would make any perturbation look good, and a weak target best of all. On the
diagonal stands the attack on the surrogate itself.

Source: Liu, Chen, Liu and Song, "Delving into transferable adversarial examples and black-box attacks" (2017), tables 1
to 4, which count images that all models classify rightly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.composition import Mixture
from robustlab.attacker.results import Result
from robustlab.attacker.victim import Victim, accuracy, predict
from robustlab.attacks.transfer.ensemble_transfer import ensemble_transfer
from robustlab.intervals import wilson
from robustlab.progress import bar

__all__ = ["TransferMatrix", "transfer_matrix"]

Surrogate = nn.Module | Sequence[nn.Module]


@dataclass(frozen=True, eq=False, repr=False)
class TransferMatrix(Result):
    """S surrogates against T targets. Everything is on the CPU.

    Attributes:
        surrogates, targets: their names.
        fooled: (S, T) int64, of how many samples the target says the wrong label, or the attacker's.
        n: (S, T) int64, how many samples both classify rightly.
        accuracy: (T,) float64, of the targets on all samples.
        confidence: level of the intervals.
    """

    surrogates: tuple[str, ...]
    targets: tuple[str, ...]
    fooled: Tensor
    n: Tensor
    accuracy: Tensor
    confidence: float

    @property
    def rate(self) -> Tensor:
        """(S, T) float64; NaN where no sample is classified rightly by both."""
        return self.fooled.double() / self.n

    @property
    def low(self) -> Tensor:
        """(S, T) lower ends of Wilson's intervals, for the population that the samples were drawn from."""
        return self._ends(0)

    @property
    def high(self) -> Tensor:
        """(S, T) upper ends of Wilson's intervals."""
        return self._ends(1)

    def _ends(self, which: int) -> Tensor:
        pairs = zip(self.fooled.flatten().tolist(), self.n.flatten().tolist(), strict=True)
        ends = [float(wilson(k, n, self.confidence)[which]) if n else float(which) for k, n in pairs]
        return torch.tensor(ends, dtype=torch.float64).reshape(self.n.shape)

    def summary(self) -> str:
        """A table in percent: a line for each surrogate, a column for each target."""
        wide = max(6, *(len(name) for name in self.targets))
        first = max(len(name) for name in self.surrogates)
        lines = [" " * first + "".join(f"  {name:>{wide}}" for name in self.targets)]
        for name, row in zip(self.surrogates, self.rate.tolist(), strict=True):
            lines.append(f"{name:<{first}}" + "".join(f"  {100 * share:>{wide}.1f}" for share in row))
        return "\n".join(lines)


def transfer_matrix(
    surrogates: Mapping[str, Surrogate],
    x: Tensor,
    y: Tensor,
    *,
    targets: Mapping[str, nn.Module] | None = None,
    eps: float,
    target: int | Tensor | None = None,
    batch_size: int = 250,
    seed: int = 0,
    confidence: float = 0.95,
    progress: bool = False,
    **attack_kwargs: Any,
) -> TransferMatrix:
    """Craft on each surrogate by :func:`robustlab.attacks.ensemble_transfer`, and show it to each target.

        R(s, t) = #{ n : s and t right at x_n, t fooled at x_n + δ_n(s) } / #{ n : s and t right at x_n }

    Args:
        surrogates: models with logits (N, K) by name; a list is an ensemble, right where all of its members are.
        x: (N, ...), in [0, 1].
        y: (N,) true labels.
        targets: models by name; None takes the surrogates that are one model each.
        eps: radius ε ≥ 0 in units of x.
        target: a label other than y, or (N,), for targeted attacks, whose success is that label.
        batch_size: samples that are worked on at a time; the result does not depend on it, up to rounding.
        seed: of the attack's randomness, which samples have by their place in x.
        confidence: level of the intervals.
        progress: show a bar in a terminal.
        attack_kwargs: further arguments of the attack: ``norm``, ``steps``, ``momentum``, ``diversity``, …

    Returns:
        TransferMatrix.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Liu et al. (2017), sections 3 to 5.
    """
    own = _checked("surrogates", surrogates)
    checks.at_least("batch_size", batch_size, 1, integer=True)
    checks.images(x, (0.0, 1.0))
    label = checks.labels("y", y, x)
    aim = None if target is None else checks.labels("target", target, x)
    if aim is not None:
        checks.other_than_y("target", aim, label)
    single = {name: members[0] for name, members in own.items() if len(members) == 1}
    judges = {name: members[0] for name, members in _checked("targets", single if targets is None else targets).items()}
    right = {name: predict(model, x) == label for name, model in judges.items()}
    fooled, counted = (torch.zeros(len(own), len(judges), dtype=torch.int64) for _ in range(2))
    for s, members in enumerate(bar(list(own.values()), show=progress, label="transfer_matrix")):
        rows = torch.stack([predict(model, x) == label for model in members]).all(dim=0).nonzero().flatten()
        for part in rows.split(batch_size) if len(rows) else ():
            result = ensemble_transfer(
                Victim(Mixture(members)), x[part], label[part], surrogates=members, eps=eps, seed=seed, ids=part,
                target=None if aim is None else aim[part], **attack_kwargs,
            )  # fmt: skip
            for t, (name, model) in enumerate(judges.items()):
                said = predict(model, result.x_adv)
                won = said != label[part] if aim is None else said == aim[part]
                counted[s, t] += int(right[name][part].sum())
                fooled[s, t] += int((won & right[name][part]).sum())
    clean = torch.tensor([accuracy(model, x, label) for model in judges.values()], dtype=torch.float64)
    return TransferMatrix(tuple(own), tuple(judges), fooled, counted, clean, confidence)


def _checked(name: str, models: Mapping[str, Surrogate]) -> dict[str, list[nn.Module]]:
    """Each as a list of its members."""
    if not isinstance(models, Mapping) or not models:
        raise TypeError(f"{name}: want a mapping from names to at least one model, got {type(models).__name__}")
    found = {}
    for key, model in models.items():
        members = [model] if isinstance(model, nn.Module) else list(model) if isinstance(model, list | tuple) else []
        if not members or not all(isinstance(member, nn.Module) for member in members):
            raise TypeError(f"{name}: want modules, or lists of them, got {type(model).__name__} for {key!r}")
        if name == "targets" and len(members) > 1:
            raise TypeError(f"targets: want one module for each name, got {len(members)} for {key!r}")
        found[key] = members
    return found
