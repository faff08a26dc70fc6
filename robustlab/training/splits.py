"""How data are divided among the clients of federated learning: evenly, by Dirichlet draws, or by labels.

Each returns, for each client, the rows that it gets. Every row goes to exactly one client, and the same seed gives the
same division on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustlab import checks
from robustlab.geometry.keyed import Noise

_ATTEMPTS = 100


def even_split(y: Tensor, clients: int, *, seed: int = 0) -> list[Tensor]:
    """Divide the rows at random into parts of equal size, up to one sample: clients that are alike.

    Args:
        y: (N,) labels, of which only the number counts.
        clients: how many, at most N.
        seed: of the order.

    Returns:
        For each client its rows, sorted, int64.

    Raises:
        ValueError, TypeError: for a wrong argument.
    """
    _checked(y, clients)
    order = Noise(seed, y.new_zeros(1, dtype=torch.int64)).permutation(0, len(y))[0]
    return [part.sort().values for part in order.tensor_split(clients)]


def dirichlet_split(y: Tensor, clients: int, *, alpha: float, seed: int = 0, at_least: int = 1) -> list[Tensor]:
    """Divide each class among the clients by shares from a Dirichlet distribution.

        p_k ~ Dirichlet(α, …, α)  for each class k;   client i gets the share p_{k,i} of the samples of class k

    Small α gives clients of few classes, large α clients that are alike.

    Args:
        y: (N,) labels.
        clients: n, at most N.
        alpha: α > 0; 0.5 in the paper on distributed backdoors, 0.9 in the one on model replacement.
        seed: of the shares and of which samples they mean.
        at_least: samples that each client must get. All shares are drawn again until they do, 100 times at most, which
            for small α makes the division a little more even than Dirichlet's.

    Returns:
        For each client its rows, sorted, int64.

    Raises:
        ValueError, TypeError: for a wrong argument, or if no draw gives every client its samples.

    Source:
        Minka, "Estimating a Dirichlet distribution" (2000), cited for this use by Bagdasaryan et al. (2020) and Xie et
        al. (2020).
    """
    _checked(y, clients)
    checks.positive("alpha", alpha)
    checks.at_least("at_least", at_least, 0, integer=True)
    labels, counts = y.unique(return_counts=True)
    noise = Noise(seed, labels.to(torch.int64))
    order = Noise(seed, torch.arange(len(y), device=y.device)).uniform(0, (), torch.float64).argsort()
    order = order[y[order].argsort(stable=True)]  # class by class, in a random order within each
    first, place = counts.cumsum(0) - counts, torch.arange(len(y), device=y.device)
    # The number of each place's class.
    number = torch.arange(len(labels), device=y.device).repeat_interleave(counts)
    for attempt in range(_ATTEMPTS):
        shares = _dirichlet(noise, attempt, clients, alpha)
        ends = first[:, None] + (shares.cumsum(dim=1) * counts[:, None]).round().to(torch.int64)
        ends[:, -1] = first + counts
        owner = torch.empty_like(order)
        owner[order] = torch.bucketize(place, ends.flatten(), right=True) - number * clients
        if int(owner.bincount(minlength=clients).min()) >= at_least:
            return [(owner == i).nonzero().flatten() for i in range(clients)]
    raise ValueError(
        f"alpha: want a value at which {clients} clients get at least {at_least} of {len(y)} samples each, "
        f"got {alpha}, at which none of {_ATTEMPTS} draws gives them"
    )


def label_split(y: Tensor, clients: int, *, classes: int, seed: int = 0) -> list[Tensor]:
    """Give each client samples of so many classes, and divide each class evenly among those who hold it.

    Args:
        y: (N,) labels of K classes.
        clients: n, with n·classes ≥ K, so that every class is held by somebody.
        classes: c per client, 1 to K.
        seed: of which client holds which classes, and of which samples it gets.

    Returns:
        For each client its rows, sorted, int64.

    Raises:
        ValueError, TypeError: for a wrong argument, or a class with fewer samples than holders.
    """
    _checked(y, clients)
    labels = y.unique()
    k = len(labels)
    checks.at_least("classes", classes, 1, integer=True)
    checks.at_most("classes", classes, k)
    if clients * classes < k:
        raise ValueError(
            f"clients: want at least {math.ceil(k / classes)} for {k} classes of {classes} each, got {clients}"
        )
    one = torch.zeros(1, dtype=torch.int64, device=y.device)
    turns = Noise(seed, one).permutation(0, k)[0]
    order = Noise(seed, one).permutation(1, len(y))[0]
    held = turns[torch.arange(clients * classes, device=y.device) % k].reshape(clients, classes)
    owner = torch.empty(len(y), dtype=torch.int64, device=y.device)
    for place, label in enumerate(labels):
        rows, holders = order[y[order] == label], (held == place).any(dim=1).nonzero().flatten()
        if len(rows) < len(holders):
            raise ValueError(f"y: want at least {len(holders)} samples of class {int(label)}, got {len(rows)}")
        owner[rows] = holders[torch.arange(len(rows), device=y.device) * len(holders) // len(rows)]
    return [(owner == i).nonzero().flatten() for i in range(clients)]


def _checked(y: Tensor, clients: int) -> None:
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
        raise TypeError(f"y: want integer labels (N,), got {getattr(y, 'dtype', type(y).__name__)}")
    checks.at_least("clients", clients, 1, integer=True)
    checks.at_most("clients", clients, len(y))


def _dirichlet(noise: Noise, attempt: int, n: int, alpha: float) -> Tensor:
    """Shares (K, n) from Dirichlet(α, …, α), one row per id, by gamma variates.

    Gamma(α) = Gamma(α + 1)·U^{1/α}, in logarithms, since for small α most of them are below the least float. The former
    is drawn by Marsaglia and Tsang's method, "A simple method for generating gamma variables" (2000), as often as it
    takes until all are accepted.
    """
    d = alpha + 1 - 1 / 3
    c = 1 / math.sqrt(9 * d)
    log_gamma = noise.uniform((attempt, 0), (n,), torch.float64).log() / alpha
    open_ = torch.ones_like(log_gamma, dtype=torch.bool)
    drawn = torch.zeros_like(log_gamma)
    trial = 0
    while bool(open_.any()):
        trial += 1
        z = noise.normal((attempt, 2 * trial), (n,), torch.float64)
        u = noise.uniform((attempt, 2 * trial + 1), (n,), torch.float64)
        v = (1 + c * z).clamp_min(torch.finfo(torch.float64).tiny) ** 3
        taken = open_ & (1 + c * z > 0) & (u.log() < 0.5 * z * z + d - d * v + d * v.log())
        drawn = torch.where(taken, math.log(d) + v.log(), drawn)
        open_ &= ~taken
    return torch.softmax(log_gamma + drawn, dim=1)
