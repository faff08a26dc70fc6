"""Fitting random labels: what a network can memorize.

Zhang, Bengio, Hardt, Recht and Vinyals, "Understanding deep learning requires rethinking generalization" (2017),
sections 2 and 3: train the same network, with the same steps, on the true data and on data in which nothing is left to
be learned. If it fits those too, then a small training error says nothing about the test error. Explicit regularization
may be on.

The randomization is drawn once and stays; a new draw in each epoch would be noise that nobody can memorize.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Result
from robustlab.attacker.victim import accuracy
from robustlab.attacks.poisoning.label_flipping import count_classes
from robustlab.data.dataset import Dataset
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.models.probing import count_outputs
from robustlab.training.fit import fit

__all__ = ["Memorization", "random_labels", "randomize"]

Variant = Literal["true_labels", "random_labels", "shuffled_pixels", "random_pixels", "gaussian"]
VARIANTS = get_args(Variant)


@dataclass(frozen=True, eq=False, repr=False)
class Memorization(Result):
    """What :func:`random_labels` saw.

    Attributes:
        model: a trained copy of the network.
        train_accuracy: after each epoch, on the data that it was trained on.
        test_accuracy: at the end, on the test inputs, treated as the training inputs were, and their true labels; NaN
            without a test set.
        epochs_to_fit: the first epoch, counted from 1, after which every training sample is right, or None.
    """

    model: nn.Module
    train_accuracy: tuple[float, ...]
    test_accuracy: float
    epochs_to_fit: int | None


def random_labels(
    data: Pairs,
    *,
    model: nn.Module,
    variant: Variant = "random_labels",
    share: float = 1.0,
    test: Pairs | None = None,
    epochs: int = 40,
    batch_size: int = 100,
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    augment: Callable[..., Tensor] | None = None,
    seed: int = 0,
) -> Memorization:
    """Train a copy of a network on data without a rule, and see whether it fits them.

        train accuracy = 1/N Σ_i 1[ŷ(x̃_i) = ỹ_i]  may reach 1 although  P[ŷ(x) = y] = 1/K

    Args:
        data: a Dataset, or a pair (x, y) of training inputs (N, ...) and labels (N,).
        model: an untrained classifier with logits (N, K). It is copied.
        variant: see :func:`randomize`.
        share: of the training samples whose labels are redrawn, in [0, 1], for ``"random_labels"``.
        test: a pair of test inputs and labels; None takes the Dataset's own, or none.
        epochs, batch_size, lr, weight_decay, augment: of :func:`robustlab.training.fit.fit` with Adam; the last two are
            the explicit regularizers.
        seed: of the randomization and the training.

    Returns:
        :class:`Memorization`.

    Raises:
        ValueError, TypeError: for an argument out of its range, before any work.

    Source:
        Zhang et al. (2017), sections 2 (randomization) and 3 (explicit regularization).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    checks.at_least("epochs", epochs, 1, integer=True)
    x, y = randomize(data, variant=variant, share=share, seed=seed)
    given, labels = read_labeled(data)
    checks.at_home(model, given, "data")
    checks.in_classes("y", labels, count_outputs(model, given))
    held_out = data if test is None and isinstance(data, Dataset) else test
    learner = copy.deepcopy(model)

    def right(epoch: int, current: nn.Module) -> float:
        return accuracy(current, x, y)

    history = fit(
        learner, (x, y), epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, augment=augment,
        seed=seed, on_epoch=right,
    )  # fmt: skip
    perfect = [epoch for epoch, value in enumerate(history.monitor, start=1) if value == 1]
    score = float("nan")
    if held_out is not None:
        inputs, truth = read_labeled(held_out, "test", "test")
        keys = torch.arange(len(inputs), device=inputs.device) + len(x)  # beside those of the training samples
        score = accuracy(learner, _inputs(inputs, variant, seed, keys, x), truth)
    return Memorization(learner, tuple(history.monitor), score, perfect[0] if perfect else None)


def randomize(
    data: Pairs, *, variant: Variant = "random_labels", share: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Training data in which one thing is replaced by chance.

    * ``"true_labels"``: nothing is changed.
    * ``"random_labels"``: the labels of round(share·N) samples are drawn anew, evenly from all K classes.
    * ``"shuffled_pixels"``: one permutation of the features, the same for all samples.
    * ``"random_pixels"``: a permutation of its own for each sample.
    * ``"gaussian"``: features drawn from the normal distribution of the data's mean and standard deviation.

    Args:
        data: a Dataset, whose training part is used, or a pair (x, y).
        variant: one of the above.
        share: of the samples whose labels are drawn anew, in [0, 1].
        seed: of the draws, which happen once.

    Returns:
        x and y, new tensors.

    Raises:
        ValueError, TypeError: for an argument out of its range.
    """
    x, y = read_labeled(data)
    checks.one_of("variant", variant, VARIANTS)
    checks.at_least("share", share, 0.0)
    if share > 1:
        raise ValueError(f"share: want a number in [0, 1], got {share}")
    classes = count_classes(data, y, None)
    ids = torch.arange(len(x), device=x.device)
    y = y.clone()
    if variant == "random_labels":
        rows = Noise(seed, ids[:1]).permutation(0, len(x))[0, : round(share * len(x))]
        y[rows] = Noise(seed, rows).integers(1, (), classes)
    return _inputs(x, variant, seed, ids, x), y


def _inputs(x: Tensor, variant: Variant, seed: int, ids: Tensor, train: Tensor) -> Tensor:
    """Inputs as the variant has them; the draws of a sample depend on its id."""
    flat = x.flatten(1)
    if variant == "shuffled_pixels":
        order = Noise(seed, ids.new_zeros(1)).permutation(2, flat.shape[1])[0]
        return flat[:, order].reshape(x.shape)
    if variant == "random_pixels":
        return flat.gather(1, Noise(seed, ids).permutation(3, flat.shape[1])).reshape(x.shape)
    if variant == "gaussian":
        return train.mean() + train.std() * Noise(seed, ids).normal(4, tuple(x.shape[1:]), x.dtype)
    return x.clone()
