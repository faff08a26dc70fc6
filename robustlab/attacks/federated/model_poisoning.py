"""Model poisoning by boosting: a client makes one chosen input be misread, and hides in what an honest one would send.

Bhagoji, Chakraborty, Mittal and Calo, "Analyzing federated learning through an adversarial lens" (2019), sections 3 and
4. The server takes the update with a factor w, so the attacker multiplies its own by λ = 1/w (*explicit boosting*). A
boosted update of the malicious aim alone ruins the accuracy and looks like no other. So one may minimize all at once,

    ℓ(f_θ(x_t), t) + ℓ(f_θ(D)) + ρ‖δ − δ̄‖₂,         δ̄: what honest clients sent in the round before

and boost the outcome (*stealthy*), or minimize by turns (*alternating minimization*): a boosted step for the malicious
aim, taken only while its loss is positive, then ten steps for the other two terms, which are not boosted. Nothing is
boosted after that. Adam does not care how large a loss is: where the net fits D already, the distance alone steers
those ten steps, however small ρ is, and takes the boosted step back.

The authors' code goes the other way round: ten steps for the other two terms, then the boosted one, so that what is
sent ends with it (``first="benign"``). Its distance is another one, too, ρ/2·‖δ − δ̄‖₂² of the weights alone, and with
the settings of the paper's run δ̄ is what honest training of the client's own data gives in that round.

Different here: the malicious loss is taken in evaluation mode, in which the global model will be asked. Which
parameters are boosted follows from their names and layers: the weights of linear and convolutional layers, neither
biases nor what normalization layers have. The authors' code takes every second one, which is right only where each
layer has both.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacks.federated.malicious_update import MaliciousUpdate, prepared, the_same
from robustlab.data.pairs import Pairs, read_inputs
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.models.modes import evaluating
from robustlab.training.fit import fit
from robustlab.training.updates import Delta, difference

__all__ = ["boosted_names", "model_poisoning"]

Strategy = Literal["boosting", "stealthy", "alternating"]
First = Literal["malicious", "benign"]
STRATEGIES = get_args(Strategy)
FIRSTS = get_args(First)


def model_poisoning(
    model: nn.Module,
    data: Pairs,
    x_target: Tensor,
    *,
    target: int,
    weight: float,
    strategy: Strategy = "alternating",
    steps: int = 10,
    benign_steps: int = 10,
    batch_size: int = 100,
    lr: float = 1e-3,
    rho: float = 1e-4,
    reference: Delta | None = None,
    boosted: Collection[str] | None = None,
    first: First = "malicious",
    seed: int = 0,
) -> MaliciousUpdate:
    """Train for one chosen input, boost what comes of it by λ = 1/w, and stay close to what honest clients send.

        "alternating", `steps` times:
            θ ← θ + λ·Adam step on ℓ(f_θ(x_t), t)           where this is positive; λ for boosted names alone
            θ ← θ + Adam step on ℓ(f_θ(D)) + ρ‖δ − δ̄‖₂      `benign_steps` times,  δ = θ − G

    Args:
        model: G, the global model with logits (N, K). It is copied.
        data: the client's own D: a Dataset, a pair (x, y) or a loader.
        x_target: (r, ...), the inputs to be misread; one in the paper.
        target: the label t that they are to get.
        weight: w > 0, the factor with which the server takes this update (``Turn.weight``).
        strategy: ``"alternating"``; ``"stealthy"`` minimizes the sum in steps·benign_steps steps and multiplies the
            outcome by λ; ``"boosting"`` takes `steps` steps on the malicious loss alone and does the same.
        steps: malicious ones.
        benign_steps: after each of them, 10 in the paper.
        batch_size, lr: of the descent by Adam, which starts anew in each round.
        rho: ρ ≥ 0, the weight of the distance (1e-4 in the paper).
        reference: δ̄, the mean update of the honest clients in the round before, as far as the attacker knows it
            (``Turn.previous``); None takes 0.
        boosted: names of the parameters that are boosted; None is :func:`boosted_names`.
        first: by turns, which step a turn begins with: ``"malicious"`` in the paper, ``"benign"`` in the authors' code.
        seed: of the batches.

    Returns:
        MaliciousUpdate, whose ``model`` is θ: G + δ as it is sent by turns, else before boosting.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work, such as names that the model does not have.

    Source:
        Bhagoji et al. (2019), sections 3.2, 4.2 and 4.3.
    """
    x, y = prepared(model, data, target, weight, 1)
    chosen = _inputs(x_target, model, x)
    names = _checked(model, strategy, steps, benign_steps, batch_size, rho, reference, boosted)
    checks.one_of("first", first, FIRSTS)
    checks.positive("lr", lr)
    local, gamma = copy.deepcopy(model), 1 / weight
    malicious = torch.optim.Adam([p for p in local.parameters() if p.requires_grad], lr=lr)
    descent = torch.optim.Adam([p for p in local.parameters() if p.requires_grad], lr=lr)
    stealth = _Stealth(model, chosen, target, reference, rho, strategy == "stealthy")
    factor = gamma if strategy == "alternating" else 1.0
    for step in range(steps):
        for part in FIRSTS if first == "malicious" else FIRSTS[::-1]:
            if part == "malicious" and strategy != "stealthy":
                _malicious_step(local, chosen, target, malicious, names, factor)
            if part == "benign" and strategy != "boosting":
                rows = _rows(len(x), benign_steps * batch_size, derive_seed(seed, step), x.device)
                fit(
                    local, (x[rows], y[rows]), objective=stealth, epochs=1, batch_size=batch_size, lr=lr,
                    schedule="constant", optimizer=partial(the_same, descent), seed=derive_seed(seed, step),
                )  # fmt: skip
    delta = difference(local, model)
    if strategy != "alternating":
        grown = {name: value * (gamma if name in names else 1.0) for name, value in delta.parameters.items()}
        delta = Delta(grown, delta.statistics, delta.counters)
    return MaliciousUpdate(delta, local, gamma, target)


def boosted_names(model: nn.Module) -> frozenset[str]:
    """The parameters called ``weight`` of layers that are no normalization: matrices and kernels, of two dimensions up.

    Args:
        model: any module.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    return frozenset(name for name, p in named.items() if name.rpartition(".")[2] == "weight" and p.dim() >= 2)


def _malicious_step(
    local: nn.Module, chosen: Tensor, target: int, adam: torch.optim.Optimizer, names: Collection[str], factor: float
) -> None:
    """θ ← θ + factor · Adam step on the malicious loss, of the boosted names; the others take the plain step."""
    labels = torch.full((len(chosen),), target, device=chosen.device)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(local, freeze=False):
        loss = F.cross_entropy(local(chosen), labels)
        if float(loss.detach()) <= 0:
            return
        adam.zero_grad(set_to_none=True)
        loss.backward()
    before = {name: p.detach().clone() for name, p in local.named_parameters()}
    adam.step()
    adam.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, p in local.named_parameters():
            if name in names:
                p.copy_(before[name] + factor * (p - before[name]))


class _Stealth:
    """ℓ(f_θ(D)) + ρ‖δ − δ̄‖₂, and for the whole sum + ℓ(f_θ(x_t), t), as an objective for fit."""

    takes_labels = True

    def __init__(
        self, model: nn.Module, chosen: Tensor, target: int, reference: Delta | None, rho: float, whole: bool
    ) -> None:
        self.chosen, self.rho, self.whole = chosen, rho, whole
        self.labels = torch.full((len(chosen),), target, device=chosen.device)
        self.origin = {
            name: (p.detach().double() + (0 if reference is None else reference.parameters[name].to(p.device))).to(p)
            for name, p in model.named_parameters()
        }

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        if self.rho:
            far = torch.cat([(p - self.origin[name]).flatten() for name, p in model.named_parameters()])
            loss = loss + self.rho * torch.linalg.vector_norm(far)
        if self.whole:
            with evaluating(model, freeze=False):
                loss = loss + F.cross_entropy(model(self.chosen), self.labels)
        return loss


def _rows(n: int, wanted: int, seed: int, device: torch.device) -> Tensor:
    """So many rows in a random order, all once before any comes twice."""
    passes = -(-wanted // n)
    return Noise(seed, torch.arange(passes, device=device)).permutation(0, n).flatten()[:wanted]


def _inputs(x_target: Tensor, model: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(x_target, Tensor):
        raise TypeError(f"x_target: want a torch.Tensor, got {type(x_target).__name__}")
    chosen = read_inputs(x_target, "x_target")
    if not len(chosen) or chosen.shape[1:] != x.shape[1:]:
        raise ValueError(f"x_target: want inputs (r, ...) of shape {tuple(x.shape[1:])}, got {tuple(chosen.shape)}")
    checks.at_home(model, chosen, "x_target")
    return chosen


def _checked(
    model: nn.Module, strategy: str, steps: int, benign_steps: int, batch_size: int, rho: float,
    reference: Delta | None, boosted: Collection[str] | None,
) -> frozenset[str]:  # fmt: skip
    checks.one_of("strategy", strategy, STRATEGIES)
    for name, value in (("steps", steps), ("benign_steps", benign_steps), ("batch_size", batch_size)):
        checks.at_least(name, value, 1, integer=True)
    checks.not_negative("rho", rho)
    own = {name for name, _ in model.named_parameters()}
    if reference is not None and not own <= set(reference.parameters):
        raise ValueError("reference: want an update of this model, got other names")
    names = boosted_names(model) if boosted is None else frozenset(boosted)
    strangers = sorted(names - own)
    if strangers or not names:
        raise ValueError(f"boosted: want names of the model's parameters, got {strangers[:5] or 'none'}")
    return names
