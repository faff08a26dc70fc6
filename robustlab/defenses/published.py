"""Four published defenses that adaptive attacks broke, built after their papers on small nets for digits.

They stand beside the gallery of :mod:`robustlab.defenses.broken`, whose eight are made up.

    activation_pruning    Dhillon et al. (2018): activations are drawn anew at each prediction;
                          broken by Athalye, Carlini and Wagner (2018) with EOT
    distillation          Papernot et al. (2016): a net learns another one's probabilities at a high temperature,
                          so that its own are saturated; broken by Carlini and Wagner (2017) at the logits
    mixup_inference       Pang, Xu and Zhu (2020): predicts on mixtures with images of other classes;
                          broken by Tramèr et al. (2020), and here with EOT
    thermometer           Buckman et al. (2018): pixels become bits, whose derivative is zero;
                          broken by Athalye, Carlini and Wagner (2018) with BPDA

Different here: nets of a few thousand weights and digits stand for ResNets and CIFAR-10 (distillation was tried on
digits in its paper too), none of them was trained on adversarial examples, and the attack behind each claim is plain
PGD. Buckman et al. climbed in the space of the codes (LS-PGA) instead; Dhillon et al. tried several attacks; Papernot
et al. changed few pixels by the Jacobian. So our claims are our imagined authors', made with their defense, and not the
numbers that the papers print. How the nets are trained: :mod:`robustlab.defenses.published_training`.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacker.losses import log_mean_probabilities
from robustlab.attacks.whitebox.pgd import pgd
from robustlab.data import load
from robustlab.defenses.broken import Broken, measured

_STEPS = 20


class ActivationPruning(nn.Module):
    """Draw a sample's activations with replacement, in proportion to their size, and keep those that were drawn.

        p_j = |h_j| / Σ|h|,   keep h_j / (1 − (1 − p_j)^r) if j is among r draws, else 0

    The division makes the result unbiased. r = ⌈share · n⌉ for n activations; the paper's "SAP-100" is share = 1. An
    activation is among r draws with the probability 1 − (1 − p_j)^r. All draws come from torch's global generator.

    Source: Dhillon et al. (2018), Algorithm 1.
    """

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def forward(self, h: Tensor) -> Tensor:
        flat = h.flatten(1)
        size = flat.detach().abs()
        p = size / size.sum(dim=1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
        draws = max(1, -int(-self.share * flat.shape[1] // 1))  # rounded up
        silent = size.sum(dim=1, keepdim=True) == 0  # a layer without activations has nothing to draw from
        drawn = torch.multinomial(p + silent, draws, replacement=True)
        kept = torch.zeros_like(p).scatter_(1, drawn, 1.0)
        chance = -torch.expm1(draws * torch.log1p(-p))  # p near 0 would round to no chance at all
        return (flat * kept / chance.where(kept > 0, 1.0).where(~silent, 1.0)).view_as(h)


class MixupInference(nn.Module):
    """The mean prediction on mixtures of x with images of classes other than the predicted one (MI-OL).

        log( 1/M Σ_m softmax f(λ x + (1 − λ) s_m) ),   s_m drawn from the samples with a label ≠ argmax f(x)

    The mixing shrinks a perturbation by λ, and images of other classes pull away from the predicted one.

    Args:
        net: f, a classifier with logits (N, K).
        pool: (P, ...) clean images to mix with; drawn by torch's global generator.
        labels: (P,) their labels, at least two different ones.
        weight: λ (default 0.5, as in its authors' code).
        mixtures: M (default 30, as in the paper).

    Source: Pang, Xu and Zhu (2020), Algorithm 1 with other labels; f is to be trained by mixup. Their code draws a
    class first and then an image of it; here all images of other classes are equally likely.
    """

    def __init__(
        self, net: nn.Module, pool: Tensor, labels: Tensor, *, weight: float = 0.5, mixtures: int = 30
    ) -> None:
        super().__init__()
        self.net, self.weight, self.mixtures = net, weight, mixtures
        self.pool: Tensor
        self.labels: Tensor
        self.register_buffer("pool", pool)
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            other = self.labels[None] != self.net(x).argmax(dim=1)[:, None]
        drawn = torch.multinomial(other.to(x.dtype), self.mixtures, replacement=True)
        mixed = self.weight * x[:, None] + (1 - self.weight) * self.pool[drawn]
        return log_mean_probabilities(self.net(mixed.flatten(0, 1)).view(len(x), self.mixtures, -1), dim=1)


def network_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """PGD on the network inside of mixup inference, as its authors' oblivious attacker does."""
    return pgd(model.net, x, y, eps=eps, steps=_STEPS).x_adv  # type: ignore[arg-type]


def published(x: Tensor, y: Tensor, *, eps: float = 0.2) -> dict[str, Broken]:
    """The four defenses, each with the robust accuracy that plain PGD leaves on (x, y).

    Args:
        x: (N, 1, 28, 28) digits of ``mnist5k`` in [0, 1], float32. The models are on its device.
        y: (N,) labels.
        eps: ℓ∞ radius of the claims, above 0.

    Returns:
        name → :class:`Broken`, in the order of this module's table; ``paper`` is its citation key. Cost: a run
        of PGD for each, of mixup inference on its network alone.

    Raises:
        ValueError, TypeError: for a wrong ``eps``.
    """
    digits, on = load("mnist5k"), x.device
    net, coded, taught, mixed = (
        zoo.load(f"mnist_{name}", device=on).requires_grad_(False)
        for name in ("cnn", "thermometer", "distilled", "mixup")
    )
    layers = OrderedDict[str, nn.Module]()
    for name, layer in net.named_children():
        layers[name] = layer
        if isinstance(layer, nn.ReLU):
            layers[f"{name}_pruned"] = ActivationPruning()
    mixing = MixupInference(mixed, digits.x_train[:500].to(on), digits.y_train[:500].to(on))

    entry = partial(measured, x=x, y=y, eps=eps, undefended=net)
    entries = (
        entry(
            "activation_pruning", nn.Sequential(layers).eval(),
            "activations are drawn anew at each prediction, and an attack stops at its first lucky draw",
            "EOT, all steps, and judge on fresh draws", paper="dhillon2018",
        ),
        entry(
            "distillation", taught,
            "logits a hundred times as large as usual: the cross-entropy is flat around x",
            "divide the logits by the temperature, or attack their margin", paper="papernot2016distillation",
        ),
        entry(
            "mixup_inference", mixing.eval(),
            "the attack was made for the network, and not for its mixtures",
            "EOT over the mixtures, all steps, and judge on fresh draws", attack=network_attack, paper="pang2020",
            undefended=mixed,
        ),
        entry(
            "thermometer", coded,
            "bits have derivative 0, so a gradient attack stays at its random start",
            "BPDA with the thermometer's smooth code", transform=coded.get_submodule("code"), paper="buckman2018",
        ),
    )  # fmt: skip
    return {found.name: found for found in entries}
