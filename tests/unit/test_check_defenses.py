"""The checks of a stand-in for a defense and of a search for triggers: what is right passes, slips get their cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from robustlab.teaching import check
from robustlab.teaching.check.triggers import TARGET, planted, stamped
from robustlab.teaching.handout import relu_network

X = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(3))


def network() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(4)
    sizes = ((24, 16), (5, 24))
    return relu_network([(torch.randn(size, generator=generator), torch.zeros(size[0])) for size in sizes])


NET = network()


def rounded(x: Tensor) -> Tensor:
    return NET((9 * x.flip(2)).round() / 9)


def mirrored(x: Tensor) -> Tensor:
    return NET(torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x))


def straight(x: Tensor) -> Tensor:
    seen = x.flip(2)
    return NET(seen + ((9 * seen).round() / 9 - seen).detach())


def both(x: Tensor) -> Tensor:
    return torch.stack([NET(view).softmax(dim=1) for view in (x, x.flip(3))]).mean(dim=0).log()


def loud(x: Tensor) -> Tensor:
    return (1e5 * NET(x)).softmax(dim=1)


def labels(x: Tensor) -> Tensor:
    return one_hot(NET(x).argmax(dim=1), 5).float()


def test_good_stand_ins_pass(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    for function, defense in ((straight, rounded), (both, mirrored), (NET, loud), (NET, labels)):
        check.surrogate(function, defense, X)
    assert capsys.readouterr().out.count("surrogate: holds, on 60 inputs") == 4


@pytest.mark.parametrize(
    ("function", "defense", "cause"),
    [
        (rounded, rounded, "rounding on the way back"),
        (lambda x: rounded(x) + 0 * x.sum(), rounded, "rounding on the way back"),
        (loud, loud, "a softmax that has saturated"),
        (labels, labels, "a step without a derivative"),
        (lambda x: NET(x).detach(), labels, "a step without a derivative"),
        (lambda x: NET(x + 0.5 * torch.randn(x.shape)), mirrored, "one random draw"),
        (NET, rounded, "a step of the defense was left out"),
        (lambda x: NET(x)[0], rounded, "wrong shape"),
    ],
)
def test_a_poor_stand_in_is_diagnosed(
    function: Callable[[Tensor], Tensor], defense: Callable[[Tensor], Tensor], cause: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(check.Wrong) as wrong:
        check.surrogate(function, defense, X, hints=2)
    assert (cause in wrong.value.cause and "Hint 2" in str(wrong.value)) or cause == "wrong shape"


def search(net: Any, x: Tensor, goals: Tensor, *, price: float = 0.1, steps: int = 150, shared: bool = False) -> Any:
    """The search of Neural Cleanse, with a price that is steered."""
    G = len(goals)
    a = torch.full((1 if shared else G, *x.shape[2:]), -3.0, requires_grad=True)
    b = torch.zeros(G, *x.shape[2:], requires_grad=True)
    optimizer, prices, best = torch.optim.Adam([a, b], lr=0.2), torch.full((G,), price), torch.full((G,), torch.inf)
    masks, patterns = torch.zeros(G, *x.shape[2:]), torch.zeros(G, *x.shape[2:])
    for _ in range(steps):
        m, p = a.sigmoid().expand(G, *x.shape[2:]), b.sigmoid()
        z = net(stamped(x, m, p).flatten(0, 1)).reshape(G, len(x), -1)
        reached, total = (z.argmax(dim=2) == goals).double().mean(dim=1) >= 0.9, m.flatten(1).sum(dim=1)
        better = reached & (total < best) if price else reached
        masks[better], patterns[better], best[better] = m[better].detach(), p[better].detach(), total[better].detach()
        prices = torch.where(reached, 1.1 * prices, prices / 1.1)
        loss = cross_entropy(z.flatten(0, 1), goals.flatten(), reduction="none").reshape(G, -1).mean(dim=1)
        optimizer.zero_grad()
        (loss + prices * total).sum().backward()
        optimizer.step()
    return masks, patterns


def test_the_planted_trigger_is_the_smallest() -> None:
    """By brute force: one bright pixel of the last row turns all images into the target, and none does for others."""
    net, x = planted()
    for k in range(5):
        single = torch.eye(36).reshape(36, 6, 6)
        z = net(stamped(x, single, torch.ones(36, 6, 6)).flatten(0, 1)).argmax(dim=1).reshape(36, -1)
        assert bool((z == k).all(dim=1).any()) == (k == TARGET)


def test_a_good_search_passes(capsys: pytest.CaptureFixture[str]) -> None:
    check.trigger_search(search)
    assert "holds, for 5 goals" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (lambda n, x, g: search(n, x, g)[0], "wrong shape"),
        (lambda n, x, g: (search(n, x, g)[0][:1], search(n, x, g)[1][:1]), "wrong shape"),
        (lambda n, x, g: [4 * part for part in search(n, x, g)], "free variables"),
        (lambda n, x, g: search(n, x, g.flip(0)), "goals are mixed up"),
        (lambda n, x, g: search(n, x, g, steps=2), "the steps are too few"),
        (lambda n, x, g: (torch.ones(5, 6, 6), x[[g[k, 0] for k in range(5)], 0]), "nothing makes the mask small"),
    ],
)
def test_a_poor_search_is_diagnosed(function: Any, cause: str) -> None:
    with pytest.raises(check.Wrong) as wrong:
        check.trigger_search(function)
    assert cause in wrong.value.cause
