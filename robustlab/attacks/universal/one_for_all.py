"""What universal attacks share: their checks, and a session whose goal is to change what the model says of clean x."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from robustlab import checks
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.norms import ProperNorm


@contextmanager
def one_for_all(
    victim: Model, x: Tensor, y: Tensor | None, norm: ProperNorm, eps: float, **need: Any
) -> Iterator[Session]:
    """A session for one δ of length ≤ ε for all of x.

    A sample is fooled where the model says of x + δ, clipped to the box, something else than it says of x. Labels play
    no part in that, so that ``y`` is checked only. ``need`` is what else the session is to know of the attack.
    """
    victim = Victim.of(victim)
    checks.not_negative("eps", eps)
    checks.images(x, victim.bounds)
    checks.radius(eps, x, norm, victim.bounds)
    label = None if y is None else checks.labels("y", y, x)
    with victim.session(x, **need) as session:
        if label is not None and session.clean is not None:
            checks.in_classes("y", label, session.clean.shape[1])
        yield session
