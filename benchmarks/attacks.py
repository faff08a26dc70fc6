"""What our attacks cost: PGD over its floor, and attacks beside torchattacks, foolbox and adv-lib.

    python benchmarks/attacks.py floor        PGD's time over that of its forwards and backwards alone
    python benchmarks/attacks.py peers        time and strength beside other libraries, at equal settings
    python benchmarks/attacks.py minnorm      the same for the minimum-norm attacks, at equal passes
    python benchmarks/attacks.py queries      success and distance of attacks on scores and labels at equal queries

All that is compared runs in one process, in turns, after a warm-up; ratios are medians over the pairs. On one CPU
thread the clock is CPU time, which other programs disturb less than wall time. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import peers
import torch
from torch import Tensor, nn

from robustlab import data, models, zoo
from robustlab.attacker.victim import predict
from robustlab.attacks import (
    cw,
    ddn,
    deepfool,
    ead,
    fab,
    fmn,
    pgd,
    sigma_zero,
    square,
)
from robustlab.geometry.norms import get_norm
from robustlab.zoo.recipes import recipe

NETS = ("mnist_mlp", "mnist_cnn", "mnist_resnet")
TINY = {"mlp": "mlp", "resnet": "resnet_tiny"}
# glibc gives freed memory back and takes it again; whoever does so in a round pays for thousands of page faults.
# These settings keep it, for us, the floor and the peers alike.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TOP_PAD_": "67108864"}


def keep_freed_memory() -> None:
    """Start the script again under these settings, which glibc reads at its start only."""
    if sys.platform == "linux" and not MALLOC.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)


print = partial(print, flush=True)  # a table that grows line by line, in a file too


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def in_turns(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each run in each round; every round runs all of them, in alternating order."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for i in range(rounds):
        for j in range(len(runs)) if i % 2 == 0 else reversed(range(len(runs))):
            start = clock()
            runs[j]()
            times[j].append(clock() - start)
    return times


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def net_and_batch(name: str, batch: int, device: str, tiny: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """A model with frozen parameters and samples of its own data that it gets right; ``tiny``: an untrained model."""
    if tiny:
        kind = next((builder for word, builder in TINY.items() if word in name), "small_cnn")
        model = models.build(kind).eval().to(device)
    else:
        model = zoo.load(name, device)
    test = data.load(recipe(name).dataset)
    x, y = test.x_test.to(device), test.y_test.to(device)
    y = predict(model, x) if tiny else y
    right = (predict(model, x) == y).nonzero().flatten()[:batch]
    return model.requires_grad_(False), x[right].contiguous(), y[right]


def floor(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """What cannot be saved: K + 2 forwards and K input-gradient backwards."""
    with torch.no_grad():
        model(x)
        model(x)
    for _ in range(steps):
        point = x.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(model(point), y, reduction="sum")
        torch.autograd.grad(loss, point)


def floor_table(options: argparse.Namespace) -> None:
    print(f"PGD over the floor (K + 2 forwards, K input-gradient backwards), {setting()}")
    print(f"{'model':14} {'batch':>5} {'K':>3} {'norm':>5} {'floor ms':>9} {'pgd ms':>9} {'ratio':>6}")
    for name, batch in product(options.models, options.batch):
        model, x, y = net_and_batch(name, batch, options.device, options.tiny)
        for steps in (2, 3) if options.tiny else (10, 40):
            norms = ("linf", "l2")
            # So small a radius fools nobody, so every step is paid for.
            attacks = [partial(pgd, model, x, y, norm=norm, eps=1e-6, steps=steps) for norm in norms]
            for attack in attacks:
                assert bool((attack().gradients == steps).all()), "a sample was fooled, and skipped steps"
            base, *ours = in_turns([partial(floor, model, x, y, steps), *attacks], options.rounds)
            for norm, times in zip(norms, ours, strict=True):
                a, b = (1000 * statistics.median(t) for t in (base, times))
                print(
                    f"{name:14} {batch:5} {steps:3} {norm:>5} {a:9.1f} {b:9.1f} {ratio(times, base):6.3f}", flush=True
                )


def comparisons(tiny: bool) -> dict[str, tuple[dict, str, float | None, Callable]]:
    """Name → settings, norm, ε (None for minimum norm), and ours with these settings."""
    few, most = (2, 3) if tiny else (40, 200)
    linf = {"eps": 0.1, "step_size": 0.01, "steps": few}
    l2 = {"eps": 1.5, "step_size": 0.15, "steps": few}
    ask = {"eps": 0.1, "queries": 5 if tiny else 300}
    fool = {"steps": 3 if tiny else 50, "overshoot": 0.02, "candidates": 10}
    one = {"steps": most, "c": 1.0, "lr": 0.01, "search_steps": 1}
    search = {"steps": most, "c": 1e-2, "lr": 0.01, "search_steps": 2 if tiny else 6}
    return {
        "pgd linf": (linf, "linf", linf["eps"], lambda m, x, y: pgd(m, x, y, **linf).x_adv),
        "pgd l2": (l2, "l2", l2["eps"], lambda m, x, y: pgd(m, x, y, norm="l2", **l2).x_adv),
        "deepfool l2": (fool, "l2", None, lambda m, x, y: deepfool(m, x, y, **fool).x_adv),
        "square linf": (ask, "linf", ask["eps"], lambda m, x, y: square(m, x, y, **ask).x_adv),
        "cw l2, one c": (one, "l2", None, lambda m, x, y: cw(m, x, y, **one).x_adv),
        "cw l2, search": (search, "l2", None, lambda m, x, y: cw(m, x, y, **search).x_adv),
    }


def minimum_norm(tiny: bool) -> dict[str, tuple[dict, str, float | None, Callable]]:
    """As :func:`comparisons`; a step is a forward and a backward (FAB: two forwards, and a backward for each class)."""
    steps = {"steps": 3 if tiny else 100}
    few = {"steps": 2 if tiny else 20}
    fool = {"steps": 3 if tiny else 50, "overshoot": 0.02, "candidates": 10}
    search = {"steps": 3 if tiny else 200, "c": 1e-2, "lr": 0.01, "search_steps": 2 if tiny else 6}
    descent = {"steps": 3 if tiny else 200, "c": 1e-3, "lr": 0.02}

    def entry(settings: dict, norm: str, attack: Callable) -> tuple[dict, str, None, Callable]:
        return settings, norm, None, lambda m, x, y: attack(m, x, y, norm=norm, **settings).x_adv

    return {
        **{f"fab {norm}": entry(few, norm, fab) for norm in ("l1", "l2", "linf")},
        "ddn l2": entry(steps, "l2", ddn),
        **{f"fmn {norm}": entry(steps, norm, fmn) for norm in ("l0", "l1", "l2", "linf")},
        "sigma_zero l0": entry(steps, "l0", sigma_zero),
        **{f"deepfool {norm}": entry(fool, norm, deepfool) for norm in ("l2", "linf")},
        "cw l2, search": entry(search, "l2", cw),
        "cw linf": entry(descent, "linf", cw),
        "ead l1": entry(search | {"beta": 1e-2, "rule": "l1"}, "l1", ead),
    }


def strength(
    model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str, eps: float | None
) -> tuple[float, float]:
    """One judge for all: the share fooled inside the box and the ball, and the median distance with failures at ∞."""
    x_adv = x_adv.detach().to(x)
    length = get_norm(norm).length(x_adv - x)
    fooled = (predict(model, x_adv) != y) & ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(dim=1)
    if eps is not None:
        fooled &= length <= eps * (1 + 1e-4)
    median = torch.where(fooled, length, torch.inf).sort().values[len(x) // 2]
    return float(fooled.double().mean()), float(median)


def peer_table(options: argparse.Namespace, wanted: Callable) -> None:
    found, remarks = peers.available()
    for remark in remarks:
        print(remark)
    if len(found) < len(peers.WANTED):
        print(f"To have all beside us, in a folder of their own:\n{peers.INSTALL}")
    print(f"beside peers, {setting()}; time ratio below 1: we are faster")
    print(f"{'model':14} {'attack':14} {'batch':>5} {'peer':13} {'ours ms':>9} {'peer ms':>9} {'ratio':>6}  strength")
    for name, batch in product(options.models, options.batch):
        model, x, y = net_and_batch(name, batch, options.device, options.tiny)
        for title, (settings, norm, eps, ours) in wanted(options.tiny).items():
            if not title.startswith(tuple(options.attacks)):
                continue
            makers = {peer: peers.MAKERS[peer](package) for peer, package in found.items()}
            theirs = {peer: made[title](**settings) for peer, made in makers.items() if title in made}
            runs = [ours, *theirs.values()]
            times = in_turns([partial(run, model, x, y) for run in runs], options.rounds)
            marks = [strength(model, x, y, run(model, x, y), norm, eps) for run in runs]
            for i, peer in enumerate(["", *theirs]):
                own, other = (1000 * statistics.median(times[j]) for j in (0, i))
                text = f"{100 * marks[i][0]:5.1f} %" + ("" if eps else f"  {marks[i][1]:.4f}")
                if i == 0:
                    print(f"{name:14} {title:14} {batch:5} {'-':13} {own:9.1f} {'':9} {'':6}  {text}")
                else:
                    r = ratio(times[0], times[i])
                    print(
                        f"{name:14} {title:14} {batch:5} {peer:13} {own:9.1f} {other:9.1f} {r:6.3f}  {text}", flush=True
                    )


def setting() -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    return f"torch {torch.__version__}, {where}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("floor", "peers", "minnorm", "queries", "all"), default="all")
    parser.add_argument("--models", nargs="+", default=NETS, help="checkpoints of the zoo")
    parser.add_argument("--attacks", nargs="+", default=[""], help="beside peers: names that begin like this")
    parser.add_argument("--queries", type=int, nargs="+", default=[300, 1000], help="limits of attacks that ask")
    parser.add_argument("--few", type=int, default=20, help="samples that peers of the attacks that ask are given")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a smoke run: untrained models, few samples and steps")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.batch, options.rounds = [4], 1
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)  # peers draw from the global generator
    if options.part in ("floor", "all"):
        floor_table(options)
    if options.part in ("peers", "all"):
        peer_table(options, comparisons)
    if options.part in ("minnorm", "all"):
        peer_table(options, minimum_norm)
    if options.part in ("queries", "all"):
        from queries import query_table  # it takes the clock and the judge from here

        query_table(options)


if __name__ == "__main__":
    keep_freed_memory()
    main()
