"""A gallery of broken defenses and broken evaluations, each reported by its authors as robust.

Made on purpose, after what Carlini et al., "On evaluating adversarial robustness" (2019a), Athalye et al., "Obfuscated
gradients" (2018) and Tramèr et al., "On adaptive attacks" (2020) found published. Each one takes an undefended network,
puts something in its way (or errs in measuring it) and claims the accuracy that its authors' own attack leaves.

    quantization          gradient is zero: pixel values are rounded
    random_resize         gradient is random: the image is resized and moved anew at each prediction
    logit_squashing       gradient vanishes: the outputs are saturated
    gradient_shattering   gradient is noise: an invisible ripple on every pixel
    detector              refuses noisy inputs, and was attacked by someone who did not know of it
    train_mode            batch norm works with the statistics of the batch under attack
    missing_clamp         clips its input, and was attacked by someone who left the box
    normalized_eps        ε was spent in normalized units, a third of what is claimed
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks, zoo
from robustlab.attacker.victim import Victim
from robustlab.attacks.whitebox.pgd import pgd, pgd_maximize
from robustlab.data import load
from robustlab.defenses.robustness_claim import AuthorsAttack, Claim
from robustlab.models.modes import evaluating

_STEPS = 20


@dataclass(frozen=True)
class Broken:
    """One defense of the gallery.

    Attributes:
        name: its key.
        model: the defended network, in the state in which its authors evaluated it.
        claim: what they claim, their own numbers and their own attack.
        undefended: the network without the defense.
        what: what is broken.
        repair: how to attack or measure it properly.
        transform: the part that stands in front of the network, if there is one.
        paper: the citation key of a defense that was published, else the empty string.
    """

    name: str
    model: nn.Module
    claim: Claim
    undefended: nn.Module
    what: str
    repair: str
    transform: nn.Module | None = None
    paper: str = ""


# What the defenses add. -----------------------------------------------------------------------------------------


class Quantize(nn.Module):
    """Round to ``levels`` values in [0, 1]: a staircase, whose derivative is zero where it exists."""

    def __init__(self, levels: int = 16) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return (x * (self.levels - 1)).round() / (self.levels - 1)


class RandomResize(nn.Module):
    """Shrink a batch of square images to a random size, and put it at a random place in a black frame.

    Size and place come from torch's global generator, one draw for the batch; ``smallest`` is a share of the size.
    """

    def __init__(self, smallest: float = 0.72) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, x: Tensor) -> Tensor:
        full = x.shape[-1]
        size = int(torch.randint(math.ceil(self.smallest * full), full + 1, ()))
        left, top = torch.randint(0, full - size + 1, (2,)).tolist()
        small = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return F.pad(small, (left, full - size - left, top, full - size - top))


class Squash(nn.Module):
    """Logits → softmax(scale · logits): the same labels, but numbers that are 0 and 1 to the last digit."""

    def __init__(self, scale: float = 50.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits: Tensor) -> Tensor:
        return (self.scale * logits).softmax(dim=1)


class Ripple(nn.Module):
    """x + height · sin(slope / height · x + phase): hardly a change of x, a slope that swings between ±``slope``."""

    def __init__(self, height: float = 0.02, slope: float = 30.0) -> None:
        super().__init__()
        self.height, self.slope = height, slope

    def forward(self, x: Tensor) -> Tensor:
        golden_angle = math.pi * (3 - math.sqrt(5))  # spreads the phases of the pixels evenly
        phase = golden_angle * torch.arange(x[0].numel(), dtype=x.dtype, device=x.device).reshape(x.shape[1:])
        return x + self.height * torch.sin(self.slope / self.height * x + phase)


class NoiseDetector(nn.Module):
    """(N,) score above 0 where an image is rougher than ``limit``: mean |x − its 3×3 average| / limit − 1, times 5."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        rough = (x - F.avg_pool2d(x, 3, stride=1, padding=1)).abs().flatten(1).mean(dim=1)
        return 5 * (rough / self.limit - 1)


# How their authors attacked them. -------------------------------------------------------------------------------


def plain_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """PGD on the whole model, in the mode it is in, as if nothing were special; x_adv, the shape of x."""
    return pgd(Victim(model, mode="asis"), x, y, eps=eps, steps=_STEPS).x_adv


def oblivious_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """All steps of PGD on the classifier, which is fooled with confidence; the detector is not thought of."""
    return pgd_maximize(model, x, y, eps=eps, steps=_STEPS)


def unclamped_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """PGD on the network behind the clipping, which knows the ball, but not the box."""
    _, network = model.children()
    return pgd(Victim(network, bounds=(-10.0, 10.0)), x, y, eps=eps, steps=_STEPS).x_adv


def normalized_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """PGD on normalized inputs with the ε that was meant for raw ones."""
    normalize, *rest = model.children()
    assert isinstance(normalize.mean, Tensor) and isinstance(normalize.std, Tensor)
    mean, std = float(normalize.mean), float(normalize.std)
    box = ((0 - mean) / std, (1 - mean) / std)
    box = (box[0] - 1e-4, box[1] + 1e-4)  # room for rounding
    z = (x - mean) / std
    found = pgd(Victim(nn.Sequential(*rest), bounds=box), z, y, eps=eps, steps=_STEPS).x_adv
    return (found * std + mean).clamp(0, 1)


def measured(
    name: str, model: nn.Module, what: str, repair: str, *, x: Tensor, y: Tensor, eps: float, undefended: nn.Module,
    attack: AuthorsAttack = plain_attack, transform: nn.Module | None = None, refuses: NoiseDetector | None = None,
    paper: str = "",
) -> Broken:  # fmt: skip
    """A broken defense with its authors' claim: the shares of (x, y) that stand at 0 and at ``eps``.

    The arguments are the attributes of :class:`Broken` and of its claim; ``refuses`` is the claim's detector.
    """
    fork = torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else [])
    with fork, checks.scores_are_judged():  # one squashes them on purpose
        torch.manual_seed(0)  # for those that draw from the global generator
        robust = share_kept(model, attack(model, x, y, eps), y, refuses)
        clean = share_kept(model, x, y)
    claim = Claim(eps=eps, robust_accuracy=robust, clean_accuracy=clean, attack=attack, detector=refuses)
    return Broken(name, model, claim, undefended, what, repair, transform, paper)


def gallery(x: Tensor, y: Tensor, *, eps: float = 0.2) -> dict[str, Broken]:
    """The eight defenses, each with the robust accuracy that its authors measure on (x, y).

    Args:
        x: (N, 1, 28, 28) digits of ``mnist5k`` in [0, 1], float32. The models are on its device.
        y: (N,) labels.
        eps: ℓ∞ radius of the claims, above 0; that of ``train_mode`` is half as large.

    Returns:
        name → :class:`Broken`, in the order of this module's table. Cost: a run of PGD for each.

    Raises:
        ValueError, TypeError: for a wrong ``eps``.
    """
    net = zoo.load("mnist_cnn", device=x.device).requires_grad_(False)
    residual = zoo.load("mnist_resnet", device=x.device).requires_grad_(False)
    digits = load("mnist5k").x_train
    roughness = NoiseDetector(1.0)(digits) / 5 + 1
    detector = NoiseDetector(float(roughness.quantile(0.99)))

    entry = partial(measured, x=x, y=y, eps=eps, undefended=net)
    quantize, resize, ripple, clip = Quantize(), RandomResize(), Ripple(), nn.Hardtanh(0.0, 1.0)
    entries = (
        entry(
            "quantization", nn.Sequential(quantize, net).eval(),
            "rounding has derivative 0, so a gradient attack stays at its random start",
            "BPDA with the identity: rounding changes an image little", transform=quantize,
        ),
        entry(
            "random_resize", nn.Sequential(resize, net).eval(),
            "an attack stops at its first success, which a lucky draw of size and place brings about",
            "EOT, all steps, and judge on fresh draws", transform=resize,
        ),
        entry(
            "logit_squashing", nn.Sequential(net, Squash()).eval(),
            "saturated outputs: every loss is flat around x",
            "attack the logits in front of the squashing: the labels are the same",
        ),
        entry(
            "gradient_shattering", nn.Sequential(ripple, net).eval(),
            "a ripple of height 0.02 with a slope of 30 drowns the gradient",
            "BPDA with the identity: the ripple is invisible", transform=ripple,
        ),
        entry(
            "detector", net, "the attack knows nothing of the detector, and makes more noise than it needs",
            "attack classifier and detector together", attack=oblivious_attack, refuses=detector,
        ),
        entry(
            "train_mode", residual.train(), "batch norm takes its statistics from the batch under attack",
            "evaluate in evaluation mode", undefended=zoo.load("mnist_resnet").eval(), eps=eps / 2,
        ),
        entry(
            "missing_clamp", nn.Sequential(clip, net).eval(),
            "the attack relies on pixels below 0 and above 1, which the clipping takes away from it",
            "stay in the box at every step", attack=unclamped_attack, transform=clip,
        ),
        entry(
            "normalized_eps", net, "a budget in normalized units, multiplied by the standard deviation in pixels",
            "spend the budget in the units of the claim", attack=normalized_attack,
        ),
    )  # fmt: skip
    return {found.name: found for found in entries}


@torch.no_grad()
def share_kept(model: nn.Module, x: Tensor, y: Tensor, detector: Callable[[Tensor], Tensor] | None = None) -> float:
    """Read correctly by the model in the mode it is in, or refused; nothing of the model's state is moved."""
    with evaluating(model, mode="asis"):
        kept = model(x).argmax(dim=1) == y
    if detector is not None:
        kept |= detector(x) > 0
    return float(kept.double().mean())
