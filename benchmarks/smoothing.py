"""What a certificate by randomized smoothing costs, over the forward passes that it cannot do without.

    python benchmarks/smoothing.py                        mnist_cnn, 4 images, 10,000 draws each
    python benchmarks/smoothing.py --models mnist_resnet sign_noise25 --threads 2

The floor of n₀ + n draws is as many rows through the model, in passes of the same length, with nothing drawn, added or
counted. Certificates and floor run in turns; see README.md beside it. Minutes for 1,000 images are those of one image
times 1,000: the draws of an image depend on nothing else, so a data set may also be split over processes.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from attacks import in_turns, keep_freed_memory, ratio
from torch import Tensor, nn

from robustlab import data, zoo
from robustlab.defenses import randomized_smoothing

print = partial(print, flush=True)


def floor(model: nn.Module, rows: Tensor, total: int) -> None:
    """The forward passes of so many rows."""
    with torch.no_grad():
        for start in range(0, total, len(rows)):
            model(rows[: total - start])


def main() -> None:
    """One line for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mnist_cnn"], help="checkpoints of the zoo")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--draws", type=int, default=10_000, help="n; n0 is 100")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a smoke run: few draws, two rounds")
    given = parser.parse_args()
    if given.tiny:
        given.images, given.draws, given.batch, given.rounds = 2, 300, 100, 2
    torch.set_num_threads(given.threads)
    print(f"{'model':<16}{'draws':>8}{'floor ms':>10}{'ours ms':>10}{'forwards %':>12}{'1,000 images, min':>19}")
    for name in given.models:
        model, test = zoo.load(name).to(given.device), data.load(zoo.info(name)["dataset"])
        x = test.x_test[: given.images].to(given.device)
        rows = x[:1].expand(given.batch, *x.shape[1:]).contiguous()
        certify = partial(
            randomized_smoothing, model, x, sigma=given.sigma, n0=100, n=given.draws, batch_size=given.batch
        )
        total = given.images * (given.draws + 100)
        base, ours = in_turns([partial(floor, model, rows, total), certify], given.rounds)
        least = [1000 * min(times) for times in (base, ours)]
        minutes = min(ours) / given.images * 1000 / 60
        share = 100 / ratio(ours, base)
        print(f"{name:<16}{given.draws:>8}{least[0]:>10.0f}{least[1]:>10.0f}{share:>12.0f}{minutes:>19.1f}")


if __name__ == "__main__":
    keep_freed_memory()
    main()
