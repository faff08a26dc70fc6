"""The attacks that the checklist compares, each run once and remembered."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.attacker.losses import ce, truncated_margin
from robustlab.attacker.victim import Victim, predict
from robustlab.attacks.softlabel.square import square
from robustlab.attacks.whitebox.bypass_detectors import bypass_detectors
from robustlab.attacks.whitebox.fgsm import fgsm
from robustlab.attacks.whitebox.pgd import pgd, pgd_maximize
from robustlab.defenses.robustness_claim import Claim
from robustlab.evaluation.adaptive.eot import eot
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.geometry.norms import get_norm
from robustlab.models.modes import evaluating

_DRAWS = 4  # draws of a random defense, to average; it is judged on twice as many


class ComparedAttacks:
    """Attacks on one model over one batch, in evaluation mode. What they say are masks of fooled samples.

    Attributes:
        model: the model as it was handed in.
        random: whether two predictions at the same point differ in evaluation mode.
        victim: what is attacked: the model, or its average over fixed draws if it is random.
        x, y, claim, steps, queries, seed: as in :func:`robustlab.evaluation.checklist`.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, claim: Claim, surrogate: nn.Module | None, steps: int,
        queries: int, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.x, self.y, self.claim, self.surrogate = model, x, y, claim, surrogate
        self.steps, self.queries, self.seed = steps, queries, seed
        self.random = not torch.equal(self.once(0), self.once(1))
        self.attacked = eot(model, samples=_DRAWS, seed=seed) if self.random else model
        self.victim = Victim(self.attacked, bounds=claim.bounds)
        self.ball = get_norm(claim.norm)

    def once(self, draw: int, x: Tensor | None = None) -> Tensor:
        """The model's logits in evaluation mode, torch's generator seeded by ``draw``."""
        return _frozen(self.model, self.x if x is None else x, derive_seed(self.seed, draw), train=False)

    def as_handed_in(self, draw: int, x: Tensor | None = None) -> Tensor:
        """The model's logits in the mode in which it was handed in."""
        return _frozen(self.model, self.x if x is None else x, derive_seed(self.seed, draw), train=True)

    # White box ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def wrong(self) -> Tensor:
        """Misread without an attack."""
        return predict(self.attacked, self.x) != self.y

    @functools.cached_property
    def one_step(self) -> Tensor:
        """Fooled by the fast gradient (sign) method."""
        return fgsm(self.victim, self.x, self.y, norm=self.claim.norm, eps=self.claim.eps).success

    @functools.cached_property
    def few_steps(self) -> Tensor:
        """Fooled by a quarter of the steps."""
        return self._pgd(steps=max(1, self.steps // 4))

    @functools.cached_property
    def by_ce(self) -> Tensor:
        """Fooled by PGD on the cross-entropy."""
        return self._pgd()

    @functools.cached_property
    def by_margin(self) -> Tensor:
        """Fooled by PGD on the margin of the logits."""
        return self._pgd(loss="margin")

    @property
    def white(self) -> Tensor:
        """Fooled by any of the white-box attacks within ε."""
        return self.one_step | self.few_steps | self.by_ce | self.by_margin

    def at(self, factor: float) -> Tensor:
        """Fooled by PGD with ``factor`` times the claimed ε."""
        return self._pgd(eps=factor * self.claim.eps) if factor != 1 else self.by_ce

    @functools.cached_property
    def everywhere(self) -> Tensor:
        """Fooled by PGD whose ball holds the whole box."""
        reach = self.claim.span(self.x)
        return self._pgd(eps=reach) | self._pgd(eps=reach, loss="margin") | self._pgd(eps=reach / 2, loss="margin")

    def _pgd(self, **changes: Any) -> Tensor:
        settings: dict[str, Any] = {"eps": self.claim.eps, "steps": self.steps, **changes}
        return pgd(self.victim, self.x, self.y, norm=self.claim.norm, seed=self.seed, **settings).success

    # What needs no gradient of the model -------------------------------------------------------------------------

    @functools.cached_property
    def by_noise(self) -> Tensor:
        """Fooled by one of twenty random points of the ball (of its corners in ℓ∞)."""
        noise, fooled = Noise(self.seed, torch.arange(len(self.x), device=self.x.device)), self.wrong.clone()
        low, high = (end - self.x for end in self.claim.bounds)
        for draw in range(20):
            delta = self.ball.uniform(noise, draw, self.x, self.claim.eps)
            delta = self.claim.eps * delta.sign() if self.claim.norm == "linf" else delta
            delta = self.ball.project_box(delta, self.claim.eps, low, high)
            fooled |= predict(self.attacked, (self.x + delta).clamp(*self.claim.bounds)) != self.y
        return fooled

    @functools.cached_property
    def by_search(self) -> Tensor | None:
        """Fooled by the Square Attack, which sees scores alone; None for inputs and norms that it does not know."""
        norm, eps = self.claim.norm, self.claim.eps
        if self.x.dim() != 4 or norm == "l1":
            return None
        return square(self.victim, self.x, self.y, norm=norm, eps=eps, queries=self.queries, seed=self.seed).success

    @functools.cached_property
    def by_transfer(self) -> Tensor | None:
        """Fooled by what fools the surrogate, all steps taken; None without a surrogate."""
        if self.surrogate is None:
            return None
        found = self._maximize(self.surrogate)
        return self.wrong | (predict(self.attacked, found) != self.y)

    # Aimed at the defense ----------------------------------------------------------------------------------------

    @functools.cached_property
    def by_average(self) -> Tensor | None:
        """(N,) share of fresh draws that are fooled by an attack on the average of other draws; None if not random."""
        if not self.random:
            return None
        found = self._maximize(self.attacked)
        drawn = [(self.once(_DRAWS + draw, found).argmax(dim=1) != self.y).double() for draw in range(2 * _DRAWS)]
        return torch.stack(drawn).mean(dim=0)

    @functools.cached_property
    def past_detector(self) -> Tensor | None:
        """Misread and not refused, by an attack on both; None without a detector."""
        claim = self.claim
        if claim.detector is None:
            return None
        return bypass_detectors(
            self.victim, self.x, self.y, detector=claim.detector, norm=claim.norm, eps=claim.eps, steps=self.steps,
            seed=self.seed,
        ).success  # fmt: skip

    def fooled(self) -> Tensor:
        """(N,) in [0, 1]: the worst that was found for the claim: fooled samples, or shares of draws."""
        if self.past_detector is not None:
            return self.past_detector.double()
        if self.by_average is not None:
            return self.by_average
        found = [self.white, self.by_noise, self.by_search, self.by_transfer]
        return torch.stack([mask for mask in found if mask is not None]).any(dim=0).double()

    def _maximize(self, model: nn.Module) -> Tensor:
        """The end of PGD with all its steps: no early stop."""
        claim = self.claim
        with evaluating(model, device=self.x.device):
            return pgd_maximize(
                model, self.x, self.y, norm=claim.norm, eps=claim.eps, steps=self.steps, seed=self.seed,
                bounds=claim.bounds,
            )  # fmt: skip

    # Gradients ---------------------------------------------------------------------------------------------------

    def gradient(self, loss: Callable[..., Tensor], at: Tensor) -> Tensor:
        """The raw gradient of an attacker's loss at points (N, ...), with whatever is not a number in it."""
        with evaluating(self.victim.model, device=self.x.device), torch.enable_grad():
            point = at.detach().clone().requires_grad_(True)
            value = loss(self.attacked(point), self.y).sum()
            (grad,) = torch.autograd.grad(value, point, allow_unused=True)
        return torch.zeros_like(self.x) if grad is None else grad

    def dead_gradients(self) -> dict[str, float]:
        """Of the samples that are read correctly, the share whose gradient is zero or no number, for two losses."""
        shares = {}
        for name, loss in (("cross-entropy", ce), ("margin", truncated_margin)):
            rows = self.gradient(loss, self.x).flatten(1)[~self.wrong]
            dead = (rows == 0).all(dim=1) | ~rows.isfinite().all(dim=1)
            shares[name] = float(dead.double().mean()) if len(rows) else 0.0
        return shares

    def uphill(self) -> float:
        """Share of correct samples whose margin falls by a small step along its own gradient, from a random point."""
        noise = Noise(derive_seed(self.seed, 1), torch.arange(len(self.x), device=self.x.device))
        low, high = self.claim.bounds
        near = self.ball.uniform(noise, 0, self.x, 0.1 * self.claim.eps)
        start = (self.x + near).clamp(low, high)
        step = 0.1 * self.claim.eps * self.ball.steepest(-self.gradient(truncated_margin, start).nan_to_num())
        with evaluating(self.victim.model, device=self.x.device), torch.no_grad():
            before = truncated_margin(self.attacked(start), self.y)
            after = truncated_margin(self.attacked((start + step).clamp(low, high)), self.y)
        right = before > 0
        return float((after < before)[right].double().mean()) if bool(right.any()) else 1.0


@torch.no_grad()
def _frozen(model: nn.Module, x: Tensor, seed: int, train: bool) -> Tensor:
    """Logits at x with torch's generator seeded; mode, statistics and generator stay as they were."""
    with evaluating(model, mode="asis" if train else "eval", device=x.device):
        torch.manual_seed(seed)
        return model(x.clone())
