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
        logits, features = probe.features(torch.rand(2, 1, 28, 28).requires_grad_())
        assert logits.requires_grad and features.requires_grad
        _ = 1 / 0
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wants
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_by_module_or_name_gives_its_output() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 4), nn.Flatten()), torch.rand(5, 1, 6, 6)
    expected = model[1](model[0](x)).flatten(1)
    for layer in (model[1], "1"):
        torch.testing.assert_close(penultimate(model, x, batch_size=2, layer=layer), expected)
        with Probe(model, layer) as probe:
            logits, _ = probe.features(x)
            assert probe.taken == "output of 1"
        torch.testing.assert_close(logits, model(x))
    for stranger in (nn.ReLU(), "7", ""):
        with pytest.raises(ValueError, match=r"layer: want a module of the model or its name"):
            Probe(model, stranger)


def test_what_stands_behind_the_logits_is_not_taken_for_the_head() -> None:
    body = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)]
    x = torch.rand(5, 6)
    expected = body[1](body[0](x))
    torch.testing.assert_close(penultimate(nn.Sequential(*body), x), expected)
    posts = {
        "maps 3 numbers to 3": nn.Sequential(*body, nn.Hardtanh(-9, 9), nn.Linear(3, 3)),
        "is fed by '2'": nn.Sequential(*body, nn.Linear(3, 2)),
        r"gives \(5, 3, 1\)": nn.Sequential(*body, nn.Unflatten(1, (3, 1)), nn.Linear(1, 1), nn.Flatten()),
    }
    for why, model in posts.items():
        with pytest.raises(ValueError, match=f"layer: want which .*{why}"):
            penultimate(model, x)
        torch.testing.assert_close(penultimate(model, x, layer="1"), expected)
        with Probe(model) as probe:  # whoever asks for logits alone is not asked for a layer
            torch.testing.assert_close(probe(x), model(x))


def test_the_layer_whose_output_is_returned_is_the_head() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.main, self.aux = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.main(self.body(x).relu())
            self.aux(x)  # runs last, and is not what is returned
            return logits

    model, x = Auxiliary(), torch.rand(5, 6)
    with Probe(model) as probe:
        torch.testing.assert_close(probe.features(x)[1], model.body(x).relu())
        assert probe.taken == "input of main"


def test_bad_models_are_named() -> None:
    with pytest.raises(TypeError, match=r"model: want a torch\.nn\.Module, got function"):
        Probe(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model: want an nn\.Linear, .* got Flatten without one that runs"):
        penultimate(nn.Flatten(), torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"model: want logits \(N, K\), got \(2, 3, 4\)"):
        penultimate(nn.Linear(5, 4), torch.rand(2, 3, 5))
    with pytest.raises(ValueError, match="x: want at least one"):
        penultimate(nn.Linear(5, 4), torch.rand(0, 5))
