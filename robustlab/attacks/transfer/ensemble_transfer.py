"""Transfer from an ensemble of surrogates.

Liu, Chen, Liu and Song, "Delving into transferable adversarial examples and black-box attacks" (2017), section 5: what
fools several models of one's own at once is likelier to fool one that cannot be looked into. With the surrogates f_k,
weights α of sum 1, and a target t,

    minimize_δ  −log Σ_k α_k f_k(x + δ)_t        (without a target: maximize it for the label y)

The surrogates may also be joined by the mean of their logits, which Dong et al. (2018, section 3.2) found to transfer
better than that of probabilities or of losses, or by the mean of their losses.

Three options, which may be combined, keep δ from fitting the surrogates alone:

- momentum (MI; Dong et al., "Boosting adversarial attacks with momentum", 2018, algorithm 1):
  m ← μ·m + ∇/‖∇‖₁, and the step goes along m instead of the gradient ∇;
- diversity (DI; Xie et al., "Improving transferability of adversarial examples with input diversity", 2019): at each
  step, with probability p, the surrogates see the image shrunk to a random size and put at a random place on zeros;
- translation (TI; Dong et al., "Evading defenses to transferable adversarial examples by translation-invariant
  attacks", 2019, equation (6)): the gradient is convolved with a Gaussian kernel, which stands for the mean over
  shifted images.

The victim is asked twice for each sample: about x, and about the outcome. Different here: Liu et al. minimize a sum of
the loss and a multiple of the distance by Adam, without a limit to the distance; this is the form of the later papers,
with a radius ε and signed steps (in ℓ2 steps along the gradient). All K steps are taken, whatever the surrogates say
before, since what fools them barely seldom fools another. Xie et al. enlarge by up to a tenth and leave the model to
take the larger image; models of a fixed size see a shrunk one instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.composition import Join, Mixture
from robustlab.attacker.live import Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.transfer.on_surrogates import descend
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import get_norm


def ensemble_transfer(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    surrogates: Sequence[Victim | nn.Module],
    weights: Sequence[float] | None = None,
    join: Join = "probabilities",
    norm: Literal["l2", "linf"] = "linf",
    eps: float | Tensor,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    loss: LossName | LossFunction = "ce",
    momentum: float = 0.0,
    diversity: float = 0.0,
    smallest: float = 0.9,
    translation: int = 1,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    trace: bool = False,
) -> AttackResult:
    """Craft on surrogates, then ask the victim once.

        minimize_δ g(log Σ_k α_k f_k(x + δ))  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, of which labels alone are asked, or a model.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the victim's prediction.
        surrogates: at least one Victim or model with logits (N, K) of the same classes, whose gradients are used.
        weights: α ≥ 0 of sum 1, one per surrogate; None for equal ones.
        join: of what the weighted mean is taken: ``"probabilities"``, as above; ``"logits"``, g(Σ_k α_k z_k(x + δ)); or
            ``"losses"``, Σ_k α_k g(z_k(x + δ)).
        norm: ``"linf"`` or ``"l2"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        steps: number K ≥ 1 of steps, all of which are taken.
        step_size: α > 0, a number or (N,); None means ε/K, as in Dong et al. (2018).
        loss: attacker's loss g, minimized, on the joined surrogates; ``"ce"`` is the paper's.
        momentum: decay μ ≥ 0 of the accumulated gradients, Dong et al. take 1; 0 is none.
        diversity: probability p in [0, 1] that a step sees a shrunk and shifted image, Xie et al. take 0.5; 0 is none.
        smallest: side of the smallest shrunk image over that of x, in (0, 1].
        translation: odd side of the Gaussian kernel, whose standard deviation is (side − 1)/6, Dong et al. take 15 on
            ImageNet; 1 is none.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness of the diversity, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.
        trace: keep the surrogates' loss g before each step as ``result.trace["loss"]``, (K, N); NaN for a sample that
            meets the goal at x.

    Returns:
        AttackResult of the victim: 2 queries and no gradient for each sample, 1 query where the goal is met at x. The
        K gradients of every surrogate are the attacker's own, and are not counted.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Liu et al. (2017), section 5, equations (5) and (6); Dong et al. (2018), algorithm 1 and section 3.2; Xie et al.
        (2019), section 3.2; Dong et al. (2019), equation (6).
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("momentum", momentum, 0.0)
    checks.at_least("diversity", diversity, 0.0)
    checks.at_most("diversity", diversity, 1.0)
    checks.positive("smallest", smallest)
    checks.at_most("smallest", smallest, 1.0)
    checks.at_least("translation", translation, 1, integer=True)
    if translation % 2 == 0:
        raise ValueError(f"translation: want an odd number, so that the kernel has a middle, got {translation}")
    ball, victim, mixture = get_norm(norm), Victim.of(victim), Mixture(surrogates, weights, join=join)
    g = mixture.loss(attacker_loss(loss))
    checks.images(x, victim.bounds)
    if diversity or translation > 1:
        checks.pictures(x)
    eps = checks.radius(eps, x, norm, victim.bounds)
    alpha = (eps + (eps == 0)) / steps if step_size is None else checks.per_sample("step_size", step_size, x)
    with victim.session(x, y, target=target, ids=ids, access="hard") as session:
        at = session.live(eps=eps, alpha=alpha, noise=session.noise(seed))
        own = Victim(mixture, bounds=victim.bounds)
        view = partial(_diverse, probability=diversity, smallest=smallest)
        losses = descend(
            own, session, at, ball, g, steps, momentum=momentum, view=view, smooth=partial(_blurred, side=translation),
            label="ensemble_transfer", progress=progress, dtype=x.dtype,
        )  # fmt: skip
        return session.result(at.points, trace={"loss": torch.stack(losses)} if trace and losses else None)


def _diverse(at: Live, k: int, *, probability: float, smallest: float) -> Callable[[Tensor], Tensor]:
    """The view of step k: with that probability the image, shrunk by a factor in [smallest, 1), somewhere on zeros."""
    if not probability:
        return lambda points: points
    noise: Noise = at.noise
    coin, size, down, right = noise.uniform(k, (4,), torch.float64).to(at.x).unbind(dim=1)
    scale = torch.where(coin < probability, smallest + (1 - smallest) * size, 1.0)
    return lambda points: shrunk(points, scale, down, right)


def shrunk(images: Tensor, scale: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images (N, C, H, W) of ``scale`` times their side, on zeros, bilinear.

    ``down`` and ``right`` in [0, 1] say where they lie: 0 at the upper or left edge, 1 at the lower or right one.
    """
    zero = torch.zeros_like(scale)
    shift_x, shift_y = (1 - scale) * (2 * right - 1), (1 - scale) * (2 * down - 1)  # the center's, in half sides
    rows = (
        torch.stack([1 / scale, zero, -shift_x / scale], dim=1),
        torch.stack([zero, 1 / scale, -shift_y / scale], 1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blurred(grad: Tensor, *, side: int) -> Tensor:
    """The gradient convolved with a Gaussian kernel that reaches to three standard deviations."""
    if side == 1:
        return grad
    at = torch.linspace(-3.0, 3.0, side, dtype=torch.float64)
    row = torch.exp(-at.square() / 2) / math.sqrt(2 * math.pi)
    kernel = (row / row.sum()).to(grad)
    channels = grad.shape[1]
    down, across = kernel.reshape(1, 1, -1, 1), kernel.reshape(1, 1, 1, -1)
    for part in (down, across):
        pad = (part.shape[2] // 2, part.shape[3] // 2)
        grad = F.conv2d(grad, part.expand(channels, -1, -1, -1), padding=pad, groups=channels)
    return grad
