"""Small networks for assignments that hand out trained ones: many are trained at once, in a second or two."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from robustlab import data
from robustlab.teaching.handout import relu_network

SHAPE, CLASSES = (1, 14, 14), 10


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits of 14 × 14 pixels: 4,000 to train on with their labels, and 1,000 others."""
    found = data.load("mnist5k")
    return avg_pool2d(found.x_train, 2), found.y_train, avg_pool2d(found.x_test, 2), found.y_test


def trained(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    hidden: int = 32,
    epochs: int = 8,
    batch: int = 50,
    eps: Tensor | None = None,
) -> list[nn.Sequential]:
    """Networks of one hidden layer, all trained side by side on sets of their own.

    Args:
        x: (M, n, ...) in [0, 1], the training set of each of M networks.
        y: (M, n) labels.
        generator: of the first weights and of the order.
        hidden: width of the hidden layer.
        epochs, batch: of Adam at a rate of 0.003.
        eps: (M,), for adversarial training in the ℓ∞ ball by three steps of half of it; None and 0 train plainly.
    """
    (count, n), features = x.shape[:2], x[0, 0].numel()
    sizes = ((features, hidden), (hidden, CLASSES))
    weights = [torch.randn(count, *size, generator=generator) * (2 / size[0]) ** 0.5 for size in sizes]
    biases = [torch.zeros(count, 1, size[1]) for size in sizes]
    parameters = [part.requires_grad_() for part in (*weights, *biases)]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)

    def loss(points: Tensor, labels: Tensor) -> Tensor:
        z = torch.baddbmm(biases[1], torch.baddbmm(biases[0], points, weights[0]).relu(), weights[1])
        return cross_entropy(z.flatten(0, 1), labels.flatten(), reduction="sum") / batch

    flat = x.flatten(2)
    for _ in range(epochs):
        for rows in torch.randperm(n, generator=generator).split(batch):
            points = clean = flat[:, rows]
            for _ in range(3 if eps is not None else 0):
                assert eps is not None
                points.requires_grad_()
                (grad,) = torch.autograd.grad(loss(points, y[:, rows]), points)
                radius = eps[:, None, None]
                delta = (points.detach() + 0.5 * radius * grad.sign() - clean.detach()).clamp(-radius, radius)
                points = (clean.detach() + delta).clamp(0, 1)
            optimizer.zero_grad()
            loss(points.detach(), y[:, rows]).backward()
            optimizer.step()
    layers = zip(weights, biases, strict=True)
    done = [(w.detach().transpose(1, 2).contiguous(), b.detach().squeeze(1)) for w, b in layers]
    return [relu_network([(w[m], b[m]) for w, b in done]) for m in range(count)]
