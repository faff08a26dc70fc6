"""TRIM: linear regression on the rows that fit best.

Jagielski, Oprea, Biggio, Liu, Nita-Rotaru and Li, "Manipulating machine learning: Poisoning attacks and countermeasures
for regression learning" (2018), Algorithm 2. Of N rows, n are thought to be clean; find them together with the model:

    minimize over θ and I ⊂ {1 … N}, |I| = n   L(θ; I) = 1/n Σ_{i∈I} (w·x_i + b − y_i)² + λ Ω(w)

by turns: given I, fit θ; given θ, take the n smallest residuals. Neither step can raise L, and there are finitely many
I. The end is a local minimum, so the start matters: the paper begins with a random subset, its published code with all
rows. On the diabetes table both keep most or all of the optimized poisons where these are a sixth of the rows or more;
many small random starts do not. A note in the paper's preprint, arXiv:1804.00308, says that a bug had made a prior
version's results for TRIM too good.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.results import Detection
from robustlab.data.pairs import Pairs, read_pair
from robustlab.geometry.keyed import Noise
from robustlab.models.linear import PENALTIES, LinearModel, Penalty, fit_linear, regularizer, table

MAX_TURNS = 1000


def trim(
    data: Pairs,
    *,
    n_clean: int,
    penalty: Penalty = "ridge",
    lam: float = 1e-3,
    init: Literal["random", "all"] = "random",
    restarts: int = 1,
    start_rows: int | None = None,
    seed: int = 0,
) -> tuple[LinearModel, Detection[dict[str, tuple[float, ...]]]]:
    """Fit a ridge or LASSO model to the n rows of a poisoned table that it fits best.

        I ← the n smallest (w·x_i + b − y_i)²,   (w, b) ← argmin L(w, b; I),   until L stays

    Args:
        data: a pair (x, y): features (N, d) and responses (N,).
        n_clean: n, how many rows are thought to be clean, 1 to N. The method has to be told.
        penalty: ``"ridge"`` or ``"lasso"``; see :func:`robustlab.models.linear.fit_linear`.
        lam: λ, above 0.
        init: the first fit is to ``"random"`` rows drawn evenly (as in the paper) or to ``"all"`` (as in its code).
        restarts: how many random starts; the end with the smallest L counts. Default 1, as in the paper.
        start_rows: number of rows in a random start; None takes n_clean, as in the paper. Where many rows are poisoned,
            a start of n_clean rows holds its share of them for sure, and one of few rows now and then none.
        seed: of the starts.

    Returns:
        The model, and a :class:`~robustlab.attacker.results.Detection` whose scores are the squared residuals and which
        flags the N − n rows that were left out; ``details["objective"]`` holds L after each turn.

    Raises:
        ValueError, TypeError: for an argument out of its range, before any work.

    Source:
        Jagielski et al. (2018), Algorithm 2. Departure: the options of several and of small starts.
    """
    x, y = read_pair(data)
    table(x, y)
    checks.at_least("n_clean", n_clean, 1, integer=True)
    if n_clean > len(x):
        raise ValueError(f"n_clean: want at most {len(x)} rows, got {n_clean}")
    checks.one_of("penalty", penalty, PENALTIES)
    checks.positive("lam", lam)
    checks.one_of("init", init, ("random", "all"))
    checks.at_least("restarts", restarts, 1, integer=True)
    size = n_clean if start_rows is None else start_rows
    checks.at_least("start_rows", size, 1, integer=True)
    if size > len(x):
        raise ValueError(f"start_rows: want at most {len(x)} rows, got {size}")
    noise = Noise(seed, torch.arange(restarts, device=x.device))
    starts = noise.permutation(0, len(x))[:, :size] if init == "random" else torch.arange(len(x))[None].to(x.device)
    runs = [_descend(x, y, kept, n_clean, penalty, lam) for kept in starts]
    model, kept, objective = min(runs, key=lambda run: run[2][-1])
    scores = (model(x) - y).square()
    flagged = torch.ones(len(x), dtype=torch.bool, device=x.device).index_fill(0, kept, False)
    return model, Detection(scores, flagged, float(scores[kept].max()), {"objective": objective})


def _descend(
    x: Tensor, y: Tensor, kept: Tensor, n: int, penalty: Penalty, lam: float
) -> tuple[LinearModel, Tensor, tuple[float, ...]]:
    """Turns until the subset or L stays: the model, its subset, and L after each turn."""
    objective: list[float] = []
    model = fit_linear(x[kept], y[kept], penalty=penalty, lam=lam)
    for _ in range(MAX_TURNS):
        before = kept
        kept = (model(x) - y).square().argsort(stable=True)[:n].sort().values
        model = fit_linear(x[kept], y[kept], penalty=penalty, lam=lam)
        loss = (model(x[kept]) - y[kept]).square().mean() + lam * regularizer(model, penalty)
        objective.append(float(loss))
        if torch.equal(kept, before) or (len(objective) > 1 and objective[-1] >= objective[-2]):
            break
    else:
        checks.warn(f"trim: rows and model have not come to rest after {MAX_TURNS} turns")
    return model, kept, tuple(objective)
