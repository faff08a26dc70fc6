"""Data-free TrojanNet detector (DF-TND).

Wang, Zhang, Liu, Chen, Xiong and Wang, "Practical detection of trojan neural networks: Data-limited and data-free
cases" (2020), the data-free detector. No data at all: start at random noise, and look for inputs that excite a few
hidden neurons as much as possible,

    maximize over m_i ∈ [0, 1]^{H×W}, δ_i ∈ [0, 1]^{C×H×W}, w ≥ 0 with Σ_j w_j = 1:
        1/N Σ_i Σ_j w_j r_j(x̂(m_i, δ_i)) − λ·mean_i ‖m_i‖₁,   x̂(m, δ) = (1 − m)·noise + m·δ

where r are the activations of the penultimate layer; the weights w, shared by all starts, pick the neurons. In a
backdoored network the most excitable neurons belong to the backdoor, and the logit of its target rises:

    R_k = 1/N Σ_i [f_k(x̂_i) − f_k(noise_i)],   flagged if R_k > 100

The number 100 belongs to the large networks of the paper. Logits have no common unit: calibrate on clean networks of
the same kind. As in the authors' code, a second phase continues from the average of the perturbations, shared by all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Detection
from robustlab.defenses.detection.tnd_data_limited import clean_threshold
from robustlab.geometry.keyed import Noise
from robustlab.geometry.projections import onto_simplex
from robustlab.models.probing import Layer, Probe


def tnd_data_free(
    model: nn.Module,
    in_shape: Sequence[int] = (1, 28, 28),
    *,
    starts: int = 10,
    steps: int = 100,
    step_size: float = 0.1,
    sparsity: float = 0.1,
    threshold: float = 100.0,
    calibration: Tensor | None = None,
    layer: Layer | None = None,
    seed: int = 0,
) -> Detection[dict[str, Tensor]]:
    """Excite the penultimate layer from noise, and flag the classes whose logits rise beyond a threshold.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K). It is only looked at; its device and dtype are used.
        in_shape: (C, H, W) of one image.
        starts: N, number of noise images, uniform in [0, 1]; at least 1.
        steps: of each of the two phases, at least 1.
        step_size: of the sign steps on masks and patterns, and the ℓ2 length of those on the weights.
        sparsity: λ ≥ 0. It decides what is found, and depends on the scale of the features: where it outweighs what
            one pixel does to them the masks stay empty and all scores are 0; where it is small the whole image is
            repainted, and the logits of clean networks rise as well. A warning says that a mask stayed empty: then
            nothing was looked at, and scores of 0 are no verdict.
        threshold: for R_k, in logits; the paper's is 100.
        calibration: (M,), the highest score of each of M clean models of the same kind, found with the same
            arguments. If given, their maximum takes the place of `threshold`.
        layer: whose output are the activations r, a module of the model or its name. None takes the input of the
            linear layer that gives the logits; where that is not clear, the layer must be named.
        seed: of the noise.

    Returns:
        A Detection with R_k of each class as its score, (K,). ``details`` has ``"images"`` (N, C, H, W), the ``"mask"``
        (1, H, W) and ``"pattern"`` (C, H, W) that all starts share at the end, and the neurons' ``"weights"`` (d,);
        ``layer`` says which neurons were taken.

        No false-alarm rate is known for 100: nothing is known of this statistic on clean models. With a
        `calibration` there is one, ``false_alarm_rate`` = 1/(M + 1): that some class of one more clean
        model of the same kind is flagged is no more likely.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Wang et al. (2020), the data-free detector, and the authors' code for the second phase.
    """
    for name, value in (("starts", starts), ("steps", steps)):
        checks.at_least(name, value, 1, integer=True)
    checks.positive("step_size", step_size)
    checks.at_least("sparsity", sparsity, 0.0)
    checks.positive("threshold", threshold)
    threshold, stated = clean_threshold(threshold, calibration)
    if len(in_shape) != 3:
        raise ValueError(f"in_shape: want (C, H, W), got {tuple(in_shape)}")
    with torch.inference_mode(False), torch.enable_grad(), Probe(model, layer) as probe:
        like = next(model.parameters())
        ids = torch.arange(starts, device=like.device)
        noise = Noise(seed, ids).uniform(0, tuple(in_shape), like.dtype)
        with torch.no_grad():
            before, features = probe.features(noise)
        weights = features.new_full(features.shape[1:], 1 / features.shape[1])
        mask = torch.zeros_like(noise[:, :1])
        pattern = torch.full_like(noise, 0.5)
        mask, pattern, weights = _ascend(probe, noise, mask, pattern, weights, steps, step_size, sparsity)
        mask, pattern = mask.mean(dim=0, keepdim=True), pattern.mean(dim=0, keepdim=True)
        mask, pattern, weights = _ascend(probe, noise, mask, pattern, weights, steps, step_size, sparsity)
        images = (1 - mask) * noise + mask * pattern
        with torch.no_grad():
            scores = (probe(images) - before).mean(dim=0)
    if not bool(mask.any()):
        checks.warn(
            f"tnd_data_free: the mask stayed empty, since sparsity = {sparsity} outweighs what a pixel does to the "
            "features; the scores are no verdict, take a smaller one"
        )
    details = {"images": images, "mask": mask[0], "pattern": pattern[0], "weights": weights}
    return Detection(scores, scores > threshold, threshold, details, layer=probe.taken, **stated)


def _ascend(
    probe: Probe,
    noise: Tensor,
    mask: Tensor,
    pattern: Tensor,
    weights: Tensor,
    steps: int,
    size: float,
    sparsity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Projected ascent; a mask and pattern for each start, or one for all (leading dimension 1)."""
    for _ in range(steps):
        leaves = [part.detach().requires_grad_() for part in (mask, pattern, weights)]
        mask, pattern, weights = leaves
        features = probe.features((1 - mask) * noise + mask * pattern)[1]
        gain = (features @ weights).mean() - sparsity * mask.sum() / len(mask)
        of_mask, of_pattern, of_weights = torch.autograd.grad(gain, leaves)
        with torch.no_grad():
            mask = (mask + size * of_mask.sign()).clamp(0, 1)
            pattern = (pattern + size * of_pattern.sign()).clamp(0, 1)
            length = of_weights.norm().clamp_min(torch.finfo(weights.dtype).tiny)
            weights = onto_simplex((weights + size * of_weights / length)[None])[0]
    return mask.detach(), pattern.detach(), weights.detach()
