"""Unlearning: teach the model to ignore the patch that Neural Cleanse has found.

Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao, "Neural Cleanse: Identifying and mitigating backdoor attacks in neural
networks" (2019), section VI.C: fine-tune on clean data, part of which carry the patch under their true labels.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Detection, Repair
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.defenses.detection.neural_cleanse import Patches
from robustlab.geometry.keyed import Noise
from robustlab.training.fit import History, fit

__all__ = ["unlearn"]


def unlearn(
    model: nn.Module,
    data: Pairs,
    detection: Detection[Patches],
    *,
    share: float = 0.2,
    epochs: int = 1,
    lr: float = 1e-3,
    batch_size: int = 100,
    seed: int = 0,
) -> Repair[History]:
    """Repair a copy of the model: fine-tune it on clean data, part of which carry a found patch and their true labels.

        θ' = θ after descent on mean CE(model_θ((1 − m)·x + m·p on a random share, x on the rest), true y)

    Args:
        model: to be repaired. It is not changed.
        data: clean images and their true labels, a Dataset (its training part), a pair (x, y) or a loader.
        detection: of :func:`neural_cleanse`. The patches of its flagged classes are unlearned, in turn over the
            samples; where none is flagged this is plain fine-tuning, and where there was no verdict (its index is NaN)
            a warning says so.
        share: part of the samples that carry a patch, in (0, 1]; drawn anew in each step, sample by sample.
        epochs: passes over the data; the paper takes one.
        lr, batch_size, seed: as in ``fine_tuning``.

    Returns:
        A Repair with the repaired copy; its ``details`` are the History of the training.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Wang et al. (2019), section VI.C: one epoch on 10 % of the training data, 20 % of them with the trigger.
    """
    checks.positive("share", share)
    if share > 1:
        raise ValueError(f"share: want at most 1, got {share}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(detection, Detection) or not isinstance(detection.details, Patches):
        shown = getattr(detection, "details", detection)
        raise TypeError(f"detection: want one of neural_cleanse, got one with {type(shown).__name__}")
    found = detection.details
    masks, patterns = found.masks[detection.flagged], found.patterns[detection.flagged]

    def stamp(x: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        noise = Noise(seed, ids, x.device)
        chosen = noise.uniform(0, (1,), x.dtype)[:, 0] < share
        which = noise.integers(1, (1,), len(masks))[:, 0]
        mask = masks.to(x)[which] * chosen[:, None, None, None]
        return (1 - mask) * x + mask * patterns.to(x)[which]

    if bool(detection.scores.isnan().any()):
        checks.warn(
            "detection: want one with a verdict, got an index of NaN; nothing is unlearned, this is fine-tuning"
        )
    x, y = read_labeled(data)
    checks.at_home(model, x, "data")
    checks.unit_pixels("data", x)
    repaired = copy.deepcopy(model)
    history = fit(
        repaired, (x, y), epochs=epochs, lr=lr, batch_size=batch_size, schedule="cosine", seed=seed,
        augment=stamp if len(masks) else None,
    )  # fmt: skip
    return Repair(repaired, history)
