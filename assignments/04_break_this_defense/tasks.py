"""Break this defense: three defenses under neutral names, of which one is sound; what students hand in is data.

A defense is a small network and something before or behind it that hinders a gradient. Two of the networks are plainly
trained, and one is trained adversarially. The course's key draws which, so what hinders says nothing of the network.

    rounding   the negative on eight levels             worked out in the instructor's copy, given to no student
    mirror     the image or its mirror image, by chance  likewise
    loud       a softmax of logits times 10,000          likewise
    dither     the negative on levels to which a pixel goes by chance
    turns      one of four turns, by chance
    labels     the label alone

The judge asks each defense about the points that are handed in, and random ones with draws of its own. What a sound
network withstands is measured on the network alone, so this file attacks no defense.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from assignments.grading.nets import SHAPE, digits, trained
from assignments.grading.task import JUDGES, Test, require

BLOCKED: tuple[str, ...] = ()
NAMES = "A", "B", "C"
EPS, ROWS, DRAWS, SLACK = 0.09, 60, 64, 0.15
"""The last is what may be left of a sound defense beyond its bare network. Behind a random front points must hold for
all draws, and what EOT with a cross-entropy leaves was up to 0.12 more, in the 24 variants of two courses."""
WORKED, FOR_STUDENTS = ("rounding", "mirror", "loud"), ("dither", "turns", "labels")
DATA: dict[str, tuple[int, ...]] = {
    **{f"x_adv_{name}": (ROWS, *SHAPE) for name in NAMES},
    "sound": (3,),
    "robust_accuracy": (3,),
}
"""The arrays of a submission, with their shapes."""


@lru_cache(maxsize=32)
def draw(seed: int, worked: bool) -> dict[str, Any]:
    """A variant: three defenses (kind, network) by their names, 60 images with labels, a radius; and which is sound."""
    generator = torch.Generator().manual_seed(seed)
    x, y, test_x, test_y = digits()
    given = WORKED if worked else FOR_STUDENTS
    kinds = [given[i] for i in torch.randperm(3, generator=generator).tolist()]
    sound = int(torch.randint(3, (), generator=generator))
    rows = torch.stack([torch.randperm(len(x), generator=generator)[:2000] for _ in NAMES])
    seen = torch.stack([front(kind, x[own], generator) for kind, own in zip(kinds, rows, strict=True)])
    radii = EPS * one_hot(torch.tensor(sound), 3)
    networks = trained(seen, y[rows], generator, hidden=64, epochs=8, eps=radii)
    defenses = {name: {"kind": kinds[i], "network": networks[i]} for i, name in enumerate(NAMES)}
    chosen = torch.randperm(len(test_x), generator=generator)[:ROWS]
    x, y = test_x[chosen], test_y[chosen]
    bare = withstands(networks[sound], front(kinds[sound], x, generator), y)
    judges = {"sound": NAMES[sound], "withstands": bare}
    return {"defenses": defenses, "x": x, "y": y, "eps": EPS, JUDGES: judges}


def withstands(network: nn.Sequential, x: Tensor, y: Tensor, steps: int = 40) -> float:
    """The accuracy of a network without a front under plain PGD."""
    points = x.clone()
    for _ in range(steps):
        points.requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(network(points), y, reduction="sum"), points)
        points = (x + (points.detach() + 0.1 * EPS * grad.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    return float((network(points).argmax(dim=1) == y).double().mean())


def front(kind: str, x: Tensor, generator: torch.Generator) -> Tensor:
    """What a defense lets through to its network, with a draw for each image where it draws."""
    if kind == "rounding":
        return (7 * x.flip(2)).round() / 7
    if kind == "dither":
        return (7 * x.transpose(2, 3) + torch.rand(x.shape, generator=generator)).floor().clamp(max=7) / 7
    if kind == "mirror":
        coin = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
        return torch.where(coin, x.flip(3), x)
    if kind == "turns":
        turned = torch.stack([x.rot90(k, dims=(2, 3)) for k in range(2)])
        return turned[torch.randint(2, (len(x),), generator=generator), torch.arange(len(x))]
    return x


def answer_of(kind: str, network: nn.Sequential, x: Tensor, generator: torch.Generator) -> Tensor:
    """The answer of a defense."""
    z: Tensor = network(front(kind, x, generator))
    if kind == "loud":
        return (1e4 * z).softmax(dim=1)
    return one_hot(z.argmax(dim=1), 10).to(x) if kind == "labels" else z


def accuracy(defense: dict[str, Any], x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    """The share of right answers over the draws of a defense."""
    with torch.no_grad():
        answers = [answer_of(defense["kind"], defense["network"], x, generator) for _ in range(DRAWS)]
    return float((torch.stack(answers).argmax(dim=2) == y).double().mean())


def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
    """Twenty points for data."""
    sound, bare = mine[JUDGES]["sound"], mine[JUDGES]["withstands"]
    fragile = [name for name in NAMES if name != sound]

    def left(value: dict[str, Tensor], name: str) -> float:
        """What is left of a defense's accuracy on the points of a submission, if these are allowed."""
        points, x = value[f"x_adv_{name}"].float(), mine["x"]
        require(points.isfinite().all(), f"x_adv_{name} has numbers that are not finite")
        require((points - x).abs().max() <= mine["eps"] + 1e-6, f"a point of x_adv_{name} leaves the ball")
        require(points.min() >= 0 and points.max() <= 1, f"a point of x_adv_{name} leaves the box")
        generator = torch.Generator().manual_seed(seed)
        return accuracy(mine["defenses"][name], points, mine["y"], generator)

    def broken(name: str, most: float) -> Callable[[Any], None]:
        def judge(value: Any) -> None:
            share = left(value, name)
            require(share <= most, f"{name} is right on {share:.0%} of your points, want at most {most:.0%}")

        return judge

    def strong(value: Any) -> None:
        share, most = left(value, sound), bare + SLACK
        require(share <= most, f"{sound} is right on {share:.0%} of your points, and it could be {most:.0%} or less")

    def verdict(value: Any) -> None:
        for name in fragile:  # without points that stand for it, a verdict is a guess
            share = left(value, name)
            require(share <= 0.5, f"no verdict without proof: {name} is right on {share:.0%} of your points")
        said = [name for name, given in zip(NAMES, value["sound"], strict=True) if given > 0.5]
        require(said == [sound], f"sound is {', '.join(said) or 'none'} by your verdict, and that is wrong")

    def honest(value: Any) -> None:
        shares = torch.tensor([left(value, name) for name in NAMES]).double()
        require(shares.min() <= 0.5, "no number without an attack: no defense is wrong on half of your points")
        off = float((value["robust_accuracy"] - shares).abs().max().nan_to_num(1.0))
        require(off <= 0.05, f"a robust accuracy is off by {off:.0%} from that of your own points")

    def test(name: str, points: int, judge: Callable[[Any], None]) -> Test:
        return Test(name, points, "test-answer", "answer", judge, call=False)

    return [
        *[test(f"half-{i + 1}", 2, broken(name, 0.5)) for i, name in enumerate(fragile)],
        *[test(f"broken-{i + 1}", 3, broken(name, 0.25)) for i, name in enumerate(fragile)],
        test("strong", 3, strong),
        test("verdict", 4, verdict),
        test("honest", 3, honest),
    ]
