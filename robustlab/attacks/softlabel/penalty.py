"""C&W's objective as a black box shows it, over a variable that need not have as many elements as a sample.

ZOO and AutoZOOM minimize over z

    ‖x(z) − x‖₂² + c·max{κ − goal margin(x(z)), 0},    x(z) = (tanh(w₀ + A(z)) + 1)/2  or  clip(x + A(z))

where w₀ is the point whose x(w₀) is x, and A a search space of :mod:`robustlab.attacks.softlabel.spaces`. The goal
margin is a difference of logits, and so of log-probabilities: they differ by the same number in all classes. Lengths
are in widths of the box, as in :func:`robustlab.attacks.whitebox.cw.cw`.

Source: Chen et al., "ZOO" (2017), sections 3.1 to 3.4; Tu et al., "AutoZOOM" (2019), equations (1) to (3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.attacker.estimators import Values
from robustlab.attacker.live import Live
from robustlab.attacker.losses import goal_margin
from robustlab.attacker.session import Session
from robustlab.attacks.softlabel.spaces import Space
from robustlab.attacks.whitebox.cw_descent import TanhBox
from robustlab.geometry.projections import clip


class Penalty:
    """The objective of live samples, which have ``c``, ``w`` as :meth:`begin` notes it, and ``aim``, the margin wanted.

    Attributes:
        space: A, or None for all of a sample's elements.
    """

    space: Space | None

    def __init__(self, session: Session, tanh: bool, space: Space | None = None) -> None:
        self.session, self.tanh, self.space = session, tanh, space
        self.box = TanhBox(session.low, session.high)

    def begin(self, live: Live) -> None:
        """Notes ``w``, from where z moves away, and ``z`` = 0."""
        shape = live.x.shape[1:] if self.space is None else self.space.shape
        live.w = self.box.inverse(live.x) if self.tanh else live.x
        live.z = live.x.new_zeros(len(live), *shape)

    def points(self, live: Live, z: Tensor) -> Tensor:
        """x(z): (n, m, *shape) → (n, m, ...)."""
        moved = z if self.space is None else self.space(z)
        if self.tanh:
            return self.box.alone(live.w[:, None] + moved)
        return clip(live.w[:, None] + self.session.width * moved, self.session.low, self.session.high)

    def total(self, live: Live, points: Tensor, margin: Tensor) -> Tensor:
        """The objective (n, m) in float64, from points (n, m, ...) and the goal margins there."""
        delta = (points - live.x[:, None]).flatten(2).double()
        if self.session.width != 1:
            delta.div_(self.session.width)
        return delta.square_().sum(dim=2) + live.c[:, None] * (live.aim[:, None] - margin.double()).clamp_min(0)

    def values(self, live: Live) -> Values:
        """The objective as a function of z (n, m, *shape) → (n, m), which asks; NaN where a mask (n, m) says not to."""
        ask = self.session.values(live, lambda logits, y, target, kappa: goal_margin(logits, y, target))

        def total(z: Tensor, asked: Tensor | None = None) -> Tensor:
            if asked is None:
                points = self.points(live, z)
                return self.total(live, points, ask(points))
            each = self.session.one_by_one(live, asked, only=("c", "w", "aim"))
            told = self.values(each)(z[asked][:, None])
            return told.new_full(asked.shape, torch.nan).masked_scatter_(asked, told)

        return total
