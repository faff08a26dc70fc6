"""The probe shows what the last linear layer sees, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustlab import models
from robustlab.models.probing import Probe, penultimate


@pytest.mark.parametrize("builder", ["mlp", "small_cnn", "resnet_tiny"])
def test_logits_are_the_last_layer_of_the_features(builder: str) -> None:
    model = models.build(builder).eval()
    x = torch.rand(5, 1, 28, 28)
    features = penultimate(model, x, batch_size=2)
    torch.testing.assert_close(model.out(features), model(x))


def test_the_linear_layer_that_runs_last_counts() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(3, 2), nn.Linear(4, 3)  # registered in the other order

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).relu())

    model, x = Crossed(), torch.rand(6, 4)
    torch.testing.assert_close(penultimate(model, x), model.body(x).relu())


def test_nothing_stays_behind_even_after_an_error() -> None:
    model = models.build("resnet_tiny").train()
    model.out.bias.requires_grad_(False)
    model.pool.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ZeroDivisionError), Probe(model) as probe:
        assert not any(p.requires_grad for p in model.parameters()) and not model.training
        logits, features = probe(torch.rand(2, 1, 28, 28).requires_grad_())
        assert logits.requires_grad and features.requires_grad
        _ = 1 / 0
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wants
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_models_are_named() -> None:
    with pytest.raises(TypeError, match=r"model: want a torch\.nn\.Module, got function"):
        Probe(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model: want at least one nn\.Linear"):
        Probe(nn.Flatten())
    with pytest.raises(ValueError, match=r"model: want logits \(N, K\), got \(2, 3, 4\)"):
        penultimate(nn.Linear(5, 4), torch.rand(2, 3, 5))
    with pytest.raises(ValueError, match="x: want at least one"):
        penultimate(nn.Linear(5, 4), torch.rand(0, 5))
