"""The model as an attacker meets it: what may be asked, how often, and nothing of the caller's changed.

An attack opens a :class:`~robustlab.attacker.session.Session` on a :class:`Victim` and works through it::

    with Victim.of(model).session(x, y, target=target) as session:
        rows = session.active                           # samples whose goal is not met at x
        answer = session.gradient(points, rows, loss)   # one query and one gradient a row
        return session.result(x_adv)                    # checked once more on the caller's model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.few_channels import FewChannels
from robustlab.attacker.losses import AttackerLoss
from robustlab.attacker.session import LEVEL, Access, Session


class Victim:
    """A model under attack.

    On a CPU an attack searches in channels-last layout, in which convolutions are often faster, and with
    :class:`robustlab.attacker.few_channels.FewChannels`, unless the model fails there; what is fooled at x and at the
    end is judged as the caller would.

    Args:
        model: an ``nn.Module`` from (N, ...) to (N, K); under soft or hard access any such callable.
        bounds: the box [low, high] of valid inputs, in the units of ``x``. Normalization is a layer of the model.
        access: ``"white"`` (gradients), ``"soft"`` (scores) or ``"hard"`` (the top label alone).
        budget: forward rows that each sample may cost in one call, the clean and the final check included;
            None for no limit. When it is spent an attack returns its best so far.
        output: what the model returns, ``"logits"`` or ``"probs"`` (whose logarithm then serves as logits).
        mode: ``"eval"`` holds the model in evaluation mode during a call, ``"asis"`` leaves its mode alone.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        access: Access = "white",
        budget: int | None = None,
        output: Literal["logits", "probs"] = "logits",
        mode: Literal["eval", "asis"] = "eval",
    ) -> None:
        checks.one_of("access", access, LEVEL)
        checks.one_of("output", output, ("logits", "probs"))
        checks.one_of("mode", mode, ("eval", "asis"))
        if isinstance(model, Victim):
            raise TypeError("model: want a model, got a Victim; use it as it is")
        if not callable(model) or (access == "white" and not isinstance(model, nn.Module)):
            wish = "an nn.Module under white access" if access == "white" else "a callable"
            raise TypeError(f"model: want {wish}, got {type(model).__name__}")
        if len(bounds) != 2 or not float(bounds[0]) < float(bounds[1]):
            raise ValueError(f"bounds: want (low, high) with low < high, got {bounds}")
        if budget is not None:
            checks.at_least("budget", budget, 2, integer=True)
        self.model, self.bounds = model, (float(bounds[0]), float(bounds[1]))
        self.access, self.budget, self.output, self.mode = access, budget, output, mode

    @classmethod
    def of(cls, model: Victim | Callable[[Tensor], Tensor]) -> Victim:
        """A Victim as it is; a bare model wrapped with the defaults."""
        return model if isinstance(model, Victim) else cls(model)

    @contextmanager
    def session(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        target: int | Tensor | None = None,
        ids: Tensor | None = None,
        kappa: float = 0.0,
        access: Access = "white",
        loss: AttackerLoss | None = None,
        min_classes: int = 2,
    ) -> Iterator[Session]:
        """Check the inputs, hold the model still, and open a :class:`~robustlab.attacker.session.Session`.

        Args:
            x: (N, ...), floating, inside the box.
            y: (N,) labels; None takes the model's own prediction.
            target: a label, or one a sample, for a targeted attack.
            ids: (N,) identities for the randomness; None means 0 … N − 1.
            kappa: confidence κ ≥ 0 that is part of the goal.
            access: what the attack needs.
            loss: the attack's loss, whose need of classes is checked.
            min_classes: classes that the attack itself needs.
        """
        if LEVEL[access] > LEVEL[self.access]:
            raise ValueError(f"access: this attack needs {access!r} access, the victim grants {self.access!r}")
        checks.images(x, self.bounds)
        checks.at_least("kappa", kappa, 0.0)
        y = None if y is None else checks.labels("y", y, x)
        target = None if target is None else checks.labels("target", target, x)
        if target is not None and y is not None:
            checks.other_than_y("target", target, y)
        ids = torch.arange(x.shape[0]) if ids is None else torch.as_tensor(ids)
        if ids.shape != x.shape[:1] or ids.is_floating_point():
            raise ValueError(f"ids: want {x.shape[0]} integers, got shape {tuple(ids.shape)} of {ids.dtype}")
        self._check_home(x)
        needed = max(min_classes, (loss.min_classes if target is None else loss.min_classes_targeted) if loss else 2)
        with torch.inference_mode(False), torch.no_grad(), self.held(x.device):
            # Tensors made in inference mode cannot take part in autograd; their clones can.
            x, y, target, ids = (t.clone() if t is not None and t.is_inference() else t for t in (x, y, target, ids))
            yield Session(
                self._scores, self.bounds, self.access, self.budget,
                x.detach(), y, target, ids.to(x.device), float(kappa), needed,
            )  # fmt: skip

    def _scores(self, points: Tensor, fast: bool) -> Tensor:
        """The model's logits, (N, K); ``fast`` in channels-last, and the gradient by product and fold."""
        layout = torch.channels_last if fast else torch.preserve_format
        with FewChannels() if fast and points.requires_grad else nullcontext():
            out: Any = self.model(points.clone(memory_format=layout))  # a copy, since a first layer may work in place
        if not isinstance(out, Tensor):
            raise ValueError(f"model: want a tensor of shape (N, K), got {type(out).__name__}")
        if out.is_floating_point():
            out = out.to(torch.promote_types(out.dtype, points.dtype))  # half precision, as autocast gives it, goes up
            if self.output == "probs":
                out = as_logits(out)
        return out

    def _check_home(self, x: Tensor) -> None:
        """The model's dtype and device must be those of x."""
        weight = next((p for p in self._tensors() if p.is_floating_point()), None)
        if weight is None:
            return
        if weight.dtype != x.dtype:
            short = str(weight.dtype).removeprefix("torch.")
            raise TypeError(
                f"x: want the model's dtype {weight.dtype}, got {x.dtype}; "
                f"say x.to(torch.{short}) or model.to({x.dtype}) (for example model.double() or x.float())"
            )
        if weight.device != x.device:
            raise ValueError(f"x: want the model's device {weight.device}, got {x.device}")

    def _tensors(self) -> Iterator[Tensor]:
        if isinstance(self.model, nn.Module):
            yield from self.model.parameters()
            yield from self.model.buffers()

    @contextmanager
    def held(self, device: torch.device) -> Iterator[None]:
        """Mode set and parameters frozen; on leaving, everything is as it was."""
        cuda = [device] if device.type == "cuda" else []
        with ExitStack() as undo:
            undo.enter_context(torch.random.fork_rng(devices=cuda))
            if isinstance(self.model, nn.Module):
                modes = [(module, module.training) for module in self.model.modules()]
                frozen = [p for p in self.model.parameters() if p.requires_grad]
                if self.mode == "asis" and any(training for _, training in modes):
                    # A batch norm in training mode would move its statistics at every query.
                    undo.callback(_restore, [(b, b.clone()) for b in self.model.buffers()])
                undo.callback(_thaw, modes, frozen)
                if self.mode == "eval":
                    self.model.eval()
                for p in frozen:
                    p.requires_grad_(False)
            yield

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"Victim({name}, bounds={self.bounds}, access={self.access!r}, budget={self.budget})"


def as_logits(probs: Tensor) -> Tensor:
    """The logarithm of probabilities, finite also where they are 0; it serves as logits."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _restore(saved: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in saved:
        buffer.copy_(value)


def _thaw(modes: list[tuple[nn.Module, bool]], frozen: list[nn.Parameter]) -> None:
    for module, training in modes:
        module.training = training
    for p in frozen:
        p.requires_grad_(True)


def predict(model: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 500) -> Tensor:
    """Top-1 labels ŷ_θ(x), (N,), in evaluation mode, without gradients; the model's mode is restored."""
    victim = Victim(model, access="soft")
    with torch.inference_mode(False), torch.no_grad(), victim.held(x.device):
        parts = [model(part).argmax(dim=1) for part in x.split(int(batch_size))]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=x.device)


def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch_size: int = 500) -> float:
    """The fraction of ``x`` (N, ...) that the model gives its label ``y`` (N,)."""
    label = checks.labels("y", y, x)
    return float((predict(model, x, batch_size) == label).double().mean())
