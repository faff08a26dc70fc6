"""What the shared suite runs: every finished attack of the catalogue, in every norm, untargeted and targeted.

A new attack is tested by its catalogue row alone. Each file ``test_*.py`` beside this one holds one concern: functions
``check_*(case, device)`` and the tests that run them over ``CASES``; ``test_suite_catches.py`` runs the same functions
on attacks that are broken on purpose, and wants each to be caught.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.geometry.norms import NORMS, get_norm
from robustlab.teaching.catalogue import Row, rows
from tests.suite.models import FLAT, IMAGE, mlp
from tests.suite.product import Test, one_of

# Budgets at which some of the samples of ``batch`` fall and some do not.
EPS = {"l0": 3.0, "l1": 0.8, "l2": 0.3, "linf": 0.1}
# What an attack must be told about the data, as plainly as it can be told.
PLAIN: dict[str, Any] = {
    "density": lambda points: torch.exp(-points.flatten(1).square().mean(dim=1)),
    "manifold": SimpleNamespace(encode=lambda x, y: x.clone(), decode=lambda z, y: z.clone()),  # all of space
    "surrogates": [nn.Flatten()],  # in the suite a twin of the model
    "detector": lambda points: points.new_full(points.shape[:1], -0.5),  # never fires
    "neighbors": torch.tensor(
        [[-1, -1, -1], *([1 + i % 11, 1 + (i + 4) % 11, 1 + (i + 7) % 11] for i in range(1, 12))]
    ),
}
SHAPES = {"flat": FLAT, "image": IMAGE, "color": (3, 4, 4)}


@dataclass(frozen=True)
class Case:
    """One attack in one norm, untargeted or targeted."""

    row: Row
    attack: Callable[..., AttackResult]
    norm: str | None
    targeted: bool

    def __str__(self) -> str:
        return "-".join(filter(None, (self.row.key, self.norm, "targeted" if self.targeted else "")))

    @property
    def has_budget(self) -> bool:
        """Whether it is given a radius; limits of its own (angles, hues) are its own arguments."""
        return self.takes("eps") and not self.row.min_norm  # FAB's ε limits its restarts alone

    @property
    def shape(self) -> tuple[int, ...]:
        """A sample shape that the attack takes; images where it can."""
        return SHAPES["image" if "image" in self.row.dims else self.row.dims[0]]

    @property
    def classes(self) -> int:
        return max(3, self.row.min_classes)

    def takes(self, argument: str) -> bool:
        return argument in inspect.signature(self.attack).parameters

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """The catalogue's quick arguments with the norm and, where it needs one, a budget."""
        args: dict[str, Any] = {key: value for key, value in self.row.quick.items() if key not in NORMS}
        args.update(cast(Mapping[str, Any], self.row.quick.get(self.norm or "", {})))
        if self.norm is not None:
            args["norm"] = self.norm
        if self.has_budget:
            args.setdefault("eps", EPS[self.norm or "linf"])
        args.update((name, plain) for name, plain in PLAIN.items() if self.takes(name))
        return args | changes

    def run(self, model: nn.Module | Victim, x: Tensor, y: Tensor | None, **changes: Any) -> AttackResult:
        """The attack on (x, y), with a target where the case has one and ``changes`` names none."""
        args = self.arguments(**changes)
        if self.takes("surrogates") and "surrogates" not in changes:  # the best there can be: the model's own twin
            args["surrogates"] = [twin(model)]
        if self.targeted and "target" not in args:
            args["target"] = self.target(y if y is not None else torch.zeros_like(x.flatten(1)[:, 0].long()))
        return self.attack(model, x, y, **args)

    def target(self, y: Tensor) -> Tensor:
        """Some other label for each sample: (y + 1) mod K."""
        return (y + 1) % self.classes

    def net(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        """A small model of what the attack takes."""
        return mlp(self.shape, self.classes, dtype, seed)

    def points(self, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        """Inputs of that model."""
        return noise_box(n, self.shape, dtype, seed)

    def inside(self, x: Tensor) -> bool:
        """Whether all points are in the domain of these inputs."""
        return bool(((x >= 0) & (x <= 1)).all())

    def length(self, delta: Tensor) -> Tensor:
        return get_norm(self.norm or "linf").length(delta)

    def goal(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        """Whether the goal is met, from the definition."""
        label = logits.argmax(dim=1)
        return label == (self.target(y) if target is None else target) if self.targeted else label != y


def twin(model: nn.Module | Victim) -> Victim:
    """A white-box victim of a copy of the model."""
    seen = Victim.of(model)
    kept = {name: getattr(seen, name) for name in ("bounds", "output", "mode", "logits")}
    with torch.inference_mode(False):  # tensors made in inference mode would give no gradient
        return Victim(copy.deepcopy(seen.model), **kept)


def cases(selected: Iterable[Row]) -> list[Case]:
    """A case for each norm of each row, and once more with a target where the row takes one."""
    found = []
    for row in selected:
        module, _, name = (row.callable or "").partition(":")
        attack = getattr(import_module(module), name)
        for norm in row.norms or (None,):
            for targeted in (False, True) if row.targeted else (False,):
                found.append(Case(row, attack, norm, targeted))
    return found


# Others have tests of their own: those whose samples share a cost, and those of another domain than floats in a box.
ATTACKS = [row for row in rows("attack", done=True) if row.per_sample and SHAPES.keys() & set(row.dims)]
TOKENS = [row for row in rows("attack", done=True) if "tokens" in row.dims]  # under the suite of tokens, by its door
CASES = cases(ATTACKS)
TARGETED = [case for case in CASES if case.targeted]


def over(*chosen: Case, slow: bool = False, **variants: Sequence[Any]) -> Callable[[Test], Test]:
    """Runs a test over the cases given, or all, and over every combination of the ``variants``; see :func:`one_of`."""
    return one_of(chosen or CASES, slow=slow, **variants)


def noise_box(n: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Points of [0, 1]: a quarter of the elements exactly 0 or 1, the others uniform."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    return (u * 1.4 - 0.2).clamp(0, 1).to(dtype)


def batch(
    case: Case, device: torch.device, n: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[nn.Module, Tensor, Tensor]:
    """A small net, points of its box and its own predictions there: no goal is met before the attack."""
    model = case.net(dtype, seed).to(device)
    x = case.points(n, dtype, seed).to(device)
    with torch.no_grad():
        return model, x, model(x).argmax(dim=1)
