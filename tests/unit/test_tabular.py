"""The table of diabetes patients: as published, scaled into [0, 1], split without overlap."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from robustlab.data import diabetes, embedded
from robustlab.data.tabular import DIABETES


def test_the_file_is_the_published_table() -> None:
    raw = (embedded.FOLDER / DIABETES.file).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == DIABETES.sha256
    assert DIABETES.license and DIABETES.provenance and DIABETES.citation
    arrays = embedded.read_source(DIABETES)
    assert arrays["x"].shape == (442, 10) and arrays["y"].shape == (442,)
    # Table 1 of Efron et al. (2004) begins with these two patients.
    assert arrays["x"][0].tolist() == [59, 2, 32.1, 101, 157, 93.2, 38, 4, 4.8598, 87] and arrays["y"][0] == 151
    assert arrays["x"][1, :4].tolist() == [48, 1, 21.6, 87] and arrays["y"][1] == 75
    assert list(arrays["columns"]) == ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]


def test_scaling_and_one_hot_columns() -> None:
    data = diabetes(n_train=300)
    x, y = torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])
    assert x.shape == (442, 14) and len(data.columns) == 14 and x.dtype == torch.float64
    assert float(y.min()) == 0 and float(y.max()) == 1
    assert torch.equal(x.amin(dim=0), torch.zeros(14).double()) and torch.equal(x.amax(dim=0), torch.ones(14).double())
    for group in data.one_hot:
        assert torch.equal(x[:, list(group)].sum(dim=1), torch.ones(442).double())
        assert set(x[:, list(group)].unique().tolist()) == {0.0, 1.0}
    raw = embedded.read_source(DIABETES)["x"]
    ages = raw[:, 0]
    assert x[:, 2:6].sum(dim=0).tolist() == [
        (ages <= 35).sum(), ((ages > 35) & (ages <= 50)).sum(), ((ages > 50) & (ages <= 65)).sum(), (ages > 65).sum(),
    ]  # fmt: skip
    assert sorted(x[:, 6].tolist()) == pytest.approx(sorted(((raw[:, 2] - 18) / (42.2 - 18)).tolist()))
    assert int(x[:, 0].sum()) == int((raw[:, 1] == 1).sum())


def test_splits() -> None:
    a, b, c = diabetes(seed=1), diabetes(seed=1), diabetes(seed=2, dtype=torch.float32)
    assert torch.equal(a.x_train, b.x_train) and torch.equal(a.y_test, b.y_test)
    assert not torch.equal(a.x_train.float(), c.x_train) and c.x_train.dtype == torch.float32
    assert len(a.x_train) == 300 and len(a.y_test) == 142
    rows = np.unique(torch.cat([a.x_train, a.x_test]).numpy(), axis=0)
    assert len(rows) == len(np.unique(embedded.read_source(DIABETES)["x"][:, 1:], axis=0)), (
        "no patient is in both parts"
    )
    state = torch.get_rng_state()
    diabetes(seed=5)
    assert torch.equal(state, torch.get_rng_state())
    for n in (0, 442):
        with pytest.raises(ValueError, match="n_train"):
            diabetes(n_train=n)


def test_repr_is_a_line() -> None:
    assert repr(diabetes()) == "RegressionData('diabetes', 300 train, 142 test, 14 columns)"
