"""PixelDP: robustness from differential privacy.

Lecuyer, Atlidakis, Geambasu, Hsu and Jana, "Certified robustness to adversarial examples with differential privacy"
(2019), propositions 1 and 2 and section III. Noise whose size fits the sensitivity of what stands before it makes the
model's answer (ε, δ)-differentially private for inputs within L. The probabilities of its classes then change by no
more than a factor e^ε and an addend δ, so that the class stays if

    p₁ > e^{2ε}·p₂ + (1 + e^ε)·δ

    Laplace:   δ = 0,      L = b·ε/Δ with the scale b = σ/√2,          Δ of the attacker's norm to ℓ1
    Gaussian:  ε ≤ 1,      L = σ·ε/(Δ·√(2·log(1.25/δ))),               Δ of the attacker's norm to ℓ2

The noise stands at the input (Δ = 1 for its own norm), or behind a layer that is affine in x, whose Δ is an operator
norm. For each sample the largest L over (ε, δ) is taken, which post-processing allows.

Different here: p₁ and p₂ are those of the model's votes, as in the authors' evaluation ("argmax"), with Clopper and
Pearson's bounds at α split over them, and the class is chosen by draws of its own; the authors choose and bound on the
same. Δ is computed exactly from the layer's matrix, and the layer's weights are not projected while training.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.defenses.certified.smoothing.votes import (
    Smoothed,
    bounds_of_two,
    certificate,
    check,
    choose_and_count,
)
from robustlab.models.modes import evaluating
from robustlab.models.normalize import Normalize
from robustlab.models.probing import Layer

__all__ = ["pixeldp", "pixeldp_radius"]

Mechanism = Literal["gaussian", "laplace"]
_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Normalize, nn.Flatten, nn.Identity)


def pixeldp(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    sigma: float,
    mechanism: Mechanism = "gaussian",
    norm: Literal["l1", "l2"] = "l2",
    layer: Layer | None = None,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    batch_size: int | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> Smoothed:
    """Certify a model with noise inside by differential privacy.

        radius = max { L : p₁ ≥ e^{2ε}·p₂ + (1 + e^ε)·δ }, over the (ε, δ) that noise of deviation σ has at L

    Args:
        model, x, y, n0, n, alpha, batch_size, seed, ids, progress: as of
            :func:`~robustlab.defenses.randomized_smoothing`.
        sigma: standard deviation of the noise, above 0; of x, or of the layer's output.
        mechanism: ``"gaussian"`` or ``"laplace"``.
        norm: of the radius. Laplace's noise fits ℓ1, and ℓ2 only at the input, with Δ = √d.
        layer: a child of a ``torch.nn.Sequential``, or its name, behind which the noise stands; None for x itself.
            It and those before it are affine by their type: ``Linear``, convolutions, ``Normalize``, ``Flatten``.

    Returns:
        Smoothed, a Certificate in ``norm`` with confidence 1 − α. Cost: n0 + n forward rows per sample.

    Raises:
        ValueError, TypeError: for a wrong argument; a layer whose output is not affine in x has no sensitivity that is
            known, and is refused.

    Source:
        Lecuyer et al. (2019), propositions 1 and 2; Dwork and Roth (2014) for the two mechanisms.
    """
    checks.one_of("mechanism", mechanism, ("gaussian", "laplace"))
    checks.one_of("norm", norm, ("l1", "l2"))
    y = check(model, x, y, sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size, ids=ids)
    noisy, sensitivity, behind = x, _of_identity(x.shape[1:].numel(), mechanism, norm), model
    if layer is not None:
        before, behind = _cut(model, layer)
        noisy, matrix = _affine(before, x)
        sensitivity = _of_matrix(matrix, mechanism, norm)
    chosen, counts = choose_and_count(
        behind, noisy, y, sigma=sigma, n0=n0, n=n, seed=seed, ids=ids, batch_size=batch_size, progress=progress,
        kind=mechanism,
    )  # fmt: skip
    p1, p2 = bounds_of_two(counts, chosen, n, alpha)
    radius = sigma / sensitivity * pixeldp_radius(p1, p2, mechanism=mechanism)
    return certificate(x, y, chosen, p1, radius, counts, "pixeldp", alpha, norm)


def pixeldp_radius(p1: Tensor, p2: Tensor, *, mechanism: Mechanism = "gaussian", orders: int = 1000) -> Tensor:
    """The radius in units of σ/Δ that follows from p₁ and p₂; 0 where p₁ ≤ p₂.

        Laplace: log(p₁/p₂)/(2√2)
        Gaussian: max over ε ≤ 1 of ε/√(2·log(1.25/δ)) with the largest δ = (p₁ − e^{2ε}·p₂)/(1 + e^ε)

    Args:
        p1, p2: probabilities of the same shape.
        mechanism: of the noise.
        orders: values of ε that are tried, evenly spaced.

    Returns:
        Float64, the shape of p1.

    Source:
        Lecuyer et al. (2019), proposition 2.
    """
    one, two = torch.as_tensor(p1, dtype=torch.float64), torch.as_tensor(p2, dtype=torch.float64)
    if mechanism == "laplace":
        return torch.where(one > two, (one / two).log() / math.sqrt(8), 0.0).clamp_max(torch.finfo(one.dtype).max)
    eps = torch.linspace(0, 1, orders + 1, dtype=torch.float64, device=one.device)[1:]
    delta = (one[..., None] - (2 * eps).exp() * two[..., None]) / (1 + eps.exp())
    length = eps / (2 * (1.25 / delta.clamp_min(1e-300)).log()).sqrt()
    return torch.where(delta > 0, length, 0.0).amax(dim=-1)


def _cut(model: nn.Module, layer: Layer) -> tuple[nn.Sequential, nn.Sequential]:
    """What comes up to the layer, which is affine, and what comes behind it."""
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        raise ValueError(f"model: want a Sequential for noise behind a layer, got {type(model).__name__}")
    found = model.get_submodule(layer) if isinstance(layer, str) else layer
    children = list(model)
    end = next((i for i, child in enumerate(children, start=1) if child is found), None)
    if end is None:
        raise ValueError("layer: want a child of the Sequential, which everything passes, got another module")
    for child in children[:end]:
        # By type: trying points cannot tell that a function is affine everywhere.
        if not any(type(child).forward is kind.forward for kind in _AFFINE):
            raise ValueError(
                "layer: want it and those before it affine (Linear, Conv, Normalize, Flatten), since the "
                f"sensitivity of others is not known, got {type(child).__name__}"
            )
    return nn.Sequential(*children[:end]), nn.Sequential(*children[end:])


def _affine(layers: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of affine layers at x, and their matrix (d, outputs)."""
    with torch.no_grad(), evaluating(layers, device=x.device):
        units = torch.eye(x.shape[1:].numel(), dtype=x.dtype, device=x.device).reshape(-1, *x.shape[1:])
        at_zero = layers(torch.zeros_like(units[:1]))
        matrix = torch.cat([layers(part) - at_zero for part in units.split(1000)]).flatten(1)
        return layers(x), matrix.double()


def _of_identity(d: int, mechanism: Mechanism, norm: str) -> float:
    return math.sqrt(d) if (mechanism, norm) == ("laplace", "l2") else 1.0


def _of_matrix(matrix: Tensor, mechanism: Mechanism, norm: str) -> float:
    """max ‖Mδ‖ over ‖δ‖ ≤ 1; the rows of the matrix are the images of the unit vectors, the corners of the ℓ1 ball."""
    if norm == "l1":
        return float(torch.linalg.vector_norm(matrix, 1 if mechanism == "laplace" else 2, dim=1).amax())
    if mechanism == "laplace":
        raise ValueError(
            "norm: want 'l1' for Laplace noise behind a layer, whose sensitivity from l2 is hard to compute"
        )
    return float(torch.linalg.matrix_norm(matrix, 2))
