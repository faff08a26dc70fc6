"""The matrix of transfers, against a loop over single samples, and on linear models whose transfers are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import ensemble_transfer
from robustlab.evaluation import transfer_matrix
from robustlab.intervals import wilson
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp

SHAPE = (1, 3, 3)


def scene(n: int = 40) -> tuple[dict[str, Any], Tensor, Tensor]:
    nets: dict[str, Any] = {name: mlp(SHAPE, 3, torch.float64, seed) for seed, name in enumerate(("a", "b", "c"))}
    nets["ab"] = [nets["a"], nets["b"]]
    x = noise_box(n, SHAPE, torch.float64, 7)
    with torch.no_grad():
        y = nets["a"](x).argmax(1)
        y[::4] = nets["b"](x[::4]).argmax(1)  # nobody is right everywhere
    return nets, x, y


@pytest.mark.slow
@pytest.mark.parametrize("targeted", [False, True])
def test_counts_are_those_of_a_loop_over_samples(targeted: bool) -> None:
    nets, x, y = scene()
    aim = (y + 1) % 3 if targeted else None
    told = transfer_matrix(nets, x, y, eps=0.2, target=aim, steps=4, batch_size=7)
    assert told.surrogates == ("a", "b", "c", "ab") and told.targets == ("a", "b", "c")
    fooled, counted = torch.zeros(4, 3).long(), torch.zeros(4, 3).long()
    for s, name in enumerate(told.surrogates):
        members = nets[name] if isinstance(nets[name], list) else [nets[name]]
        for i in range(len(x)):
            one = slice(i, i + 1)
            if any(int(m(x[one]).argmax()) != int(y[i]) for m in members):
                continue
            # a victim that is never fooled at x, so that the attack works
            stuck = Affine(torch.zeros(3, 9).double(), torch.eye(3)[y[i]].double())
            made = ensemble_transfer(
                stuck, x[one], y[one], surrogates=members, eps=0.2, steps=4, target=None if aim is None else aim[one]
            )
            for t, judge in enumerate(told.targets):
                if int(nets[judge](x[one]).argmax()) == int(y[i]):
                    said = int(nets[judge](made.x_adv).argmax())
                    counted[s, t] += 1
                    fooled[s, t] += said != int(y[i]) if aim is None else said == int(aim[i])
    assert torch.equal(told.n, counted) and torch.equal(told.fooled, fooled)
    assert 0 < int(fooled.sum()) < int(counted.sum()) and bool((counted < len(x)).any())
    low, high = wilson(int(fooled[0, 1]), int(counted[0, 1]))
    assert told.low[0, 1] == low and told.high[0, 1] == high and torch.equal(told.rate, fooled.double() / counted)


def test_aligned_and_orthogonal_normals() -> None:
    """What moves along w fools a parallel model and leaves an orthogonal one alone."""
    w, v = torch.tensor([1.0, 0.0, 0.0, 1.0]).double(), torch.tensor([0.0, 1.0, -1.0, 0.0]).double()

    def model(normal: Tensor) -> nn.Module:
        return Affine(torch.stack([0 * normal, normal]), torch.stack([normal.sum() / 2, 0 * normal.sum()]))

    nets: dict[str, Any] = {"w": model(w), "3w": model(3 * w), "v": model(v)}
    x = 0.5 + 0.05 * torch.stack([a * w / 2 + b * v / 2 for a in (-1, 1) for b in (-1, 1)])
    y = nets["w"](x).argmax(1)
    told = transfer_matrix(nets, x, y, eps=0.1, norm="l2", steps=3)
    assert told.rate[0, :2].tolist() == [1.0, 1.0] and told.rate[0, 2] == 0.0
    assert told.n[0].tolist() == [4, 4, 2]  # v's counts where the labels agree alone


def test_samples_that_the_target_gets_wrong_are_no_success() -> None:
    nets, x, y = scene()
    wrong = {"never": Affine(torch.zeros(3, 9).double(), torch.tensor([1.0, 0.0, 0.0]).double())}
    told = transfer_matrix(nets, x, y, targets=wrong, eps=0.1, steps=2)
    assert not bool(told.fooled.any()) and told.accuracy[0] == float((y == 0).double().mean())
    assert "never" in told.summary() and len(told.summary().splitlines()) == 5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("surrogates", {"surrogates": {}}), ("surrogates", {"surrogates": {"a": 3}}),
        ("surrogates", {"surrogates": []}),
        ("targets", {"targets": {}}), ("targets", {"targets": {"a": [mlp(SHAPE), mlp(SHAPE)]}}),
        ("target", {"target": 99}), ("batch_size", {"batch_size": 0}), ("eps", {"eps": -1.0}),
        ("x", {"x": torch.ones(40, 1, 3, 3) * 3}),
        ("y", {"y": torch.zeros(3).long()}),
    ],
)  # fmt: skip
def test_bad_arguments(name: str, change: dict[str, Any]) -> None:
    nets, x, y = scene()
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: "):
        transfer_matrix(**{"surrogates": nets, "x": x, "y": y, "eps": 0.1, **change})
