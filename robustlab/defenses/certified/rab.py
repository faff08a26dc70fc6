"""RAB: votes of many models, each trained on its own noisy copy of the data, that a backdoor cannot turn.

Weber, Xu, Karlaš, Zhang and Li, "RAB: Provable robustness against backdoor attacks" (arXiv v1, 2020), theorem 1 and
section 5.
Let h(x, D) be what a model says of x after training on D, and p_c = Pr_z[h(x, D + σz) = c] with a normal number in z
for each number of D. If class A has p_A ≥ p_A̲ and every other p_c ≤ p̄_B, the vote on x is the same after any change
of the training inputs with

    (Σ_i ‖δ_i‖₂²)^½ < R = σ/2·(Φ⁻¹(p_A̲) − Φ⁻¹(p̄_B))

over *all* poisoned rows together. So a certificate compares two worlds of the same labels: it says what a trigger on
training inputs can do, not what wrong labels do, and the trigger on x itself is part of x in both.

A draw of z is one for each training row and model, and stays over the epochs. Fresh noise in each epoch would be
another z for each visit; then h is no function of D + σz, and the theorem says nothing. A network that has only
seen noisy rows can be bad without noise, so that noise is added to x too. It must depend on D through the trained
weights alone, for h to be a function of D + σz. Linear models do better without it (``test_noise=False``).

Different here: that noise is drawn by the digest of the weights' *values*, where the published code hashes the file
that PyTorch wrote, so that another version of PyTorch changes the certificate; votes are counted, as the theorem has
it, where the code averages sigmoids; any number of classes; and α is what all bounds cost together. Of two classes the
bounds on both shares are one event, and yet there are two: the votes that choose A bound it, so that the bound must
hold for either class (the code's, at α each, cost 2α).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.defenses.certified.noisy_models import NoisyModels, same_shape_as_rows, train_noisy
from robustlab.models.probing import count_outputs

__all__ = ["noisy_models", "rab", "vote_certificate"]


def rab(
    data: Pairs,
    x: Tensor,
    y: Tensor | None = None,
    *,
    network: nn.Module,
    sigma: float,
    models: int = 1000,
    alpha: float = 0.001,
    epochs: int = 20,
    batch_size: int | None = None,
    lr: float = 0.1,
    momentum: float = 0.9,
    seed: int = 0,
    test_noise: bool = True,
    chunk: int = 100,
    progress: bool = False,
    resume: str | Path | None = None,
) -> Certificate:
    """Certify predictions against every change of training inputs of a limited ℓ2 norm.

        R = σ/2·(Φ⁻¹(v_A/M − h) − Φ⁻¹(v_B/M + h)),   h = √(ln(m/α)/2M)

    v are the votes of M models, A the class of most, B the next; m = 2 bounds (2K of K > 2 classes) hold together.

    Args:
        data: the training data, poisoned or not: inputs (n, ...) and labels.
        x: (N, ...) inputs to be certified, chosen before the models are drawn.
        y: (N,) labels; None takes the vote. A sample whose vote is another class is not certified.
        network: the architecture, without dropout or other randomness; it is trained as in evaluation mode, from its
            own weights, and not changed itself.
        sigma: σ, above 0, in units of the inputs.
        models: M, more than 2·ln(m/α): from fewer, no votes would certify anything.
        alpha: the probability, in (0, 1), that a sample's certificate is wrong.
        epochs, batch_size, lr, momentum: of gradient descent; None is the whole data in each step.
        seed: of the noise and of the order of rows.
        test_noise: whether σ times a normal number, drawn by each model's weights, is added to x.
        chunk: how many models are trained at once: noisy data of chunk·n inputs are in memory. Another chunk may round
            otherwise, and then the noise of a test is another, of the same law.
        progress: show a bar in a terminal.
        resume: a file that is written after every ``chunk`` models, whole or not at all. If it is there, an interrupted
            training goes on where it was: each model is keyed by its number, so the result is that of one run.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate` in ℓ2, over all poisons together, of confidence 1 − α per
        sample.

    Raises:
        ValueError, TypeError: for an argument out of its range, fewer models than a bound above ½ needs, or a file of
            another run, whose difference is named.

    Source:
        Weber et al. (2020), theorem 1, algorithm 1 and section 5, as numbered in arXiv v1.
    """
    checks.floats(x)
    checks.finite("x", x)
    label = None if y is None else checks.labels("y", y, x)
    _enough(models, alpha, 2)
    rows, of_rows = read_labeled(data)
    same_shape_as_rows(x, rows.shape[1:])
    found = noisy_models(
        (rows, of_rows), network=network, sigma=sigma, models=models, epochs=epochs, batch_size=batch_size, lr=lr,
        momentum=momentum, seed=seed, test_noise=test_noise, chunk=chunk, progress=progress, resume=resume,
    )  # fmt: skip
    return vote_certificate(found.votes(x, chunk=chunk), label, sigma=sigma, alpha=alpha, dtype=x.dtype)


def noisy_models(
    data: Pairs,
    *,
    network: nn.Module,
    sigma: float,
    models: int = 1000,
    epochs: int = 20,
    batch_size: int | None = None,
    lr: float = 0.1,
    momentum: float = 0.9,
    seed: int = 0,
    test_noise: bool = True,
    chunk: int = 100,
    progress: bool = False,
    resume: str | Path | None = None,
) -> NoisyModels:
    """The models whose votes :func:`rab` counts; arguments as there.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source: Weber et al. (2020), algorithm 1.
    """
    x, y = read_labeled(data)
    checks.floats(x, "data")
    checks.finite("data", x)
    checks.positive("sigma", sigma)
    for name, value in (("models", models), ("epochs", epochs), ("chunk", chunk)):
        checks.at_least(name, value, 1, integer=True)
    size = len(x) if batch_size is None else batch_size
    checks.at_least("batch_size", size, 1, integer=True)
    checks.positive("lr", lr)
    checks.not_negative("momentum", momentum)
    checks.at_home(network, x, "data")
    checks.in_classes("data", y, count_outputs(network, x))
    return train_noisy(
        network, x, y, models=models, sigma=sigma, epochs=epochs, batch_size=size, lr=lr, momentum=momentum, seed=seed,
        test_noise=test_noise, chunk=chunk, progress=progress, resume=None if resume is None else Path(resume),
    )  # fmt: skip


def vote_certificate(
    votes: Tensor, y: Tensor | None = None, *, sigma: float, alpha: float = 0.001, dtype: torch.dtype = torch.float64
) -> Certificate:
    """The certificate that votes (N, K) of independently drawn models give, by Hoeffding's bound.

    The class of most votes is chosen by the same votes, so all K shares are bounded from both sides at once. Of two
    classes one share is the other's rest, and two bounds are all: one for either choice of the class.

    Args:
        votes: counts (N, K) of the same number M in each row.
        y: (N,) labels; None takes the class of most votes.
        sigma: σ of the noise, above 0.
        alpha: what all bounds of a row cost together, in (0, 1).
        dtype: of the radius.

    Raises:
        ValueError, TypeError: for an argument out of its range, or too few models for α.
    """
    checks.positive("sigma", sigma)
    if votes.dim() != 2 or votes.shape[1] < 2:
        raise ValueError(f"votes: want counts (N, K) of two classes or more, got shape {tuple(votes.shape)}")
    if bool((votes < 0).any()):
        raise ValueError(f"votes: want counts of at least 0, got {votes[votes < 0][:5].tolist()}")
    models = int(votes[0].sum()) if len(votes) else 1
    if bool((votes.sum(dim=1) != models).any()):
        raise ValueError("votes: want the same number of models in each row, got several")
    half = _enough(models, alpha, votes.shape[1]) if len(votes) else 0.0
    most, winner = votes.max(dim=1)
    second = votes.scatter(1, winner[:, None], -1).amax(dim=1)
    low = most.double() / models - half
    high = second.double() / models + half
    radius = sigma / 2 * (torch.special.ndtri(low.clamp_min(0)) - torch.special.ndtri(high))
    verified = (low > high) & (winner == (winner if y is None else y))
    radius = torch.where(verified, radius, 0.0).to(dtype)
    return Certificate(verified, torch.zeros_like(verified), radius, "l2", "rab", confidence=1 - alpha)


def _enough(models: int, alpha: float, classes: int) -> float:
    """h = √(ln(m/α)/2M); raises where not even all votes for one class would certify it."""
    checks.at_least("models", models, 1, integer=True)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: want a probability strictly between 0 and 1, got {alpha}")
    bounds = 2 if classes == 2 else 2 * classes
    least = math.floor(2 * math.log(bounds / alpha)) + 1
    if models < least:
        raise ValueError(f"models: want at least {least} for alpha = {alpha} and {classes} classes, got {models}")
    return math.sqrt(math.log(bounds / alpha) / (2 * models))
