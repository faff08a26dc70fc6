"""Model replacement: one client sends so large an update that the mean becomes its own model.

Bagdasaryan, Veit, Hua, Estrin and Shmatikov, "How to backdoor federated learning" (2020), equations 2 to 4 and
algorithm 1 (constrain-and-scale). Near convergence the updates of honest clients cancel, so that

    G + w·γ·(X − G) + Σ_{honest} w·δ_i ≈ X   with   γ = 1/w,

where w is the server's own factor: η/n_total in the authors' code, η/n_selected in that of others. Malicious clients of
the same round share γ. A loss that punishes the distance from G keeps X from looking strange before it is scaled, and
a bound on the sent update's norm (train-and-scale) answers a server that clips.

The backdoor may be *semantic*: inputs that have a feature by nature, such as cars with a racing stripe; no trigger.

Different here: the authors' code scales the counters of batch norm along with the weights; here they are counted, and
``scale_statistics`` says whether running means and variances are scaled. The published default α = 1 has no constraint;
here it is 0.9.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacks.backdoor.badnets import PatchTrigger
from robustlab.attacks.backdoor.trigger import stamped
from robustlab.attacks.federated.malicious_update import (
    ANOMALIES,
    Anomaly,
    MaliciousUpdate,
    MixedBatches,
    others,
    prepared,
    the_same,
)
from robustlab.data.pairs import Pairs, read_inputs
from robustlab.geometry.keyed import derive_seed
from robustlab.models.modes import evaluating
from robustlab.training.fit import fit
from robustlab.training.updates import difference

__all__ = ["model_replacement"]


def model_replacement(
    model: nn.Module,
    data: Pairs,
    *,
    target: int,
    weight: float,
    colluders: int = 1,
    trigger: nn.Module | None = None,
    semantic: Tensor | None = None,
    per_batch: int = 20,
    batch_size: int = 64,
    noise: float = 0.05,
    alpha: float = 0.9,
    anomaly: Anomaly = "l2",
    epochs: int = 6,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    lower_every: int = 2,
    stop: float = 0.0,
    bound: float | None = None,
    scale_statistics: bool = True,
    seed: int = 0,
) -> MaliciousUpdate:
    """Train the model that the attacker wants from the global one, and scale the difference up to replace it.

        X ← X − lr · ∇[α·L_class(batch with c backdoor samples) + (1 − α)·L_ano(X, G)],   X ← G at first
        δ = γ·(X − G),   γ = 1/(w·colluders)

    Args:
        model: G, the global model with logits (N, K). It is copied.
        data: the client's own: a Dataset, a pair (x, y) or a loader.
        target: the label t.
        weight: w > 0, the factor with which the server takes this update (``Turn.weight``).
        colluders: malicious clients in this round that send the same, who share γ.
        trigger: put on the client's samples of other classes; default a white square in the corner.
        semantic: (M, ...) inputs that have the backdoor's feature by nature, in the place of a trigger.
        per_batch, batch_size: c of so many samples are replaced (20 of 64 in the paper).
        noise: standard deviation of Gaussian noise on the backdoor's samples (0.05 in the paper).
        alpha: α in (0, 1]; 1 is without constraint.
        anomaly: L_ano, ``"l2"``: ‖X − G‖₂, or ``"cosine"``: 1 − cos(X, G).
        epochs, lr, momentum, weight_decay: of the descent; the paper's are 6 and 0.05.
        lower_every: after so many epochs the rate is divided by 10.
        stop: ε, training ends before an epoch once the loss on the backdoor's samples is below; 0 never does.
        bound: S, the largest norm that may be sent: γ is at most S/‖X − G‖₂ (train-and-scale). None is no bound.
        scale_statistics: whether the running statistics of batch norm are scaled as the weights are, without which the
            new model has X's weights but other statistics.
        seed: of order, draws and noise.

    Returns:
        MaliciousUpdate.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Bagdasaryan et al. (2020), equations 2 to 4 and algorithm 1.
    """
    x, y = prepared(model, data, target, weight, colluders)
    _check(alpha, anomaly, per_batch, batch_size, noise, momentum, weight_decay, lower_every, stop, bound)
    checks.at_least("epochs", epochs, 1, integer=True)
    checks.positive("lr", lr)
    if semantic is None:
        trigger = PatchTrigger().to(x.device) if trigger is None else trigger
        backdoor = stamped(trigger, others(x, y, target))
    else:
        backdoor = _semantic(semantic, trigger, model, x)
    wanted = copy.deepcopy(model)
    objective = MixedBatches(
        backdoor, target, share=per_batch / batch_size, alpha=alpha, anomaly=anomaly, reference=model, noise=noise
    )
    parameters = [p for p in wanted.parameters() if p.requires_grad]
    descent = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)  # its momentum lasts over epochs
    for epoch in range(epochs):
        if stop and _loss(wanted, backdoor, target) < stop:
            break
        rate = lr * 0.1 ** (epoch // lower_every)
        fit(
            wanted, (x, y), objective=objective, epochs=1, batch_size=batch_size, lr=rate, schedule="constant",
            optimizer=partial(the_same, descent), weight_decay=weight_decay, seed=derive_seed(seed, epoch),
        )  # fmt: skip
    delta = difference(wanted, model)
    gamma = 1 / (weight * colluders)
    if bound is not None:
        gamma = min(gamma, bound / max(delta.norm(), torch.finfo(torch.float64).tiny))
    return MaliciousUpdate(
        delta.scaled(gamma, statistics=scale_statistics), wanted, gamma, target, trigger if semantic is None else None
    )


def _loss(model: Callable[[Tensor], Tensor], backdoor: Tensor, target: int) -> float:
    """Mean cross-entropy of the backdoor's samples, in evaluation mode."""
    labels = torch.full((len(backdoor),), target, device=backdoor.device)
    with torch.no_grad(), evaluating(model):
        return float(F.cross_entropy(model(backdoor), labels))


def _semantic(semantic: Tensor, trigger: nn.Module | None, model: nn.Module, x: Tensor) -> Tensor:
    if trigger is not None:
        raise ValueError("semantic: want None beside a trigger, got both")
    found = read_inputs(semantic, "semantic")
    if not len(found) or found.shape[1:] != x.shape[1:]:
        raise ValueError(f"semantic: want inputs (M, ...) of shape {tuple(x.shape[1:])}, got {tuple(found.shape)}")
    checks.at_home(model, found, "semantic")
    return found


def _check(
    alpha: float, anomaly: str, per_batch: int, batch_size: int, noise: float, momentum: float, weight_decay: float,
    lower_every: int, stop: float, bound: float | None,
) -> None:  # fmt: skip
    checks.positive("alpha", alpha)
    checks.at_most("alpha", alpha, 1)
    checks.one_of("anomaly", anomaly, ANOMALIES)
    checks.at_least("batch_size", batch_size, 1, integer=True)
    checks.at_least("per_batch", per_batch, 1, integer=True)
    checks.at_most("per_batch", per_batch, batch_size)
    for name, value in (("noise", noise), ("momentum", momentum), ("weight_decay", weight_decay), ("stop", stop)):
        checks.not_negative(name, value)
    checks.at_least("lower_every", lower_every, 1, integer=True)
    if bound is not None:
        checks.positive("bound", bound)
