"""What smoothing certificates share: votes of a model under noise, and bounds for their probabilities.

Each sample has draws of its own. They come in chunks, each from a generator of its own that is seeded by
``(seed, sample id, part, chunk)``: so the votes of a sample do not depend on its batch, nor on how a data set is split.
(Numbers differ between devices, as those of ``torch.randn`` do.) Forward passes take chunks of several samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from scipy.stats import beta
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.geometry.keyed import derive_seed
from robustlab.geometry.norms import ProperNorm
from robustlab.models.modes import evaluating
from robustlab.progress import bar

__all__ = ["Smoothed"]

Kind = Literal["gaussian", "laplace"]
CHUNK = 250  # draws of one generator
Listener = Callable[[Tensor, Tensor, Tensor, Tensor], None]  # owners, draws, points, answers


class Job(NamedTuple):
    """One chunk of one sample's draws."""

    row: int
    id: int
    start: int
    size: int


@dataclass(frozen=True, eq=False, repr=False)
class Smoothed(Certificate):
    """A certificate of a smoothed classifier, and what it rests on.

    Attributes:
        prediction: (N,) int64, the smoothed classifier's class, −1 where it abstains.
        p_lower: (N,) float64, the lower bound of that class's probability.
        counts: (N, K) int64, the votes of the draws that gave the bound.
    """

    prediction: Tensor | None = None
    p_lower: Tensor | None = None
    counts: Tensor | None = None


def count_votes(
    model: nn.Module, x: Tensor, *, sigma: float, n: int, part: int = 0, seed: int = 0, ids: Tensor | None = None,
    batch_size: int | None = None, progress: bool = False, kind: Kind = "gaussian", listen: Listener | None = None,
) -> Tensor:  # fmt: skip
    """How often each class is the model's answer to x + σ·ε with ε ~ N(0, I), over n draws per sample.

        counts_ik = #{draws j of n : argmax model(x_i + σ ε_ij) = k}

    Args:
        model: gives logits (M, K), or anything whose largest entry is the answer; held in evaluation mode.
        x: (N, ...), inputs as they come from the data, before any noise.
        sigma: σ, in units of x.
        n: draws per sample.
        part: draws of different parts are independent.
        seed, ids: of the draws, keyed by the seed and each sample's id (default 0 … N − 1).
        batch_size: rows of a forward pass; None: 250 on a CPU, whose caches hold what they become, else 1,000.
        progress: show a bar in a terminal.
        kind: ``"gaussian"`` or ``"laplace"`` noise, of deviation 1.
        listen: told after each pass which samples its points belong to, which of their draws they are, the points, and
            the answers, −1 for one with NaN.

    Returns:
        (N, K) int64, of an empty batch (0, 2). An answer with NaN is a vote for nobody, and warned of.

    Raises:
        ValueError: if the answers are not (M, K) with K ≥ 2.
    """
    ids = torch.arange(len(x)) if ids is None else ids
    jobs = [
        Job(i, id_, start, min(CHUNK, n - start)) for i, id_ in enumerate(ids.tolist()) for start in range(0, n, CHUNK)
    ]
    counts = x.new_zeros((len(x), 3), dtype=torch.int64)  # for an empty batch; else known with the first answer
    rows = batch_size or (CHUNK if x.device.type == "cpu" else 4 * CHUNK)
    # Small points of several passes lie in it together, since what is done between passes costs as much as a short one.
    several = min(8 * CHUNK, 2**20 // max(1, x[:1].numel()))
    buffer = x.new_empty(max(rows, CHUNK, several), *x.shape[1:])
    generator = torch.Generator(x.device)
    with torch.no_grad(), evaluating(model, device=x.device):
        for number, batch in enumerate(bar(list(_batches(jobs, len(buffer))), show=progress, label="smoothing")):
            sizes = [job.size for job in batch]
            drawn = buffer[: sum(sizes)]
            for job, points in zip(batch, drawn.split_with_sizes(sizes), strict=True):
                generator.manual_seed(derive_seed(seed, job.id, part, job.start // CHUNK))
                _draw(points, kind, sigma, generator).add_(x[job.row])
            answer = torch.cat([_answer(model, drawn[i : i + rows]) for i in range(0, len(drawn), rows)])
            classes = answer.shape[1]
            if number == 0:  # the last column is for answers with NaN, of which NaN is the largest
                counts = counts.new_zeros((len(x), classes + 1))
            largest, class_ = answer.max(dim=1)
            class_ = class_.masked_fill(largest.isnan(), classes)
            for job, votes in zip(batch, class_.split_with_sizes(sizes), strict=True):
                counts[job.row].scatter_add_(0, votes, torch.ones_like(votes))
            if listen is not None:
                owners = torch.tensor([job.row for job in batch]).repeat_interleave(torch.tensor(sizes)).to(x.device)
                draws = torch.cat([torch.arange(job.start, job.start + job.size) for job in batch]).to(x.device)
                listen(owners, draws, drawn, torch.where(class_ < classes, class_, -1))
    if silent := int(counts[:, -1].sum()):
        checks.warn(f"model: {silent} of {n * len(x)} answers to noisy inputs hold NaN; they count for no class")
    return counts[:, :-1].contiguous()


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    answer = model(x)
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != len(x) or answer.shape[1] < 2:
        shown = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"model: want logits (N, K) of at least two classes, got {shown} for {len(x)} samples")
    return answer


def _draw(out: Tensor, kind: Kind, sigma: float, generator: torch.Generator) -> Tensor:
    """Noise of deviation σ, in place."""
    if kind == "gaussian":
        return out.normal_(0, sigma, generator=generator)
    uniform = torch.rand(out.shape, generator=generator, dtype=torch.float64, device=out.device).mul_(2).sub_(1)
    return out.copy_(uniform.sign() * torch.log1p(-uniform.abs()) / -math.sqrt(2)).mul_(sigma)


def _batches(jobs: list[Job], rows: int) -> Iterator[list[Job]]:
    """Chunks that fit into a buffer of so many rows together."""
    batch, full = list[Job](), 0
    for job in jobs:
        if full + job.size > rows:
            yield batch
            batch, full = [], 0
        batch.append(job)
        full += job.size
    if batch:
        yield batch


def clopper_pearson(hits: Tensor, n: int, alpha: float) -> tuple[Tensor, Tensor]:
    """One-sided bounds, each of which holds with probability 1 − α, for a probability that was met ``hits`` of n times.

        lower: the α quantile of Beta(hits, n − hits + 1),   upper: the 1 − α quantile of Beta(hits + 1, n − hits)

    Args:
        hits: counts in 0 … n, of any shape.
        n: draws, at least 1.
        alpha: α in (0, 1), of each bound.

    Returns:
        Lower and upper bound, float64, on the device of ``hits``: 0 for no hit, 1 for n.

    Source: Clopper and Pearson (1934).
    """
    k = hits.cpu().numpy()
    low = torch.as_tensor(beta.ppf(alpha, k, n - k + 1)).nan_to_num(0.0)
    high = torch.as_tensor(beta.ppf(1 - alpha, k + 1, n - k)).nan_to_num(1.0)
    return low.to(hits.device), high.to(hits.device)


def check_draws(
    model: nn.Module, x: Tensor, *, sigma: float, n: int, alpha: float, batch_size: int | None, ids: Tensor | None
) -> None:
    """All checks of what draws need that can be made before any work."""
    checks.images(x, (-math.inf, math.inf), takes=None)
    checks.at_home(model, x)
    checks.unit_pixels("x", x)
    checks.positive("sigma", sigma)
    checks.at_least("n", n, 1, integer=True)
    if batch_size is not None:
        checks.at_least("batch_size", batch_size, 1, integer=True)
    checks.positive("alpha", alpha)
    checks.below("alpha", alpha, 1)
    if ids is not None and ids.shape != x.shape[:1]:
        raise ValueError(f"ids: want shape ({len(x)},), got {tuple(ids.shape)}")


def check(
    model: nn.Module, x: Tensor, y: Tensor | None, *, sigma: float, n0: int, n: int, alpha: float,
    batch_size: int | None, ids: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """All checks of a certificate that can be made before any work; returns the labels."""
    check_draws(model, x, sigma=sigma, n=n, alpha=alpha, batch_size=batch_size, ids=ids)
    checks.at_least("n0", n0, 1, integer=True)
    if n <= n0:
        raise ValueError(f"n: want more draws than n0 = {n0}, which only choose the class, got {n}")
    if alpha ** (1 / n) <= 0.5:
        checks.warn(
            f"n: {n} draws cannot certify at alpha = {alpha:g} even if they agree; "
            f"want at least {math.floor(math.log(alpha) / math.log(0.5)) + 1}"
        )
    return None if y is None else checks.labels("y", y, x)


def choose_and_count(
    model: nn.Module, x: Tensor, y: Tensor | None, *, sigma: float, n0: int, n: int, seed: int, ids: Tensor | None,
    batch_size: int | None, progress: bool, kind: Kind = "gaussian",
    listener: Callable[[Tensor], Listener] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The class that n₀ draws choose (N,), and the votes of n fresh ones (N, K): those that chose would flatter it.

    ``listener`` makes of the chosen classes what listens to the fresh draws.
    """
    vote = partial(
        count_votes, model, x, sigma=sigma, seed=seed, ids=ids, batch_size=batch_size, progress=progress, kind=kind
    )
    first = vote(n=n0, part=0)
    if y is not None:
        checks.in_classes("y", y, first.shape[1])
    chosen = first.argmax(dim=1)
    return chosen, vote(n=n, part=1, listen=None if listener is None else listener(chosen))


def bounds_of_two(counts: Tensor, chosen: Tensor, n: int, alpha: float) -> tuple[Tensor, Tensor]:
    """A lower bound p₁ for the chosen class and an upper one p₂ for any other, which hold together at 1 − α.

    p₁ at level α/2, and p₂ the smaller of 1 − p₁ and the largest of K − 1 bounds at α/2(K − 1).
    """
    p1, _ = clopper_pearson(counts.gather(1, chosen[:, None])[:, 0], n, alpha / 2)
    rivals = counts.scatter(1, chosen[:, None], -1).amax(dim=1).clamp_min(0)
    _, p2 = clopper_pearson(rivals, n, alpha / 2 / max(1, counts.shape[1] - 1))
    return p1, torch.minimum(p2, 1 - p1)


def certificate(
    x: Tensor, y: Tensor | None, chosen: Tensor, p_lower: Tensor, radius: Tensor, counts: Tensor, method: str,
    alpha: float, norm: ProperNorm = "l2",
) -> Smoothed:  # fmt: skip
    """What the radii (N,) float64 certify: nothing where the class is not that of y, or the radius is not above 0."""
    rounded = radius.to(x.dtype)
    rounded = torch.where(rounded.double() > radius, rounded.nextafter(torch.zeros_like(rounded)), rounded)
    sure = rounded > 0
    prediction = torch.where(sure, chosen, -1)
    if y is not None:
        sure = sure & (chosen == y)
    return Smoothed(
        verified=sure, falsified=torch.zeros_like(sure), radius=rounded.where(sure, 0.0), norm=norm, method=method,
        confidence=1 - alpha, prediction=prediction, p_lower=p_lower, counts=counts,
    )  # fmt: skip
