"""How many operations a step of a gradient attack dispatches, how often it waits for the host, and what it costs.

    python benchmarks/operations.py

Of a small model it is these, and not the arithmetic, that take the time, which is told over that of the floor. What a
run of one step more dispatches beyond the other is a step's, at an ε at which nobody is fooled, so that all samples
take all steps. Beside ours stand:

* the *floor*: a forward and an input-gradient backward;
* the *bare loop*: PGD in ℓ∞ that keeps the best point of each sample, counts, looks who is done, and takes for 0 what
  is not finite in a gradient: what ours does, in twenty lines;
* the peers that are installed (:mod:`peers`), whose PGD does none of the four.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import peers
import torch
from attacks import floor, in_turns, net_and_batch, ratio, setting
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from robustlab.attacks import ddn, fmn, pgd

WAITS = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero")
HARMLESS = {"eps": 1e-6, "step_size": 1e-7}  # fools nobody


class Count(TorchDispatchMode):
    """What is dispatched while this is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.all += 1
        self.waits += str(func).startswith(WAITS)
        return func(*args, **(kwargs or {}))


def of_a_step(run: Callable[[int], object], steps: int = 20) -> tuple[int, int]:
    """Operations, and waits among them, of one step of ``run(steps)``."""
    counts = []
    for k in (steps, steps + 1):
        with Count() as count:
            run(k)
        counts.append(count)
    return counts[1].all - counts[0].all, counts[1].waits - counts[0].waits


def bare(model: nn.Module, x: Tensor, y: Tensor, steps: int, eps: float, step_size: float) -> tuple[Tensor, Tensor]:
    """PGD in ℓ∞, the best points and the queries; a sample that is fooled, which would leave here, is an error."""
    points, best, low, high = x.clone(), x.clone(), (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    least, queries = torch.full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.int64)
    for _ in range(steps):
        leaf = points.detach().requires_grad_(True)
        logits = model(leaf)
        value = -F.cross_entropy(logits, y, reduction="none")
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        logits, value = logits.detach(), value.detach()
        queries += 1
        met = logits.argmax(dim=1) != y
        better = (value < least) | met
        least = torch.where(better, value, least)
        best = torch.where(better.reshape(-1, *[1] * (x.dim() - 1)), points, best)
        assert not met.any(), "a sample was fooled: the steps are to be those of all samples"
        points = torch.clamp(points - step_size * grad.nan_to_num(0.0, 0.0, 0.0).sign(), low, high)
    return best, queries


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mnist_mlp"], help="checkpoints of the zoo")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9, help="runs of 40 steps each, in turns")
    parser.add_argument("--tiny", action="store_true", help="a smoke run: an untrained model")
    options = parser.parse_args(arguments)
    for name in options.models:
        table(name, *net_and_batch(name, options.batch, "cpu", options.tiny), 1 if options.tiny else options.rounds)


def table(name: str, model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> None:
    rows: dict[str, Callable[[int], object]] = {
        "floor": lambda k: floor(model, x, y, k),
        "bare loop": lambda k: bare(model, x, y, k, **HARMLESS),
    }
    found, _ = peers.available()
    makers = {peer: peers.MAKERS[peer](package) for peer, package in found.items()}
    ours: dict[str, tuple[Callable[..., object], dict[str, float]]] = {
        "pgd linf": (partial(pgd, norm="linf"), HARMLESS), "pgd l2": (partial(pgd, norm="l2"), HARMLESS),
        "ddn l2": (ddn, {}), "fmn l2": (partial(fmn, norm="l2"), {}),
    }  # fmt: skip
    for title, (attack, settings) in ours.items():
        rows[title] = partial(lambda k, a, s: a(model, x, y, steps=k, **s), a=attack, s=settings)
        for peer, made in makers.items():
            if title in made:
                call = partial(lambda k, m, s: m(**s, steps=k)(model, x, y), m=made[title], s=settings)
                rows[f"{title}, {peer}"] = call
    base, *_ = times = in_turns([partial(run, 40) for run in rows.values()], rounds)
    print(f"a step on {name}, batch {len(x)}, {setting()}\n{'':28} operations  waits  over the floor")
    for (what, run), spent in zip(rows.items(), times, strict=True):
        operations, waits = of_a_step(run)
        print(f"{what:28} {operations:10} {waits:6} {ratio(spent, base):15.2f}", flush=True)


if __name__ == "__main__":
    main()
