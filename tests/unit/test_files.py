"""The digest by which a file tells which tensors it belongs to."""

from __future__ import annotations

import torch

from robustlab.files import digest


def test_a_digest_tells_names_shapes_dtypes_and_values() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    others = [{"z": x}, {"x": x.flatten()}, {"x": x.view(torch.int32)}, {"x": x + 1e-6}, {"x": x, "y": x}, {}]
    assert digest({"x": x}) == digest({"x": x.t().contiguous().t()})  # the layout in memory is none of them
    assert len({digest(tensors) for tensors in [{"x": x}, *others]}) == 7
