"""The reference architectures, against sizes and values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustlab import models


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes_are_those_worked_out_by_hand() -> None:
    conv = (16 * 1 * 16 + 16) + (32 * 16 * 16 + 32)
    assert _weights(models.small_cnn()) == conv + (800 * 100 + 100) + (100 * 10 + 10)
    assert _weights(models.mlp()) == (784 * 20 + 20) + (20 * 20 + 20) + (20 * 10 + 10)
    assert _weights(models.mlp(hidden=(), in_shape=(3,), classes=2)) == 8

    def block(a: int, b: int) -> int:
        return 9 * a * b + 9 * b * b + 4 * b + (0 if a == b else a * b + 2 * b)

    resnet = 9 * 16 + 32 + block(16, 16) + block(16, 32) + block(32, 48) + 48 * 10 + 10
    assert _weights(models.resnet_tiny()) == resnet < 75_000


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "resnet_tiny"])
def test_models_speak_raw_pixels(name: str) -> None:
    """Normalizing inside equals normalizing outside the same net."""
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    inside = models.build(name, mean=0.3, std=0.5).double().eval()
    outside = models.build(name).double().eval()
    logits = inside(x)
    assert logits.shape == (3, 10)
    mean, std = (torch.tensor(v, dtype=torch.float32).double() for v in (0.3, 0.5))
    assert torch.allclose(logits, outside((x - mean) / std), atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "resnet_tiny"])
def test_initial_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = models.build(name, seed=3).state_dict()
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state is not moved"
    torch.manual_seed(6)
    again, other = models.build(name, seed=3).state_dict(), models.build(name, seed=4).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first), "nor read"
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_residual_block_is_the_sum_it_claims_to_be() -> None:
    for width, out, stride in ((4, 4, 1), (4, 6, 2)):
        block = models.ResidualBlock(width, out, stride).double().eval()
        x = torch.randn(2, width, 8, 8, dtype=torch.float64)
        with torch.no_grad():
            whole = block(x)
            for norm in (block.bn1, block.bn2):
                norm.weight.zero_()  # the residual branch is 0, the shortcut is left
            shortcut = block(x)
            assert torch.allclose(shortcut, block.shortcut(x).relu())
            assert (whole - shortcut).abs().max() > 1e-3
        assert whole.shape == (2, out, 8 // stride, 8 // stride)


def test_other_shapes_can_be_built() -> None:
    assert models.mlp(in_shape=(2,), hidden=(8,), classes=3)(torch.rand(5, 2)).shape == (5, 3)
    color = {"in_shape": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    for name in ("small_cnn", "resnet_tiny"):
        assert models.build(name, **color)(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_normalize() -> None:
    layer = models.Normalize((0.5, 0.25), (2.0, 4.0))
    x = torch.tensor([[[[1.0]], [[2.0]]]])
    assert torch.allclose(layer(x).flatten(), torch.tensor([0.25, 0.4375]))
    assert torch.allclose(layer(x.flatten(1)).flatten(), torch.tensor([0.25, 0.4375]))
    assert layer.double()(x.double()).dtype == torch.float64
    assert set(layer.state_dict()) == {"mean", "std"} and not list(layer.parameters())
    for wrong in (((0.5, 0.5), (1.0,)), (0.5, 0.0), (0.5, -1.0), (float("nan"), 1.0), (0.5, float("inf")), ((), ())):
        with pytest.raises(ValueError, match=r"mean|std"):
            models.Normalize(*wrong)
    with pytest.raises(ValueError, match="2 channels"):
        layer(torch.rand(1, 3, 2, 2))


def test_wrong_arguments_are_named() -> None:
    for call, match in (
        (lambda: models.build("vgg"), "name"),
        (lambda: models.mlp(hidden=(0,)), "hidden"),
        (lambda: models.mlp(classes=1), "classes: want integers of at least 2, got 1"),
        (lambda: models.small_cnn(in_shape=(1, 8, 8)), "in_shape"),
        (lambda: models.small_cnn(in_shape=(64,)), "in_shape"),
        (lambda: models.resnet_tiny(channels=()), "channels"),
        (lambda: models.register(models.mlp), "builder: want a new name"),
        (lambda: models.register(torch.nn.Linear), "builder: want a keyword seed"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError):
        models.build("mlp", depth=3)
    built = {"mlp", "small_cnn", "resnet_tiny", "character_gru", "thermometer_cnn", "text_cnn", "class_vae"}
    built |= {"speech_gru", "speech_cnn", "graph_net", "anchor_detector", "point_detector", "text_lstm", "text_bag"}
    assert set(models.builders()) == built
