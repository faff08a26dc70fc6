"""The first half of the attack by paraphrases: sentences, one after the other, become their best paraphrase."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Domain
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction
from robustlab.attacker.session import Session
from robustlab.attacker.tokens import allowed_changes, ask_some
from robustlab.attacks.discrete.word_search import padding, take_best


def check_sentences(sentences: object, x: Tensor, domain: Domain, share: float) -> None:
    """Raises unless the first ways of saying the sentences make up x."""
    checks.at_least("sentence_changes", share, 0.0)
    checks.at_most("sentence_changes", share, 1.0)
    domain.check(x)
    wanted = f"int64 of shape ({len(x)}, S, M, L)"
    if not isinstance(sentences, Tensor) or sentences.dtype != torch.int64 or sentences.dim() != 4:
        raise TypeError(f"sentences: want {wanted}, got {type(sentences).__name__}")
    domain.check(sentences.clamp_min(0).flatten(0, 2), "sentences")
    own = torch.zeros(sentences.shape[:2], dtype=torch.int64, device=sentences.device)
    fits = len(sentences) == len(x) and sentences.shape[2] > 0
    if not fits or not torch.equal(assembled(sentences, own, x.shape[1], padding(domain))[0].to(x.device), x):
        raise ValueError(f"sentences: want {wanted}, the first of which make up x, got others")


def by_sentences(session: Session, live: Live, best: Best, g: LossFunction, sentences: Tensor, share: float) -> None:
    """Algorithm 2: of all paraphrases of all sentences that are still their own, the best; and again."""
    x, fill = session.x, padding(session.domain)
    sentences = sentences.to(x.device)
    own = torch.zeros(sentences.shape[:2], dtype=torch.int64, device=x.device)
    part, ways = live.part(), sentences.shape[2]
    part.said, part.choice = sentences[live.rows], own[live.rows]
    part.value = g(session.clean[live.rows], part.y, part.target, session.kappa).double()
    part.quota = allowed_changes(share, (part.said[:, :, 0] >= 0).any(dim=2))
    s, k = (index.flatten() for index in torch.meshgrid(*(torch.arange(n, device=x.device)
            for n in sentences.shape[1:3]), indexing="ij"))  # fmt: skip
    while True:
        part.keep(part.quota > 0)
        part.keep(session.can_pay(part))
        if not len(part) or ways < 2:
            break
        n = len(part)
        choice = part.choice[:, None].repeat(1, len(s), 1)
        choice[:, torch.arange(len(s), device=x.device), s] = k
        said = part.said[:, None].expand(-1, len(s), -1, -1, -1).flatten(0, 1)
        tried, fits = assembled(said, choice.flatten(0, 1), x.shape[1], fill)
        there = (part.said[:, :, :, 0] >= 0).flatten(1) & (k > 0) & (part.choice[:, s] == 0)
        told = ask_some(session, part, tried.unflatten(0, (n, -1)), there & fits.unflatten(0, (n, -1)), g)
        chosen = take_best(part, tried.unflatten(0, (n, -1)), told.loss, told.met, part.value)
        best.keep(part, part.points, part.value)
        part.choice = torch.where(part.moved[:, None], choice[torch.arange(n, device=x.device), chosen], part.choice)
        part.quota = part.quota - 1
        at = torch.searchsorted(live.rows, part.rows)
        live.points[at] = part.points
        part.keep(part.moved & ~part.met)
    live.keep(session.first_success[live.rows] < 0)
    movable = session.domain.movable(live.points)  # type: ignore[attr-defined]
    live.left = torch.minimum(live.left, movable.sum(dim=1))


def assembled(sentences: Tensor, choice: Tensor, length: int, fill: int) -> tuple[Tensor, Tensor]:
    """Texts (N, T) of chosen ways (N, S) of saying each sentence (N, S, M, L), and whether each fits into T tokens."""
    said = sentences.gather(2, choice[:, :, None, None].expand(-1, -1, 1, sentences.shape[3])).squeeze(2).flatten(1)
    order = (said < 0).to(torch.int8).argsort(dim=1, stable=True)
    said = said.gather(1, order)
    said = torch.nn.functional.pad(said, (0, max(0, length - said.shape[1])), value=-1)
    fits = (said[:, length:] < 0).all(dim=1)
    return torch.where(said[:, :length] < 0, fill, said[:, :length]), fits
