"""Label flipping: the simplest availability attack, at random and by choice.

Goldblum, Tsipras, Xie, Chen, Schwarzschild, Song, Madry, Li and Goldstein, "Data security for machine learning: Data
poisoning, backdoor attacks, and defenses" (2020), on label flipping. The attacker changes the labels of a given share
of the training data and nothing else.

Chosen flips follow the idea of Xiao, Xiao and Eckert, "Adversarial label flips attack on support vector machines"
(2012): with a budget of m flips, maximize the loss that the tainted labels have under a model that was trained on clean
data. Different here: one selection, with no retraining between flips; and any number of classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacks.poisoning.added_rows import rate_to_count
from robustlab.data.dataset import Dataset
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.models.modes import evaluating


def label_flipping(
    data: Pairs,
    *,
    rate: float,
    classes: int | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
) -> Poisoned:
    """Give round(rate·n) training samples a wrong label.

        random:  rows drawn evenly without replacement, labels drawn evenly from the other classes
        chosen:  the rows and labels (i, k_i) of largest  Σ_i ℓ(f(x_i), k_i) − ℓ(f(x_i), y_i),  k_i ≠ y_i

    For cross-entropy the gain of a flip is z_y − z_k, so the chosen ones are the samples of which the surrogate is most
    confident, labeled as the class that it finds least likely.

    Args:
        data: a Dataset, whose training part is used, or a pair (x, y); x (N, ...), y (N,) int64.
        rate: flipped labels as a fraction of N, in (0, 1].
        classes: K; None takes the largest label + 1 (or the Dataset's classes).
        model: a surrogate f, trained on clean data, with logits (N, K), for chosen flips; None flips at random.
        seed: of the random flips. Chosen flips do not depend on it.

    Returns:
        :class:`~robustlab.attacker.poisoned_data.Poisoned`; the inputs are those of the data.

    Raises:
        ValueError, TypeError: for an argument out of its range, before any work.

    Source:
        Goldblum et al. (2020); the choice after Xiao et al. (2012), without retraining.
    """
    x, y = read_labeled(data)
    count = rate_to_count(rate, len(x))
    k = count_classes(data, y, classes)
    if model is None:
        rows = Noise(seed, torch.zeros(1, dtype=torch.int64, device=x.device)).permutation(0, len(x))[0, :count]
        wrong = other_labels(y[rows], k, seed, rows)
    else:
        checks.at_home(model, x, "data")
        with torch.no_grad(), evaluating(model, device=x.device):
            z = torch.cat([model(part) for part in x.split(500)])
        checks.in_classes("y", y, z.shape[-1])
        if z.shape != (len(x), k):
            raise ValueError(f"model: want logits of shape ({len(x)}, {k}), got {tuple(z.shape)}")
        least, label = z.scatter(1, y[:, None], torch.inf).min(dim=1)
        rows = (z.gather(1, y[:, None])[:, 0] - least).argsort(descending=True, stable=True)[:count]
        wrong = label[rows]
    flipped = y.clone()
    flipped[rows] = wrong
    return Poisoned(x.clone(), flipped, is_poison=flipped != y, original_y=y.clone())


def other_labels(y: Tensor, classes: int, seed: int, ids: Tensor) -> Tensor:
    """For each label another one, drawn evenly; what is drawn depends on the sample's id and the seed alone."""
    return (y + 1 + Noise(seed, ids).integers(1, (), classes - 1)) % classes


def count_classes(data: Pairs, y: Tensor, classes: int | None) -> int:
    """K, which is above every label."""
    k = (len(data.classes) if isinstance(data, Dataset) else int(y.max()) + 1) if classes is None else classes
    if isinstance(k, bool) or not isinstance(k, int) or k < 2 or int(y.max()) >= k:
        raise ValueError(f"classes: want an integer above 1 and above every label, got {k}")
    return k
