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
from robustlab.verification.semantic.change import Change, Enclosed, Listed, as_box

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
    if not isinstance(change, Enclosed | Listed):
        raise TypeError(f"change: want a change such as Hue(), got {type(change).__name__}")
    change.check(x)
    graph, _, y, _ = prepare(model, x, y, "linf", (0.0, 1.0), None)
    if isinstance(change, Listed):
        if low is not None or high is not None:
            raise ValueError("low, high: want none, for all parameters of this change are tried")
        kept, image = _tried(change, graph, x, y, change.parameters(x))
        verified = kept.all(dim=1)
        radius = torch.where(verified, torch.inf, 0.0).to(x.dtype)
        return _certificate(verified, ~verified, radius, image, pieces=kept)
    if low is None or high is None:
        raise ValueError("low, high: want the range of the parameters, got None")
    box = as_box(change, low, high)
    edges = torch.stack([_edges(least, most, splits, x) for least, most in box], dim=1)  # (S + 1, d)
    kept, image = _tried(change, graph, x, y, _product(edges))
    clean = graph(x).argmax(dim=1) == y if len(x) else kept.all(dim=1)
    failed = ~(clean & kept.all(dim=1))
    cells = _product(torch.arange(splits, device=x.device)[:, None].expand(-1, len(box)))  # (S^d, d)
    least, most = edges.gather(0, cells), edges.gather(0, cells + 1)
    pieces = torch.zeros(len(x), len(cells), dtype=torch.bool, device=x.device)
    for sample, cell in _passes(x, len(cells)):
        tube = change.tube(x[sample], least[cell], most[cell])
        C = margins(y[sample], graph.output_shape[0], x.dtype)
        pieces[sample, cell] = positive(METHODS[method](graph, tube, C))
    verified = pieces.all(dim=1) & ~failed
    radius = torch.where(verified, max(0.0, min(min(-down, up) for down, up in box)), 0.0)
    image = torch.where(beside(clean, x), image, x)
    return _certificate(verified, failed, radius, image, edges, pieces.reshape(len(x), *[splits] * len(box)))


def _edges(low: float, high: float, splits: int, x: Tensor) -> Tensor:
    """(S + 1,): where the parts of an interval begin and end, its own ends to the last bit."""
    edges = low + (high - low) * torch.linspace(0, 1, splits + 1, dtype=x.dtype, device=x.device)
    edges[-1] = high
    return edges


def _product(columns: Tensor) -> Tensor:
    """(m, d) → (m^d, d): all rows with an entry of each column."""
    return torch.cartesian_prod(*columns.unbind(1)).reshape(-1, columns.shape[1])


def _passes(x: Tensor, count: int) -> Sequence[tuple[Tensor, Tensor]]:
    """All pairs of a sample and one of ``count`` things, as many in one pass as memory likes."""
    rows = torch.cartesian_prod(torch.arange(len(x), device=x.device), torch.arange(count, device=x.device))
    return [(*some.unbind(1),) for some in rows.split(max(1, PIXELS // max(1, x[0].numel())))] if len(rows) else []


def _tried(change: Change, graph: Graph, x: Tensor, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """(N, P) which parameters (P, d) keep the label, and the image of the first that does not, NaN where all do."""
    kept = torch.ones(len(x), len(parameters), dtype=torch.bool, device=x.device)
    for sample, number in _passes(x, len(parameters)):
        changed = change.images(x[sample], parameters[number])
        kept[sample, number] = graph(changed).argmax(dim=1) == y[sample]
    first = (~kept).int().argmax(dim=1)
    image = change.images(x, parameters[first])
    return kept, image.masked_fill(beside(kept.all(dim=1), image), torch.nan)


def _certificate(
    verified: Tensor, failed: Tensor, radius: Tensor, image: Tensor, edges: Tensor | None = None,
    pieces: Tensor | None = None,
) -> SemanticCertificate:  # fmt: skip
    return SemanticCertificate(
        verified, failed, radius, "linf", "semantify",
        counterexample=image if bool(failed.any()) else None, edges=edges, pieces=pieces,
    )  # fmt: skip
