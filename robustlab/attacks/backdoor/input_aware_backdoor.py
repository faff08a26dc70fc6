"""Input-aware dynamic backdoor: every image gets a trigger of its own, and another image's trigger does not work.

Nguyen and Tran, "Input-aware dynamic backdoor attack" (2020), section 3. A generator g makes a pattern p = g(x) and a
mask net m decides where it goes. The attacker trains the classifier (it is a model supplier, not a data supplier), in
batches of three parts:

* *attack* (ρ_b): triggered images with the target label,
* *cross-trigger* (ρ_c): images with the trigger of another image, and their true label,
* *clean*: the rest.

A diversity loss keeps different images' patterns apart. The mask net is trained before, alone, and then frozen.

Different here: one Adam for classifier and generator (the paper: SGD for the classifier), the one-cycle schedule of
``fit``, small generators without batch norm (so that a trigger depends on its image alone) that see raw pixels; the
other image is a neighbor in the shuffled batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Result
from robustlab.attacks.backdoor.input_aware_trigger import InputAwareTrigger, sharpen
from robustlab.attacks.backdoor.poisoned_dataset import Target, target_of
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.models.probing import count_outputs
from robustlab.training.fit import History, fit

__all__ = ["Backdoored", "input_aware_backdoor"]

TINY = 1e-7


@dataclass(frozen=True, eq=False, repr=False)
class Backdoored(Result):
    """What an attacker who controls the training hands over, and what stays with the attacker.

    Attributes:
        model: trained, in eval mode; a copy of what was given.
        trigger: trained; only the attacker has it.
        target: the label that triggered images get.
        history: of the joint training; ``mask_history`` of the mask net's.
    """

    model: nn.Module
    trigger: InputAwareTrigger
    target: Target
    history: History
    mask_history: History


def input_aware_backdoor(
    data: Pairs,
    *,
    model: nn.Module,
    target: Target,
    rate: float = 0.1,
    cross_rate: float = 0.1,
    density: float = 0.032,
    diversity: float = 1.0,
    trigger: InputAwareTrigger | None = None,
    epochs: int = 20,
    mask_epochs: int = 5,
    batch_size: int = 100,
    lr: float = 3e-3,
    augment: Callable[..., Tensor] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Backdoored:
    """Train a classifier together with a generator of triggers that differ from image to image.

        loss(f(x + (p(x) − x) ⊙ m(x)), t)  on a part ρ_b of each batch         attack
        loss(f(x + (p(x') − x) ⊙ m(x')), y)  on a part ρ_c, x' another image     cross-trigger
        loss(f(x), y)  on the rest                                               clean
        + λ · mean ‖x − x'‖ / ‖p(x) − p(x')‖                                     diversity

    The mask net is trained first, to minimize 100 · mean max(m − density, 0) + λ · ‖x − x'‖ / ‖m(x) − m(x')‖.

    Args:
        data: a Dataset, whose training part is used, or a pair (x, y); images (N, C, H, W) in [0, 1].
        model: gives logits (N, K); it is copied, and the copy is trained.
        target: the label t, or one for each class.
        rate, cross_rate: ρ_b and ρ_c, fractions of each batch (default 0.1 each, as in the paper). Images of the target
            class are not left out of training, as in the paper; they are out of the success rate.
        density: value up to which the mask is free, at least 0.
        diversity: λ ≥ 0.
        trigger: an untrained :class:`InputAwareTrigger`; it is copied. Default: one for the images' channels, from
            ``seed``.
        epochs, mask_epochs: of the joint training, and of the mask net's before it.
        batch_size, lr, augment, device, progress: as :func:`robustlab.training.fit.fit` takes them. Triggers are made
            for the augmented images: with a trigger that is a function of the image there is no other order.
        seed: of both trainings.

    Returns:
        Backdoored.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Nguyen and Tran (2020), section 3 and equations 5 to 8.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    x, y = read_labeled(data)
    checks.at_home(model, x, "data")
    for name, part in (("rate", rate), ("cross_rate", cross_rate)):
        checks.positive(name, part)
    if not rate + cross_rate <= 1:
        raise ValueError(f"rate, cross_rate: want a sum of at most 1, got {rate} + {cross_rate}")
    checks.at_least("density", density, 0.0)
    checks.at_least("diversity", diversity, 0.0)
    for name, count in (("epochs", epochs), ("mask_epochs", mask_epochs)):
        checks.at_least(name, count, 1, integer=True)
    checks.at_least("batch_size", batch_size, 4, integer=True)
    checks.positive("lr", lr)
    wanted = target_of(target, y)
    classes = count_outputs(model, x)
    checks.in_classes("y", y, classes)
    checks.in_classes("target", wanted, classes)
    key = copy.deepcopy(trigger) if trigger is not None else InputAwareTrigger(x.shape[1], seed=seed)
    key.check(x)
    joint = _Joint(copy.deepcopy(model), key.to(device=x.device, dtype=x.dtype))
    labels = torch.stack([y, wanted], dim=1)
    how: dict[str, Any] = {
        "batch_size": batch_size,
        "lr": lr,
        "augment": augment,
        "device": device,
        "progress": progress,
    }
    _train_only(joint, key.mask)
    masked = fit(joint, (x, labels), objective=_MaskObjective(density, diversity), epochs=mask_epochs, seed=seed, **how)
    _train_only(joint, joint.model, key.pattern)
    objective = _JointObjective(rate, cross_rate, diversity)
    history = fit(joint, (x, labels), objective=objective, epochs=epochs, seed=seed, **how)
    for given, trained in zip(model.parameters(), joint.model.parameters(), strict=True):
        trained.requires_grad_(given.requires_grad)
    key.requires_grad_(True)
    return Backdoored(joint.model.eval(), key.eval(), target, history, masked)


def diversity_loss(x: Tensor, other: Tensor, made: Tensor, made_other: Tensor) -> Tensor:
    """mean ‖x − x'‖ / ‖g(x) − g(x')‖ with root mean squares as norms: images that differ need outputs that differ."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).flatten(1).square().mean(dim=1) + TINY**2).sqrt()  # a root with a gradient at 0

    return (distance(x, other) / (distance(made, made_other) + TINY)).mean()


class _Joint(nn.Module):
    """Classifier and trigger in one module, so that one ``fit`` trains both."""

    def __init__(self, model: nn.Module, trigger: InputAwareTrigger) -> None:
        super().__init__()
        self.model, self.trigger = model, trigger

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@dataclass
class _MaskObjective:
    density: float
    diversity: float

    def __call__(self, joint: _Joint, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        mask = sharpen(joint.trigger.mask(x))
        apart = diversity_loss(x, x.roll(1, dims=0), mask, mask.roll(1, dims=0))
        return 100 * F.relu(mask - self.density).mean() + self.diversity * apart


@dataclass
class _JointObjective:
    rate: float
    cross_rate: float
    diversity: float

    def __call__(self, joint: _Joint, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The batch is shuffled: its first part is attacked, the next gets others' triggers, the rest stays clean."""
        true, wanted = y.unbind(dim=1)
        attacked = max(1, round(self.rate * len(x)))
        end = attacked + max(1, round(self.cross_rate * len(x)))
        other = x.roll(-(end % len(x) or 1), dims=0)  # images of another part of the batch; never the image itself
        pattern, mask = joint.trigger.parts(torch.cat([x[:attacked], other[attacked:end]]))
        mixed = x[:end] + (pattern - x[:end]) * mask
        logits = joint.model(torch.cat([mixed, x[end:]]))
        loss = F.cross_entropy(logits, torch.cat([wanted[:attacked], true[attacked:]]))
        pairs = min(attacked, end - attacked)
        sources = (x[:pairs], other[attacked : attacked + pairs])
        apart = diversity_loss(*sources, pattern[:pairs], pattern[attacked : attacked + pairs])
        return loss + self.diversity * apart


def _train_only(joint: _Joint, *parts: nn.Module) -> None:
    joint.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
