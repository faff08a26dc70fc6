"""What the attacks on federated learning share: the update that is sent, and training on batches with a backdoor.

A malicious client takes an honest one's place: it gets the global model and its own data, and answers with an update.
:class:`robustlab.training.clients.Turn` tells it the server's factor, from which γ follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Result
from robustlab.attacks.backdoor.evaluate_backdoor import evaluate_backdoor
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.models.probing import count_outputs
from robustlab.training.updates import Delta

__all__ = ["MaliciousUpdate", "watch_backdoor"]

Anomaly = Literal["l2", "cosine"]
ANOMALIES = get_args(Anomaly)


@dataclass(frozen=True, eq=False, repr=False)
class MaliciousUpdate(Result):
    """What a malicious client sends, and what stays with it.

    Attributes:
        delta: sent to the server.
        model: X, the model that the attacker wants; without scaling.
        gamma: γ, by which X − G was multiplied.
        target: the label t.
        trigger: with which the backdoor is woken; None for one without a trigger.
    """

    delta: Delta
    model: nn.Module
    gamma: float
    target: int
    trigger: nn.Module | None = None


def watch_backdoor(
    test: Pairs, trigger: nn.Module, target: int
) -> Callable[[int, nn.Module], dict[Literal["main", "backdoor"], float]]:
    """For ``on_round`` of a simulation: main accuracy, and backdoor accuracy without images of the target class.

    Args:
        test: a Dataset, whose test part is used, or a pair (x, y).
        trigger: the whole one, also where each client knows a part.
        target: the label t.

    Returns:
        A function of (round, model) to ``{"main": …, "backdoor": …}``.
    """

    def watch(number: int, model: nn.Module) -> dict[Literal["main", "backdoor"], float]:
        report = evaluate_backdoor(model, test, trigger, target)
        return {"main": float(report.clean_accuracy), "backdoor": float(report.attack_success)}

    return watch


class MixedBatches:
    """An objective for ``fit``: some samples of each batch give way to samples with the backdoor.

        α · L_class(batch, c of it replaced) + (1 − α) · L_ano(θ, G)

    Args:
        backdoor: (M, ...) inputs that are to get the label ``target``.
        target: t.
        share: c over the batch size, in (0, 1].
        alpha: α in (0, 1]; 1 leaves the anomaly term out.
        anomaly: ``"l2"``, ‖θ − G‖₂, or ``"cosine"``, 1 − cos(θ, G).
        reference: G, whose parameters are copied; needed below α = 1.
        noise: standard deviation of Gaussian noise on the backdoor's inputs, kept within their range.
    """

    takes_labels = True

    def __init__(
        self, backdoor: Tensor, target: int, *, share: float, alpha: float = 1.0, anomaly: Anomaly = "l2",
        reference: nn.Module | None = None, noise: float = 0.0,
    ) -> None:  # fmt: skip
        self.backdoor, self.target, self.share, self.noise = backdoor, target, share, noise
        self.alpha, self.anomaly = alpha, anomaly
        self.reference = None if reference is None else flat_parameters(reference).detach().clone()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The loss of a batch."""
        count = min(len(x), max(1, round(self.share * len(x))))
        draws = Noise(seed, torch.arange(count, device=x.device))
        placed = self.backdoor[draws.integers(0, (), len(self.backdoor))]
        if self.noise:
            low, high = torch.aminmax(self.backdoor)
            drawn = draws.normal(1, placed.shape[1:], placed.dtype)
            placed = (placed + self.noise * drawn).clamp(low, high)
        # The batch comes in a random order, so that its first samples are as good as any.
        mixed = torch.cat([placed, x[count:]])
        labels = torch.cat([torch.full_like(y[:count], self.target), y[count:]])
        loss = F.cross_entropy(model(mixed), labels)
        if self.reference is None or self.alpha == 1:
            return loss
        return self.alpha * loss + (1 - self.alpha) * anomaly(flat_parameters(model), self.reference, self.anomaly)


def anomaly(theta: Tensor, reference: Tensor, kind: Anomaly) -> Tensor:
    """How far parameters (d,) are from others: ‖θ − G‖₂, whose slope at 0 is taken as 0, or 1 − cos(θ, G)."""
    if kind == "l2":
        return torch.linalg.vector_norm(theta - reference)
    return 1 - F.cosine_similarity(theta, reference, dim=0)


def flat_parameters(model: nn.Module) -> Tensor:
    """All parameters as one vector (d,), differentiable."""
    return torch.cat([p.flatten() for p in model.parameters()])


def prepared(model: nn.Module, data: Pairs, target: int, weight: float, colluders: int) -> tuple[Tensor, Tensor]:
    """The checked data of a malicious client.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    x, y = read_labeled(data)
    checks.at_home(model, x, "data")
    checks.at_least("target", target, 0, integer=True)
    checks.positive("weight", weight)
    checks.at_least("colluders", colluders, 1, integer=True)
    classes = count_outputs(model, x)
    checks.in_classes("y", y, classes)
    checks.in_classes("target", torch.tensor([target]), classes)
    return x, y


def others(x: Tensor, y: Tensor, target: int) -> Tensor:
    """The client's samples of other classes than the target's, which are to get a trigger.

    Raises:
        ValueError: if there are none.
    """
    found = x[y != target]
    if not len(found):
        raise ValueError(f"data: want samples of other classes than the target, {target}, got none")
    return found


def the_same(optimizer: torch.optim.Optimizer, *given: Any, **named: Any) -> torch.optim.Optimizer:
    """For ``fit``, which asks for an optimizer: the one there is, with its momentum."""
    return optimizer
