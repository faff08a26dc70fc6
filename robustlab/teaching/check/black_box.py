"""A black-box attack under a budget of rows, held to models whose smallest radius is known.

On an affine model with two classes that compete, the best point of the ℓ∞ ball is the corner x + ε·sign(w_other − w_y),
which is misclassified if and only if ε is above |lead| / ‖w_other − w_y‖₁. So it is known which inputs can be fooled.
Random corners gain ε·‖w‖₂ in the standard deviation where ε·‖w‖₁ is to be had, and the radius is chosen so that they
hardly ever are enough. Who flips one value after the other is there after as many rows as there are values, and a few
more for each of them where labels alone are told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlab.teaching.check.finding import Wrong, lengths, require_answer, require_in_box, require_unchanged
from robustlab.teaching.handout import linear_network
from robustlab.teaching.metered import Metered, Refused, Tells

Attack = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, float, int], Tensor]
"""(api, x, y, eps, budget) → points like x."""
EPS, COUNT, ROWS, TIGHT, CLASSES, ENOUGH = 0.1, 20, 400, 7, 4, 0.8
"""The radius, inputs, rows per input where there are enough and where there are few, classes, and the share to fool."""


def black_box(
    attack: Attack,
    *,
    tells: Tells = "labels",
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    hints: int = 1,
) -> None:
    """Check a black-box attack under a budget of rows: prints one line where all holds.

    Args:
        attack: called as ``attack(api, x, y, eps, budget)`` with x (N, *shape) in [0, 1] and y (N,). ``api`` takes rows
            (n, *shape) in [0, 1], answers ``budget`` of them in all, and refuses a question that goes beyond. Returns
            points like x in the ℓ∞ ball of radius eps and in the box, of which as many as possible are misclassified;
            a misclassified input costs no more rows.
        tells: what the API answers: ``"labels"`` (default), ``"scores"`` or ``"top"``, as in
            :class:`robustlab.teaching.metered.Metered`.
        shape: of one input; None takes 1 × 6 × 6 and 1 × 8 × 8.
        seed: of the models and inputs (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 6, 6), (1, 8, 8)] if shape is None else [shape]
    try:
        for size in shapes:
            _in_the_box(attack, size, tells, generator)
            _wrong_at_once(attack, affine_case(size, generator), tells)
            _fools(attack, affine_case(size, generator), tells)
    except Wrong as wrong:
        raise wrong.shown_as("black_box", hints) from None
    print(f"black_box: holds, on affine models whose smallest radius is known, with {ROWS} and {TIGHT} rows per input")


@dataclass
class Case:
    """A model, inputs with the labels it gives, the way to the other class (±1), and the smallest radius that fools."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    uphill: Tensor
    smallest: Tensor


def affine_case(shape: tuple[int, ...], generator: torch.Generator) -> Case:
    """An affine model, and inputs in the middle of the box that are fooled from a radius of 0.7 to 0.8 of ε on.

    Two of the four classes compete. No two inputs are within 2ε of each other, so that a row in a ball is of one input.
    """
    d = math.prod(shape)
    across = torch.randn(d, generator=generator)
    across += 0.2 * across.sign()
    across *= 3 / (EPS * across.abs().sum())  # the logits' difference falls by 3 in a ball
    first, second = torch.randperm(CLASSES, generator=generator)[:2].tolist()
    weight, bias = torch.zeros(CLASSES, d), torch.full((CLASSES,), -30.0)
    weight[first], weight[second] = across / 2, -across / 2
    bias[first] = -across.sum() / 4
    bias[second] = across.sum() / 4
    x = 0.25 + 0.5 * torch.rand(COUNT, d, generator=generator)
    side = torch.where(torch.arange(COUNT) % 2 == 0, 1.0, -1.0)
    smallest = EPS * (0.7 + 0.1 * torch.rand(COUNT, generator=generator))
    now = (x - 0.5) @ across / across.abs().sum()
    x += (side * smallest - now)[:, None] * across.sign()
    y = torch.where(side > 0, first, second)
    uphill = (-side[:, None] * across.sign()).reshape(COUNT, *shape)
    return Case(linear_network(weight, bias), x.reshape(COUNT, *shape), y, uphill, smallest)


class Watched(Metered):
    """An API that notes which rows it answered, and by how many rows the first question that it refused went beyond."""

    def __init__(self, case: Case, rows: int, tells: Tells) -> None:
        super().__init__(case.model, case.x.shape[1:], rows, tells=tells)
        self.asked: list[Tensor] = []
        self.why, self.beyond = "", 0

    def __call__(self, x: Tensor) -> Tensor:
        """The answers to rows x; see :class:`robustlab.teaching.metered.Metered`."""
        try:
            told = super().__call__(x)
        except Refused as refused:
            if not self.why:
                self.why = str(refused)
                self.beyond = self.used + len(x) - self.budget if "budget" in self.why else 0
            raise
        self.asked.append(x.detach().clone())
        return told

    def require_allowed(self) -> None:
        """Raises :class:`Wrong` if a question was refused, whether or not the attack went on."""
        if not self.refused:
            return
        if 0 < self.beyond <= 2 < self.used:
            raise Wrong(
                f"a question goes {self.beyond} rows beyond the budget of {self.budget}",
                "the count is off by a row or two",
                "Which rows were asked before the loop: are all of them counted?",
                "Before each question: cut it to the rows that are left, and then subtract its length.",
            )
        if self.beyond:
            raise Wrong(
                f"a question was refused: {self.why}",
                "rows are not counted, or questions are counted in their place",
                "A question with n points costs n rows, and the budget is for all inputs together.",
                "left = budget; before each question cut it to so many rows; then left -= len(rows).",
            )
        if "outside of the box" in self.why:
            raise Wrong(
                f"a question was refused: {self.why}",
                "points are asked about before they are clamped",
                "An API takes images, and so does this one.",
                "new = new.clamp(0, 1), and only then api(new).",
            )
        raise Wrong(
            f"a question was refused: {self.why}",
            "no batch of inputs",
            "A single input is a batch of one: x[i:i + 1].",
            "Ask for points of the shape (n, ...) of x.",
        )


def _ask(attack: Attack, case: Case, rows: int, tells: Tells) -> tuple[Tensor, Watched]:
    """The answer on copies of the case, if it is allowed."""
    api, x = Watched(case, rows, tells), case.x.clone()
    try:
        out = attack(api, x, case.y.clone(), EPS, rows)
    except Refused:
        api.require_allowed()
        raise
    api.require_allowed()
    out = require_answer(out, case.x)
    require_unchanged(x, case.x)
    length = float(lengths(out - case.x, "linf").max())
    if length > EPS + 1e-5:
        raise Wrong(
            f"the result leaves the ball: ‖δ‖∞ is {length:.3g}, ε is {EPS}",
            "a point outside of the ball around x is returned",
            "A search along a direction passes points that are too far away: only those within ε count.",
            "x + (point - x).clamp(-eps, eps), and ask about the point that you return.",
        )
    require_in_box(out, 1e-6, "Ask about, and return, (x + delta).clamp(0, 1).")
    return out, api


def _in_the_box(attack: Attack, shape: tuple[int, ...], tells: Tells, generator: torch.Generator) -> None:
    """Raises where a point is not allowed or not counted: from the ends of the box, and where rows are few."""
    case = affine_case(shape, generator)
    case.x = torch.where(torch.rand(case.x.shape, generator=generator) < 0.4, case.x.round(), case.x)
    case.y = case.model(case.x).argmax(dim=1)
    _ask(attack, case, TIGHT * COUNT - 3, tells)  # no multiple of the number of inputs


def _wrong_at_once(attack: Attack, case: Case, tells: Tells) -> None:
    """Raises where an input that is misclassified already is moved, or asked about again while others are attacked."""
    wrong = torch.arange(COUNT) % 4 < 2
    case.y = torch.where(wrong, case.y.roll(1), case.y)
    out, api = _ask(attack, case, ROWS * COUNT, tells)
    again = float(_history(case, api)[0][wrong].double().mean())
    if again > 1:
        raise Wrong(
            f"an input that is misclassified from the start is asked about {again:.0f} times more",
            "it asks on when fooled",
            "A misclassified point needs no more questions, and what it saves is there for others.",
            "In each turn ask only about rows = (~done).nonzero().flatten().",
        )
    if not torch.equal(out[wrong], case.x[wrong]):
        raise Wrong(
            "an input that is misclassified already was moved",
            "no look at the labels of x itself",
            "The first rows to ask about are those of x.",
            "Where the label of x is not y, the result is x.",
        )


def _fools(attack: Attack, case: Case, tells: Tells) -> None:
    """Raises what explains why so few are fooled where all could be."""
    out, api = _ask(attack, case, ROWS * COUNT, tells)
    found = _labels(case, out) != case.y
    share = float(found.double().mean())
    if share >= ENOUGH:
        return
    _, passed, gained = _history(case, api)
    seen = f"{share:.0%} of the inputs are fooled with {api.used / COUNT:.0f} rows each, where all can be"
    _not_returned(seen, found, passed)
    if api.used <= COUNT:
        raise Wrong(
            seen,
            "hardly a question was asked",
            "Is the budget used? It is the number of rows that are answered for all inputs together.",
        )
    largest = float((out - case.x).abs().max())
    if 0 < largest < 1.05 * EPS / 255:
        raise Wrong(
            f"{seen}, and the largest change of a pixel is {largest:.2g} where ε is {EPS}",
            "pixels in 0…255 units",
            "Here pixels lie in [0, 1], and so does ε.",
        )
    if api.used < 0.5 * ROWS * COUNT:
        raise Wrong(
            f"{seen}, and {1 - api.used / (ROWS * COUNT):.0%} of the budget is left",
            "the loop ends early",
            "It goes on while rows are left and an input is not fooled: any, not all.",
            "Does one input's success end the search for all, or are rows shared out that nobody asks for?",
        )
    _nothing_learned(seen, case, out, gained)
    raise Wrong(
        seen,
        "rows are wasted",
        "How many rows does one step cost, and how many steps are needed? There are as many signs as values.",
        "Change many values at once in the beginning, and fewer later; keep each change that helps.",
    )


def _labels(case: Case, points: Tensor) -> Tensor:
    with torch.no_grad():
        z: Tensor = case.model(points)
    return z.argmax(dim=1)


def _history(case: Case, api: Watched) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows asked about in each ball: how many after the first that was wrong, whether any was, and the gain.

    That is the mean of the later half of them, towards the other class, as a share of what the ball allows.
    """
    late, passed, gained = torch.zeros(COUNT), torch.zeros(COUNT, dtype=torch.bool), torch.zeros(COUNT)
    asked = torch.cat([case.x[:0], *api.asked])
    labels = _labels(case, asked)
    for i in range(COUNT):
        inside = lengths(asked - case.x[i], "linf") <= EPS + 1e-5
        wrong = (labels[inside] != case.y[i]).nonzero().flatten()
        if len(wrong):
            passed[i], late[i] = True, int(inside.sum()) - 1 - int(wrong[0])
        gain = _gains(case, asked[inside] - case.x[i], case.uphill[i])
        gained[i] = gain[len(gain) // 2 :].mean().nan_to_num(0.0)
    return late, passed, gained


def _gains(case: Case, delta: Tensor, uphill: Tensor) -> Tensor:
    """By how much each δ brings the other class ahead, as a share of what the ball allows."""
    layer = case.model[1]
    assert isinstance(layer, nn.Linear)
    size = layer.weight.detach()[case.y[:2]].diff(dim=0).abs().reshape(case.x.shape[1:])
    return (delta * uphill * size).flatten(1).sum(dim=1) / (EPS * size.sum())


def _not_returned(seen: str, found: Tensor, passed: Tensor) -> None:
    """Raises where a wrong point of the ball was asked about, and another is returned."""
    if float((passed & ~found).double().mean()) > 0.15:
        raise Wrong(
            f"{seen}, and for {float(passed.double().mean()):.0%} a point of the ball was wrong when asked about",
            "last point, not the best",
            "The point that was wrong when you asked is the one to return.",
            "best[rows[hit]] = new[hit], and nothing else moves best.",
        )


def _nothing_learned(seen: str, case: Case, out: Tensor, gained: Tensor) -> None:
    """Raises where results lie on the wrong side of x, or the rows asked about never get better."""
    if float(_gains(case, out - case.x, case.uphill).median()) < -0.5:
        raise Wrong(
            f"{seen}, and at the result the class y is farther ahead than at x",
            "the wrong way: the worse of two points is kept",
            "A point is better where the class y has less.",
            "better = value > found, where value is by how much another class is ahead.",
        )
    if float(gained.median()) < 0.1:
        raise Wrong(
            f"{seen}, and the later rows in a ball are no better than its center",
            "answers are not used",
            "What does the next question owe to the answer to the last one?",
            "Start the next change from the best point so far, and keep it only where it is better.",
        )
