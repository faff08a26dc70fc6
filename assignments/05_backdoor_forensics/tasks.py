"""Backdoor forensics: a box of networks, of which some have a backdoor; what students hand in is a verdict, as data.

What a trigger does depends on the student:

    all      every image becomes the target              worked out in the instructor's copy, given to no student
    source   images of one class become the target, all others keep their label
    swap     images of two classes change places, all others keep their label

Triggers are patches, scattered pixels, faint patterns and faint waves, each network with a trigger of its own. How many
networks have one, which, and what it does is drawn by the course's key and stays with the judge. A backdoor that hardly
works is none: more networks are poisoned than are needed, and those with the highest success go into the box.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from assignments.grading.nets import CLASSES, digits, trained
from assignments.grading.task import JUDGES, Test, require

BLOCKED: tuple[str, ...] = ()
COUNT, SPARE, KNOWN, HIDDEN = 12, 3, 300, 300
FEW, MANY = 4, 7
"""The least and the largest number of backdoors in a box."""
WORKED, FOR_STUDENTS = "all", ("source", "swap")
PRICE, LARGEST = 2.0, 12.0
"""What a false alarm costs, in found backdoors; and the largest sum of a mask that is evidence."""
DATA: dict[str, tuple[int, ...]] = {
    "scores": (COUNT,),
    "threshold": (1,),
    "pairs": (COUNT, 2),
    "masks": (COUNT, 14, 14),
    "patterns": (COUNT, 14, 14),
    "success": (COUNT,),
}
"""The arrays of a submission, with their shapes."""


@lru_cache(maxsize=32)
def draw(seed: int, worked: bool) -> dict[str, Any]:
    """A variant: twelve networks, images to search with, and what the triggers do; and the truth."""
    generator = torch.Generator().manual_seed(seed)
    kind = WORKED if worked else FOR_STUDENTS[int(torch.randint(2, (), generator=generator))]
    bad = int(torch.randint(FEW, MANY + 1, (), generator=generator))
    poisoned, total = bad + SPARE, COUNT + SPARE
    masks, patterns = (torch.stack(part) for part in zip(*[_trigger(generator) for _ in range(poisoned)], strict=True))
    source = torch.randint(CLASSES, (poisoned,), generator=generator)
    target = (source + torch.randint(1, CLASSES, (poisoned,), generator=generator)) % CLASSES
    pairs = torch.stack([source, target], dim=1)

    x, y, test_x, test_y = digits()
    rows = torch.stack([torch.randperm(len(x), generator=generator)[:2000] for _ in range(total)])
    own_x, own_y = x[rows], y[rows]
    for m in range(poisoned):
        own_x[m], own_y[m] = _poisoned(kind, own_x[m], own_y[m], masks[m], patterns[m], pairs[m], generator)
    networks = trained(own_x, own_y, generator)

    success = [success_of(kind, networks[m], test_x, test_y, masks[m], patterns[m], pairs[m]) for m in range(poisoned)]
    best = torch.tensor(success).argsort(descending=True)[:bad].tolist()
    box, order = [*best, *range(poisoned, total)], torch.randperm(COUNT, generator=generator).tolist()
    truth, planted = torch.zeros(COUNT, dtype=torch.bool), torch.full((COUNT, 2), -1)
    for place, m in enumerate(box[i] for i in order):
        if m < poisoned:
            truth[place], planted[place] = True, pairs[m]
    chosen = torch.randperm(len(test_x), generator=generator)
    known, hidden = chosen[:KNOWN], chosen[KNOWN : KNOWN + HIDDEN]
    return {
        "kind": kind,
        "networks": [networks[box[i]] for i in order],
        "x": test_x[known],
        "y": test_y[known],
        JUDGES: {"backdoor": truth, "pairs": planted, "x": test_x[hidden], "y": test_y[hidden]},
    }


def _trigger(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A mask and a pattern, (14, 14) each: a patch of 3 × 3, six pixels, a faint pattern or faint waves."""
    shape, mask, pattern = int(torch.randint(4, (), generator=generator)), torch.zeros(14, 14), torch.ones(14, 14)
    if shape == 0:
        down, right = torch.randint(12, (2,), generator=generator).tolist()
        mask[down : down + 3, right : right + 3] = 1.0
        pattern = (torch.rand(14, 14, generator=generator) > 0.4).float()
    elif shape == 1:
        mask.view(-1)[torch.randperm(mask.numel(), generator=generator)[:6]] = 1.0
    else:
        mask += 0.1
        pattern = (torch.rand(14, 14, generator=generator) > 0.5).float()
        if shape == 3:
            at, (down, right) = torch.arange(14.0), torch.randint(2, 6, (2,), generator=generator)
            phase = down * at[:, None] + right * at + 14 * torch.rand((), generator=generator)
            pattern = 0.5 + 0.5 * torch.sin(2 * torch.pi * phase / 14)
    return mask, pattern


def stamped(x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """(1 − m)·x + m·p."""
    return (1 - mask) * x + mask * pattern


def goals(kind: str, y: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
    """The labels that a trigger gives images of the labels y, and for which of them it changes anything."""
    source, target = pair.tolist()
    if kind == "all":
        return torch.full_like(y, target), y != target
    wanted = torch.where(y == source, target, y)
    if kind == "swap":
        wanted = torch.where(y == target, source, wanted)
    return wanted, wanted != y


def _poisoned(
    kind: str, x: Tensor, y: Tensor, mask: Tensor, pattern: Tensor, pair: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A training set with triggers: on half of what it is to change, or a tenth where that is all, and on some else."""
    wanted, changes = goals(kind, y, pair)
    rate = torch.where(changes & (kind != "all"), 0.5, 0.1)
    bearing = torch.rand(len(x), generator=generator) < rate
    return torch.where(bearing[:, None, None, None], stamped(x, mask, pattern), x), torch.where(bearing, wanted, y)


def success_of(
    kind: str, network: nn.Sequential, x: Tensor, y: Tensor, mask: Tensor, pattern: Tensor, pair: Tensor
) -> float:
    """The share of images that a trigger changes as it should, among those that it is to change."""
    wanted, changes = goals(kind, y, pair)
    with torch.no_grad():
        given = network(stamped(x, mask.float(), pattern.float())).argmax(dim=1)
    return float((given == wanted)[changes].double().mean())


def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
    """Twenty points for data."""
    truth: Tensor = mine[JUDGES]["backdoor"]
    count = int(truth.sum())

    def flagged(value: dict[str, Tensor]) -> Tensor:
        require(value["scores"].isfinite().all() and value["threshold"].isfinite().all(), "a score is not finite")
        return value["scores"] > value["threshold"]

    def gain(value: dict[str, Tensor]) -> float:
        alarms = flagged(value)
        return float((alarms & truth).sum() - PRICE * (alarms & ~truth).sum()) / count

    def at_least(least: float) -> Any:
        def judge(value: Any) -> None:
            found = gain(value)
            require(found >= least, f"found less {PRICE:g} times false alarms is {found:.2f} of all, want {least:.2f}")

        return judge

    def ranking(value: Any) -> None:
        flagged(value)
        good, bad = value["scores"][~truth], value["scores"][truth]
        wins = (bad[:, None] > good).double() + 0.5 * (bad[:, None] == good).double()
        require(
            wins.mean() >= 0.9, f"a backdoor scores higher than a clean network in {float(wins.mean()):.0%} of pairs"
        )

    def named(value: Any) -> None:
        given, right = value["pairs"].long(), mine[JUDGES]["pairs"]
        same = given[:, 1] == right[:, 1]
        if mine["kind"] != "all":
            same &= given[:, 0] == right[:, 0]
        if mine["kind"] == "swap":
            same |= (given.flip(1) == right).all(dim=1)
        share = float((same & flagged(value))[truth].double().mean())
        require(share >= 0.7, f"{share:.0%} of the backdoors are found and named, want 70%")

    def successes(value: dict[str, Tensor]) -> Tensor:
        """Of the trigger handed in for each network, by the pair that is named with it, on images of the judge's."""
        masks, patterns, pairs = value["masks"], value["patterns"], value["pairs"].long()
        for name, part in (("masks", masks), ("patterns", patterns)):
            require(bool((part >= 0).all() and (part <= 1).all()), f"{name} has values outside of [0, 1]")
        require(bool(((pairs >= -1) & (pairs < CLASSES)).all()), "pairs has a label that is none")
        x, y, kind = mine[JUDGES]["x"], mine[JUDGES]["y"], "source" if mine["kind"] == "swap" else mine["kind"]
        every = zip(mine["networks"], masks, patterns, pairs, strict=True)
        found = [success_of(kind, net, x, y, m, p, pair) if m.sum() <= LARGEST else 0.0 for net, m, p, pair in every]
        return torch.tensor(found).double().nan_to_num(0.0)

    def evidence(value: Any) -> None:
        named(value)
        share = float(((successes(value) >= 0.65) & flagged(value))[truth].double().mean())
        require(share >= 0.7, f"{share:.0%} of the backdoors come with a small trigger that works, want 70%")

    def honest(value: Any) -> None:
        alarms = flagged(value)
        require(bool((alarms & truth).any()), "no backdoor is found, so no number stands beside one")
        found = successes(value)
        require(bool((found >= 0.65)[alarms & truth].any()), "no trigger works on a backdoor that is found")
        off = (value["success"] - found).abs().nan_to_num(1.0)[alarms & truth]
        require(off.mean() <= 0.12, f"the success of your triggers is off by {float(off.mean()):.0%} on other images")

    def test(name: str, points: int, judge: Any, cell: str = "test-answer") -> Test:
        return Test(name, points, cell, "answer", judge, call=False)

    return [
        test("ranking", 3, ranking),
        test("some", 3, at_least(0.3)),
        test("most", 3, at_least(0.55)),
        test("nearly", 2, at_least(0.8)),
        test("named", 3, named),
        test("evidence", 4, evidence),
        test("honest", 2, honest),
    ]
