"""The poisoned training set of a backdoor attack, with the four choices that papers leave open made explicit.

Gu, Liu, Dolan-Gavitt and Garg, "BadNets: Evaluating backdooring attacks on deep neural networks" (2019), section 4:
samples are drawn from the training set, get the trigger, and get the label that the attacker wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacks.backdoor.trigger import stamped
from robustlab.data.dataset import Dataset
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise

__all__ = ["PoisonedDataset"]

RateOf = Literal["data", "eligible"]
Target = int | Sequence[int] | Tensor


class PoisonedDataset(Poisoned):
    """Training data of which a part carries a trigger and the attacker's label.

        x_i ← trigger(x_i),  y_i ← t(y_i)    for round(rate · n) samples i, drawn from those that may be poisoned

    The four choices:

    1. *What the rate is a fraction of*: the whole training set, or (``rate_of="eligible"``) the samples that may be
       poisoned.
    2. *Whether images of the target class may be poisoned*: no, since they have the label already,
       unless ``include_target``. With ``clean_label`` they are the only ones: labels stay as they are.
    3. *What the success rate counts*: samples of other classes only (:func:`evaluate_backdoor`).
    4. *Where the trigger goes on*: on raw inputs, before augmentation (which :func:`robustlab.training.fit.fit` does)
       and before normalization (which is a layer of the model).

    Args:
        data: a Dataset, whose training part is used, or a pair (x, y) of tensors. It is copied, not changed.
        trigger: any module from inputs to inputs of the same shape.
        rate: fraction of poisoned samples, in (0, 1].
        target: the label t; or one per class, so that class k gets the label ``target[k]`` ("all-to-all").
        clean_label: poison only samples that have the target label already.
        include_target: whether samples of the target class may be poisoned without ``clean_label``.
        rate_of: ``"data"`` (default) or ``"eligible"``.
        source: only samples of these classes are poisoned; None for all.
        cover: a module that is applied to ``cover_rate`` of all samples that are not poisoned, whose labels stay: the
            noise mode of WaNet. They count as clean labels but not as poison; ``is_cover`` names them.
        cover_rate: fraction of the whole training set, in [0, 1).
        seed: draws which samples; the same seed and a larger rate give a superset.

    Attributes:
        trigger, target: as given.
        is_cover: (N,) bool; False everywhere without ``cover``. Beside
            :class:`~robustlab.attacker.poisoned_data.Poisoned`'s ``is_poison`` and ``original_y``, which no defense can
            see.

    Raises:
        ValueError, TypeError: for a wrong argument, or when fewer samples may be poisoned than the rate asks for.
    """

    def __init__(
        self,
        data: Pairs,
        trigger: nn.Module,
        *,
        rate: float,
        target: Target,
        clean_label: bool = False,
        include_target: bool = False,
        rate_of: RateOf = "data",
        source: int | Sequence[int] | None = None,
        cover: nn.Module | None = None,
        cover_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        x, y = read_labeled(data)
        if not isinstance(trigger, nn.Module):
            raise TypeError(f"trigger: want a torch.nn.Module, got {type(trigger).__name__}")
        checks.at_least("rate", rate, 0.0)
        if not 0 < rate <= 1:
            raise ValueError(f"rate: want a fraction in (0, 1], got {rate}")
        checks.one_of("rate_of", rate_of, ("data", "eligible"))
        checks.at_least("cover_rate", cover_rate, 0.0)
        if cover_rate and cover is None:
            raise ValueError(f"cover: want a module with cover_rate {cover_rate}, got None")
        wanted = target_of(target, y)
        if isinstance(data, Dataset):  # it says how many classes there are; a pair does not
            checks.in_classes("target", wanted, len(data.classes))
        eligible = (wanted == y) if clean_label else torch.ones_like(y, dtype=torch.bool)
        if not clean_label and not include_target:
            eligible = wanted != y
        if source is not None:
            eligible &= torch.isin(y, torch.as_tensor(source, device=y.device))
        if not bool(eligible.any()):
            which = "the target's class" if clean_label else "any class" if include_target else "other classes"
            named = "" if source is None else f" and source {source}"
            raise ValueError(f"data: want samples of {which}{named}, which may be poisoned, got none of {len(x)}")
        count = round(rate * (len(x) if rate_of == "data" else int(eligible.sum())))
        if not 1 <= count <= int(eligible.sum()):
            raise ValueError(
                f"rate: want from 1 to {int(eligible.sum())} poisoned samples (so many may be poisoned), "
                f"got {rate}, which is {count} of {len(x)}"
            )
        order = _order(seed, 0, eligible)
        is_poison = order < count
        is_cover = _order(seed, 1, ~is_poison) < round(cover_rate * len(x))
        if int(is_cover.sum()) != round(cover_rate * len(x)):
            raise ValueError(f"cover_rate: want at most {1 - count / len(x):.3g} beside the poison, got {cover_rate}")
        tampered = x.clone()
        tampered[is_poison] = _same(trigger, stamped(trigger, x[is_poison]), x)
        if cover is not None and cover_rate:
            tampered[is_cover] = _same(cover, stamped(cover, x[is_cover], batch_size=len(x)), x)
        super().__init__(tampered, torch.where(is_poison, wanted, y), is_poison=is_poison, original_y=y.clone())
        self.trigger, self.target, self.is_cover = trigger, target, is_cover


def target_of(target: Target, y: Tensor) -> Tensor:
    """The label (N,) that the attacker wants for samples of the classes y.

    Raises:
        ValueError, TypeError: if ``target`` is neither a label nor one for each class.
    """
    if isinstance(target, bool) or not isinstance(target, (int, Sequence, Tensor)):
        raise TypeError(f"target: want a label, or one for each class, got {target!r}")
    labels = torch.as_tensor(target, device=y.device)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.dim() > 1:
        raise TypeError(f"target: want a label, or one for each class, got {target!r}")
    if bool((labels < 0).any()):
        raise ValueError(f"target: want labels of at least 0, got {target}")
    if labels.dim() == 0:
        return labels.to(y.dtype).expand_as(y)
    if len(y) and int(y.max()) >= len(labels):
        raise ValueError(f"target: want a label for each of the classes 0 … {int(y.max())}, got {len(labels)} labels")
    return labels.to(y.dtype)[y]


def _order(seed: int, draw: int, eligible: Tensor) -> Tensor:
    """Each eligible sample's place (0, 1, …) in a random order; the others stand behind all of them, (N,)."""
    ids = torch.arange(len(eligible), device=eligible.device)
    lot = Noise(seed, ids).uniform(draw, (), torch.float64)
    places = torch.where(eligible, lot, 2.0).argsort(stable=True).argsort()
    return torch.where(eligible, places, len(eligible))


def _same(module: nn.Module, changed: Tensor, x: Tensor) -> Tensor:
    if changed.shape[1:] != x.shape[1:] or changed.dtype != x.dtype:
        raise ValueError(
            f"trigger: want inputs of shape {tuple(x.shape[1:])} and {x.dtype}, got {tuple(changed.shape[1:])} and "
            f"{changed.dtype} from {type(module).__name__}"
        )
    return changed
