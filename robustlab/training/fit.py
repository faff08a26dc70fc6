"""fit(): the one training loop of the book. Every trainer is an objective that is given to it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.data.pairs import Pairs, read_pair
from robustlab.geometry.keyed import derive_seed
from robustlab.models.modes import evaluating, training_mode
from robustlab.models.probing import first_logits
from robustlab.progress import bar
from robustlab.training.averaging import Average, copy_of
from robustlab.training.resuming import ResumeFile, Training, identity, name_of
from robustlab.training.schedules import (
    SCHEDULES,
    Amp,
    Optimizer,
    Schedule,
    make_optimizer,
    precision_for,
    schedule_factor,
    set_rate,
)

MAX_RESIDENT_BYTES = 2**31  # training data up to this size are moved to the device whole


Trained = TypeVar("Trained", bound=nn.Module)
Trained_contra = TypeVar("Trained_contra", bound=nn.Module, contravariant=True)


class Objective(Protocol[Trained_contra]):
    """What :func:`fit` minimizes: a function of the model and a batch to a scalar.

    An objective that also has a method ``set_progress(fraction)`` is told before each step which part of the training
    is over (0 at the first step, below 1 at the last), for schedules such as a growing epsilon. One whose labels are
    classes of the model says ``takes_labels = True``: :func:`fit` then checks them before any work, by its method
    ``check_labels(y, classes)`` where it has one (unlabeled rows, say). One that does not take every model has a method
    ``check_model(model, x)``, which is given one sample before any work and raises. One that remembers something from
    batch to batch gives it by ``state_dict()`` as tensors, and takes it by ``load_state_dict``, for trainings that are
    resumed; one that has a dict ``arguments``, of names and what it was made with, is told by them from another then.
    """

    def __call__(self, model: Trained_contra, x: Tensor, y: Tensor, /, *, ids: Tensor, seed: int) -> Tensor:
        """The loss of a batch; `ids` are its samples' rows in the data, `seed` is this step's own seed."""
        ...


@dataclass(frozen=True)
class History:
    """What happened during :func:`fit`, one entry per epoch.

    Attributes:
        loss: mean of the objective over the epoch's samples, as they were trained on.
        lr: learning rate of the epoch's last step.
        monitor: what `on_epoch` returned; empty without it.
        seconds: wall-clock time of the whole training, of all its parts where it was resumed.
        steps: number of optimizer steps.
        validation: what `validate` returned; empty without it. Beside ``loss`` it is the curve of overfitting.
        best_epoch: the epoch of its highest value, the first of several, whose weights the model has; −1 without.
    """

    loss: tuple[float, ...]
    lr: tuple[float, ...]
    monitor: tuple[Any, ...]
    seconds: float
    steps: int
    validation: tuple[float, ...] = ()
    best_epoch: int = -1


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
    """The ordinary objective: mean cross-entropy of the logits, in nats.

        loss = −1/N Σ_i log softmax(model(x_i))_{y_i}

    Args:
        model: gives logits (N, K).
        x, y: a batch (N, ...) and its labels (N,).
        ids, seed: not used.
    """
    return F.cross_entropy(model(x), y)


def fit(
    model: Trained,
    data: Pairs,
    *,
    objective: Objective[Trained] = cross_entropy,
    epochs: int,
    batch_size: int = 100,
    lr: float = 1e-3,
    optimizer: Optimizer = "adam",
    schedule: Schedule = "one-cycle",
    weight_decay: float = 0.0,
    averaging: float = 0.0,
    augment: Callable[..., Tensor] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    amp: Amp = "auto",
    progress: bool = False,
    on_epoch: Callable[[int, Trained], Any] | None = None,
    validate: Callable[[Trained], float] | None = None,
    patience: int | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> History:
    """Minimize an objective over the training data by minibatch gradient descent; the model is changed in place.

        θ ← θ − lr_t · step( ∇_θ objective(model_θ, x_batch, y_batch) )

    The result is a function of the arguments: shuffling, augmentation, the objective's seeds and modules such as
    dropout draw from `seed`, and the global random state is put back. On a CPU the same seed gives the same weights.

    Args:
        model: trained in train mode. Afterwards each module's ``training`` flag is what it was before.
        data: a Dataset, whose training part is used, a pair (x, y) of tensors of equal length N, or a torch DataLoader
            of such pairs, whose batches are collected first.
        objective: see :class:`Objective`; by default the mean cross-entropy.
        epochs: passes over the data, at least 1. Each visits every sample once, in a new order.
        batch_size: samples per step, default 100. A remainder of one sample joins the batch before it, since batch norm
            cannot train on one.
        lr: peak learning rate.
        optimizer: ``"adam"``, ``"adamw"``, ``"sgd"`` (Nesterov momentum 0.9), or a callable that makes one, called as
            ``optimizer(parameters, lr=, weight_decay=)``.
        schedule: ``"one-cycle"`` (linear from lr/25 to lr over the first 30 % of the steps, then a half cosine to
            lr/1000), ``"cosine"`` (a half cosine from lr to lr/1000), ``"piecewise"`` (lr, lr/10 after half of the
            steps and lr/100 after three quarters) or ``"constant"``; or a function of the part in [0, 1) of the
            training that is over to the rate over its peak.
        weight_decay: as the optimizer has it, on all parameters.
        averaging: decay in (0, 1) of an exponential moving average of the weights, such as 0.995, which is what the
            model has in the end and is shown as to `on_epoch` and `validate`; 0, the default, is none. See
            :class:`robustlab.training.averaging.Average`.
        augment: ``augment(x, ids=, seed=)``, applied to each batch before the objective.
        seed: any integer.
        device: where to train; default is where the model is. The model stays there.
        amp: ``"auto"`` uses mixed precision for a float32 model on CUDA; True insists on it, False avoids it.
        progress: show a bar, in a terminal only.
        on_epoch: called as ``on_epoch(epoch, model)`` after each epoch with the model in eval mode and without
            gradients; what it returns is kept in ``History.monitor``.
        validate: called as ``validate(model)`` after each epoch in the same way; a number, the higher the better, such
            as the robust accuracy on samples held out of the training data
            (:func:`robustlab.defenses.robust_validation`). In the end the model has the weights of the best epoch.
        patience: end the training once so many epochs in turn have not been better than the best; None never does.
        resume: a file that is written after each epoch, whole or not at all. If it is there already, the training goes
            on from it, and the outcome is that of one that was never interrupted; what `on_epoch` returns must then be
            such as JSON holds. An objective of this library is compared with the file's by its arguments, too; of your
            own only the name is, unless it says its ``arguments`` (:class:`Objective`).

    Raises:
        ValueError, TypeError: for a wrong argument, before any work, such as a file of another model, data set,
            objective or arguments. ValueError also if the objective's value is not a scalar that depends on the
            parameters, or that of `validate` is not a finite number.
        RuntimeError: inside ``torch.inference_mode()``, before any work.
        FloatingPointError: at the end of an epoch in which the loss was not finite; the weights are then of no use.

    Source:
        Smith and Topin, "Super-convergence" (2019) for the one-cycle schedule, here without a momentum cycle; Rice,
        Wong and Kolter, "Overfitting in adversarially robust deep learning" (2020) for the piecewise one and for
        stopping early on robust validation accuracy.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("fit: want a call outside torch.inference_mode(), which forbids gradients, got one inside")
    x, y = read_pair(data)
    place = _check(model, x, y, objective, epochs, batch_size, lr, schedule, weight_decay, device)
    _check_extras(averaging, on_epoch, validate, patience)
    precision = precision_for(model, place, amp)
    told = (epochs, batch_size, lr, name_of(schedule), name_of(optimizer), weight_decay, averaging, seed)
    file = None if resume is None else ResumeFile(Path(resume), identity(model, x, y, objective, told))
    model.to(place)
    if x.element_size() * x.numel() <= MAX_RESIDENT_BYTES:
        x, y = x.to(place), y.to(place)
    order_generator = torch.Generator().manual_seed(derive_seed(seed))
    splits = _batches(len(x), batch_size)
    make, total = make_optimizer(optimizer), epochs * len(splits)
    with training_mode(model), torch.enable_grad():
        stepper = make([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=weight_decay)
        scaler = torch.amp.GradScaler(place.type, enabled=precision is torch.float16)
        average = Average(model, averaging) if averaging else None
        training = Training(model, stepper, scaler, objective, average)
        record = training.record if file is None else file.load(training)
        start = time.perf_counter() - record.seconds
        for epoch in bar(range(epochs), show=progress, label="fit"):
            order = torch.randperm(len(x), generator=order_generator).to(x.device)
            if epoch < len(record.loss):  # done before an interruption
                continue
            if patience is not None and record.stale >= patience:
                break
            sums = torch.zeros((), device=place, dtype=torch.float64)
            with _local_rng(derive_seed(seed, -1, epoch), place):
                for step, (first, last) in enumerate(splits):
                    done = (epoch * len(splits) + step) / total
                    set_rate(stepper, lr * schedule_factor(schedule, done))
                    if hasattr(objective, "set_progress"):
                        objective.set_progress(done)
                    ids, key = order[first:last], derive_seed(seed, epoch, step)
                    batch, labels = x[ids].to(place), y[ids].to(place)
                    if augment is not None:
                        batch = augment(batch, ids=ids.to(place), seed=derive_seed(key, 1))
                    with torch.autocast(place.type, precision) if precision else nullcontext():
                        loss = objective(model, batch, labels, ids=ids.to(place), seed=key)
                    _check_loss(loss)
                    stepper.zero_grad(set_to_none=True)
                    scaler.scale(loss).backward()
                    scaler.step(stepper)
                    scaler.update()
                    if average is not None:
                        average.update(model)
                    sums += loss.detach() * (last - first)
            record.add(float(sums) / len(x), stepper.param_groups[0]["lr"], time.perf_counter() - start)
            _look(training, epoch, on_epoch, validate, place)
            if file is not None:
                file.save(training)
        stepper.zero_grad(set_to_none=True)
        training.finish()
    return History(**record.history(), steps=len(record.loss) * len(splits))


def _look(training: Training, epoch: int, on_epoch: Any, validate: Any, place: torch.device) -> None:
    """Show the model, or its average, to who wants to see it after an epoch; keep its weights if it is the best."""
    model, average, record = training.model, training.average, training.record
    if on_epoch is None and validate is None:
        return
    with average.worn(model) if average is not None else nullcontext():
        with evaluating(model, freeze=False, device=place), torch.no_grad():
            if on_epoch is not None:
                record.monitor.append(on_epoch(epoch, model))
            if validate is not None:
                record.validation.append(float(validate(model)))
        if validate is not None:
            if not math.isfinite(record.validation[-1]):
                raise ValueError(f"validate: want a finite number, got {record.validation[-1]} in epoch {epoch}")
            if record.best_epoch == epoch:
                record.best = copy_of(model)


def _check(
    model: Any, x: Tensor, y: Tensor, objective: Any, epochs: Any, batch_size: Any, lr: Any, schedule: Any,
    weight_decay: Any, device: Any,
) -> torch.device:  # fmt: skip
    """All checks that can be made before any work; returns the device to train on."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    checks.takes("objective", objective, "(model, x, y, *, ids, seed)", model, x, y, ids=x, seed=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model: want parameters that require gradients, got none")
    checks.finite("data", x)
    check_inputs: Any = getattr(model, "check_inputs", None)  # a net that takes no floats has it
    if check_inputs is not None:
        check_inputs("data", x)
    checks.at_home(model, x, "data", device=False)  # batches are moved to the model
    checks.at_least("epochs", epochs, 1, integer=True)
    checks.at_least("batch_size", batch_size, 1, integer=True)
    checks.at_least("weight_decay", weight_decay, 0.0)
    checks.positive("lr", lr)
    if not callable(schedule):
        checks.one_of("schedule", schedule, SCHEDULES)
    if getattr(objective, "takes_labels", objective is cross_entropy):
        _check_labels(model, x, y, getattr(objective, "check_labels", partial(checks.in_classes, "data")))
    if hasattr(objective, "check_model"):
        objective.check_model(model, x[:1].to(parameters[0].device))
    place = torch.device(device) if device is not None else parameters[0].device
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: want a device of this machine, got {place}, and there is no CUDA here")
    return place


def _check_extras(averaging: Any, on_epoch: Any, validate: Any, patience: Any) -> None:
    checks.not_negative("averaging", averaging)
    checks.below("averaging", averaging, 1)
    if on_epoch is not None:
        checks.takes("on_epoch", on_epoch, "(epoch, model)", 0, None)
    if validate is not None:
        checks.takes("validate", validate, "(model)", None)
    if patience is not None:
        checks.at_least("patience", patience, 1, integer=True)
        if validate is None:
            raise ValueError("patience: want None without validate, which tells when a training gets worse")


def _check_labels(model: nn.Module, x: Tensor, y: Tensor, check: Callable[[Tensor, int], None]) -> None:
    """One forward of one sample in evaluation mode tells the number of classes, and changes nothing."""
    if y.dtype != torch.int64 or y.dim() != 1:
        raise TypeError(f"data: want int64 labels (N,), got {y.dtype} {tuple(y.shape)}")
    logits = first_logits(model, x)
    check(y, logits.shape[1])
    checks.scores(logits, "the loss wants logits: leave the softmax out of the model")


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.dim():
        shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"objective: want a scalar tensor, got {shown}")
    if not loss.requires_grad:
        raise ValueError("objective: want a loss that depends on the model's parameters, got a constant")


def _batches(n: int, size: int) -> list[tuple[int, int]]:
    edges = [*range(0, n, size), n]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1 and size > 1:
        del edges[-2]
    return list(pairwise(edges))


@contextmanager
def _local_rng(seed: int, place: torch.device) -> Iterator[None]:
    """Seed the generators that modules such as dropout read, and put their states back."""
    devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed devices that are not put back
        if devices:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed)
        yield
