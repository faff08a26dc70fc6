"""A small table for regression: features and responses in [0, 1], categories as one-hot columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.embedded import Source, read_source

DIABETES = Source(
    title="Diabetes progression, 442 patients",
    file="diabetes.npz",
    sha256="16031053d54786d40a83a22adc8456f009b7aa03731a78dbc3c97d209d1131e8",
    classes=(),
    provenance="The unscaled table of scikit-learn 1.9.1, load_diabetes(scaled=False): 442 patients, ten measurements "
    "and the progression of the disease a year later. Columns and values as there.",
    license="Published by the authors without a license of its own; scikit-learn, which carries it: BSD-3-Clause.",
    citation="Efron, Hastie, Johnstone and Tibshirani, Least angle regression, Annals of Statistics, 2004.",
)
AGES = (0.0, 35.0, 50.0, 65.0)  # lower ends of the groups of age, in years


@dataclass(frozen=True, eq=False)
class RegressionData:
    """A table split into a training and a test part.

    Args:
        name: of the table.
        x_train, x_test: float features (N, d) in [0, 1].
        y_train, y_test: float responses (N,) in [0, 1].
        columns: the names of the d columns.
        one_hot: groups of columns of which exactly one is 1 and the others are 0.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    columns: tuple[str, ...]
    one_hot: tuple[tuple[int, ...], ...] = ()

    def __repr__(self) -> str:
        rows = f"{len(self.x_train)} train, {len(self.x_test)} test"
        return f"RegressionData({self.name!r}, {rows}, {len(self.columns)} columns)"


def diabetes(*, n_train: int = 300, seed: int = 0, dtype: torch.dtype = torch.float64) -> RegressionData:
    """Progression of diabetes in 442 patients, scaled to [0, 1], with sex and the group of age as one-hot columns.

    Fourteen columns: sex (2), age up to 35, 50, 65 and above (4), body mass index, blood pressure and six blood values
    (8). Numbers and the response are scaled linearly by their range over all patients.

    Args:
        n_train: number of patients in the training part, 1 to 441; the others are the test part.
        seed: of the split; the global random state is not touched.
        dtype: of all tensors, default float64, as linear algebra wants it.

    Raises:
        ValueError, TypeError: if `n_train` is out of its range, or the shipped file was changed.
    """
    checks.at_least("n_train", n_train, 1, integer=True)
    arrays = read_source(DIABETES)
    raw, response = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    if n_train >= len(raw):
        raise ValueError(f"n_train: want at most {len(raw) - 1}, got {n_train}")
    names = [str(name) for name in arrays["columns"]]
    age, sex, rest = raw[:, 0], raw[:, 1], raw[:, 2:]
    group = (age[:, None] > torch.tensor(AGES, dtype=age.dtype)).sum(dim=1) - 1
    x = torch.cat([_one_hot(sex.long() - 1, 2), _one_hot(group, len(AGES)), _scaled(rest)], dim=1).to(dtype)
    y = _scaled(response).to(dtype)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:n_train], order[n_train:]
    ages = ("age to 35", "age to 50", "age to 65", "age above 65")
    columns = ("sex 1", "sex 2", *ages, *names[2:])
    return RegressionData("diabetes", x[train], y[train], x[test], y[test], columns, ((0, 1), (2, 3, 4, 5)))


def _one_hot(label: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(label, classes).double()


def _scaled(values: Tensor) -> Tensor:
    low, high = values.amin(dim=0), values.amax(dim=0)
    return (values - low) / (high - low)
