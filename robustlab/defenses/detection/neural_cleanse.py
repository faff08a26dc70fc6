"""Neural Cleanse.

Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao, "Neural Cleanse: Identifying and mitigating backdoor attacks in neural
networks" (2019). For each class t, search for the smallest patch that turns clean inputs into class t, equation (3):

    minimize over mask m ∈ [0, 1]^{H×W} and pattern p ∈ [0, 1]^{C×H×W}:
        1/N Σ_i CE(model((1 − m)·x_i + m·p), t) + λ·‖m‖₁

and look for a class whose mask is far smaller than those of the others: |‖m_t‖₁ − median| / (1.4826·MAD) > 2 below
the median, section IV.C. To repair a model, see :func:`robustlab.defenses.unlearn`.

λ starts at 0 until the patch works; then it grows by 1.5 where the patch has worked for `patience` steps in a row, and
shrinks by 1.5^1.5 where it has not. All classes are searched together, in one batch. Different here: a step takes the
gradient over all clean inputs given, not over a random part, so that the success rate of a mask is exact and nothing
is random but the start. A search that has not come to its end says so: see :class:`Patches`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.few_channels import FewChannels
from robustlab.attacker.results import Detection, Result
from robustlab.data.pairs import Pairs, read_inputs
from robustlab.geometry.keyed import Noise
from robustlab.models.probing import Probe

__all__ = ["Patches", "neural_cleanse"]

WORKS = 0.99  # share of inputs that a patch must turn


@dataclass(frozen=True, eq=False, repr=False)
class Patches(Result):
    """What was found for each of T classes; the smallest patches that work, the last ones where none did.

    Attributes:
        masks: (T, 1, H, W), m in [0, 1].
        patterns: (T, C, H, W), p in [0, 1].
        sizes: (T,) = ‖m‖₁ in pixels, ∞ where none worked.
        success: (T,), share of the images that the patch turns.
        classes: (T,), the labels.
        converged: (T,) bool: a patch works, and λ, once above 0, had to be lowered again, since at that weight the
            mask was too small to work. Where it is False more steps may shrink the mask, and its size is an upper
            bound.
    """

    masks: Tensor
    patterns: Tensor
    sizes: Tensor
    success: Tensor
    classes: Tensor
    converged: Tensor


def neural_cleanse(
    model: nn.Module,
    x: Tensor | Pairs,
    *,
    classes: Tensor | None = None,
    steps: int = 300,
    lr: float = 0.1,
    cost: float = 1e-3,
    patience: int = 5,
    threshold: float = 2.0,
    seed: int = 0,
    rows: int = 2000,
) -> Detection[Patches]:
    """Reverse-engineer a patch for each class, and flag the classes whose patch is suspiciously small.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K). It is only looked at.
        x: clean images (N, C, H, W) of all classes, at least one; or labeled data (of a Dataset the training part),
            whose labels are not looked at.
        classes: the labels to examine, (T,); None is all of them. What is found for a class does not depend on the
            others, but the index does: give at least 3.
        steps: gradient steps, at least 1; a few hundred, for a search that has not converged gives no verdict.
        lr: of Adam (β = 0.5, 0.9) on the arguments of tanh, as in the authors' code.
        cost: λ once the patch works, above 0.
        patience: steps in a row before λ changes.
        threshold: of the anomaly index. If the sizes were normal and there were many, 2 would be passed by 2.3 % of
            the classes of a clean model. A model has several, and few; see the false-alarm rate below.
        seed: of the start, which is uniform in [0, 1] for each pixel of mask and pattern.
        rows: largest number of images in one forward; smaller needs less memory.

    Returns:
        A Detection with the anomaly index of each class as its score, positive on the small side; its ``details`` are
        the :class:`Patches`. A warning names the classes whose search has not converged: sizes and index are then none
        that can be trusted, and that nothing is flagged does not mean that the model is clean. Where all sizes, or
        more than half, are equal (as where no patch was found), the MAD is 0 and there is no scale: the index is NaN,
        nothing is flagged, and a warning says so.

        ``false_alarm_rate`` is :func:`false_alarm_rate`: how often some class of a clean model is flagged,
        if the sizes of its classes are independent and normal. For ten classes and a threshold of 2 it is about a
        third. Where sizes are not normal it is a guide only: look at clean models of the same kind.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Wang et al. (2019), equation (3) and section IV. Departures: full gradients, see the module; a class for which
        no patch works is given the largest possible mask in the index.
    """
    x = read_inputs(x)
    checks.images(x, (0.0, 1.0), takes=None)
    checks.pictures(x)
    if not len(x):
        raise ValueError("x: want at least one image, got none")
    checks.at_home(model, x)
    for name, value in (("steps", steps), ("patience", patience), ("rows", rows)):
        checks.at_least(name, value, 1, integer=True)
    for name, number in (("lr", lr), ("cost", cost), ("threshold", threshold)):
        checks.positive(name, number)
    with torch.inference_mode(False), torch.enable_grad(), Probe(model) as probe:
        count = probe(x[:1]).shape[1]
        classes = torch.arange(count) if classes is None else torch.as_tensor(classes)
        checks.in_classes("classes", classes, count)
        if len(classes) < 3:
            raise ValueError(f"classes: want at least 3, to compare them, got {len(classes)}")
        search = _Search(probe, x, classes.to(x.device), lr, seed, rows)
        found = search.run(steps, cost, patience)
    index = anomaly_index(found.sizes.nan_to_num(posinf=float(x[0, 0].numel())))
    _warn(found, index, steps)
    stated = false_alarm_rate(len(classes), threshold)
    return Detection(index, index > threshold, threshold, found, false_alarm_rate=stated, level="class")


def anomaly_index(sizes: Tensor) -> Tensor:
    """How far each size lies below the median, in robust standard deviations.

        (median − size_t) / (1.4826·MAD),   MAD = median over t of |size_t − median|

    The median of an even number is the mean of the two middle ones. Where the MAD is 0 there is no scale, and the index
    is NaN.

    Args:
        sizes: (T,), or (..., T) for several models at once.
    """
    sizes = sizes.double()
    centre = sizes.quantile(0.5, dim=-1, keepdim=True)
    spread = 1.4826 * (sizes - centre).abs().quantile(0.5, dim=-1, keepdim=True)
    return torch.where(spread == 0, torch.nan, (centre - sizes) / spread)


def _warn(found: Patches, index: Tensor, steps: int) -> None:
    """Says what keeps the index from being a verdict."""
    if not bool(found.converged.all()):
        open_ = found.classes[~found.converged].tolist()
        without = found.classes[found.sizes.isinf()].tolist()
        none = f" (no patch at all for {without})" if without else ""
        checks.warn(
            f"neural_cleanse: the search has not converged after {steps} steps for classes {open_}{none}; this is no "
            "verdict, take more steps"
        )
    if bool(index.isnan().any()):
        checks.warn(
            "neural_cleanse: more than half of the sizes are equal, so that the index has no scale (MAD = 0) and is "
            "NaN; nothing is flagged, and nothing is said to be clean"
        )


@cache
def false_alarm_rate(classes: int, threshold: float = 2.0) -> float:
    """How often some class of a clean model has an index above the threshold, if sizes are independent and normal.

        Pr[ max_t (median − s_t) / (1.4826·MAD) > threshold ],   s_1 … s_T ~ N(μ, σ²)

    Mean and deviation cancel. Median and MAD are estimated from the few sizes that they judge, so that the rate is
    above 1 − Φ(threshold)^T. It is simulated, always on the same 200,000 sizes: to within 0.01 for ten classes.

    Args:
        classes: T, at least 3.
        threshold: of the index.
    """
    models = max(1000, 200_000 // classes)
    sizes = Noise(0, torch.arange(models)).normal(0, (classes,), torch.float64)
    return float((anomaly_index(sizes) > threshold).any(dim=1).double().mean())


class _Search:
    """The patches of all classes, as they are searched."""

    def __init__(self, probe: Probe, x: Tensor, classes: Tensor, lr: float, seed: int, rows: int) -> None:
        self.probe, self.x, self.classes, self.rows = probe, x, classes, rows
        start = Noise(seed, classes)  # a class has random numbers of its own
        shapes = ((1, *x.shape[2:]), tuple(x.shape[1:]))
        uniform = [start.uniform(draw, shape, x.dtype) for draw, shape in enumerate(shapes)]
        # mask = (tanh(u) + 1) / 2, and the same for the pattern; a start at 0 or 1 exactly would never move
        self.hidden = [torch.atanh((2 * u - 1) * 0.999).requires_grad_() for u in uniform]
        self.adam = torch.optim.Adam(self.hidden, lr=lr, betas=(0.5, 0.9))

    def patches(self) -> tuple[Tensor, Tensor]:
        mask, pattern = ((u.tanh() + 1) / 2 for u in self.hidden)
        return mask, pattern

    def run(self, steps: int, start_cost: float, patience: int) -> Patches:
        total = len(self.classes)
        best_size = self.x.new_full((total,), torch.inf)
        best_mask, best_pattern = (part.detach().clone() for part in self.patches())
        cost, worked, failed = self.x.new_zeros(3, total)
        lowered = torch.zeros(total, dtype=torch.bool, device=self.x.device)
        for _ in range(steps):
            mask, pattern = self.patches()
            success = self._descend(mask, pattern, cost)
            mask, pattern, size = mask.detach(), pattern.detach(), mask.detach().sum(dim=(1, 2, 3))
            works = success >= WORKS
            better = works & (size < best_size)
            best_size = torch.where(better, size, best_size)
            keep = better | best_size.isinf()
            best_mask = torch.where(keep[:, None, None, None], mask, best_mask)
            best_pattern = torch.where(keep[:, None, None, None], pattern, best_pattern)
            worked, failed = torch.where(works, worked + 1, 0), torch.where(works, 0, failed + 1)
            up, down = worked >= patience, failed >= patience
            lowered |= down & (cost > 0)
            cost = torch.where(up & (cost == 0), start_cost, torch.where(up, cost * 1.5, cost))
            cost = torch.where(down, cost / 1.5**1.5, cost)
            worked, failed = worked.masked_fill(up, 0), failed.masked_fill(down, 0)
        with torch.no_grad():
            success = self._success(best_mask, best_pattern)
        converged = lowered & best_size.isfinite()
        return Patches(best_mask, best_pattern, best_size, success, self.classes, converged)

    def _stamped(self, x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
        """Each image with each patch, (T, n, C, H, W) as one batch."""
        return ((1 - mask)[:, None] * x + (mask * pattern)[:, None]).flatten(0, 1)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.x.split(max(1, self.rows // len(self.classes)))

    def _descend(self, mask: Tensor, pattern: Tensor, cost: Tensor) -> Tensor:
        """One step of Adam for all classes; returns the success rates of the patches before it."""
        leaves = [part.detach().requires_grad_() for part in (mask, pattern)]
        wins = torch.zeros(len(self.classes), device=self.x.device)
        for part in self._parts():
            with FewChannels():
                logits = self.probe(self._stamped(part, *leaves))
            goal = self.classes.repeat_interleave(len(part))
            F.cross_entropy(logits, goal, reduction="sum").div(len(self.x)).backward()
            wins += (logits.argmax(dim=1) == goal).view(len(self.classes), -1).sum(dim=1)
        by_mask, by_pattern = (leaf.grad for leaf in leaves)
        assert by_mask is not None
        by_mask = by_mask + cost[:, None, None, None]  # the slope of λ·‖m‖₁, since m ≥ 0
        self.adam.zero_grad()
        torch.autograd.backward([mask, pattern], [by_mask, by_pattern])
        self.adam.step()
        return wins / len(self.x)

    def _success(self, mask: Tensor, pattern: Tensor) -> Tensor:
        wins = torch.zeros(len(self.classes), device=self.x.device)
        for part in self._parts():
            labels = self.probe(self._stamped(part, mask, pattern)).argmax(dim=1).view(len(self.classes), -1)
            wins += (labels == self.classes[:, None]).sum(dim=1)
        return wins / len(self.x)
