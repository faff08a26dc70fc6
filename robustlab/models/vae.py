"""A class-wise variational autoencoder: a learned model of the images of each class.

An image of class y is thought to come from a code z ~ N(0, I) through a decoder, x ~ Bernoulli(dec(z, y)). The encoder
gives the mean and the variance of the codes that may have made an image. Trained on the evidence lower bound

    ELBO(x, y) = E_{z ~ q(z | x, y)} [ log p(x | z, y) ] − KL( q(z | x, y) ‖ N(0, I) )

the decoder's images of class y are a manifold with as many dimensions as the code has, and every point of it has the
label y by construction. Read the other way round, the class that explains an image best is a classifier.

Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014); Sohn, Lee and Yan, "Learning structured output
representation using deep conditional generative models" (2015), for the label as an input. The class-wise manifold is
that of Stutz, Hein and Schiele (2019), who train one network per class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.geometry.keyed import Noise
from robustlab.models.registry import register


@register
def class_vae(*, latent: int = 8, classes: int = 10, hidden: int = 48, seed: int = 0) -> nn.Module:
    """A :class:`ClassVAE` for images (1, 28, 28).

    Args:
        latent: numbers in a code.
        classes: number of classes, at least 2.
        hidden: units of the fully connected layers.
        seed: of the initial weights (default 0).

    Raises:
        ValueError: if a size is not a positive integer or there are fewer than 2 classes.
    """
    for name, value, least in (("latent", latent, 1), ("classes", classes, 2), ("hidden", hidden, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: want an integer of at least {least}, got {value}")
    return ClassVAE(latent, classes, hidden)


class ClassVAE(nn.Module):
    """Encoder and decoder that are told the class; as a model, the ELBO of every class as logits.

    Args:
        latent, classes, hidden: as in :func:`class_vae`.
    """

    def __init__(self, latent: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.look = nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 4, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 7 * 7, 16), nn.ReLU(),
        )  # fmt: skip
        self.code = nn.Sequential(nn.Linear(16 + classes, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.draw = nn.Sequential(
            nn.Linear(latent + classes, hidden), nn.ReLU(), nn.Linear(hidden, 16 * 7 * 7), nn.ReLU(),
            nn.Unflatten(1, (16, 7, 7)), nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
        )  # fmt: skip

    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean code (N, latent) of images (N, 1, 28, 28) of the classes y (N,)."""
        return self._posterior(self.look(x), y)[0]

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """The images (N, 1, 28, 28) in (0, 1) of codes z (N, latent) and classes y (N,)."""
        return self._pixels(z, y).sigmoid()

    def sample(self, y: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Images of the classes y (N,) with their codes, z ~ N(0, I), keyed by seed and place."""
        weight = next(self.parameters())
        z = Noise(seed, torch.arange(len(y), device=y.device)).normal(0, (self.latent,), weight.dtype)
        with torch.no_grad():
            return self.decode(z, y), z

    def forward(self, x: Tensor) -> Tensor:
        """(N, classes): the ELBO of each class, in nats, at its mean code instead of the expectation."""
        n, looks = len(x), self.look(x)
        y = torch.arange(self.classes, device=x.device).repeat(n)
        mean, log_variance = self._posterior(looks.repeat_interleave(self.classes, dim=0), y)
        pixels = self._pixels(mean, y)
        return -_cost(pixels, x.repeat_interleave(self.classes, dim=0), mean, log_variance).reshape(n, -1)

    def elbo(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """The ELBO (N,) of images with their classes, from one standard normal draw (N, latent)."""
        mean, log_variance = self._posterior(self.look(x), y)
        z = mean + noise * (log_variance / 2).exp()
        return -_cost(self._pixels(z, y), x, mean, log_variance)

    def _posterior(self, looks: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.code(torch.cat([looks, self._one_hot(y, looks)], dim=1)).chunk(2, dim=1)
        return mean, log_variance

    def _pixels(self, z: Tensor, y: Tensor) -> Tensor:
        return self.draw(torch.cat([z, self._one_hot(y, z)], dim=1))

    def _one_hot(self, y: Tensor, like: Tensor) -> Tensor:
        return F.one_hot(y, self.classes).to(like.dtype)


def elbo_training() -> Callable[..., Tensor]:
    """The objective of :class:`ClassVAE` for :func:`robustlab.training.fit.fit`: the mean of −ELBO, in nats."""

    def objective(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        assert isinstance(model, ClassVAE)
        return -model.elbo(x, y, Noise(seed, ids).normal(0, (model.latent,), x.dtype)).mean()

    return objective


def _cost(pixels: Tensor, x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """−log p(x | z) + KL, (N,): the nats it takes to describe x."""
    wrong = F.binary_cross_entropy_with_logits(pixels, x, reduction="none").flatten(1).sum(dim=1)
    return wrong + (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
