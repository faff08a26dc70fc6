"""What the verifiers' suite runs: every finished verifier of the catalogue, in every norm it knows.

A new verifier is tested by its catalogue row alone: a function (model, x, y, *, norm, eps) → Certificate, of kind
``"verifier"`` with tags ``norms``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import get_norm
from robustlab.teaching.catalogue import Row, rows
from tests.suite.models import Center, seeded
from tests.suite.product import one_of

SHAPES = {"flat": (5,), "image": (1, 5, 5)}
# Radii at which some of the samples of ``problem`` can be verified and some cannot.
EPS = {"l1": 0.3, "l2": 0.15, "linf": 0.05}


@dataclass(frozen=True)
class Case:
    """One verifier in one norm."""

    row: Row
    verifier: Callable[..., Certificate]
    norm: str

    def __str__(self) -> str:
        return f"{self.row.key}-{self.norm}"

    def run(self, model: nn.Module, x: Tensor, y: Tensor, eps: float | Tensor, **changes: Any) -> Certificate:
        """The verifier with the catalogue's quick arguments."""
        return self.verifier(model, x, y, norm=self.norm, eps=eps, **{**self.row.quick, **changes})

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES["flat" if "flat" in self.row.dims else "image"]


def _function(row: Row) -> Callable[..., Certificate]:
    module, _, name = str(row.callable).partition(":")
    return getattr(import_module(module), name)


def _takes_ball(row: Row) -> bool:
    return bool(row.norms) and {"norm", "eps"} <= set(inspect.signature(_function(row)).parameters)


CASES = [
    Case(row, _function(row), norm) for row in rows("verifier", done=True) if _takes_ball(row) for norm in row.norms
]
over_all = one_of(CASES)


def relu_net(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0, classes: int = 3) -> nn.Module:
    """Two hidden layers; for images, a convolution is the first."""

    def build() -> nn.Module:
        if len(shape) == 1:
            first, width = [nn.Linear(shape[0], 8)], 8
        else:
            first, width = [nn.Conv2d(shape[0], 2, 3, stride=2, padding=1)], 2 * ((shape[1] + 1) // 2) ** 2
        net = nn.Sequential(
            Center(), *first, nn.ReLU(), nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, classes)
        )
        for p in net.parameters():
            p.data *= 2.0
        return net

    return seeded(build, seed).to(dtype)


class Block(nn.Module):
    """relu(B·relu(A·x) + S·x): the shortcut S is the identity, or a layer where the shape changes."""

    def __init__(self, a: nn.Module, b: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.shortcut = a, b, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return (self.b(self.a(x).relu()) + self.shortcut(x)).relu()


def residual_net(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """Two blocks, the first with the identity as its shortcut; for images, the second has a strided convolution."""

    def build() -> nn.Module:
        if len(shape) == 1:
            d = shape[0]
            first = Block(nn.Linear(d, 6), nn.Linear(6, d), nn.Identity())
            second, width = Block(nn.Linear(d, 6), nn.Linear(6, 6), nn.Linear(d, 6)), 6
        else:
            first = Block(nn.Conv2d(shape[0], 2, 3, padding=1), nn.Conv2d(2, shape[0], 3, padding=1), nn.Identity())
            down, short = nn.Conv2d(shape[0], 2, 3, stride=2, padding=1), nn.Conv2d(shape[0], 2, 1, stride=2)
            second, width = Block(down, nn.Conv2d(2, 2, 3, padding=1), short), 2 * ((shape[1] + 1) // 2) ** 2
        net = nn.Sequential(Center(), first, second, nn.Flatten(), nn.Linear(width, 3))
        for p in net.parameters():
            p.data *= 2.0
        return net

    return balanced(seeded(build, seed), shape).to(dtype)


def tanh_net(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """:func:`relu_net` with tanh in place of each ReLU."""
    layers = (nn.Tanh() if isinstance(m, nn.ReLU) else m for m in relu_net(shape, torch.float64, seed))
    return balanced(nn.Sequential(*layers).eval(), shape).to(dtype)


@torch.no_grad()
def balanced(net: nn.Sequential, shape: tuple[int, ...]) -> nn.Sequential:
    """The same net, its last biases moved so that each class wins somewhere in the box."""
    net = net.double()
    points = torch.rand(200, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net[-1].bias -= net(points).median(dim=0).values
    return net


NETS: dict[str, Callable[..., nn.Module]] = {"relu": relu_net, "residual": residual_net, "tanh": tanh_net}


def shallow_net(shape: tuple[int, ...], dtype: torch.dtype, seed: int, net: str = "relu") -> nn.Module:
    """:func:`relu_net` with one hidden layer, or with tanh in its place; a residual net has more than one."""
    if net == "residual":
        return residual_net(shape, dtype, seed)
    layers = list(relu_net(shape, torch.float64, seed))
    last = layers[-3]  # what enters the second ReLU is the output
    out = seeded(lambda: nn.Linear(last.in_features, 3), seed).double()
    out.weight.data *= 2.0
    layers = [nn.Tanh() if net == "tanh" and isinstance(m, nn.ReLU) else m for m in [*layers[:-3], out]]
    return balanced(nn.Sequential(*layers).eval(), shape).to(dtype)


ONE_HIDDEN = frozenset({"sdp_certificate"})
"""Verifiers that refuse a second hidden layer, and name the node."""
PIECEWISE_LINEAR = frozenset({"reluplex", "milp", "fast_lin", "fast_lip", "wong_kolter"})
"""Verifiers that refuse smooth activations, and name the node."""


def net_for(
    case: Case, net: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> nn.Module:
    """One of ``NETS``, or its like with one hidden layer for those that know no more."""
    return (shallow_net if case.row.key in ONE_HIDDEN else _deep_net)(shape, dtype, seed, net)


def _deep_net(shape: tuple[int, ...], dtype: torch.dtype, seed: int, net: str) -> nn.Module:
    return NETS[net](shape, dtype, seed)


def problem(
    case: Case,
    n: int = 6,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    net: str = "relu",
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Tensor, Tensor]:
    """A small net, points of the box and the labels that it gives them."""
    model = net_for(case, net, case.shape, dtype, seed).to(device)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *case.shape, generator=generator, dtype=torch.float64).to(device, dtype)
    with torch.no_grad():
        return model, x, model(x).argmax(dim=1)


def points_of_ball(norm: str, x: Tensor, eps: float | Tensor, count: int, seed: int = 0) -> Tensor:
    """(count, N, ...) points of ball ∩ box, most of them on the surface, and many at its corners."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(count, *x.shape, generator=generator, dtype=torch.float64).to(x)
    half = count // 2
    if norm == "linf":
        u[:half] = u[:half].sign()
    elif norm == "l1":  # signed unit vectors
        flat = u[:half].flatten(2)
        only = torch.zeros_like(flat).scatter(2, flat.abs().argmax(2, keepdim=True), 1.0)
        u[:half] = (only * flat.sign()).reshape(u[:half].shape)
    length = get_norm(norm).length(u.flatten(0, 1)).reshape(count, len(x), *[1] * (x.dim() - 1))
    eps = torch.as_tensor(eps, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.dim() - 1))
    return (x + u / length * eps).clamp(0, 1)
