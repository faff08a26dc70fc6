"""A black-box attack under a query budget: what each student gets, and the tests of what comes back.

What an API tells depends on the student:

    scores   the probabilities of all classes     worked out in the instructor's copy, given to no student
    labels   the label alone
    top      the label and its probability, rounded to one decimal

The hidden networks stay with the judge, who answers over a socket that the student's process inherits, counts the rows
and refuses what goes beyond the budget. Success is what the judge sees on the network itself, at the points that come
back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assignments.grading.task import METHODS, Test, require, tensor_like
from robustlab.teaching.handout import relu_network
from robustlab.teaching.metered import Metered

BLOCKED = METHODS
WORKED, FOR_STUDENTS = "scores", ("labels", "top")
SHAPE = (1, 6, 6)
ROWS = 300
"""Rows per input that a budget allows where nothing else is said."""


def draw(seed: int, worked: bool) -> dict[str, Any]:
    """A variant: what the API tells, a network to practice on, its inputs and labels, a radius and a budget."""
    generator = torch.Generator().manual_seed(seed)
    tells = FOR_STUDENTS[int(torch.randint(2, (), generator=generator))]
    network, x, y, eps = victim(seed, 40)
    return {
        "tells": WORKED if worked else tells,
        "model": network,
        "x": x,
        "y": y,
        "eps": eps,
        "budget": ROWS * len(x),
    }


def victim(seed: int, count: int, share: float = 0.8) -> tuple[nn.Sequential, Tensor, Tensor, float]:
    """A random network, inputs with the labels it gives, and a radius at which an attack has a share of them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((36, 32), (32, 32), (32, 4))
    network = relu_network(
        [
            (torch.randn(m, n, generator=generator) * (2 / n) ** 0.5, 0.1 * torch.randn(m, generator=generator))
            for n, m in sizes
        ]
    )
    x = 0.15 + 0.7 * torch.rand(count, *SHAPE, generator=generator)
    with torch.no_grad():
        network[-1].bias -= network(x).mean(dim=0)
        network[-1].weight *= 4
        network[-1].bias *= 4
    y = network(x).argmax(dim=1)
    low, high = torch.zeros(count), torch.full((count,), 0.5)
    for _ in range(8):
        middle = (low + high) / 2
        fooled = _attacked(network, x, y, middle)
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return network, x, y, round(1.25 * float(high.quantile(share)), 4)


def _attacked(network: nn.Sequential, x: Tensor, y: Tensor, eps: Tensor, steps: int = 15) -> Tensor:
    """Whether PGD with the network's gradients fools it, (N,)."""
    eps, point, fooled = eps.reshape(-1, 1, 1, 1), x.clone(), network(x).argmax(dim=1) != y
    for _ in range(steps):
        point.requires_grad_()
        z = network(point)
        lead = z.scatter(1, y[:, None], -torch.inf).amax(dim=1) - z.gather(1, y[:, None]).squeeze(1)
        (grad,) = torch.autograd.grad(lead.sum(), point)
        fooled |= lead.detach() > 0
        delta = (point.detach() + eps / 5 * grad.sign() - x).clamp(-eps, eps)
        point = (x + delta).clamp(0, 1)
    return fooled | (network(point).argmax(dim=1) != y)


def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
    """Fourteen points by the program; the rest by hand."""

    def test(
        name: str, points: int, cell: str, number: int, rows: int, judge: Callable[[float, float], None], **more: Any
    ) -> Test:
        network, x, y, eps = victim(seed + number, 60)
        if more.get("wrong"):  # labels that the network does not give: fooled from the start
            y = torch.where(torch.arange(60) % 2 == 0, (y + 1) % 4, y)
        eps = round(eps * more.get("wider", 1.0), 4)
        api = Metered(network, SHAPE, rows * len(x), tells=mine["tells"])

        def judged(out: Any) -> None:
            out = tensor_like(out, x)
            require((out - x).abs().max() <= eps + 1e-5, "a result leaves the ball")
            require(out.min() >= -1e-6 and out.max() <= 1 + 1e-6, "a result leaves the box")
            require(api.refused == 0, "the model refused a question: beyond the budget, or no input")
            share = float((network(out.float()).argmax(dim=1) != y).double().mean())
            judge(share, api.used / len(x))

        return Test(name, points, cell, "attack", judged, [x, y, eps, rows * len(x)], seconds=20.0, model=api)

    def at_least(least: float) -> Callable[[float, float], None]:
        def judge(share: float, used: float) -> None:
            require(share >= least, f"{share:.0%} of the inputs are fooled with {used:.0f} rows each, want {least:.0%}")

        return judge

    def frugal(share: float, used: float) -> None:
        require(share >= 0.95, f"{share:.0%} of the inputs are fooled, and half of them were from the start")
        require(used <= 0.35 * ROWS, f"it asked {used:.0f} rows per input, where a third of the budget is enough")

    def in_time(share: float, used: float) -> None:
        require(used > 0, "it asked nothing")

    cell = "test-attack"
    return [
        test("some", 3, cell, 0, ROWS // 5, at_least(0.35)),
        test("most", 3, cell, 1, ROWS // 2, at_least(0.6)),
        test("nearly", 3, cell, 2, ROWS, at_least(0.8)),
        test("frugal", 3, "test-frugal", 3, ROWS, frugal, wrong=True, wider=2.5),
        test("tight", 2, "test-frugal", 4, 7, in_time),
    ]
