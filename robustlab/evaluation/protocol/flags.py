"""What AutoAttack notices about a model before it attacks: the protocol's warnings.

Croce and Hein (2020), and the checks that their evaluation protocol runs. Each is a sign that a robust accuracy
measured with fixed gradient attacks may be too high; none proves it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import LossFunction, logit_change
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Victim

_REPEATS, _SPREAD = 5, 1e-4

RANDOMIZED = "equal questions get different answers: attack the expectation (evaluation.eot)"
PROBABILITIES = "the outputs are probabilities: give the logits, or say Victim(model, output='probs')"
DYNAMIC = "the model takes gradients, or changes itself, when it is asked: fixed attacks do not see that"
BATCH = "the answer for a sample depends on the others in its batch"


def first_look(victim: Victim, x: Tensor, y: Tensor) -> tuple[dict[str, str], int, Tensor]:
    """Flags of one batch (x, y), the number of classes, and the queries that each sample paid for them, (n,)."""
    flags: dict[str, str] = {}
    with victim.session(x, y, access="soft") as session:
        assert session.clean is not None
        everyone = session.everyone()
        before = _copy(victim)
        with _gradients_taken() as taken:
            answers = [session.clean, session.ask(x, everyone).logits]
        if taken or _copy(victim) != before:
            flags["dynamic"] = DYNAMIC
        answers += [session.ask(x, everyone).logits for _ in range(_REPEATS - 2)]
        if _differ(answers):
            flags["randomized"] = RANDOMIZED
        elif len(x) > 1 and _batch_matters(session):
            flags["batch_dependent"] = BATCH
        if victim.output == "logits" and checks.are_probabilities(session.clean):
            flags["probabilities"] = PROBABILITIES
        return flags, session.clean.shape[1], session.queries.cpu()


def zero_gradients(session: Session, loss: LossFunction) -> int:
    """How many of the samples whose goal is not met have an input gradient of ``loss`` that is 0 everywhere."""
    if not session.active.numel():
        return 0
    grad = session.gradient(session.start.x, session.start, loss).grad
    return int((grad.flatten(1) == 0).all(dim=1).sum())


def _differ(answers: list[Tensor]) -> bool:
    """Whether labels, or directions of the logits, differ between answers to one question."""
    finite = (z.double().masked_fill(z.isinf(), 0.0) for z in answers)  # a masked class has no direction
    units = torch.stack([torch.nn.functional.normalize(z, dim=1) for z in finite])
    labels = torch.stack([z.argmax(dim=1) for z in answers])
    return bool((labels != labels[0]).any()) or bool(((units - units[0]).norm(dim=2) > _SPREAD).any())


def _batch_matters(session: Session) -> bool:
    """The first sample alone against itself among the others."""
    assert session.clean is not None
    alone = session.ask(session.x[:1], session.of(session.y.new_zeros(1))).logits
    return float(logit_change(session.clean[:1], alone).max()) > 1e-3


def _copy(victim: Victim) -> list[int]:
    """How often each of the model's parameters and buffers has been written to."""
    return [tensor._version for tensor in victim._tensors()]


@contextmanager
def _gradients_taken() -> Iterator[list[str]]:
    """A list that gets an entry for every gradient taken inside, whoever asks for it."""
    taken: list[str] = []
    watched = {torch.autograd.grad.__code__: "grad", torch.autograd.backward.__code__: "backward"}

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in watched:
            taken.append(watched[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield taken
    finally:
        sys.setprofile(before)
