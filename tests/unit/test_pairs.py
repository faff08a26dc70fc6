"""One reader of labeled data: whatever form they come in, every method that is given data reads the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlab.attacks import badnets, label_flipping
from robustlab.data import Dataset
from robustlab.data.pairs import Pairs, portions, read_inputs, read_labeled, read_pair
from robustlab.defenses import fine_tuning, neural_cleanse, spectral_signatures
from robustlab.training.fit import fit
from tests.suite.training.cases import images, net, same

FORMS: dict[str, Callable[[Tensor, Tensor], Pairs]] = {
    "Dataset": lambda x, y: Dataset("toy", x, y, x[:1], y[:1], ("a", "b", "c")),
    "list": lambda x, y: [x, y],  # type: ignore[return-value]
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7),
    "loader of items": lambda x, y: DataLoader(list(zip(x, y.tolist(), strict=True)), batch_size=7),
    "torch Dataset": TensorDataset,
}
METHODS: dict[str, Callable[[Any], Any]] = {
    "fit": lambda data: (fit(model := net(), data, epochs=1, batch_size=20), model)[1],
    "poison": lambda data: label_flipping(data, rate=0.2, classes=3).y,
    "backdoor": lambda data: badnets(data, target=0).x,
    "detector": lambda data: spectral_signatures(net(), data, rate=0.1),
    "repair": lambda data: fine_tuning(net(), data, epochs=1).model,
    "inputs alone": lambda data: neural_cleanse(net(), data, steps=2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_reads_every_form(method: str, form: str) -> None:
    x, y = images(30)
    assert same(METHODS[method](FORMS[form](x, y)), METHODS[method]((x, y)))


def test_portions_are_batches_of_a_loader_and_the_whole_of_a_pair() -> None:
    x, y = images(10)
    assert [len(part) for part, _ in portions((x, y))] == [10]
    assert [len(part) for part, _ in portions(DataLoader(TensorDataset(x, y), 4))] == [4, 4, 2]
    assert [len(part) for part, _ in portions(TensorDataset(x, y), batch_size=6)] == [6, 4]


def test_what_is_read_has_no_graph_and_can_be_used_with_one() -> None:
    x, y = images(4)
    read, _ = read_pair((x.requires_grad_(), y))
    assert not read.requires_grad
    with torch.inference_mode():
        made = x * 1
        read, _ = read_pair((made, y))
    assert not read.is_inference() and torch.equal(read, x)
    nn.Linear(8, 2)(read).sum().backward()


def test_labels_of_any_integer_dtype_and_responses_as_they_are() -> None:
    x, y = images(6)
    assert read_labeled((x, y.to(torch.uint8)))[1].dtype == torch.int64
    assert torch.equal(read_pair((x, y.double()))[1], y.double())
    assert torch.equal(read_inputs(x), read_inputs((x, y.double())))


def test_each_pass_over_a_shuffling_loader_is_the_same() -> None:
    """A method may read its data twice."""
    x, y = images(20)
    loader, state = DataLoader(TensorDataset(x, y), 5, shuffle=True), torch.get_rng_state()
    first, again = read_pair(loader), read_pair(loader)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], x)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_do_not_share_their_draws() -> None:
    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return torch.rand(2), 0

    x, _ = read_pair(DataLoader(Noisy(), batch_size=2))
    assert len(x.unique(dim=0)) == 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, r"^data: want a Dataset, a pair \(x, y\) of tensors, or a torch DataLoader of such pairs, got int"),
        ((torch.ones(2, 3), [0, 1]), "^data: want a Dataset, .* got tuple of Tensor, list"),
        (torch.ones(2, 3), "^data: want a Dataset, .* got Tensor"),
        (DataLoader(TensorDataset(torch.ones(4, 3)), 2), "^data: want a Dataset, .* got list of Tensor"),
        (
            (torch.ones(2, 3), torch.zeros(3)),
            r"^data: want as many inputs as labels, .* got shapes \(2, 3\) and \(3,\)",
        ),
        ((torch.ones(0, 3), torch.zeros(0)), "^data: want as many inputs as labels, at least one"),
        (DataLoader(TensorDataset(torch.ones(0, 3), torch.ones(0)), 2), "^data: want at least one sample"),
    ],
)
def test_one_error(data: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        read_pair(data)


def test_wrong_values_are_named() -> None:
    x, y = images(4)
    with pytest.raises(ValueError, match=r"^data: want finite values, got NaN"):
        read_labeled((x.index_fill(0, torch.tensor([1]), torch.nan), y))
    with pytest.raises(ValueError, match=r"^y: want labels of at least 0, got \[-1, -1\]"):
        read_labeled((x, torch.tensor([0, -1, 1, -1])))
