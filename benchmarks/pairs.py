"""Certified pairs of a random net and a random box, tried by gradient descent, corners and samples: is any broken?

    python benchmarks/verification.py --pairs 1000000

Each net has three outputs; a box is certified by a method if the label of its center has positive margins on all of it
by the method's lower bounds. Every bound, certified or not, is then held against the least margin that is found in the
box: by signed gradient steps from the center and from random points, at corners, and at random points. What is found is
computed in float64; the methods also run in float32.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustlab.graph.arithmetic import full_precision
from robustlab.verification import Box, trace
from robustlab.verification.propagation.certify import METHODS
from robustlab.verification.propagation.specification import margins

RELU_ONLY = {"fast_lin", "fast_lip", "wong_kolter"}
ASCENT = {"alpha_crown": {"steps": 3}, "lagrangian_dual": {"steps": 3}}
"""Few steps: a bound by ascent must hold after any number of them."""
CLASSES = 3


class Block(nn.Module):
    """x + B·relu(A·x)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(size, size + 2), nn.Linear(size + 2, size)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).relu())


def _dense(activation: type[nn.Module], *sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((*sizes, CLASSES)):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def _maps(middle: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 2, padding="same"), nn.ReLU(), middle, nn.Flatten(), nn.Linear(width, 5), nn.ReLU(),
        nn.Linear(5, CLASSES),
    )  # fmt: skip


Build = Callable[[], nn.Module]
NETS: dict[str, tuple[Build, tuple[int, ...], bool]] = {
    "shallow": (lambda: _dense(nn.ReLU, 3, 8), (3,), True),
    "deep": (lambda: _dense(nn.ReLU, 4, 7, 6, 5), (4,), True),
    "residual": (lambda: nn.Sequential(Block(4), nn.ReLU(), nn.Linear(4, CLASSES)), (4,), True),
    "strided": (lambda: _maps(nn.Conv2d(3, 2, 3, stride=2, padding=1), 8), (1, 4, 4), True),
    "average": (lambda: _maps(nn.AvgPool2d(3, 2, 1, ceil_mode=True), 27), (1, 4, 4), True),
    "transposed": (lambda: _maps(nn.ConvTranspose2d(3, 1, 2, stride=2), 64), (1, 4, 4), True),
    "maximum": (lambda: _maps(nn.MaxPool2d(3, 2, ceil_mode=True), 12), (1, 4, 4), False),
    "tanh": (lambda: _dense(nn.Tanh, 3, 6, 5), (3,), False),
    "gelu": (lambda: _dense(nn.GELU, 3, 6, 5), (3,), False),
}
"""From nothing to a net, the shape of its input, and whether it is made of affine layers and ReLUs alone."""


@dataclass
class Tally:
    """What one method claimed and how it came out.

    Attributes:
        pairs: of a net and a box that were bounded.
        certified: of them, where all margins are positive.
        broken: bounds above a margin that was found.
        closest: the least distance, in units of the box's range of margins, between a bound and what was found.
    """

    pairs: int = 0
    certified: int = 0
    broken: int = 0
    closest: float = float("inf")


@dataclass
class Tallies:
    """Of all methods, and the seconds that they took."""

    of: dict[str, Tally] = field(default_factory=dict)
    nets: int = 0
    seconds: float = 0.0

    def total(self, name: str) -> int:
        """The sum over the methods."""
        return sum(getattr(tally, name) for tally in self.of.values())


def nets(seed: int) -> Iterator[tuple[nn.Module, tuple[int, ...], bool]]:
    """Random nets in float64 without end, of weights of several sizes."""
    for number in itertools.count():
        for build, shape, relu in NETS.values():
            with torch.random.fork_rng():
                torch.manual_seed(10_000 * seed + number)
                model = build().double()
                with torch.no_grad():
                    for p in model.parameters():
                        p.copy_((p * (1 + 2 * torch.rand(()))).float())  # numbers that float32 has too
            yield model.eval().requires_grad_(False), shape, relu


def boxes(shape: tuple[int, ...], count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lower and upper ends: of all sizes, some sides of no length."""
    center = torch.randn(count, *shape, generator=chance, dtype=torch.float64)
    size = 10 ** (3 * torch.rand(count, *[1] * len(shape), generator=chance, dtype=torch.float64) - 2.5)
    side = torch.rand(count, *shape, generator=chance, dtype=torch.float64)
    radius = size * side * (side > 0.1)
    # Ends that float32 has too, so that both precisions speak of the same box.
    return (center - radius).float().double(), (center + radius).float().double()


@torch.no_grad()
def least(model: nn.Module, low: Tensor, high: Tensor, C: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """The least and the greatest margins C·f found in each box, (N, M)."""

    def values(points: Tensor) -> Tensor:
        return torch.einsum("nmk,nk->nm", C, model(points))

    found = []
    for trial in range(60):
        t = torch.rand(low.shape, generator=chance, dtype=low.dtype)
        found.append(values(low + (t.round() if trial % 2 else t) * (high - low)))
    for row in range(C.shape[1]):
        for start in range(2):
            at = (low + high) / 2
            if start:
                at = low + torch.rand(low.shape, generator=chance, dtype=low.dtype) * (high - low)
            for step in range(8):
                with torch.enable_grad():
                    at.requires_grad_()
                    value = torch.einsum("nk,nk->n", C[:, row], model(at))
                    (slope,) = torch.autograd.grad(value.sum(), at)
                at = at.detach() - (high - low) * slope.sign() * (1.0 if step == 0 else 0.7 / step)
                at = torch.minimum(torch.maximum(at, low), high)
                found.append(values(at))
    every = torch.stack(found)
    return every.amin(dim=0), every.amax(dim=0)


@full_precision()
def tried(
    certified: int, *, seed: int = 0, count: int = 400, methods: tuple[str, ...] = tuple(METHODS), tell: int = 0
) -> Tallies:
    """Draw nets and boxes until so many pairs are certified, all methods together.

    Args:
        certified: how many.
        seed: of nets, boxes and attacks.
        count: boxes of a net.
        methods: of ``METHODS``.
        tell: print a line each time so many nets are done; 0 for none.
    """
    tallies, start = Tallies({name: Tally() for name in methods}), time.process_time()
    chance = torch.Generator().manual_seed(seed)
    for model, shape, relu in nets(seed):
        if tallies.total("certified") >= certified:
            break
        low, high = boxes(shape, count, chance)
        y = model((low + high) / 2).argmax(dim=1)
        C = margins(y, CLASSES, torch.float64)
        reached, most = least(model, low, high, C, chance)
        scale = 1e-9 * (1 + torch.maximum(reached.abs(), most.abs()))
        dtype = torch.float32 if tallies.nets // len(NETS) % 2 else torch.float64
        graph, region = trace(model.to(dtype), shape), Box(low.to(dtype), high.to(dtype))
        for name in methods:
            if name in RELU_ONLY and not relu:
                continue
            lower = METHODS[name](graph, region, C.to(dtype), **ASCENT.get(name, {})).detach().double()
            tally = tallies.of[name]
            tally.pairs += len(low)
            tally.certified += int((lower > 0).all(dim=1).sum())
            tally.broken += int((lower > reached + scale).any(dim=1).sum())
            gap = (reached - lower) / (most - reached).clamp_min(1e-6)
            tally.closest = min(tally.closest, float(gap[(most - reached) > 1e-3].min()))
        tallies.nets += 1
        if tell and tallies.nets % tell == 0:
            print(f"{tallies.nets} nets, {tallies.total('certified'):,} certified pairs", flush=True)
    tallies.seconds = time.process_time() - start
    return tallies


def report(tallies: Tallies) -> str:
    """A table, a line for each method."""
    lines = [f"{'method':16} {'pairs':>10} {'certified':>10} {'broken':>7} {'closest':>9}"]
    for name, tally in tallies.of.items():
        lines.append(f"{name:16} {tally.pairs:10,} {tally.certified:10,} {tally.broken:7} {tally.closest:9.1e}")
    total = f"{tallies.total('pairs'):10,} {tallies.total('certified'):10,} {tallies.total('broken'):7}"
    return "\n".join([*lines, f"{'all':16} {total}   {tallies.nets:,} nets, {tallies.seconds:.0f} s of CPU"])
