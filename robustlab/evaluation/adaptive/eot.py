"""Expectation over transformation: attack a random defense through the average of its draws.

Athalye, Engstrom, Ilyas and Kwok, "Synthesizing robust adversarial examples" (2018), equation (2), look for a point
that is adversarial under a distribution T of transformations; Athalye, Carlini and Wagner, "Obfuscated gradients give
a false sense of security" (2018), section 4.2, turn that against defenses that draw t ~ T at each prediction. With
probabilities p = softmax(z):

    "probs"      log E_t[ p(t(x)) ]     the expected output of the randomized classifier (obfuscated gradients)
    "logprobs"   E_t[ log p(t(x)) ]     the expected log-likelihood (synthesizing)
    "logits"     E_t[ z(t(x)) ]         common in code, in neither paper: one confident draw can outvote the others

As ∇ E_t[·] = E_t[∇ ·], the gradient of the average is the average gradient. With "logprobs" and the attacker's loss
``log_likelihood`` an attack climbs the expected log-likelihood exactly; cross-entropy would normalize it once more.

Different here: the draws are fixed by a seed, so that the averaged model is a function, which can be asked twice. Each
step of an attack then sees the same draws, and not new ones as in the papers. Judge the result on draws of another
seed; and as an attack that stops at its first success stops where the average just tips over, let it take all its
steps, as :func:`robustlab.attacks.whitebox.pgd.pgd_maximize` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.losses import log_mean_probabilities
from robustlab.geometry.keyed import derive_seed

Average = Literal["logits", "logprobs", "probs"]
Transform = Callable[[Tensor], Tensor]


class Averaged(nn.Module):
    """What :func:`robustlab.evaluation.eot` returns: a model's outputs, averaged over transformations of its input."""

    def __init__(
        self, model: Callable[[Tensor], Tensor], transforms: Transform | Sequence[Transform] | None, samples: int,
        seed: int, average: Average,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.samples, self.seed, self.average = model, samples, seed, average
        self.family = tuple(transforms) if isinstance(transforms, Sequence) else None
        self.transform = None if isinstance(transforms, Sequence) else transforms
        if self.family is not None:  # .to() and .eval() are to reach the modules among them
            self.modules_of_family = nn.ModuleList(t for t in self.family if isinstance(t, nn.Module))

    def draws(self, x: Tensor) -> list[Tensor]:
        """The model's logits under each transformation, each (N, K)."""
        if self.family is not None:
            return [self.model(transform(x)) for transform in self.family]
        outputs = []
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            for draw in range(self.samples):
                torch.manual_seed(derive_seed(self.seed, draw))
                outputs.append(self.model(x if self.transform is None else self.transform(x)))
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack(self.draws(x))
        if self.average == "logits":
            return logits.mean(dim=0)
        if self.average == "logprobs":
            return logits.log_softmax(dim=2).mean(dim=0)
        return log_mean_probabilities(logits, dim=0)


def eot(
    model: Callable[[Tensor], Tensor],
    transforms: Transform | Sequence[Transform] | None = None,
    *,
    samples: int = 10,
    seed: int = 0,
    average: Average = "probs",
) -> Averaged:
    """Average a model over transformations of its input, as logits that any attack can work on.

        z(x) = log( 1/S Σ_s softmax(model(t_s(x))) ),   t_1 … t_S ~ T

    Args:
        model: from (N, ...) to logits (N, K). If it holds random layers itself, ``transforms`` may be None. Layers that
            are random in training mode only need ``Victim(..., mode="asis")``.
        transforms: one random transformation, which draws from torch's global generator; or a sequence of fixed ones,
            all of which are averaged with equal weight: the exact expectation over a finite family; or None.
        samples: S ≥ 1, draws of a random transformation; default 10. A sequence ignores it.
        seed: of the draws; the global generator is left as it was. The same seed gives the same function. If a
            transformation draws numbers for each row, what happens to a sample depends on its place in the batch; if it
            draws once for the batch, it does not.
        average: ``"probs"`` (default), ``"logprobs"`` or ``"logits"``; see the top of this module.

    Returns:
        A module (N, ...) → (N, K). One query of it costs S forward rows of ``model``, one gradient S gradients.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it.

    Source:
        Athalye, Engstrom et al. (2018), equation (2); Athalye, Carlini and Wagner (2018), section 4.2. Departure: the
        draws stay the same from step to step.
    """
    if not callable(model):
        raise TypeError(f"model: want a callable, got {type(model).__name__}")
    parts = transforms if isinstance(transforms, Sequence) else [] if transforms is None else [transforms]
    if isinstance(transforms, Sequence) and not transforms:
        raise ValueError("transforms: want at least one, got none")
    for part in parts:
        if not callable(part):
            raise TypeError(f"transforms: want callables, got {type(part).__name__}")
    checks.at_least("samples", samples, 1, integer=True)
    checks.one_of("average", average, ("logits", "logprobs", "probs"))
    return Averaged(model, transforms, samples, int(seed), average)


def log_likelihood(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """An attacker's loss for ``average="logprobs"``: E log p(y), or −E log p(target), without normalizing again.

    Args:
        logits: (N, K), expected log-probabilities.
        y: (N,) labels.
        target: (N,) labels for a targeted attack, or None.
        kappa: plays no part.

    Returns:
        (N,), to be minimized. Source: Athalye, Engstrom et al. (2018), equation (2).
    """
    if target is None:
        return logits.gather(1, y[:, None]).squeeze(1)
    return -logits.gather(1, target[:, None]).squeeze(1)
