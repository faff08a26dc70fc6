"""What assignments hand out: files that hold numbers, tensors and small networks, and never code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from robustlab.teaching import handout


def test_values_come_back() -> None:
    values = {
        "eps": 0.1,
        "name": "ε",
        "none": None,
        "x": torch.rand(2, 3),
        "deep": {"list": [1, True, torch.arange(3)]},
    }
    back = handout.unpack(handout.pack(values))
    assert (back["eps"], back["name"], back["none"], back["deep"]["list"][:2]) == (0.1, "ε", None, [1, True])
    assert torch.equal(back["x"], values["x"]) and torch.equal(back["deep"]["list"][2], torch.arange(3))


def test_networks_come_back_with_gradients() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 3)
    )
    net(torch.rand(5, 1, 4, 4))
    x = torch.rand(4, 1, 4, 4, requires_grad=True)
    back = handout.unpack(handout.pack({"net": net.double()}))["net"]
    assert torch.equal(back(x.double()), net.eval()(x.double())) and not back.training
    assert torch.autograd.grad(back(x.double()).sum(), x)[0].abs().sum() > 0


def test_what_cannot_be_handed_out_is_named() -> None:
    with pytest.raises(TypeError, match=r"values\['a'\]\[1\]: want tensors"):
        handout.pack({"a": [1, object()]})
    with pytest.raises(TypeError, match=r"values\['net'\]\[0\]: want a layer of .* got Tanh"):
        handout.pack({"net": nn.Sequential(nn.Tanh())})


def test_numbers_in_their_millions_are_to_be_tensors() -> None:
    with pytest.raises(ValueError, match="values: want at most 4194304 bytes of numbers"):
        handout.pack({"a": [0.5] * 10**6})
    with pytest.raises(ValueError, match="raw: want what pack wrote, got a header of"):
        handout.unpack(save({}, metadata={"values": " " * 9_000_000}))


def forged(tree: object) -> bytes:
    return save({"t0": torch.zeros(2, 2)}, metadata={"values": json.dumps(tree)})


def test_forged_files_are_refused() -> None:
    layer = ["Linear", {"in_features": 10**9, "out_features": 10**9}, {"weight": {"$tensor": "t0"}}]
    deep: object = 0
    for _ in range(900):
        deep = [deep]
    trees: list[object] = [
        [1],
        {"x": {"$tensor": "t1"}},
        {"x": {"$network": [["Tanh", {}, {}]]}},
        {"x": {"$network": 3}},
        {"x": {"$network": [layer]}},
        {"x": {"$network": [["Linear", {"in_features": "a"}, {}]]}},
        {"x": deep},
    ]
    for raw in (b"", b"PK\x03\x04", b"\x80\x04." * 10, save({"t0": torch.zeros(1)}), *map(forged, trees)):
        with pytest.raises(ValueError, match="raw: want what pack wrote"):
            handout.unpack(raw)


def test_a_name_chooses_its_variant(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number:02}.safetensors").write_bytes(handout.pack({"number": number}))
    (tmp_path / "instructor.safetensors").write_bytes(handout.pack({"number": -1}))
    names = [f"student{i}@example.org" for i in range(60)]
    drawn = [handout.load(tmp_path, name)["number"] for name in names]
    assert drawn == [handout.variant_number(name, 5) for name in names] and set(drawn) == set(range(5))
    assert handout.load(tmp_path, " Student0@Example.org ")["number"] == drawn[0]
    assert handout.variant_number("m\u00fcller", 999) == handout.variant_number("mu\u0308ller", 999)
    assert handout.load(tmp_path, "instructor")["number"] == -1
    with pytest.raises(ValueError, match="folder: want one with variants"):
        handout.load(tmp_path / "nowhere", "a")


def test_a_peak_is_where_it_should_be() -> None:
    center, slope = torch.rand(2, 3, dtype=torch.float64), 1 + torch.rand(2, 3, dtype=torch.float64)
    net = handout.peak_network(center, slope, 0.7)
    points = torch.rand(20, 2, 3, dtype=torch.float64)
    z = net(torch.cat([center[None], points]))
    fall = (slope * (points - center).abs()).flatten(1).sum(1)
    assert torch.allclose(z[:, 1] - z[:, 0], 0.7 - torch.cat([torch.zeros(1), fall]))
