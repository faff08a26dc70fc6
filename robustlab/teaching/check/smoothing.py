"""Certificates by smoothing, held to a model whose votes are known in closed form.

A model that decides by a threshold, f(x) = [⟨a, x⟩ > 0], is smoothed to itself. At the distance r from the threshold
the share of its votes is F(r), the distribution function of the noise, and r is the largest radius that is true. So for
every certificate it is known whether it holds; over many inputs, how often; and how large it is on average when all
draws are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, blame, require_pair
from robustlab.teaching.metered import Metered, Refused

Kind = Literal["gaussian", "laplace", "uniform"]
"""The noise: N(0, scale²), exp(−|z| / scale), or uniform on [−scale, scale], for each value alone."""
Certify = Callable[[Callable[[Tensor], Tensor], Tensor, int, int, float], Any]
"""(api, x, n0, n, alpha) → classes (N,), radii (N,)."""
ALPHA, COUNT, N = 0.2, 1000, 100


def share_at(kind: Kind, scale: float, far: Tensor) -> Tensor:
    """F(r), the share of the votes at the distance r ≥ 0 from a threshold."""
    r = far / scale
    if kind == "gaussian":
        return torch.special.ndtr(r)
    return 1 - torch.exp(-r) / 2 if kind == "laplace" else ((1 + r) / 2).clamp(max=1)


def distance_at(kind: Kind, scale: float, share: float) -> float:
    """The distance from a threshold at which the share of the votes is this, by bisection."""
    low, high = 0.0, 50 * scale
    for _ in range(60):
        middle = (low + high) / 2
        below = float(share_at(kind, scale, torch.tensor(middle, dtype=torch.float64))) < share
        low, high = (middle, high) if below else (low, middle)
    return low


def expected_radius(kind: Kind, scale: float, p: float, n: int, alpha: float) -> float:
    """The mean radius over k of n votes at the probability p, from one-sided bounds at the level alpha."""
    from scipy.stats import beta, binom

    k = range(1, n + 1)
    bounds = [float(beta.ppf(alpha, votes, n - votes + 1)) for votes in k]
    return sum(
        float(binom.pmf(votes, n, p)) * distance_at(kind, scale, bound)
        for votes, bound in zip(k, bounds, strict=True)
        if bound > 0.5 and binom.pmf(votes, n, p) > 1e-9
    )


def threshold_model(
    kind: Kind, features: int, generator: torch.Generator, cuts: tuple[float, ...] = (0.0,)
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """A model that cuts space along one direction; the direction, of length 1; and the classes of its pieces.

    In ℓ1 the direction is that of one feature, since only then are radius and distance the same.
    """
    across = torch.randn(features, generator=generator)
    across = across / across.norm()
    if kind != "gaussian":
        across = torch.eye(features)[int(torch.randint(features, (), generator=generator))]
    labels = torch.randperm(4, generator=generator)[: len(cuts) + 1]

    def logits(x: Tensor) -> Tensor:
        piece = torch.bucketize(x @ across, torch.tensor(cuts))
        return torch.nn.functional.one_hot(labels[piece], 4).float()

    return logits, across, labels


def lower_bound(function: Callable[[Tensor, int, float], Tensor], *, hints: int = 1) -> None:
    """Check a one-sided confidence bound of a probability: prints one line where all holds.

    Args:
        function: called as ``function(k, n, alpha)`` with votes k (M,), an integer tensor, of n draws; returns (M,) in
            double precision: the largest p for which k or more votes have a probability of at most alpha.
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    k, n, alpha = torch.arange(0, 41), 40, 0.05
    try:
        out = function(k, n, alpha)
        if not isinstance(out, Tensor) or out.shape != k.shape:
            raise Wrong(
                "want one bound per number of votes", "wrong shape", "k is a tensor (M,), and so is the result."
            )
        out, right = out.double(), _quantile(alpha, k, n).nan_to_num(0.0)
        if torch.allclose(out, right, atol=1e-4):
            print("lower_bound: holds, for all numbers of votes out of 40")
            return
        seen = f"the bound is off by up to {float((out - right).abs().nan_to_num(torch.inf).max()):.2g}"

        def matches(slip: Tensor) -> bool:
            told = ~slip.isnan()
            return torch.allclose(out[told], slip[told], atol=1e-4)

        blame(seen, _slips_of_bound(k, n, alpha), matches)
        if not bool(out.isfinite().all()) or abs(float(out[0])) > 1e-6:
            raise Wrong(
                f"without a vote the bound is {float(out[0]):.3g}, want 0",
                "the ends are cases of their own",
                "Beta(0, n + 1) is no distribution.",
                "torch.where(k == 0, 0, ...), or scipy's nan replaced by 0.",
            )
        raise Wrong(
            seen,
            "another bound than that of Clopper and Pearson",
            "At the bound p, k or more votes of n have the probability α.",
            "It is the α-quantile of Beta(k, n − k + 1); k = n gives α^(1/n).",
        )
    except Wrong as wrong:
        raise wrong.shown_as("lower_bound", hints) from None


def _quantile(level: float, k: Tensor, n: int) -> Tensor:
    """The quantile of Beta(k, n − k + 1), (M,) float64; NaN where that is no distribution."""
    from scipy.stats import beta

    return torch.from_numpy(beta.ppf(level, k.numpy(), (n - k + 1).numpy()))


def _slips_of_bound(k: Tensor, n: int, alpha: float) -> list[tuple[Any, ...]]:
    """What likely slips give in the place of the lower bound, NaN where they say nothing; their causes and hints."""
    right = _quantile(alpha, k, n)
    nothing = right.new_full((1,), torch.nan)
    votes = "At the bound, k or more votes have the probability α: k itself counts."
    off = "off by one vote", votes, "1 − cdf(k − 1), which is sf(k − 1), is the probability of k or more."
    return [
        (
            _quantile(1 - alpha, k + 1, n),
            "the upper end of the interval, not the lower",
            "The certificate must hold if the class has been lucky, so the bound is below the share.",
            "The α-quantile of Beta(k, n − k + 1), not the (1 − α)-quantile of Beta(k + 1, n − k).",
        ),
        (
            _quantile(alpha / 2, k, n).nan_to_num(0.0),
            "a two-sided interval",
            "Only one side matters: nobody is harmed by more votes than you think.",
            "All of α goes to the lower end.",
        ),
        (
            _quantile(1 - alpha, k, n),
            "confidence and error mixed up",
            "α is the probability with which the bound may be too high.",
            "The α-quantile of Beta(k, n − k + 1), with α small.",
        ),
        (torch.cat([nothing, right[:-1]]), *off),
        (torch.cat([nothing, right[2:], nothing]), *off),
        (
            k.double() / n,
            "no confidence bound",
            "Another draw of the noise gives another share, half of the time a smaller one.",
            "Clopper and Pearson: the α-quantile of Beta(k, n − k + 1).",
        ),
    ]


def certify(
    function: Certify,
    *,
    kind: Kind = "gaussian",
    scale: float = 0.5,
    count: int = COUNT,
    seed: int = 0,
    hints: int = 1,
) -> None:
    """Check certificates by smoothing on models that cut space by a threshold: prints one line where all holds.

    Args:
        function: called as ``function(api, x, n0, n, alpha)``; ``api`` takes inputs (m, d) and returns labels (m,), and
            answers at most n0 + n rows per input. It returns classes (N,), and radii (N,); where it abstains the class
            is −1 and the radius 0.
        kind, scale: of the noise.
        count: of the inputs on each of two models (default 1,000); with fewer, less can be told from chance.
        seed: of the models and inputs (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    generator = torch.Generator().manual_seed(seed)
    try:
        _clear(function, kind, scale, count, generator)
        _false(function, kind, scale, count, generator)
    except Wrong as wrong:
        raise wrong.shown_as("certify", hints) from None
    print(f"certify: holds, on {count} inputs at a border and {count} away from it")


def _asked(
    function: Certify, kind: Kind, far: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Metered]:
    """Classes, radii and right classes for inputs at distances from a threshold, on its upper side."""
    model, across, labels = threshold_model(kind, 4, generator)
    x = torch.randn(len(far), 4, generator=generator)
    x = x + (far - x @ across)[:, None] * across
    api = Metered(model, (4,), 2 * N * len(far), box=False)
    try:
        out = function(api, x, N, N, ALPHA)
    except Refused as refused:
        raise Wrong(
            f"a question was refused: {refused}",
            "more draws than n0 + n per input",
            "All inputs together have n0 + n rows each, and no more.",
            "n0 draws choose the class, n others count its votes.",
        ) from None
    classes, radii = require_pair(
        out, far.shape, "classes (N,) and radii (N,)", "One class and one radius per input.", "Return classes, radii."
    )
    return classes, radii.double(), labels[1].expand(len(far)), api


def _clear(function: Certify, kind: Kind, scale: float, count: int, generator: torch.Generator) -> None:
    far = torch.full((count,), 0.9 * scale)
    classes, radii, y, _ = _asked(function, kind, far, generator)
    if float((classes == y).double().mean()) < 0.9:
        raise Wrong(
            "where one class has most of the votes, another is returned",
            "the votes go to the wrong class or input",
            "Which draws belong to which input, after a reshape?",
            "x.repeat_interleave(n, dim=0), and answers.reshape(len(x), n).",
        )
    p = float(share_at(kind, scale, far[:1].double()))
    ratio = float(radii.mean()) / expected_radius(kind, scale, p, N, ALPHA)
    spread = 0.03 * math.sqrt(COUNT / count)  # four standard deviations of a mean over the inputs
    if abs(ratio * scale - 1) < spread and abs(scale - 1) > 0.1:
        raise Wrong(
            f"the mean radius is {ratio:.2f} times what it should be, one over the scale of the noise",
            "radius in wrong units",
            "A radius has the units of x.",
            "Multiply by the scale of the noise.",
        )
    two_sided = expected_radius(kind, scale, p, N, ALPHA / 2) / expected_radius(kind, scale, p, N, ALPHA)
    if abs(ratio - two_sided) < 0.3 * (1 - two_sided):
        raise Wrong(
            f"the mean radius is {ratio:.1%} of what it could be, as with bounds at α/2",
            "a two-sided interval",
            "Only one side matters.",
            "All of α goes to the lower end.",
        )
    if abs(ratio - 1) >= spread:
        raise Wrong(
            f"the mean radius is {ratio:.1%} of what {N} draws give",
            "other draws, another noise or another bound than asked for",
            "Is the noise of the right kind and scale, and do exactly n draws count?",
            "radius(lower_bound(votes, n, alpha)), with votes among the n draws alone.",
        )


def _false(function: Certify, kind: Kind, scale: float, count: int, generator: torch.Generator) -> None:
    """On the border no certificate is true: at most a share α may be given."""
    classes, radii, _, _ = _asked(function, kind, torch.zeros(count), generator)
    share = float(((radii > 0) & (classes >= 0)).double().mean())
    if share > ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / count):
        raise Wrong(
            f"on the border between two classes {share:.0%} of the inputs are certified, α is {ALPHA:.0%}",
            "selected and estimated on the same draws",
            "The class with more votes among n draws has more than half of them by luck.",
            "Choose the class with n0 draws, then count its votes among n others.",
        )
    if bool((radii[classes < 0] != 0).any()):
        raise Wrong(
            f"where it abstains a radius is {float(radii[classes < 0].abs().max()):.3g}, want 0",
            "a radius without a class",
            "Who says nothing certifies nothing.",
            "radii = torch.where(classes < 0, 0, radii).",
        )
    if bool((classes[radii <= 0] >= 0).any()):
        raise Wrong(
            f"a class is returned with the radius {float(radii[classes >= 0].min()):.3g}",
            "no abstention",
            "Where the bound is not above one half, nothing is known of the smoothed class.",
            "classes = torch.where(bound > 0.5, chosen, -1).",
        )
