"""The page *Help* quotes what is printed: each message of its table comes when that mistake is made."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from robustlab import Victim, data, zoo
from robustlab.attacks import pgd

PAGE = (Path(__file__).resolve().parents[2] / "book" / "help.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.MULTILINE)


def attack(model: object, x: Tensor, y: Tensor, eps: float = 0.1, **more: object) -> None:
    pgd(model, x, y, eps=eps, steps=1, **more)  # type: ignore[arg-type]


MISTAKES: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    "x: want values": lambda f, x, y: attack(f, 255 * x, y),
    "eps: a ball": lambda f, x, y: attack(f, x, y, eps=8),
    "y: want shape": lambda f, x, y: attack(f, x, nn.functional.one_hot(y, 10)),
    "x: want the model's dtype": lambda f, x, y: attack(f, x.double(), y),
    "x: want images": lambda f, x, y: attack(f, x.permute(0, 2, 3, 1), y),
    "model: its outputs": lambda f, x, y: attack(nn.Sequential(f, nn.Softmax(dim=1)), x, y),
    "access:": lambda f, x, y: attack(Victim(f, access="soft"), x, y),
    "target:": lambda f, x, y: attack(f, x, y, target=y),
    "root:": lambda f, x, y: data.load("cifar10"),
}


@pytest.mark.parametrize("message", QUOTED)
def test_the_message_is_printed(message: str) -> None:
    (mistake,) = (make for start, make in MISTAKES.items() if message.startswith(start))
    digits = data.load("mnist5k").subset(n_test=4)
    said = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            mistake(zoo.load("mnist_mlp"), digits.x_test, digits.y_test)
        except (ValueError, TypeError) as error:
            said.append(str(error))
    said += [str(warning.message) for warning in warned]
    assert any(text.startswith(message) for text in said), said


def test_every_mistake_is_on_the_page() -> None:
    assert len(QUOTED) == len(MISTAKES)
