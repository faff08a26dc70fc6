"""Fine-tuning and fine-pruning on nets whose channels are known, and against brute force."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from robustlab import models
from robustlab.attacker.victim import accuracy
from robustlab.defenses.purification.fine_pruning import ChannelMask, channel_activations, fine_pruning
from robustlab.defenses.purification.fine_tuning import fine_tuning


def problem(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes of 8x8 images: which of three rows of pixels is bright."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = 0.3 * torch.rand(n, 1, 8, 8, generator=draw)
    x[torch.arange(n), 0, 2 * y] += 0.7
    return x, y


def trained(builder: str = "small_cnn") -> nn.Module:
    sizes = {"channels": (4, 6), "in_shape": (1, 12, 12), "hidden": 10} if builder == "small_cnn" else {}
    model = models.build(builder, classes=3, **sizes)
    return fine_tuning(model, images(), epochs=8, lr=1e-2, batch_size=20).model.eval()


def images() -> tuple[Tensor, Tensor]:
    x, y = problem()
    return nn.functional.pad(x, (0, 4, 0, 4)), y


def brute_force_order(model: nn.Module, x: Tensor) -> Tensor:
    """Mean activations behind the last convolution, written out for the small CNN."""
    with torch.no_grad():
        maps = model.relu2(model.conv2(model.relu1(model.conv1(model.normalize(x)))))
    return torch.stack([maps[:, c].mean() for c in range(maps.shape[1])])


def test_activations_and_order_are_those_of_brute_force() -> None:
    model, (x, _) = trained(), images()
    name, activation = channel_activations(model, x)
    expected = brute_force_order(model, x)
    assert name == "relu2"
    torch.testing.assert_close(activation, expected)
    found = fine_pruning(model, images(), tolerance=0.99, epochs=0).details
    assert found.order.tolist() == sorted(range(6), key=lambda c: float(expected[c]))
    torch.testing.assert_close(found.activation, expected)
    assert float(found.activation[found.pruned].max()) <= float(found.activation[~found.pruned].min())


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.4])
def test_prunes_until_the_tolerance_is_used_up(tolerance: float) -> None:
    model, (x, y) = trained(), images()
    order = brute_force_order(model, x).argsort()
    allowed = 0
    for count in range(1, 6):  # zero the convolution itself: its ReLU makes the channel zero
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.conv2.weight[order[:count]] = 0
            changed.conv2.bias[order[:count]] = 0
        if accuracy(changed, x, y) < accuracy(model, x, y) - tolerance:
            break
        allowed = count
    repair = fine_pruning(model, (x, y), tolerance=tolerance, epochs=0)
    pruned, found = repair.model, repair.details
    assert sorted(order[:allowed].tolist()) == found.pruned.nonzero().flatten().tolist()
    assert accuracy(pruned, x, y) >= accuracy(model, x, y) - tolerance - 1e-9


@pytest.mark.parametrize("builder", ["small_cnn", "resnet_tiny"])
def test_pruned_channels_are_zero_after_fine_tuning_too(builder: str) -> None:
    model, data = trained(builder), images()
    repair = fine_pruning(model, data, tolerance=0.3, epochs=2)
    pruned, found = repair.model, repair.details
    mask = next(module for module in pruned.modules() if isinstance(module, ChannelMask))
    seen: list[Tensor] = []
    mask.register_forward_hook(lambda module, args, output: seen.append(output))
    pruned(data[0])
    assert 0 < int(found.pruned.sum()) < len(found.pruned)
    assert float(seen[0].detach()[:, found.pruned].abs().max()) == 0
    assert not torch.equal(pruned.out.weight, model.out.weight)  # the rest did learn


def test_a_dormant_backdoor_channel_is_what_goes_first() -> None:
    """Channel 3 fires on a pixel that no clean image has, and makes the label 0."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.8, 0.6, 1.0]).view(4, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 0.0, -1.1]))  # brighter than any clean pixel
        model[3].weight.zero_()
        model[3].bias.zero_()
        for c in range(3):
            for k in range(3):
                model[3].weight[k].view(4, 8, 8)[c, 2 * k] = 0.3
        model[3].weight[0].view(4, 8, 8)[3] = 1000.0
    x, y = problem()
    triggered = x.clone()
    triggered[:, 0, 7, 7] = 1.5
    assert accuracy(model, x, y) == 1 and accuracy(model, triggered, 0 * y) == 1
    repair = fine_pruning(model, (x, y), tolerance=0.0, epochs=0)
    pruned = repair.model
    assert repair.details.order[0] == 3
    assert accuracy(pruned, x, y) == 1 and accuracy(pruned, triggered, y) == 1


def test_layers_by_name() -> None:
    model, (x, _) = trained("resnet_tiny"), images()
    name, activation = channel_activations(model, x)
    assert name == "pool"  # the mean over positions is that of the block before it
    torch.testing.assert_close(channel_activations(model, x, "block3")[1], activation)
    with pytest.raises(ValueError, match=r"layer: want a module of the model or its name.*got 'nonsense'"):
        channel_activations(model, x, "nonsense")
    with pytest.raises(ValueError, match="layer: want one whose output"):
        channel_activations(model, x, "out")


def test_fine_tuning_is_fit_on_a_copy() -> None:
    from robustlab.training.fit import fit

    model, data = trained(), images()
    weights = copy.deepcopy(model.state_dict())
    repair = fine_tuning(model, data, epochs=2, lr=1e-2, seed=3)
    repaired = repair.model
    twin = copy.deepcopy(model)
    fit(twin, data, epochs=2, lr=1e-2, schedule="cosine", seed=3)
    for name, value in twin.state_dict().items():
        assert torch.equal(repaired.state_dict()[name], value)
        assert torch.equal(model.state_dict()[name], weights[name])
    assert repair.details.steps == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"tolerance": -0.1}, "tolerance"), ({"tolerance": 1.0}, "tolerance"), ({"epochs": -1}, "epochs")],
)
def test_bad_arguments(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fine_pruning(trained(), images(), **change)  # type: ignore[arg-type]
