"""Many models at once, each trained on its own noisy copy of the data: what RAB takes its votes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from robustlab.attacker.results import Result
from robustlab.files import RunFiles, digest, require_writable
from robustlab.geometry.keyed import Noise
from robustlab.models.modes import evaluating
from robustlab.progress import bar

Weights = dict[str, Tensor]
_DATA, _ORDER = 0, 1  # names of draws


@dataclass(frozen=True, eq=False, repr=False)
class NoisyModels(Result):
    """M trained models of one architecture.

    Attributes:
        network: the architecture; its own weights are where all trainings began.
        weights: each parameter, stacked: (M, ...).
        sigma: σ of the noise, in training and at a test.
        test_noise: (M, ...), what each model adds to every input, or zeros. It is drawn with the digest of the model's
            weights as its seed, so that it is a function of their values and of nothing else.
    """

    network: nn.Module
    weights: Weights
    sigma: float
    test_noise: Tensor

    def __len__(self) -> int:
        return len(self.test_noise)

    def votes(self, x: Tensor, *, chunk: int = 100) -> Tensor:
        """(N, K): how many models choose each class of each input (N, ...); ties go to the first class."""
        same_shape_as_rows(x, self.test_noise.shape[1:])
        call = _caller(self.network)
        total: Tensor | None = None
        with torch.no_grad(), evaluating(self.network):
            for start in range(0, len(self), chunk):
                part = {name: value[start : start + chunk] for name, value in self.weights.items()}
                shifted = x[None] + self.test_noise[start : start + chunk, None]
                logits = vmap(call, randomness="error")(part, shifted)  # (M, N, K)
                ballots = F.one_hot(logits.argmax(dim=2), logits.shape[2]).sum(dim=0)
                total = ballots if total is None else total + ballots
        assert total is not None
        return total


def same_shape_as_rows(x: Tensor, shape: torch.Size) -> None:
    """Raises ValueError unless inputs (N, ...) are of the rows' shape: the noise would spread others to it."""
    if x.shape[1:] != shape:
        raise ValueError(f"x: want inputs (N, ...) of the rows' shape {tuple(shape)}, got {tuple(x.shape)}")


def train_noisy(
    network: nn.Module, x: Tensor, y: Tensor, *, models: int, sigma: float, epochs: int, batch_size: int, lr: float,
    momentum: float, seed: int, test_noise: bool, chunk: int, progress: bool, resume: Path | None,
) -> NoisyModels:  # fmt: skip
    """Model m is trained by gradient descent on x + σ·z_m, z_m drawn once and kept over all epochs.

    All begin at the weights of ``network`` and visit the rows in the same order, which depends on the seed alone. So a
    model's weights are a function of its noisy data, and model m of those of its number and of nothing else. The
    trained ones are written to ``resume`` after every ``chunk`` models.
    """
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    how = (models, sigma, epochs, batch_size, lr, momentum, seed, chunk)
    run = {"settings": str(how), "network": digest(network.state_dict()), "data": digest({"x": x, "y": y})}
    files = RunFiles("resume", "noisy_models", run)
    weights = {name: p.new_empty(0, *p.shape) for name, p in start.items()}
    if resume is not None:
        require_writable(resume, "resume")
        weights = _trained_before(files, resume, weights) if resume.exists() else weights
    done = len(next(iter(weights.values())))
    with evaluating(network):
        for first in bar(range(done, models, chunk), show=progress, label="rab"):
            ids = torch.arange(first, min(first + chunk, models), device=x.device)
            noise = Noise(seed, ids).normal(_DATA, x.shape, x.dtype)
            noisy = noise.mul_(sigma).add_(x)
            part = _descend(network, start, noisy, y, epochs, batch_size, lr, momentum, seed)
            weights = {name: torch.cat([value, part[name]]) for name, value in weights.items()}
            if resume is not None:
                files.write(resume, weights)
    added = noise_at_test(weights, x.shape[1:], sigma) if test_noise else x.new_zeros(models, *x.shape[1:])
    return NoisyModels(network, weights, sigma, added)


def _trained_before(files: RunFiles, path: Path, like: Weights) -> Weights:
    """The weights of a file, if they are those of some models of this architecture."""
    found = files.read(path)[0]
    lengths = {len(value) for value in found.values()}
    if {name: value.shape[1:] for name, value in found.items()} != {n: p.shape[1:] for n, p in like.items()}:
        raise files.unlike(path, f"it holds {sorted(found)[:9]}")
    if len(lengths) != 1:
        raise files.unlike(path, f"its parameters are those of {sorted(lengths)} models")
    return {name: found[name].to(p) for name, p in like.items()}


def noise_at_test(weights: Weights, shape: torch.Size, sigma: float) -> Tensor:
    """σ times a standard normal tensor for each of M models, (M, *shape), keyed by the digest of its weights' values.

    How a file or a tensor stores them (order, dtype, strides, the sign of a zero) makes no difference.
    """
    first = weights[min(weights)]
    values = {name: weights[name].detach().cpu().double() + 0.0 for name in sorted(weights)}
    keys = [int(digest({name: value[m] for name, value in values.items()})[:15], 16) for m in range(len(first))]
    ids = torch.tensor(keys, dtype=torch.int64, device=first.device)
    return sigma * Noise(0, ids).normal(0, shape, first.dtype)


def _caller(network: nn.Module) -> Callable[[Weights, Tensor], Tensor]:
    buffers = dict(network.named_buffers())

    def call(weights: Weights, x: Tensor) -> Tensor:
        found: Tensor = functional_call(network, {**weights, **buffers}, (x,))
        return found

    return call


def _descend(
    network: nn.Module, start: Weights, noisy: Tensor, y: Tensor, epochs: int, batch_size: int, lr: float,
    momentum: float, seed: int,
) -> Weights:  # fmt: skip
    """Gradient descent with momentum on a stack (M, n, ...) of noisy data; in each step all models take one."""
    call = _caller(network)

    def loss(weights: Weights, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(call(weights, x), labels)

    slope = vmap(grad(loss), in_dims=(0, 0, None))
    weights = {name: p.expand(len(noisy), *p.shape).clone() for name, p in start.items()}
    speed = {name: torch.zeros_like(p) for name, p in weights.items()}
    order = Noise(seed, torch.zeros(1, dtype=torch.int64, device=y.device))
    for epoch in range(epochs):
        for rows in order.permutation((_ORDER, epoch), len(y))[0].split(batch_size):
            whole = len(rows) == len(y)
            down = slope(weights, noisy if whole else noisy[:, rows], y if whole else y[rows])
            for name, p in weights.items():
                speed[name].mul_(momentum).add_(down[name])
                p.sub_(lr * speed[name])
    return weights
