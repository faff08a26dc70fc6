"""One-pixel attack.

Su, Vargas and Sakurai, "One pixel attack for fooling deep neural networks" (2019), section III: the budget-based
formulation (3) of the survey in ℓ0, solved from scores alone by differential evolution (DE). A candidate holds, for
each pixel that may change, its row, its column and its new value in every channel. A population of 400 is drawn at
random, rows and columns uniformly, values from N(128, 127²) on the scale 0 … 255. Each generation makes one child for
every candidate i,

    child_i = a_r1 + F·(a_r2 − a_r3)        r1, r2, r3 random, F = 0.5, no crossover

which takes its parent's place if it is better: if the label is less probable, or the target more.

Different here: better means by more than rounding, and is judged by the log odds log(p/(1 − p)), which order candidates
as the probability p does but do not saturate; r1, r2, r3 and i all differ; what leaves the image or the box is clipped;
a sample stops at its first success, where the paper goes on to a confidence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Bound
from robustlab.attacker.live import Best, Live
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.keyed import Noise
from robustlab.geometry.projections import clip
from robustlab.progress import bar

_AT_ONCE = 2**19  # elements of images that are asked about together: larger batches are slower on a CPU


def one_pixel(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    pixels: int = 1,
    population: int = 400,
    generations: int = 100,
    weight: float = 0.5,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Differential evolution over the places and values of a few pixels.

        minimize_δ [f_θ(x + δ)]_y (targeted: maximize [f_θ(x + δ)]_t)  subject to at most ``pixels`` pixels changed

    Args:
        victim: a Victim, or a model with logits (N, K); scores suffice.
        x: (N, C, H, W), in the box.
        y: (N,) labels; None takes the model's prediction.
        pixels: how many may change, each in all its channels.
        population: candidates per sample, at least 4.
        generations: rounds of children, at most.
        weight: F > 0, the differential weight.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled gets its best candidate. Cost without success: ``population`` ×
        (``generations`` + 1) queries and 1 for the clean check; no gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Su et al. (2019), section III.
    """
    checks.at_least("pixels", pixels, 1, integer=True)
    checks.at_least("population", population, 4, integer=True)
    checks.at_least("generations", generations, 1, integer=True)
    checks.positive("weight", weight)
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    checks.pictures(x)
    with victim.session(x, y, target=target, ids=ids, access="soft", first_round=population) as session:
        best, live = Best(session), session.live(noise=session.noise(seed))
        for g in bar(range(generations + 1), show=progress, label="one_pixel"):
            live.keep(session.can_pay(live, population))
            if not len(live):
                break
            if g == 0:
                live.genes = child = _first(session, live.noise, pixels, population)
                live.fitness, live.met = _ask(session, live, child)
            else:
                one, two, three = _others(live.noise, g, population).unbind(dim=2)
                child = _at(live.genes, one) + weight * (_at(live.genes, two) - _at(live.genes, three))
                child = _clip(session, child)
                value, live.met = _ask(session, live, child)
                better = live.met | (value < live.fitness - 1e-9 * live.fitness.abs().clamp_min(1.0))
                live.genes = torch.where(better[..., None, None], child, live.genes)
                live.fitness = torch.where(better, value, live.fitness)
            top, value = _best(live.genes, live.fitness, live.met)
            best.keep(live, _images(session, live.x, top)[:, 0], value)
            live.leave(live.met.any(dim=1))
        return session.result(best.points, asked=True)


# A candidate is a (pixels, 2 + C) table, one line per pixel: row, column, values in units of the box. A population:
# (n, P, pixels, 2 + C).


def _first(session: Session, noise: Noise, pixels: int, population: int) -> Tensor:
    """Generation 0."""
    shape, channels, dtype = (population, pixels), session.x.shape[1], session.x.dtype
    row, column = (noise.uniform((0, i), (*shape, 1), dtype) * session.x.shape[2 + i] for i in (0, 1))
    value = 128 / 255 + 127 / 255 * noise.normal((0, 2), (*shape, channels), dtype)
    return _clip(session, torch.cat([row, column, value], dim=3))


def _clip(session: Session, genes: Tensor) -> Tensor:
    """Rows and columns into the image, values into the box."""
    place = [genes[..., [i]].clamp(0, session.x.shape[2 + i] - 0.5) for i in (0, 1)]
    return torch.cat([*place, genes[..., 2:].clamp(0, 1)], dim=3)


def _others(noise: Noise, generation: int, population: int) -> Tensor:
    """r1, r2, r3 for each candidate, (n, P, 3): different from each other and from the candidate itself."""
    picks = [noise.integers((generation, i), (population,), population - 1 - i) for i in range(3)]
    taken = torch.arange(population, device=picks[0].device).expand_as(picks[0])[..., None]
    for pick in picks:
        for other in taken.sort(dim=2).values.unbind(dim=2):  # the pick-th of those that are not taken
            pick = pick + (pick >= other)
        taken = torch.cat([taken, pick[..., None]], dim=2)
    return taken[..., 1:]


def _at(genes: Tensor, which: Tensor) -> Tensor:
    """The candidates ``which`` (n, m) of each sample."""
    return genes.gather(1, which[..., None, None].expand(-1, -1, *genes.shape[2:]))


def _images(session: Session, clean: Tensor, genes: Tensor) -> Tensor:
    """Candidates (n, P, pixels, 2 + C) set into the images ``clean`` (n, C, H, W): (n, P, C, H, W)."""
    (population, pixels), (channels, _, width) = genes.shape[1:3], clean.shape[1:]
    images = clean[:, None].repeat(1, population, 1, 1, 1)
    place = genes[..., :2].long()
    place = place[..., 0] * width + place[..., 1]
    for j in range(pixels):  # one after the other: two lines may name the same pixel
        low, high = (_there(end, clean, place[:, :, j]) for end in (session.low, session.high))
        value = clip(low + (high - low) * genes[:, :, j, 2:], low, high)
        index = place[:, :, j, None, None].expand(-1, -1, channels, 1)
        images.flatten(3).scatter_(3, index, value[..., None])
    return images


def _there(end: Bound, clean: Tensor, place: Tensor) -> Bound:
    """An end of the box in every channel of the pixels ``place`` (n, P): a number, or (n, P, C)."""
    return end.expand(clean.shape[1:]).flatten(1)[:, place].movedim(0, -1) if isinstance(end, Tensor) else end


def _ask(session: Session, live: Live, genes: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds, to be minimized, and whether the goal is met, (n, P) each; so many at once as bound the memory."""
    parts = genes.split(max(1, _AT_ONCE // live.x.numel()), dim=1)
    answers = [session.ask_many(_images(session, live.x, part), live) for part in parts]
    logits = torch.cat([answer.logits for answer in answers], dim=1).double()
    label = (live.y if live.target is None else live.target)[:, None, None].expand(-1, genes.shape[1], 1)
    odds = (logits.gather(2, label) - logits.scatter(2, label, -torch.inf).logsumexp(dim=2, keepdim=True)).squeeze(2)
    value = odds if live.target is None else -odds
    return value.nan_to_num(torch.inf, torch.inf, -torch.inf), torch.cat([answer.met for answer in answers], dim=1)


def _best(genes: Tensor, fitness: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample's best candidate (n, 1, pixels, 2 + C) and its fitness: one that meets the goal, if there is any."""
    won = met.any(dim=1)
    top = torch.where(won[:, None] & ~met, torch.inf, fitness).argmin(dim=1, keepdim=True)
    return _at(genes, top), torch.where(won, -torch.inf, fitness.gather(1, top).squeeze(1))
