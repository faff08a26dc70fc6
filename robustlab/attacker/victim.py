"""The model as an attacker meets it: what may be asked, how often, and nothing of the caller's changed.

An attack opens a :class:`~robustlab.attacker.session.Session` on a :class:`Victim` and works through it::

    with Victim.of(model).session(x, y, target=target) as session:
        live = session.live()                           # samples whose goal is not met at x
        answer = session.gradient(points, live, loss)   # one query and one gradient for each of them
        return session.result(points)                   # checked once more on the caller's model
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.domain import Bound, Box, Domain
from robustlab.attacker.few_channels import FewChannels
from robustlab.attacker.losses import AttackerLoss
from robustlab.attacker.parts import Batch, Reply, first, ordinary, size
from robustlab.attacker.results import keep_so_far
from robustlab.attacker.session import LEVEL, Access, AnswerKind, Goal, Session
from robustlab.graph.node import Graph
from robustlab.models.modes import Mode, evaluating

UNIT = (0.0, 1.0)
Output = Literal["logits", "probs"]
Bare = nn.Module | Graph | str | Path | Callable[..., Any]
"""A module, a graph or the path of an ONNX file; under soft or hard access any callable."""


class Victim:
    """A model under attack.

    On a CPU the gradients of images are asked for in channels-last layout, in which convolutions are often faster, and
    with :class:`robustlab.attacker.few_channels.FewChannels`, unless the model fails there; what is fooled at x and at
    the end is judged as the caller would.

    Args:
        model: a module from inputs to answers, a graph that :func:`robustlab.graph.read_onnx.read_onnx` or
            :func:`robustlab.graph.tracing.trace` read, or the path of an ONNX file, which is asked in the dtype and on
            the device of x; under soft or hard access any such callable. It may return a tensor, a tuple whose first
            part is the tensor, a mapping with ``"logits"``, or an object with ``.logits``.
        bounds: the box [low, high] of valid inputs, in the units of ``x``: numbers, or tensors that broadcast with a
            sample, (C, 1, 1) for one box per channel. Normalization is a layer of the model.
        domain: what the inputs are, if they are no floats in a box (:mod:`robustlab.attacker.domain`); in the place of
            bounds.
        answer: what the model says: ``"classes"``, scores (N, K); ``"sequence"``, scores (N, T, K); or ``"boxes"``,
            which is taken as it comes. For the last two the attack brings its goal.
        access: ``"white"`` (gradients), ``"soft"`` (scores) or ``"hard"`` (the top label alone). Under hard access the
            model may return the labels, (N,) integers, in the place of scores.
        budget: forward rows that each sample may cost in one session, the clean and the final check included;
            None for no limit. When it is spent an attack returns its best so far.
        output: what the numbers are, ``"logits"`` or ``"probs"`` (whose logarithm then serves as logits).
        mode: ``"eval"`` holds the model in evaluation mode during a session, ``"asis"`` leaves its mode alone.
        logits: a function from what the model returns to the tensor of scores, for models that return other things.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """

    def __init__(
        self,
        model: Bare,
        *,
        bounds: tuple[Bound, Bound] = UNIT,
        domain: Domain | None = None,
        answer: AnswerKind = "classes",
        access: Access = "white",
        budget: int | None = None,
        output: Output = "logits",
        mode: Mode = "eval",
        logits: Callable[[Any], Tensor] | None = None,
    ) -> None:
        checks.one_of("access", access, LEVEL)
        checks.one_of("answer", answer, ("classes", "sequence", "boxes"))
        checks.one_of("output", output, ("logits", "probs"))
        checks.one_of("mode", mode, ("eval", "asis"))
        if isinstance(model, Victim):
            raise TypeError("model: want a model, got a Victim; use it as it is")
        if isinstance(model, (str, Path)):
            model = _read_file(model)
        differentiable = isinstance(model, (nn.Module, Graph))
        if not callable(model) or (access == "white" and not differentiable):
            wish = "an nn.Module, a graph or the path of an ONNX file" if access == "white" else "a callable"
            hint = "; say model.module()" if type(model).__name__ == "ExportedProgram" else ""
            raise TypeError(f"model: want {wish} under {access} access, got {type(model).__name__}{hint}")
        if domain is not None and not isinstance(domain, Domain):
            raise TypeError(f"domain: want a Domain, got {type(domain).__name__}")
        if domain is not None and bounds is not UNIT:
            raise ValueError(f"bounds: want none beside a domain, got both bounds and {domain}")
        if logits is not None and not callable(logits):
            raise TypeError(f"logits: want a function of what the model returns, got {type(logits).__name__}")
        if not isinstance(bounds, tuple | list) or len(bounds) != 2:
            raise ValueError(f"bounds: want (low, high) with low < high, got {bounds!r}")
        if budget is not None:
            checks.at_least("budget", budget, 2, integer=True)
        self.model, self.domain = model, Box(*bounds) if domain is None else domain
        self.answer, self.access, self.budget, self.output, self.mode = answer, access, budget, output, mode
        self.logits = logits
        self._ask = _Following(model) if isinstance(model, Graph) else cast(Callable[..., Any], model)

    @property
    def bounds(self) -> tuple[Bound, Bound]:
        """The ends of the box.

        Raises:
            TypeError: if the inputs are no floats in a box.
        """
        if not isinstance(self.domain, Box):
            raise TypeError(f"victim: want a victim whose inputs are floats in a box, got {self.domain}")
        return self.domain.low, self.domain.high

    @classmethod
    def of(cls, model: Model) -> Victim:
        """A Victim as it is; a bare model wrapped with the defaults."""
        return model if isinstance(model, Victim) else cls(model)

    def on(self, model: Bare) -> Victim:
        """A victim of another model that is else the same."""
        names = ("domain", "answer", "access", "budget", "output", "mode", "logits")
        return Victim(model, **{name: getattr(self, name) for name in names})

    @contextmanager
    def session(
        self,
        x: Batch,
        y: Tensor | None = None,
        *,
        target: int | Tensor | None = None,
        ids: Tensor | None = None,
        kappa: float = 0.0,
        access: Access = "white",
        loss: AttackerLoss | None = None,
        min_classes: int = 2,
        domain: type[Domain] = Box,
        goal: Goal | None = None,
        first_round: int = 0,
    ) -> Iterator[Session]:
        """Check the inputs, hold the model still, and open a :class:`~robustlab.attacker.session.Session`.

        Args:
            x: a batch of the victim's domain; floats (N, ...) inside the box.
            y: (N,) labels, of a sequence also (N, T); None takes the model's own prediction.
            target: a label, or one per sample, for a targeted attack.
            ids: (N,) identities for the randomness; None means 0 … N − 1.
            kappa: confidence κ ≥ 0 that is part of the goal.
            access: what the attack needs.
            loss: the attack's loss, whose need of classes is checked.
            min_classes: classes that the attack itself needs.
            domain: the kind of inputs that the attack can change.
            goal: what the attack wants of an answer, where it is not one about classes.
            first_round: the queries without which the attack cannot begin, beside the clean and the final check.

        What ends the attack with an error leaves what it has found: :func:`robustlab.attacker.results.so_far`.
        """
        if LEVEL[access] > LEVEL[self.access]:
            raise ValueError(f"access: this attack needs {access!r} access, the victim grants {self.access!r}")
        if first_round and self.budget is not None and self.budget < first_round + 2:
            raise ValueError(
                f"budget: want at least {first_round + 2}, of which x costs 1, the first round of this attack "
                f"{first_round} and the final check 1, got {self.budget}"
            )
        if not isinstance(self.domain, domain):
            raise TypeError(f"victim: this attack wants inputs of {domain.__name__}, got {self.domain}")
        self._check_goal(goal, kappa)
        span = self.domain.check(x)
        if isinstance(self.model, Graph) and x.shape[1:] != self.model.input_shape:
            raise ValueError(f"x: want samples of shape {self.model.input_shape}, got {tuple(x.shape[1:])}")
        like = first(x)
        y = None if y is None else self._labels("y", y, like)
        target = None if target is None else self._labels("target", target, like)
        if target is not None and y is not None:
            checks.other_than_y("target", target, y)
        ids = torch.arange(size(x)) if ids is None else torch.as_tensor(ids)
        if ids.shape != (size(x),) or ids.is_floating_point():
            raise ValueError(f"ids: want {size(x)} integers, got shape {tuple(ids.shape)} of {ids.dtype}")
        needed = max(min_classes, (loss.min_classes if target is None else loss.min_classes_targeted) if loss else 2)
        with torch.inference_mode(False), torch.no_grad(), self.held(like.device):
            # Tensors made in inference mode cannot take part in autograd; their clones can.
            x, y, target = (None if v is None else ordinary(v) for v in (x, y, target))
            space, x, dtype = self._work(x, span)
            session = Session(
                self._answers if dtype is None else partial(self._answers, dtype=dtype),
                space, self.access, self.budget, x, y, target, ordinary(ids).to(like.device),
                kappa=float(kappa), min_classes=needed, answer=self.answer, goal=goal,
                convolves=self._convolves() and dtype is None, dtype=dtype,
            )  # fmt: skip
            self._warn(session, span)
            try:
                yield session
            except BaseException as error:
                with suppress(Exception):  # a device that answers no more, say: the error itself is what matters
                    keep_so_far(error, session.so_far())
                raise

    def _work(self, x: Batch, span: Any) -> tuple[Domain, Batch, torch.dtype | None]:
        """The domain and the batch with which an attack works, and the dtype of x if that is another.

        What passes an end of the box by rounding is taken as that end. Beside half precision, which has no room for
        squares and small steps, attacks compute in float32; the model is asked, and the result given, in the dtype of
        x, between the ends that this can hold.
        """
        if not isinstance(self.domain, Box):
            return self.domain, x, None
        x = self.domain.nearest(x, span)
        if x.dtype not in (torch.float16, torch.bfloat16):
            return self.domain, x, None
        return Box(*self.domain.ends(x)), x.float(), x.dtype

    def _warn(self, session: Session, span: Any) -> None:
        """Say what is likely meant where x or the model's answer there is legal, but seldom what one wants."""
        if isinstance(self.domain, Box):
            checks.likely(session.x, session.width, span)
        if self.answer == "classes" and self.output == "logits" and session.clean is not None:
            checks.scores(session.clean)

    def _check_goal(self, goal: Goal | None, kappa: float) -> None:
        checks.at_least("kappa", kappa, 0.0)
        if self.answer == "classes" and goal is not None:
            raise TypeError(f"goal: want None for answers of classes, got {goal}")
        if self.answer != "classes" and not callable(goal):
            raise TypeError(f"goal: want a function, since the answer is {self.answer!r}, got {goal}")
        if goal is not None and kappa:
            raise ValueError(f"kappa: want 0 beside a goal, which says itself how clearly it is met, got {kappa}")

    def _labels(self, name: str, value: int | Tensor, like: Tensor) -> Tensor:
        """Labels of samples; of a sequence there may be one for each of its elements."""
        if self.answer == "sequence" and isinstance(value, Tensor) and value.dim() == 2:
            checks.labels(name, value.flatten(), value.flatten())  # integers
            if value.shape[0] == like.shape[0]:
                return value.to(like.device, torch.int64)
        return checks.labels(name, value, like)

    def _answers(self, points: Batch, *, fast: bool = False, dtype: torch.dtype | None = None) -> Reply:
        """The model's answer; ``fast``: a gradient will be asked for, and may go by product and fold.

        ``dtype``: of the points as the model takes them; None for their own.
        """
        asked = points if dtype is None else points.to(dtype)
        with FewChannels() if fast else nullcontext():
            try:
                out = self._ask(*asked) if isinstance(asked, tuple) else self._ask(asked)
            except (RuntimeError, AssertionError) as error:
                self._explain(first(asked), error)
                raise
        return self._read(out, first(points))

    def _read(self, out: Any, points: Tensor) -> Reply:
        """What the model returned, as logits where it speaks of classes."""
        if self.logits is not None:
            out = self.logits(out)
        elif self.answer != "boxes" and not isinstance(out, Tensor):
            out = _scores_in(out)
        if not isinstance(out, Tensor):
            if self.answer == "boxes":
                return out
            raise ValueError(f"model: want a tensor of scores, got {type(out).__name__}; say logits=, a function of it")
        if out.is_floating_point():
            least = points.dtype if points.is_floating_point() else torch.float32
            if out.dtype != least:  # half precision, as autocast gives it, goes up
                out = out.to(torch.promote_types(out.dtype, least))
            if self.output == "probs":
                out = as_logits(out)
        return out

    def _explain(self, x: Tensor, error: RuntimeError | AssertionError) -> None:
        """Raise a clearer error, if the model failed since it cannot take the dtype, device, layout or size of x.

        A model may well cast by itself and fail for another reason: PyTorch's own words tell.
        """
        if re.search(r"Guard failed.*size\(\)\[0\]|Expected input at .*shape\[0\]", str(error), flags=re.DOTALL):
            raise ValueError(
                f"model: want one that takes any number of samples, got one exported for another than {len(x)}; "
                "say torch.export.export(..., dynamic_shapes=({0: torch.export.Dim('n')},))"
            ) from error
        if checks.channels_last(x) and "channels" in str(error):
            raise ValueError(f"x: want images (N, C, H, W), got shape {tuple(x.shape)}; {checks.TO_NCHW}") from error
        if any(tensor.is_inference() for tensor in self._tensors()) and "nference" in str(error):
            raise ValueError(
                "model: want one that was made outside torch.inference_mode, through which gradients pass, "
                "got one from inside; say copy.deepcopy(model) outside"
            ) from error
        follows = isinstance(self.model, Graph)  # whatever x is
        if x.is_floating_point() and not follows and re.search(r"dtype|\btype|device", str(error)):
            try:
                checks.at_home(self.model, x)
            except (TypeError, ValueError) as clearer:
                raise clearer from error

    def _convolves(self) -> bool:
        """Whether another layout and another way to its gradients may pay for the model."""
        return isinstance(self.model, nn.Module) and any(isinstance(m, nn.Conv2d) for m in self.model.modules())

    def _tensors(self) -> Iterator[Tensor]:
        if isinstance(self.model, nn.Module):
            yield from self.model.parameters()
            yield from self.model.buffers()

    def held(self, device: torch.device) -> AbstractContextManager[None]:
        """Mode set and parameters frozen; on leaving, everything is as it was."""
        return evaluating(self.model, self.logits, mode=self.mode, device=device)

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"Victim({name}, {self.domain}, access={self.access!r}, budget={self.budget})"


def _read_file(path: str | Path) -> Graph:
    from robustlab.graph.read_onnx import read_onnx

    if not Path(path).is_file():
        raise ValueError(f"model: want a model or the path of an ONNX file, got {str(path)!r}, which is no file")
    return read_onnx(path)


class _Following:
    """A graph in the dtype and on the device of its inputs."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._copies = graph, dict[tuple[torch.dtype, torch.device], Graph]()

    def __call__(self, x: Tensor) -> Tensor:
        key = x.dtype, x.device
        if key not in self._copies:
            self._copies[key] = self._graph.to(x.device, x.dtype)
        return self._copies[key](x)


Model: TypeAlias = Victim | Bare
"""What can be attacked: a victim, or a bare model, of which a victim with all defaults is made."""


def as_logits(probs: Tensor) -> Tensor:
    """The logarithm of probabilities, finite also where they are 0; it serves as logits."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _scores_in(out: Any) -> Any:
    """The scores in what real models return: the first of a tuple, ``"logits"`` of a mapping, ``.logits``."""
    if isinstance(out, Mapping) and "logits" in out:
        return out["logits"]
    if hasattr(out, "logits"):
        return out.logits
    return out[0] if isinstance(out, tuple | list) and out else out


def predict(model: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 500) -> Tensor:
    """Top-1 labels ŷ_θ(x), (N,), in evaluation mode, without gradients; the model's mode is restored."""
    victim = Victim(model, access="soft")
    with torch.inference_mode(False), torch.no_grad(), victim.held(x.device):
        parts = [victim._answers(part).argmax(dim=1) for part in x.split(int(batch_size))]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=x.device)


def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch_size: int = 500) -> float:
    """The fraction of ``x`` (N, ...) that the model gives its label ``y`` (N,)."""
    label = checks.labels("y", y, x)
    return float((predict(model, x, batch_size) == label).double().mean())
