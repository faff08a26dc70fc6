"""Semantify: certificates for changes that a person would not call an attack.

Mohapatra et al., "Towards verifying robustness of neural networks against a family of semantic perturbations" (2020),
sections 3.2 to 3.4. An image changes by few parameters θ: its hue turns, it gets brighter, the camera tilts. Every
pixel may move far, so no ball of pixels says this; but all move together. The set of images is enclosed between planes
over θ (:mod:`robustlab.verification.semantic.change`), and any bound propagation carries these through the network:

    z_y(x(θ)) − z_k(x(θ)) > 0   for all θ in [low, high] and all k ≠ y.

The interval is cut into ``splits`` explicit parts, each certified by itself; on a part, a rotated pixel is bounded on
implicit subdivisions, which cost no pass through the network. Changes with finitely many parameters, translation by
whole pixels and occlusion, are tried one by one, so their answer is exact.

What differs from the paper: it writes a change of colors as a layer of ReLUs and relaxes these with the network's own.
Here the layer is there too (``Hue().layers``), for verifiers of other makers, but the planes are fitted to the curve of
each pixel itself. It joins the implicit parts after the first layer, here they are joined at the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.parts import beside
from robustlab.attacker.results import Certificate
from robustlab.graph.arithmetic import full_precision
from robustlab.graph.node import Graph
from robustlab.verification.propagation.certificate import positive, prepare
from robustlab.verification.propagation.certify import METHODS
from robustlab.verification.propagation.specification import margins
from robustlab.verification.semantic.change import Change, Listed, as_box

__all__ = ["SemanticCertificate", "semantify"]

PIXELS = 2**21  # pixels of all the images that are bounded in one pass


@dataclass(frozen=True, eq=False, repr=False)
class SemanticCertificate(Certificate):
    """A certificate over the parameters of a change.

    Attributes:
        edges: (S + 1, d) where the explicit parts of each parameter begin and end; None for finitely many parameters.
        pieces: (N, S, …, S) bool, which parts are verified; where the parameters are finitely many, (N, P) bool, which
            of them keep the label.
        radius: how far θ may go from 0 to both sides within the range that was asked for, 0 where it is not verified;
            inf where the parameters are finitely many.
    """

    edges: Tensor | None = None
    pieces: Tensor | None = None

    def arc(self) -> Tensor:
        """(N, 2): the largest range around θ = 0, joined of parts, that is verified; for a change of one parameter.

        Raises:
            ValueError: for more parameters or finitely many, or if 0 does not lie between ``low`` and ``high``.
        """
        if self.edges is None or self.pieces is None or self.edges.shape[1] != 1:
            raise ValueError("arc: want a change of one parameter")
        edges = self.edges[:, 0]
        if not bool((edges[0] <= 0) & (edges[-1] >= 0)):
            raise ValueError(f"arc: want 0 between low and high, got {float(edges[0])} and {float(edges[-1])}")
        found = edges.new_zeros(len(self), 2)
        going = torch.ones_like(self.verified)
        for k in range(len(edges) - 1):  # upward from 0, and downward
            if bool(edges[k + 1] > 0):
                going = going & self.pieces[:, k]
                found[:, 1] = torch.where(going, edges[k + 1], found[:, 1])
        going = torch.ones_like(self.verified)
        for k in reversed(range(len(edges) - 1)):
            if bool(edges[k] < 0):
                going = going & self.pieces[:, k]
                found[:, 0] = torch.where(going, edges[k], found[:, 0])
        return found


@full_precision()
@torch.no_grad()
def semantify(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    change: Change,
    low: float | Sequence[float] | None = None,
    high: float | Sequence[float] | None = None,
    splits: int = 1,
    method: Literal["ibp", "fast_lin", "crown", "crown_ibp", "alpha_crown", "lirpa"] = "crown",
) -> SemanticCertificate:
    """Certify that a change of the image by any parameters in a range keeps the label.

    Args:
        model: a module from (N, C, H, W) to (N, K), read in evaluation mode; or its graph.
        x: (N, C, H, W) images in [0, 1].
        y: (N,) labels; None takes the model's predictions.
        change: ``Hue()`` (turns), ``Saturation()``, ``Lightness()``, ``BrightnessContrast()`` (two parameters),
            ``Rotation()`` (degrees), ``Shift()`` (pixels down and right, fractions too), ``Translation(pixels)`` and
            ``Occlusion(size)`` (finitely many).
        low, high: the range of θ, a number or one for each parameter; not for finitely many parameters.
        splits: explicit parts of each parameter's range.
        method: the bound propagation that goes through the network.

    Returns:
        A :class:`SemanticCertificate`: verified where all parts are; falsified, with the changed image, where x itself
        or an end of a part is misclassified.

    Raises:
        ValueError, TypeError: naming the argument, or the node that cannot be bounded; for a range that leaves what the
            change is defined on.

    Source:
        Mohapatra et al. (2020), sections 3.2 to 3.4.
    """
    choices = ("ibp", "fast_lin", "crown", "crown_ibp", "alpha_crown", "lirpa")
    checks.one_of("method", method, choices)
    checks.at_least("splits", splits, 1, integer=True)
    if not isinstance(change, Change):
        raise TypeError(f"change: want a change such as Hue(), got {type(change).__name__}")
    change.check(x)
    graph, _, y, _ = prepare(model, x, y, "linf", (0.0, 1.0), None)
    if isinstance(change, Listed):
        if low is not None or high is not None:
            raise ValueError("low, high: want none, for all parameters of this change are tried")
        return _all_of(change, graph, x, y)
    if low is None or high is None:
        raise ValueError("low, high: want the range of the parameters, got None")
    box = as_box(change, low, high)
    share = torch.linspace(0, 1, splits + 1, dtype=x.dtype, device=x.device)
    edges = torch.stack([least + (most - least) * share for least, most in box], dim=1)
    edges[-1] = x.new_tensor([most for _, most in box])
    grids = torch.meshgrid(*[torch.arange(splits, device=x.device)] * len(box), indexing="ij")
    cells = torch.stack([grid.flatten() for grid in grids], dim=1)  # (S^d, d)
    least, most = (torch.stack([edges[cells[:, k] + up, k] for k in range(len(box))], dim=1) for up in (0, 1))
    pieces = torch.zeros(len(x), len(cells), dtype=torch.bool, device=x.device)
    failed, image = x.new_zeros(len(x), dtype=torch.bool), torch.full_like(x, torch.nan)
    rows = torch.cartesian_prod(torch.arange(len(x), device=x.device), torch.arange(len(cells), device=x.device))
    for some in rows.split(max(1, PIXELS // max(1, x[0].numel()))) if len(x) else ():
        sample, cell = some.unbind(1)
        for end in (least, most):
            changed = change.images(x[sample], end[cell])
            wrong = graph(changed).argmax(dim=1) != y[sample]
            failed[sample[wrong]] = True
            image[sample[wrong]] = changed[wrong]
        tube = change.tube(x[sample], least[cell], most[cell])
        C = margins(y[sample], graph.output_shape[0], x.dtype)
        pieces[sample, cell] = positive(METHODS[method](graph, tube, C))
    failed_at_x = graph(x).argmax(dim=1) != y if len(x) else failed
    image = torch.where(beside(failed_at_x, x), x, image)
    failed = failed | failed_at_x
    verified = pieces.all(dim=1) & ~failed
    reach = max(0.0, min(min(-least_, most_) for least_, most_ in box))
    return SemanticCertificate(
        verified, failed, torch.where(verified, reach, 0.0), "linf", "semantify",
        counterexample=image if bool(failed.any()) else None,
        edges=edges, pieces=pieces.reshape(len(x), *[splits] * len(box)),
    )  # fmt: skip


def _all_of(change: Listed, graph: Graph, x: Tensor, y: Tensor) -> SemanticCertificate:
    """Every parameter is tried; the first that changes the label gives the counterexample."""
    parameters = change.parameters(x)
    kept = torch.zeros(len(x), len(parameters), dtype=torch.bool, device=x.device)
    image = torch.full_like(x, torch.nan)
    for k in reversed(range(len(parameters))) if len(x) else ():
        changed = change.images(x, parameters[k].expand(len(x), -1))
        kept[:, k] = graph(changed).argmax(dim=1) == y
        image = torch.where(beside(kept[:, k], x), image, changed)
    verified = kept.all(dim=1)
    return SemanticCertificate(
        verified, ~verified, torch.where(verified, torch.inf, 0.0).to(x.dtype), "linf", "semantify",
        counterexample=None if bool(verified.all()) else image, pieces=kept,
    )  # fmt: skip
