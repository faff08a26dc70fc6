"""A linear fit that leaves out the rows which fit worst, held to what defines it.

The end of TRIM is a fit and a set of n rows of which each gives the other: the fit is the ridge regression on the rows,
and the rows are those with the n smallest residuals under the fit. Both can be computed from what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, blame, require_unchanged

Fit = Callable[[Tensor], Tensor]
Trim = Callable[[Tensor, Tensor, int, float], Fit]
"""(x (N, d), y (N,), n, lam) → a model: x (M, d) → (M,)."""
ROWS, HONEST, LAM = 40, 30, 0.1


def trimmed_fit(function: Trim, *, seed: int = 0, hints: int = 1) -> None:
    """Check TRIM for ridge regression: prints one line where all holds.

    Args:
        function: called as ``function(x, y, n, lam)`` with a table x (N, d), responses y (N,), the number n of rows to
            keep, and λ; returns a model that maps x to responses. It minimizes mean (w·x + b − y)² + λ/2·‖w‖² on n
            rows, which are those that it fits best.
        seed: of the tables (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for number in range(3):
            _ended(function, *poisoned_table(seed + number))
    except Wrong as wrong:
        raise wrong.shown_as("trimmed_fit", hints) from None
    print(f"trimmed_fit: holds, on three tables of {ROWS} rows, {ROWS - HONEST} of them poisoned")


def poisoned_table(seed: int) -> tuple[Tensor, Tensor]:
    """Rows on a plane, and a fourth of them far above it, some more than others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)
    slope = torch.randn(3, generator=generator, dtype=torch.float64)
    y = x @ slope + 0.5 + 0.2 * torch.randn(ROWS, generator=generator, dtype=torch.float64)
    far = torch.linspace(1.5, 6, ROWS - HONEST, dtype=torch.float64)
    order = torch.randperm(ROWS, generator=generator)
    y[order[HONEST:]] += far * (1 + x[order[HONEST:], 0].clamp_min(0))
    return x, y


def ridge(x: Tensor, y: Tensor, lam: float, bias_too: bool = False) -> Fit:
    """The minimizer of mean (w·x + b − y)² + λ/2·‖w‖², from its normal equations."""
    design = torch.cat([x, torch.ones_like(y)[:, None]], dim=1)
    hessian = 2 * design.T @ design / len(x)
    hessian.diagonal()[: None if bias_too else -1] += lam
    found = torch.linalg.solve(hessian, 2 * design.T @ y / len(x))
    return lambda rows: rows @ found[:-1] + found[-1]


def _best(model: Fit, x: Tensor, y: Tensor, n: int) -> Tensor:
    return (model(x) - y).square().argsort(stable=True)[:n].sort().values


def _ended(function: Trim, x: Tensor, y: Tensor) -> None:
    given = x.clone()
    model = function(given, y.clone(), HONEST, LAM)
    require_unchanged(given, x)
    out = model(x) if callable(model) else None
    if not isinstance(out, Tensor) or out.shape != y.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(model).__name__
        raise Wrong(
            f"the function returned {got}, want a model: x (N, d) → (N,)", "no model", "Return the fit, not its rows."
        )
    fitted = out.detach().to(y)
    kept = (fitted - y).square().argsort(stable=True)[:HONEST].sort().values
    if torch.allclose(fitted, ridge(x[kept], y[kept], LAM)(x), atol=1e-6):
        return
    seen = "the model is not the fit to the rows that it fits best"
    blame(seen, _slips(x, y, kept), lambda model: torch.allclose(fitted, model(x), atol=1e-6))
    raise Wrong(
        seen,
        "the rounds end early, or the fit is another one",
        "After a round the rows may be others than before. Then another round follows.",
        "Fit on the kept rows, take the n smallest residuals of *all* rows, and stop once they are the rows before.",
    )


def _slips(x: Tensor, y: Tensor, kept: Tensor) -> Iterator[tuple[Any, ...]]:
    """The fits of likely slips, each with its cause and hints."""
    whole = ridge(x, y, LAM)
    yield whole, "nothing is trimmed", "The fit to all rows is where it starts.", "Fit again on the rows that are kept."
    first = _best(whole, x, y, HONEST)
    yield (
        ridge(x[first], y[first], LAM),
        "one round alone",
        "The first fit was drawn by the poisons, and so was its choice of rows.",
        "while True: fit, choose; stop once the choice is the one before.",
    )
    few = _best(whole, x, y, ROWS - HONEST)
    for _ in range(100):
        before, few = few, _best(ridge(x[few], y[few], LAM), x, y, ROWS - HONEST)
        if torch.equal(before, few):
            break
    yield (
        ridge(x[few], y[few], LAM),
        "n rows are dropped, not kept",
        "n counts the rows that stay.",
        "residuals.argsort()[:n].",
    )
    worst = (whole(x) - y).square().argsort(descending=True)[:HONEST]
    yield (
        ridge(x[worst], y[worst], LAM),
        "the rows with the largest residuals are kept",
        "A poison is what does not fit.",
        "argsort() goes from small to large: take the first n.",
    )
    yield (
        ridge(x[kept], y[kept], LAM, bias_too=True),
        "the bias is penalized",
        "λ/2·‖w‖² has no b in it.",
        "Add λ to the diagonal but for the last entry.",
    )
    for factor in (0.0, 2.0, 0.5, float(HONEST), 2.0 * HONEST, 1 / HONEST, 2 / HONEST):
        yield (
            ridge(x[kept], y[kept], factor * LAM),
            f"λ is {factor:.3g} times what it should be",
            "The loss is a mean of squares, and the penalty is λ/2·‖w‖².",
            "The gradient is 2/n·Xᵀ(Xw + b − y) + λw.",
        )
