"""How the nets of two published defenses are trained: by distillation, and on mixtures of images.

Both are objectives for :func:`robustlab.training.fit.fit`. The defenses were broken, as
:mod:`robustlab.defenses.published` tells; they are kept to be attacked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.defenses.training.dirichlet import dirichlet
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.training.fit import Objective


def distillation(temperature: float = 100.0, teacher: nn.Module | None = None) -> Objective[nn.Module]:
    """Learn at a high temperature: the labels first, then the probabilities of a net that has learned them.

        loss = CE( softmax(f(x) / T), q(x) ),   q(x) = onehot(y), or softmax(teacher(x) / T)

    The net is used at T = 1, where its logits are about T times as large as usual and its softmax is saturated.

    Args:
        temperature: T, above 0 (default 100).
        teacher: a net of the same architecture that was trained with ``teacher=None``, in evaluation mode and on the
            device of x. It is not changed.

    Raises:
        ValueError, TypeError: for a wrong temperature.

    Source: Papernot et al. (2016). There q is computed once for each training image; here for each augmented one.
    """
    checks.positive("temperature", temperature)

    def loss(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean cross-entropy at this temperature."""
        logits = model(x) / temperature
        if teacher is None:
            return F.cross_entropy(logits, y)
        with torch.no_grad():
            soft = (teacher(x) / temperature).softmax(dim=1)
        return F.cross_entropy(logits, soft)

    return loss


def mixup(alpha: float = 1.0) -> Objective[nn.Module]:
    """Learn on mixtures of two images, with labels mixed alike.

        x̃ = λ·x_i + (1 − λ)·x_j,   loss = λ·CE(f(x̃), y_i) + (1 − λ)·CE(f(x̃), y_j),   λ ~ Beta(α, α), one per batch

    Args:
        alpha: α, above 0 (default 1, as Pang, Xu and Zhu trained: λ is uniform).

    Raises:
        ValueError, TypeError: for a wrong ``alpha``.

    Source: Zhang, Cissé, Dauphin and Lopez-Paz (2018); as in their code, j is a permutation of the batch.
    """
    checks.positive("alpha", alpha)

    def loss(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean loss of the mixtures."""
        own = Noise(derive_seed(seed, 1), torch.zeros(1, dtype=torch.int64))
        share = float(dirichlet(torch.full((1, 2), alpha), own, 0)[0, 0])
        partner = Noise(seed, ids.to(x.device)).bits(0, ()).argsort()
        logits = model(torch.lerp(x[partner], x, share))
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[partner])

    return loss
