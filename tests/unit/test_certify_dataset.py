"""A data set certified in parts is certified as in one call, and an interrupted run goes on."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustlab.defenses import (
    certify_dataset,
    higher_order_smoothing,
    pixeldp,
    randomized_smoothing,
    renyi_smoothing,
)
from tests.unit.test_randomized_smoothing import plane


class Ends(nn.Module):
    """A model that fails, or is interrupted, after so many rows."""

    def __init__(self, net: nn.Module, error: type[BaseException]) -> None:
        super().__init__()
        self.net, self.error, self.left, self.seen = net, error, 10**9, 0

    def forward(self, x: Tensor) -> Tensor:
        self.left -= len(x)
        self.seen += len(x)
        if self.left < 0:
            raise self.error("enough")
        return torch.as_tensor(self.net(x))


@pytest.mark.parametrize("method", [randomized_smoothing, renyi_smoothing, pixeldp, higher_order_smoothing])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_goes_on(method: object, error: type[BaseException], tmp_path: Path) -> None:
    net, _, x = plane()
    y = torch.ones(12).long()
    y[3] = 0
    model = Ends(net, error)
    whole = method(model, x, y, sigma=0.3, n0=20, n=300)  # type: ignore[operator]
    certify = partial(certify_dataset, method, model, x, y, file=tmp_path / "run", rows=5, progress=False)
    model.left = 7 * 320
    with pytest.raises(error):
        certify(sigma=0.3, n0=20, n=300)
    model.left, model.seen = 10**9, 0
    found = certify(sigma=0.3, n0=20, n=300)
    assert model.seen == 7 * 320  # five of twelve samples were done
    for name in ("verified", "falsified", "radius", "prediction", "p_lower", "counts"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    assert (found.norm, found.method, found.confidence) == (whole.norm, whole.method, whole.confidence)
    model.seen = 0
    assert torch.equal(certify(sigma=0.3, n0=20, n=300).radius, whole.radius) and model.seen == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_part_of_the_data_set_has_its_own_file(tmp_path: Path) -> None:
    model, _, x = plane()
    whole = randomized_smoothing(model, x, sigma=0.3, n=300)
    rest = certify_dataset(
        randomized_smoothing, model, x[7:], file=tmp_path / "b", ids=torch.arange(7, 12), sigma=0.3, n=300,
    )  # fmt: skip
    assert torch.equal(rest.counts, whole.counts[7:]) and torch.equal(rest.radius, whole.radius[7:])
    none = certify_dataset(randomized_smoothing, model, x[:0], file=tmp_path / "c", sigma=0.3, n=300)
    assert len(none) == 0 and none.radius.dtype == x.dtype


def test_the_file_of_another_run_is_refused(tmp_path: Path) -> None:
    model, _, x = plane()
    other, _, _ = plane(seed=1)
    y, file = torch.ones(12).long(), tmp_path / "run"
    basis = torch.eye(3).double()[:, :2]
    certify_dataset(higher_order_smoothing, model, x, y, file=file, sigma=0.3, n=300, subspace=basis)
    before = file.read_bytes()
    run = {"sigma": 0.3, "n": 300, "subspace": basis}
    for changed, arguments, settings in (
        ("settings", (higher_order_smoothing, model, x, y), {**run, "n": 301}),
        ("settings", (higher_order_smoothing, model, x, y), {**run, "subspace": basis.flip(0)}),
        ("method, settings", (randomized_smoothing, model, x, y), {"sigma": 0.3, "n": 300}),
        ("model", (higher_order_smoothing, other, x, y), run),
        ("inputs", (higher_order_smoothing, model, x + 0.01, y), run),
        ("inputs", (higher_order_smoothing, model, x, 1 - y), run),
        ("inputs", (higher_order_smoothing, model, x, y), {**run, "ids": torch.arange(1, 13)}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^file: want that of this run, got .* of another ") as refused:
            certify_dataset(*arguments, file=file, **settings)  # type: ignore[arg-type]
        assert ", ".join(re.findall(r"(\w+) [(].*?, here ", str(refused.value))) == changed
    assert file.read_bytes() == before
    file.write_bytes(before[:-5])
    with pytest.raises(ValueError, match=r"^file: want a file that certify_dataset has written"):
        certify_dataset(higher_order_smoothing, model, x, y, file=file, **run)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^file: want a file in a folder"):
        certify_dataset(randomized_smoothing, model, x, file=tmp_path / "no" / "run", sigma=0.3)
    with pytest.raises(ValueError, match=r"^rows: want"):
        certify_dataset(randomized_smoothing, model, x, file=tmp_path / "d", rows=0, sigma=0.3)
