"""Feature modification: poisons with the right labels and slightly wrong inputs.

Goldblum, Tsipras, Xie, Chen, Schwarzschild, Song, Madry, Li and Goldstein, "Data security for machine learning: Data
poisoning, backdoor attacks, and defenses" (2020), on untargeted attacks that leave labels alone. Three ways, from weak
to strong: noise (the control), one pattern per class (Yu et al., "Availability attacks create shortcuts", 2022, where
the pattern is easier to learn than the images), and adversarial examples of a surrogate (Fowl et al., "Adversarial
examples make strong poisons", 2021).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacks.poisoning.added_rows import rate_to_count
from robustlab.attacks.poisoning.label_flipping import count_classes
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.models.modes import evaluating
from robustlab.models.probing import count_outputs


def feature_modification(
    data: Pairs,
    *,
    rate: float,
    eps: float,
    how: Literal["noise", "shortcut", "adversarial"] = "shortcut",
    model: nn.Module | None = None,
    steps: int = 20,
    classes: int | None = None,
    seed: int = 0,
) -> Poisoned:
    """Move the inputs of round(rate·n) training samples by at most ε in each feature, and keep their labels.

        noise:        x_i + ε s_i,      s_i random signs, drawn for each sample
        shortcut:     x_i + ε s_{y_i},  s_k random signs, drawn once for each class k
        adversarial:  x_i + δ_i,        δ_i from PGD toward the class after y_i, on the surrogate

    each clipped to [0, 1]. Rows are drawn evenly without replacement.

    Args:
        data: a Dataset, whose training part is used, or a pair (x, y); x (N, ...) in [0, 1].
        rate: modified samples as a fraction of N, in (0, 1].
        eps: ε, largest change of a feature, in units of x, above 0.
        how: ``"noise"``, ``"shortcut"`` or ``"adversarial"``.
        model: a surrogate, trained on clean data, for ``"adversarial"``.
        steps: of PGD, at least 1.
        classes: K; None takes the largest label + 1 (or the Dataset's classes).
        seed: of rows, signs and PGD's start.

    Returns:
        :class:`~robustlab.attacker.poisoned_data.Poisoned`; labels are those of the data. ``details["eps"]`` is ε.

    Raises:
        ValueError, TypeError: for an argument out of its range, before any work.

    Source:
        Goldblum et al. (2020); shortcuts after Yu et al. (2022), targeted examples after Fowl et al. (2021).
        Departure: the shortcut is random signs, each pixel for itself, where Yu et al. use blocks.
    """
    x, y = read_labeled(data)
    count = rate_to_count(rate, len(x))
    checks.images(x, (0.0, 1.0), takes=None)
    checks.positive("eps", eps)
    checks.radius(eps, x, "linf", (0.0, 1.0))  # tells of one wider than the box
    checks.one_of("how", how, ("noise", "shortcut", "adversarial"))
    checks.at_least("steps", steps, 1, integer=True)
    k = count_classes(data, y, classes)
    if (how == "adversarial") != (model is not None):
        raise ValueError(f"model: want one for how='adversarial' and for no other, got how={how!r}")
    device = x.device
    rows = Noise(seed, torch.zeros(1, dtype=torch.int64, device=device)).permutation(0, len(x))[0, :count]
    if model is not None:
        checks.at_home(model, x, "data")
        there = count_outputs(model, x)
        checks.in_classes("y", y, there)
        if there < k:
            raise ValueError(f"model: want {k} classes, got {there}")
        with evaluating(model, device=device):
            moved = pgd_maximize(
                model, x[rows], (y[rows] + 1) % k, eps=eps, steps=steps, loss=_toward, seed=seed, ids=rows
            )
    else:
        keys = y[rows] if how == "shortcut" else rows
        signs = Noise(seed, keys).sign(1, tuple(x.shape[1:]), x.dtype)
        moved = (x[rows] + eps * signs).clamp(0, 1)
    changed = x.clone()
    changed[rows] = moved
    is_poison = torch.zeros(len(x), dtype=torch.bool, device=device).index_fill(0, rows, True)
    return Poisoned(changed, y.clone(), is_poison=is_poison, original_y=y.clone(), details={"eps": eps})


def _toward(z: Tensor, goal: Tensor, target: Tensor | None, kappa: float) -> Tensor:
    """Lowest where the logits z (N, K) say `goal`: an attacker's loss, to be minimized."""
    return F.cross_entropy(z, goal, reduction="none")
