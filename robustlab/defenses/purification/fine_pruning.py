"""Fine-pruning.

Liu, Dolan-Gavitt and Garg, "Fine-pruning: Defending against backdooring attacks on deep neural networks" (2018):
channels of the last convolution that sleep on clean inputs are where a backdoor can hide. Prune them, from
the one of the lowest mean activation upward, until the accuracy on clean data falls by more than a tolerance; then
fine-tune, so that what is left of the backdoor, which now shares its channels with the clean task, is overwritten.

Different here: a pruned channel is multiplied by zero after its activation function, by a layer that is put behind it.
So it stays exactly zero while the rest is fine-tuned, whatever batch norm, shortcut or bias stands before it.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Repair, Result
from robustlab.attacker.victim import accuracy
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.defenses.purification.fine_tuning import fine_tuning
from robustlab.models.probing import Call, Layer, Probe, find_layer, refuse_post_layer, weighted


@dataclass(frozen=True, eq=False, repr=False)
class Pruning(Result):
    """What was pruned of a layer with C channels.

    Attributes:
        layer: its name.
        activation: (C,), the mean activation a_c of each channel on clean data.
        pruned: bool (C,).
        order: (C,), the channels in the order in which they were tried.
        accuracy: on the clean data after 0, 1, 2, … pruned channels; the last one may be too many, and was taken back.
    """

    layer: str
    activation: Tensor
    pruned: Tensor
    order: Tensor
    accuracy: Tensor


class ChannelMask(nn.Module):
    """Multiplies the channels of (N, C, H, W) by a fixed mask (C,) of zeros and ones."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask[:, None, None]


def fine_pruning(
    model: nn.Module,
    data: Pairs,
    *,
    tolerance: float = 0.02,
    layer: Layer | None = None,
    epochs: int = 5,
    lr: float = 1e-3,
    batch_size: int = 100,
    seed: int = 0,
) -> Repair[Pruning]:
    """Prune the channels that sleep on clean data, then fine-tune what is left.

        a_c = mean over clean inputs and positions of activation c;   prune in the order of a_c, lowest first,
        as long as accuracy(pruned) ≥ accuracy(model) − tolerance;   then fine-tune

    Args:
        model: to be repaired. It is not changed.
        data: clean inputs and labels, a Dataset (its training part), a pair (x, y) or a loader. They choose the
            channels, measure the accuracy and are fine-tuned on.
        tolerance: how much accuracy on `data` pruning alone may cost, in [0, 1).
        layer: whose output (N, C, H, W) is pruned, a module of the model or its name in ``model.named_modules()``. None
            is the last one to run before the head (the last linear layer or convolution, which gives the logits) that
            has no parts and gives such an output: the activation, or the pooling, behind the last convolution of the
            body. Where that is not clear, the layer must be named.
        epochs: of fine-tuning; 0 only prunes.
        lr, batch_size, seed: of fine-tuning, as in ``fine_tuning``.

    Returns:
        A Repair with the repaired copy, in which a ``ChannelMask`` stands behind the layer; its ``details`` are the
        :class:`Pruning`. That a channel is pruned is no alarm: channels of clean models sleep, too.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Liu et al. (2018), the fine-pruning defense.
    """
    checks.at_least("tolerance", tolerance, 0.0)
    if tolerance >= 1:
        raise ValueError(f"tolerance: want below 1, got {tolerance}")
    checks.at_least("epochs", epochs, 0, integer=True)
    x, y = read_labeled(data)
    checks.at_home(model, x, "data")
    checks.unit_pixels("data", x)
    name, activation = channel_activations(model, x, layer)
    pruned, mask = _with_mask(model, name, activation)
    order = activation.argsort(stable=True)
    measured = [accuracy(pruned, x, y)]
    for channel in order[:-1].tolist():  # the last channel always stays
        mask[channel] = 0
        measured.append(accuracy(pruned, x, y))
        if measured[-1] < measured[0] - tolerance - 1e-12:
            mask[channel] = 1
            break
    details = Pruning(name, activation, mask == 0, order, torch.tensor(measured))
    if epochs:
        pruned = fine_tuning(pruned, (x, y), epochs=epochs, lr=lr, batch_size=batch_size, seed=seed).model
    return Repair(pruned, details)


def channel_activations(model: nn.Module, x: Tensor, layer: Layer | None = None) -> tuple[str, Tensor]:
    """The name of the layer that is pruned, and the mean of each of its channels over x and all positions, (C,)."""
    total = x.new_zeros(())
    with torch.no_grad(), Probe(model) as probe:
        name = _last_maps(probe, x[:1]) if layer is None else find_layer(model, layer)[0]
        calls: list[Call] = []
        with model.get_submodule(name).register_forward_hook(Call.into(calls, name)):
            for part in x.split(500):
                probe(part)
                maps = calls[-1].output if calls else None
                if not isinstance(maps, Tensor) or maps.dim() != 4:
                    raise ValueError(f"layer: want one whose output is (N, C, H, W), got {name!r}, which has none")
                total = total + maps.mean(dim=(2, 3)).sum(dim=0)
                calls.clear()
    return name, total / len(x)


def _last_maps(probe: Probe, x: Tensor) -> str:
    """The name of the last leaf before the head that gives (N, C, H, W)."""
    leaves = [(name, part) for name, part in probe.model.named_modules() if not any(True for _ in part.children())]
    calls: list[Call] = []
    with ExitStack() as hooks:
        for name, part in leaves:
            if name:
                hooks.enter_context(part.register_forward_hook(Call.into(calls, name)))
        logits = probe(x)
    heads = [place for place, call in enumerate(calls) if weighted(call.module)]
    if heads:
        refuse_post_layer(calls[heads[-1]], [calls[place] for place in heads], logits.shape[1])
        for call in reversed(calls[: heads[-1]]):
            if isinstance(call.output, Tensor) and call.output.dim() == 4:
                return call.name
    raise ValueError("layer: want one whose output is (N, C, H, W), got None, and no such layer before the head")


def _with_mask(model: nn.Module, name: str, activation: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of the model with a mask of ones behind the named layer, and that mask."""
    changed = copy.deepcopy(model)
    parent, _, own = name.rpartition(".")
    home, mask = changed.get_submodule(parent), ChannelMask(torch.ones_like(activation))
    mask.train(home.training)
    setattr(home, own, nn.Sequential(home.get_submodule(own), mask).train(home.training))
    return changed, mask.mask
