"""Files that are tried before the work, and the digest by which one tells which tensors it belongs to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from robustlab.files import digest, require_writable


def test_what_no_file_can_replace_is_refused(tmp_path: Path) -> None:
    """A device would be gone, where somebody may do that: the file is written beside it and then renamed."""
    os.mkfifo(tmp_path / "pipe")
    for path, why in ((Path("/dev/null"), "it is no file"), (tmp_path / "pipe", "it is no file"), (tmp_path, "folder")):
        with pytest.raises(ValueError, match=rf"^out: want a file in a folder that takes files, got {path}: .*{why}"):
            require_writable(path)
    with pytest.raises(ValueError, match="No such file"):
        require_writable(tmp_path / "none" / "file")
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new"):
        require_writable(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "pipe"]
    assert (tmp_path / "old").read_bytes() == b"old" and Path("/dev/null").is_char_device()


def test_a_digest_tells_names_shapes_dtypes_and_values() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    others = [{"z": x}, {"x": x.flatten()}, {"x": x.view(torch.int32)}, {"x": x + 1e-6}, {"x": x, "y": x}, {}]
    assert digest({"x": x}) == digest({"x": x.t().contiguous().t()})  # the layout in memory is none of them
    assert len({digest(tensors) for tensors in [{"x": x}, *others]}) == 7
