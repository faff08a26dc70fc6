"""What a step of adversarial training costs, over the passes that it cannot do without, and one for certificates.

    python benchmarks/training.py                  mnist_cnn's architecture, K = 5 and 10, ℓ∞ and ℓ2
    python benchmarks/training.py --models mnist_resnet --steps 7 --batch 250

The floor of a step with PGD-K is K forward and input-gradient passes with frozen parameters, and one training pass:
forward, gradient of the parameters, and the optimizer's step. Step and floor run in turns; see README.md beside it.
Below stand steps of trainings for certificates over a plain step, in turns too; that on intervals aims at 3.3.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from attacks import in_turns, keep_freed_memory, ratio
from torch import Tensor, nn

from robustlab import data, models
from robustlab.defenses import adversarial_training, crown_ibp, ibp_training, singleprop
from robustlab.defenses.training.worst_case import WorstCase
from robustlab.zoo.recipes import recipe

EPS = {"linf": 0.1, "l2": 1.0}
CERTIFIED: dict[str, Callable[..., WorstCase]] = {
    "ibp_training": ibp_training, "crown_ibp": partial(crown_ibp, beta=0.5), "singleprop": singleprop,
}  # fmt: skip

print = partial(print, flush=True)


def floor(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int) -> None:
    """The passes alone."""
    model.requires_grad_(False)
    for _ in range(steps):
        point = x.detach().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
    model.requires_grad_(True)
    descend(optimizer, F.cross_entropy(model(x), y))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int, norm: str) -> None:
    """What fit does with a batch."""
    objective = adversarial_training(norm=norm, eps=EPS[norm], steps=steps)  # type: ignore[arg-type]
    descend(optimizer, objective(model, x, y, ids=torch.arange(len(x), device=x.device), seed=0))


def for_certificates(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, objective: WorstCase
) -> None:
    """What fit does with a batch, in the middle of the growth where both terms of the loss are computed."""
    objective.set_progress(0.4)
    descend(optimizer, objective(model, x, y, ids=torch.arange(len(x), device=x.device), seed=0))


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One forward, the gradient of the parameters, and the optimizer's step."""
    descend(optimizer, F.cross_entropy(model(x), y))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def prepared(name: str, batch: int, device: str) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    """A recipe's untrained architecture, its optimizer and a batch."""
    made_by = recipe(name)
    loaded = data.load(made_by.dataset)
    model = models.build(made_by.builder, **made_by.builder_kwargs).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    return model, optimizer, loaded.x_train[:batch].to(device), loaded.y_train[:batch].to(device)


def main() -> None:
    """One line for each model, K and norm, and one for each model and training for certificates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mnist_cnn"], help="recipes whose architectures are trained")
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 10], help="K")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a smoke run: small batches, two rounds")
    given = parser.parse_args()
    if given.tiny:
        given.batch, given.rounds, given.steps = 8, 2, [2]
    torch.set_num_threads(given.threads)
    print(f"{'model':<16}{'K':>4} {'norm':<6}{'floor ms':>10}{'step ms':>10}{'ratio':>8}")
    for name, steps, norm in product(given.models, given.steps, EPS):
        model, optimizer, x, y = prepared(name, given.batch, given.device)
        base, ours = in_turns(
            [
                partial(floor, model, optimizer, x, y, steps),
                partial(step, model, optimizer, x, y, steps, norm),
            ],
            given.rounds,
        )
        least = [1000 * min(times) for times in (base, ours)]
        print(f"{name:<16}{steps:>4} {norm:<6}{least[0]:>10.1f}{least[1]:>10.1f}{ratio(ours, base):>8.2f}")
    print(f"{'model':<16}{'objective':<14}{'plain ms':>10}{'step ms':>10}{'ratio':>8}")
    for name, objective in product(given.models, CERTIFIED):
        model, optimizer, x, y = prepared(name, given.batch, given.device)
        trained = CERTIFIED[objective](eps=EPS["linf"])
        base, ours = in_turns(
            [partial(plain, model, optimizer, x, y), partial(for_certificates, model, optimizer, x, y, trained)],
            given.rounds,
        )
        least = [1000 * min(times) for times in (base, ours)]
        print(f"{name:<16}{objective:<14}{least[0]:>10.1f}{least[1]:>10.1f}{ratio(ours, base):>8.2f}")


if __name__ == "__main__":
    keep_freed_memory()
    main()
