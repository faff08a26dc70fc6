"""How far a run of AutoAttack has come, kept in a file so that it can go on after an interruption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.files import RunFiles, digest, require_writable

_FACTS = ("classes", "seconds", "right", "flat", "flags")


class State:
    """What is known of the N samples after some batches of some of A attacks; attack 0 is the clean check.

    Attributes:
        broken_by: (N,) int64, the attack that fooled the model on each sample, −1 for none yet.
        seen_by: (N,) int64, the last attack that has been at each sample, −1 for none.
        queries, gradients: (A + 1, N) int64.
        x_adv: (N, ...), where a sample is broken the input that did it, else x; None where inputs are not kept.
        classes: of the model; 0 before the clean check.
        seconds: of each attack.
        right, flat: how many samples are right at x, and at how many of them the gradient is 0.
        flags: what was noticed, a word and a sentence each.
    """

    def __init__(self, x: Tensor, attacks: int) -> None:
        n = x.shape[0]
        self.broken_by = torch.full((n,), -1, dtype=torch.int64)
        self.seen_by = torch.full((n,), -1, dtype=torch.int64)
        self.queries = torch.zeros(attacks + 1, n, dtype=torch.int64)
        self.gradients = torch.zeros_like(self.queries)
        self.x_adv: Tensor | None = x.detach().clone()
        self.classes = 0
        self.seconds = [0.0] * (attacks + 1)
        self.right = self.flat = 0
        self.flags: dict[str, str] = {}
        self._path: Path | None = None
        self._files = RunFiles("state", "AutoAttack", {})
        self._bounds: tuple[float | Tensor, float | Tensor] = (0.0, 1.0)

    @classmethod
    def begin(
        cls,
        path: str | os.PathLike[str] | None,
        x: Tensor,
        attacks: int,
        run: dict[str, Any],
        bounds: tuple[float | Tensor, float | Tensor],
    ) -> State:
        """A fresh state, or the one in the file ``path`` if there is one; ``run`` says which run it belongs to.

        What a file claims is checked before it is believed: its names, kinds and numbers, and that its inputs are in
        the box ``bounds`` and the ball of the run.
        """
        state = cls(x, attacks)
        state._path, state._files = None if path is None else Path(path), RunFiles("state", "AutoAttack", run)
        state._bounds = bounds
        if state._path is not None and state._path.is_file():
            state._read(state._path)
        elif state._path is not None:
            require_writable(state._path, "state")
        return state

    @staticmethod
    def joined(parts: Sequence[State]) -> State:
        """What is known of several parts of the data, in order; inputs are kept where there is one part alone."""
        if len(parts) == 1:
            return parts[0]
        whole = State(torch.empty(0), len(parts[0].seconds) - 1)
        whole.x_adv = None
        for name in ("broken_by", "seen_by", "queries", "gradients"):
            setattr(whole, name, torch.cat([getattr(part, name) for part in parts], dim=-1))
        whole.classes, whole.flags = parts[0].classes, parts[0].flags
        whole.seconds = [sum(several) for several in zip(*(part.seconds for part in parts), strict=True)]
        whole.right, whole.flat = (sum(getattr(part, name) for part in parts) for name in ("right", "flat"))
        return whole

    def save(self) -> None:
        """Write the file, if there is to be one: whole or not at all."""
        if self._path is None or self.x_adv is None:
            return
        broken = self.broken_by >= 0
        tensors = {"broken_by": self.broken_by, "seen_by": self.seen_by, "queries": self.queries}
        tensors |= {"gradients": self.gradients, "x_adv": self.x_adv.cpu()[broken]}
        self._files.write(self._path, tensors, **{name: getattr(self, name) for name in _FACTS})

    def _read(self, path: Path) -> None:
        tensors, facts = self._files.read(path)
        self._believe(tensors, facts, path)
        assert self.x_adv is not None
        self.x_adv[(tensors["broken_by"] >= 0).to(self.x_adv.device)] = tensors.pop("x_adv").to(self.x_adv)
        for name, tensor in tensors.items():
            setattr(self, name, tensor)
        for name in _FACTS:
            setattr(self, name, facts[name])

    def _believe(self, tensors: dict[str, Tensor], facts: dict[str, Any], path: Path) -> None:
        """Check what a file claims: names, kinds, places, and each input in the box and the ball around its x."""
        from robustlab.geometry.norms import get_norm

        def require(fine: bool, what: str) -> None:
            if not fine:
                raise self._files.unlike(path, what)

        counts = {name: getattr(self, name) for name in ("broken_by", "seen_by", "queries", "gradients")}
        require(set(tensors) == {*counts, "x_adv"}, f"it has the tensors {sorted(tensors)[:9]}")
        require(set(facts) == set(_FACTS), f"it has the facts {sorted(facts)[:9]}")
        for name, mine in counts.items():
            same = tensors[name].shape == mine.shape and tensors[name].dtype == mine.dtype
            require(same, f"{name} is {tensors[name].dtype} of shape {tuple(tensors[name].shape)}")
        attacks, broken, seen = len(self.seconds) - 1, tensors["broken_by"], tensors["seen_by"]
        for attack in (broken, seen):
            require(bool(((attack >= -1) & (attack <= attacks)).all()), f"it has an attack that is none of {attacks}")
        require(not bool((broken > seen).any()), "samples are broken by attacks that have not seen them")
        require(all(bool((tensors[name] >= 0).all()) for name in ("queries", "gradients")), "it has counts below 0")
        numbers = all(isinstance(facts[name], int) and facts[name] >= 0 for name in ("classes", "right", "flat"))
        seconds = facts["seconds"]
        numbers &= isinstance(seconds, list) and len(seconds) == attacks + 1
        require(numbers and all(isinstance(s, float | int) and 0 <= s < float("inf") for s in seconds), "its numbers")
        flags = facts["flags"]
        require(isinstance(flags, dict) and all(isinstance(text, str) for text in flags.values()), "its flags")
        assert self.x_adv is not None
        x, x_adv = self.x_adv[(broken >= 0).to(self.x_adv.device)], tensors["x_adv"]
        require(x_adv.shape == x.shape and x_adv.dtype == x.dtype, f"x_adv of shape {tuple(x_adv.shape)}")
        x_adv = x_adv.to(x)
        require(bool(x_adv.isfinite().all()), "x_adv is not finite")
        if len(x_adv):
            low, high = (torch.as_tensor(end).to(x) for end in self._bounds)
            require(bool(((x_adv >= low) & (x_adv <= high)).all()), "x_adv is outside the box")
            norm = get_norm(self._files.run["norm"])
            # x + δ is rounded to a pixel value, here and where answers are counted
            largest = max(float(low.abs().amax()), float(high.abs().amax()))
            slack = float(norm.length(torch.ones_like(x[:1]))) * torch.finfo(x.dtype).eps * largest
            far = float(norm.length(x_adv - x).max())
            require(far <= self._files.run["eps"] * (1 + 1e-5) + slack, f"x_adv is at distance {far:.4g}")
        moved = broken[broken >= 0] > 0
        require(torch.equal(x_adv[~moved], x[~moved]), "x_adv is not x where x itself is misclassified")


def fingerprint(victim: Victim, x: Tensor, y: Tensor) -> dict[str, str]:
    """Digests of the data and, where it has parameters, of the model."""
    tensors = victim.model.state_dict() if isinstance(victim.model, nn.Module) else {}
    return {"data": digest({"x": x, "y": y}), "model": digest(tensors)}
