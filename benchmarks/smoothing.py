"""What a certificate by randomized smoothing costs, over the forward passes that it cannot do without.

    python benchmarks/smoothing.py                        mnist_cnn, 4 images, 10,000 draws each
    python benchmarks/smoothing.py --models mnist_resnet sign_noise25 --threads 2
    PYTHONPATH=PEERS python benchmarks/smoothing.py --peer    and ART's wrapper beside it, and its training under noise

Three things run in turns (see README.md beside this file). The *floor* of n₀ + n draws is as many rows through the
model, in passes of the same length, with nothing drawn, added or counted. The *bare loop* also draws normal numbers for
each pass, by the same generator, and does nothing else: what it takes above the floor is the price of the numbers, and
what ours takes above the bare loop is its own. The *rest* is what ours takes above the floor, in ms per 1,000 draws:
it depends on the size of x and not on the model, and beside a pass of T ms per 1,000 rows the share is T/(T + rest).
Minutes for 1,000 images are those of one image times 1,000: the draws of an image depend on nothing else, so a data set
may also be split over processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from statistics import median
from typing import Any

import torch
from attacks import in_turns, keep_freed_memory, ratio
from scipy.stats import beta
from torch import Tensor, nn

from robustlab import data, fit, models, zoo
from robustlab.defenses import randomized_smoothing
from robustlab.defenses.certified.smoothing.votes import CHUNK, count_votes
from robustlab.zoo.recipes import recipe

print = partial(print, flush=True)
FIRST, ALPHA = 100, 0.001  # n0 and α


def floor(model: nn.Module, rows: Tensor, total: int) -> None:
    """The forward passes of so many rows."""
    with torch.no_grad():
        for start in range(0, total, len(rows)):
            model(rows[: total - start])


def bare(model: nn.Module, rows: Tensor, total: int) -> None:
    """Numbers and forward passes, and nothing else."""
    with torch.no_grad():
        for start in range(0, total, len(rows)):
            drawn = rows[: total - start]
            for number, part in enumerate(drawn.split(CHUNK)):
                torch.randn(part.shape, generator=torch.Generator(rows.device).manual_seed(start + number), out=part)
            model(drawn)


def of_art(model: nn.Module, x: Tensor, sigma: float, n: int, batch: int) -> Any:
    """ART's certificates, in passes of the same length. Its bound, by statsmodels, is written by SciPy here."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    class Wrapped(PyTorchRandomizedSmoothing):
        def _lower_confidence_bound(self, hits: float, total: int) -> float:
            return float(beta.ppf(self.alpha, hits, total - hits + 1)) if hits else 0.0

    classes = model(x[:1]).shape[1]
    smooth = Wrapped(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, device_type=x.device.type, sample_size=FIRST,
        scale=sigma, alpha=ALPHA,
    )  # fmt: skip
    return partial(smooth.certify, x.cpu().numpy(), n, batch_size=batch)


def by_fit(model: nn.Module, x: Tensor, y: Tensor, sigma: float) -> None:
    """One epoch under noise, ours."""
    fit(model, (x, y), epochs=1, batch_size=100, schedule="constant", augment=data.gaussian_noise(sigma))


def by_art(model: nn.Module, x: Tensor, y: Tensor, sigma: float) -> None:
    """One epoch under noise, ART's."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    smooth = PyTorchRandomizedSmoothing(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), model(x[:1]).shape[1], device_type=x.device.type,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), scale=sigma,
    )  # fmt: skip
    smooth.fit(x.cpu().numpy(), y.cpu().numpy(), batch_size=100, nb_epochs=1)


def trainings(name: str, sigma: float, device: str, rounds: int, rows: int = 2000) -> str:
    """An epoch under noise by both, of a recipe's untrained architecture, and what the networks get right under it."""
    made_by = recipe(name)
    test = data.load(made_by.dataset)
    x, y = test.x_train[:rows].to(device), test.y_train[:rows].to(device)
    untrained = models.build(made_by.builder, **made_by.builder_kwargs).to(device)
    trained: dict[Any, list[float]] = {by_fit: [], by_art: []}

    def once(by: Callable[[nn.Module, Tensor, Tensor, float], None]) -> None:
        model = deepcopy(untrained)
        by(model, x, y, sigma)
        votes = count_votes(model, test.x_test[:200].to(device), sigma=sigma, n=1)
        trained[by].append(float((votes.argmax(dim=1).cpu() == test.y_test[:200]).double().mean()))

    ours, theirs = in_turns([partial(once, by) for by in trained], rounds)
    right = "".join(f"{100 * median(shares):>12.0f}" for shares in trained.values())
    return f"{name:<16}{1000 * min(ours):>10.0f}{1000 * min(theirs):>10.0f}{ratio(theirs, ours):>12.2f}{right}"


def main() -> None:
    """One line for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mnist_cnn"], help="checkpoints of the zoo")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--draws", type=int, default=10_000, help="n; n0 is 100")
    parser.add_argument("--batch", type=int, default=CHUNK, help="rows of a pass")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer", action="store_true", help="ART's wrapper too")
    parser.add_argument("--fresh", action="store_true", help="freed memory goes back to the system, as by default")
    parser.add_argument("--tiny", action="store_true", help="a smoke run: few draws, two rounds")
    given = parser.parse_args()
    if not given.fresh:
        keep_freed_memory()
    if given.tiny:
        given.images, given.draws, given.batch, given.rounds = 2, 300, 100, 2
    torch.set_num_threads(given.threads)
    print("ms of all, and the forwards' share of the bare loop and of ours")
    print(
        f"{'model':<16}{'floor ms':>10}{'bare ms':>10}{'ours ms':>10}{'bare %':>8}{'ours %':>8}"
        f"{'rest, ms':>10}{'1,000 images, min':>19}" + f"{'ART / ours':>12}{'mean radius, both':>19}" * given.peer
    )
    for name in given.models:
        model, test = zoo.load(name).to(given.device), data.load(zoo.info(name)["dataset"])
        x = test.x_test[: given.images].to(given.device)
        rows = x[:1].expand(given.batch, *x.shape[1:]).contiguous()
        certify = partial(
            randomized_smoothing, model, x, sigma=given.sigma, n0=FIRST, n=given.draws, alpha=ALPHA,
            batch_size=given.batch,
        )  # fmt: skip
        total = given.images * (given.draws + FIRST)
        runs = [partial(floor, model, rows, total), partial(bare, model, rows, total), certify]
        if given.peer:
            runs.append(of_art(model, x, given.sigma, given.draws, given.batch))
        least, loop, ours, *theirs = in_turns(runs, given.rounds)
        minutes = min(ours) / given.images * 1000 / 60
        line = f"{name:<16}" + "".join(f"{1000 * min(times):>10.0f}" for times in (least, loop, ours))
        rest = median(1e6 * (all_ - forward) / total for all_, forward in zip(ours, least, strict=True))
        line += "".join(f"{100 / ratio(times, least):>8.0f}" for times in (loop, ours))
        line += f"{rest:>10.2f}{minutes:>19.1f}"
        if given.peer:
            line += f"{ratio(theirs[0], ours):>12.1f}{certify().radius.mean():>12.3f}{runs[-1]()[1].mean():>7.3f}"
        print(line)
    if given.peer:
        print("an epoch under noise over 2,000 samples: ms of ours and of ART's, and % right under one draw of it")
        print(f"{'model':<16}{'ours ms':>10}{'ART ms':>10}{'ART / ours':>12}{'right, ours':>12}{'ART':>12}")
        for name in given.models:
            print(trainings(name, given.sigma, given.device, given.rounds))


if __name__ == "__main__":
    main()
