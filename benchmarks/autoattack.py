"""AutoAttack, ours beside the authors' (pyautoattack): robust accuracy and seconds on the shipped checkpoints.

    python benchmarks/autoattack.py                    both, on every checkpoint below
    python benchmarks/autoattack.py --models mnist_cnn --samples 100

The peer is not a dependency; see README.md beside this file. What it returns is judged by the model itself: inside the
box and the ball, and misclassified.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib import import_module, metadata
from types import ModuleType

import torch
from torch import Tensor, nn

from robustlab import data, models, zoo
from robustlab.attacker.victim import predict
from robustlab.evaluation import autoattack
from robustlab.geometry.norms import get_norm

INSTALL = (
    "python -m pip install --target PEERS --no-deps pyautoattack==0.2.0\n"
    "PYTHONPATH=PEERS python benchmarks/autoattack.py"
)
RADII = {
    "mnist_cnn_adv": 0.3, "mnist_cnn": 0.1, "mnist_mlp": 0.05, "mnist_resnet": 0.1,
    "fashion_cnn_adv": 0.1, "fashion_cnn": 0.03, "fashion_mlp": 0.03, "fashion_resnet": 0.03,
}  # fmt: skip  # ℓ∞, as the recipes have it
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def official() -> ModuleType | None:
    """The authors' package, if it can be imported."""
    try:
        found = import_module("pyautoattack")
    except ImportError as error:
        print(f"pyautoattack is left out ({error}). To have it beside us:\n{INSTALL}")
        return None
    if metadata.version("pyautoattack") != "0.2.0":
        print(f"pyautoattack is {metadata.version('pyautoattack')}; the published numbers are of 0.2.0")
    return found


def robust(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str, eps: float) -> float:
    """The share of samples that the model gets right, and that nothing valid has fooled."""
    valid = get_norm(norm).length(x_adv - x) <= eps * (1 + 1e-4)
    valid &= ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(dim=1)
    fooled = (predict(model, x) != y) | (valid & (predict(model, x_adv) != y))
    return float((~fooled).double().mean())


def compare(name: str, options: argparse.Namespace, peer: ModuleType | None) -> None:
    kind = "fashion" if name.startswith("fashion") else "mnist5k"
    x, y = data.load(kind).x_test[: options.samples], data.load(kind).y_test[: options.samples]
    if options.tiny:
        model = models.build("resnet_tiny" if "resnet" in name else "small_cnn").eval()
    else:
        model = zoo.load(name)
    model = model.requires_grad_(False).to(options.device)
    x, y = x.to(options.device), y.to(options.device)
    norm, eps = options.norm, options.eps or RADII[name]
    attacks = ["apgd-ce"] if options.tiny else options.attacks
    start = time.perf_counter()
    report = autoattack(model, x, y, norm=norm, eps=eps, attacks=attacks, batch_size=options.batch, seed=options.seed)
    seconds = time.perf_counter() - start
    mine = robust(model, x, y, report.x_adv, norm, eps)
    print(report.summary(), flush=True)
    line = f"{name}, {norm} {eps:g}, {len(x)} samples: ours {100 * mine:.1f} % in {seconds:.0f} s"
    if peer is not None:
        custom = {} if attacks is None else {"version": "custom", "attacks": list(attacks)}
        other = peer.AutoAttack(model, eps=eps, norm=NAMES[norm], seed=options.seed, device=options.device, **custom)
        start = time.perf_counter()
        x_adv, _ = other.run_standard_evaluation(x, y, batch_size=options.batch)
        seconds = time.perf_counter() - start
        theirs = robust(model, x, y, x_adv, norm, eps)
        line += f", official {100 * theirs:.1f} % in {seconds:.0f} s, difference {100 * (mine - theirs):+.1f} points"
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(RADII), help="checkpoints of the zoo")
    parser.add_argument("--norm", choices=list(NAMES), default="linf")
    parser.add_argument("--eps", type=float, help="default: that of the checkpoint in linf")
    parser.add_argument("--attacks", nargs="+", help="names of attacks (default: the standard version)")
    parser.add_argument("--samples", type=int, default=500, help="the first of the test part")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a smoke run: untrained models, few samples, one attack")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.samples = min(options.samples, 4)
    torch.set_num_threads(options.threads)
    if options.norm != "linf" and options.eps is None:
        parser.error("--eps: want a radius beside a norm other than linf")
    peer = official()
    for name in options.models:
        compare(name, options, peer)


if __name__ == "__main__":
    main()
