"""The semidefinite certificate of a network with one hidden layer, for all inputs and all radii at once.

Let f = C·logits have one hidden layer, f(x) = w₀·x + v·σ(W·x + b) + const, with slopes of σ between α and β. On the way
from a center to a point at most ρ away (coordinate by coordinate) f changes by at most

    max |∇f|·ρ  ≤  max {tᵀ·diag(ρ)·(p + Q·s) : |t_i| ≤ 1, |s_j| ≤ 1},
    p = w₀ + Wᵀ(v ⊙ (α + β)/2),   Q = Wᵀ diag(v ⊙ (β − α)/2)

where t is the sign of the step and s says where between α and β each slope lies. With y = (1, t, s) this is ½·yᵀMy,

        ⎡ 0   pᵀ   0 ⎤
    M = ⎢ p   0    Q ⎥        so    ½·yᵀMy  ≤  ½ max {⟨M, P⟩ : P ⪰ 0, diag P ≤ 1}  ≤  ½ Σ_k (c_k + λmax(M − diag c))
        ⎣ 0   Qᵀ   0 ⎦

for whatever c: diag(c + λmax) − M is positive semidefinite. The constant stands beside the **sign block** t. It came
from the middle of the slopes, which meets t. Beside the hidden block, with Σ_i Q_ij in the last places of the first
row, M would prove nothing: that bound can lie below the truth, and a test shows where.

M does not know x, ε or the box, so that one c for each pair of classes serves all samples. For a sample, M's rows of t
are multiplied by ρ, and so may be those of N = diag(c + λmax) − M. Since M couples t with nothing but the others, their
scales are free against each other, and the best of all is

    |f − f(center)|  ≤  √(A·B),   A = Σ (c + λmax) over 1 and s,   B = Σ ρ_i²·(c_i + λmax) over t

Different from the paper: α and β are those of the activation, 0 and 1 for a ReLU, so that tanh, GELU and others have a
certificate too; a direct path w₀ is allowed; the ball is cut off by the box through its center and ρ; the factor of
the scales; c is looked for by Adam from two starts, 0 and the sums of the rows, at which the bound is Hölder's. The
search may use approximate eigenvectors; what is certified has all eigenvalues (a Ritz value lies below λmax and would
prove nothing), raised by their rounding error.

With ``relaxation="layers"`` it is the later program over the matrix of all values instead, see
:mod:`~robustlab.verification.duals.sdp_relaxation`.

Source: Raghunathan, Steinhardt and Liang, "Certified defenses against adversarial examples" (2018), section 3;
Raghunathan, Steinhardt and Liang, "Semidefinite relaxations for certifying robustness to adversarial examples" (2018).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.geometry.adam import Adam
from robustlab.graph.hinge import Elementwise
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph
from robustlab.verification.duals.eigenvalues import top_eigenvectors
from robustlab.verification.duals.one_hidden import parts_of, slopes_of
from robustlab.verification.duals.sdp_relaxation import sdp_relaxation_bound
from robustlab.verification.propagation.backward import rounding_terms, slack
from robustlab.verification.propagation.certificate import Interval, certificate
from robustlab.verification.propagation.layers import interval_layers
from robustlab.verification.propagation.region import Region

__all__ = ["sdp_certificate"]

NUMBERS = 2**25  # numbers of all matrices at one time


def multipliers(M: Tensor, *, steps: int, lr: float = 0.05) -> Tensor:
    """κ = c + λmax(M − diag c) ≥ 0 for each of R matrices, (R, D), with small sums: diag(κ) − M is no less than 0.

    Adam on Σκ in units of its start, from the better of c = 0 and the sums of the rows; the gradient of λmax in c is
    −u², with u its eigenvector. The best c that was seen is certified at the end by all eigenvalues.
    """
    rows = M.abs().sum(dim=2)
    starts = torch.stack([shifted(M, torch.zeros_like(rows)), shifted(M, rows)])
    best = starts.sum(dim=2).argmin(dim=0)
    found = starts.gather(0, best[None, :, None].expand(1, *rows.shape))[0]
    scale = found.mean(dim=1, keepdim=True).clamp_min(torch.finfo(M.dtype).tiny)
    free = torch.where(best[:, None] == 0, 0.0, rows) / scale
    ascent, kept, least = Adam([free]), free.clone(), found.sum(dim=1) / scale[:, 0]
    u = None
    for step in range(steps):
        value, u = top_eigenvectors(M / scale[..., None] - torch.diag_embed(free), start=u)
        total = free.sum(dim=1) + free.shape[1] * value
        better = total < least
        kept, least = torch.where(better[:, None], free, kept), torch.where(better, total, least)
        ascent.step([1 - free.shape[1] * u.square()], lr * 0.01 ** (step / steps))
    searched = shifted(M, kept * scale)
    return torch.where((searched.sum(1) < found.sum(1))[:, None], searched, found)


def shifted(M: Tensor, c: Tensor) -> Tensor:
    """c + λmax(M − diag c), by all eigenvalues, raised by their rounding error."""
    matrix = M - torch.diag_embed(c)
    size = torch.linalg.matrix_norm(matrix)
    top = torch.linalg.eigvalsh(matrix)[:, -1] + M.shape[1] * torch.finfo(M.dtype).eps * size
    return (c + top[:, None]).clamp_min(0.0)  # the diagonal of diag(κ) − M is not negative


@torch.no_grad()
def sdp_bound(graph: Graph, region: Region, C: Tensor, *, steps: int = 100) -> Tensor:
    """Lower bounds (N, M) of C·output by the dual certificate; detached."""
    dtype, n = C.dtype, len(region)
    double = graph.to(torch.float64)
    parts = parts_of(double)
    wanted = C.expand(n, *C.shape[-2:])
    flat = wanted.reshape(-1, C.shape[-1]).double()
    first = flat.gather(1, (flat != 0).to(torch.int8).argmax(dim=1, keepdim=True))
    distinct, owner = torch.unique(flat * torch.where(first < 0, -1.0, 1.0), dim=0, return_inverse=True)
    d = parts.inner.shape[1]
    sums, weights, rows = [], [], []
    for some in distinct.split(max(1, NUMBERS // (1 + d + parts.inner.shape[0]) ** 2)):
        M = parts.coupling(some)
        known = M.isfinite().flatten(1).all(dim=1)
        kappa = multipliers(torch.where(known[:, None, None], M, 0.0), steps=steps)
        kappa = torch.where(known[:, None], kappa, torch.inf)
        sums.append(kappa[:, 0] + kappa[:, 1 + d :].sum(dim=1))
        weights.append(kappa[:, 1 : 1 + d])
        rows.append(M[:, 1 : 1 + d].abs().sum(dim=2))
    hull = region.hull
    center = (hull.lower.double() + hull.upper.double()) / 2
    radius = torch.maximum(hull.upper.double() - center, center - hull.lower.double()).flatten(1)
    at_center = (wanted.double() @ double(center)[..., None])[..., 0]
    ours = owner.reshape(n, -1)
    inside = (torch.cat(weights)[ours] * radius.square()[:, None]).sum(dim=2)
    change = (torch.cat(sums)[ours] * inside).sqrt()
    change = torch.minimum(change, (torch.cat(rows)[ours] * radius[:, None]).sum(dim=2))
    lower = at_center - change * (1 + 1e-12) - _rounded(graph, region, wanted)
    return torch.nextafter(lower.to(dtype), lower.new_full((), -torch.inf).to(dtype))


def _rounded(graph: Graph, region: Region, C: Tensor) -> Tensor:
    """How far C·output in the network's own precision may be off on the region, (N, M): 0 in float64."""
    if C.dtype == torch.float64:
        return C.new_zeros(C.shape[:2])
    bounds = interval_layers(graph, region)
    terms, errors = rounding_terms(graph, bounds), [torch.zeros_like(bounds[0].lower)]
    for node in graph.nodes[1:]:
        assert node.op is not None
        before = [errors[i] for i in node.inputs]
        if isinstance(node.op, Elementwise):
            error = before[0] * max(map(abs, slopes_of(node.op, node.name)))
        else:
            error = node.op.interval(*(Bounds(-e, e) for e in before)).radius
        errors.append(error + slack(terms[node.index]) if node.index in terms else error)
    return (C.abs() @ (errors[-1] + slack(bounds[-1].largest))[..., None])[..., 0].double()


def sdp_certificate(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["linf"] = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
    relaxation: Literal["dual", "layers"] = "dual",
    steps: int = 100,
    triangle: bool = True,
) -> Certificate:
    """Certify by semidefinite programming.

        |f(x′) − f(center)|  ≤  √(A·B)   for f = z_y − z_j, see the module's text

    Args:
        model, x, y, eps, box: as in :func:`robustlab.verification.certify`. The model has one hidden layer, of any
            width, with any activation of one number; affine layers may stand before and behind it.
        norm: ``"linf"`` alone.
        relaxation: ``"dual"``, the certificate of 2018 (one search for each pair of classes, whatever the number of
            samples), or ``"layers"``, the semidefinite program over all values of a net with any number of ReLU layers,
            of at most 80 inputs and neurons, which needs ``cvxpy``.
        steps: of the search for c, at least 0; a proof holds after any number of them.
        triangle: whether the program over layers has the linear cuts above each ReLU too, without which it may be
            looser than the linear program.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`; for another norm, a second hidden layer, or a
            net that is too large for the program. ImportError without ``cvxpy``.

    Source: Raghunathan et al. (2018), section 3, and for ``"layers"`` Raghunathan et al. (2018b), section 3.
    """
    if norm != "linf":
        raise ValueError(f"norm: want 'linf', got {norm!r}; a sign for each coordinate is a corner of a box")
    checks.one_of("relaxation", relaxation, ("dual", "layers"))
    checks.at_least("steps", steps, 0, integer=True)

    def bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
        if relaxation == "layers":
            return sdp_relaxation_bound(graph, region, C, triangle=triangle)
        return sdp_bound(graph, region, C, steps=steps)

    return certificate(bound, "sdp_certificate", model, x, y, norm=norm, eps=eps, box=box)
