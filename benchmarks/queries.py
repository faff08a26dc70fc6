"""Attacks that only ask, at equal queries: what they find, what they ask, and how much of their time is the model's.

    python benchmarks/attacks.py queries      all methods beside their peers, then loops of their bare arithmetic

A bare loop is what a method cannot do without: the same keyed draws, the points that are asked about, the model, and
the sum over directions, in plain PyTorch without any check, count or sample of its own fate.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import peers
import torch
from attacks import clock, net_and_batch, setting, strength
from torch import Tensor, nn

from robustlab import attacks
from robustlab.attacker.victim import Victim
from robustlab.geometry.keyed import Noise
from robustlab.geometry.projections import l2_filling, onto_l2_box

RADIUS = {"linf": 0.05, "l2": 1.0}
BUDGETED = ("square", "bandits", "nes", "query_reduction", "zo_svrg", "zo_signsgd", "zo_ngd")
ONE_NORM = {"zo_ngd": ("linf",), "hsja": ("l2", "linf")}
SHORTEST = ("zoo", "autozoom", "zo_admm", "bo_admm", "boundary", "opt", "sign_opt", "hsja")
HARD = ("boundary", "opt", "sign_opt", "hsja")
TINY: dict[str, dict[str, Any]] = {
    "nes": {"q": 2}, "zo_signsgd": {"q": 2}, "zo_svrg": {"q": 2, "q_full": 4}, "zo_ngd": {"q": 2},
    "query_reduction": {"size": 256}, "zo_admm": {"q": 2}, "bo_admm": {"first": 2, "steps": 2}, "zoo": {"batch": 4},
    "hsja": {"init_evals": 4}, "opt": {"q": 1, "tries": 2}, "sign_opt": {"k": 4, "tries": 2},
}  # fmt: skip


class Timed(nn.Module):
    """A model that notes how many rows it was asked and how long it took to answer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows, self.seconds = model, 0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        start = clock()
        logits: Tensor = self.model(x)
        self.rows, self.seconds = self.rows + len(x), self.seconds + clock() - start
        return logits


def settings(method: str, norm: str, limit: int, tiny: bool) -> dict[str, Any]:
    """With what each method runs, beside the budget, which ends it."""
    eps = RADIUS[norm]
    own: dict[str, Any] = {
        "square": {"queries": limit, "rescale": True},
        "query_reduction": {"steps": limit, "size": 32, "step_size": eps / 2.5},
        "zo_ngd": {"steps": limit, "lr": 30.0, "damping": 300.0},
        "zoo": {"steps": limit, "search_steps": 1, "batch": 16, "lr": 0.05, "c": 1.0, "abort_early": False,
                "tanh": False},
        "bo_admm": {"steps": min(45, limit)},  # a process of more than a hundred points takes its time
        "autozoom": {"steps": limit, "lr": 0.1, "c": 3.0},
        "opt": {"tries": max(1, limit // 20)},
        "sign_opt": {"tries": max(1, limit // 20), "k": min(200, limit // 4)},
        "hsja": {"steps": limit},
    }.get(method, {"steps": limit})  # fmt: skip
    return own | (TINY.get(method, {}) if tiny else {}) | ({"eps": eps} if method in BUDGETED else {})


class Line(NamedTuple):
    """One attack at one limit: share fooled within the radius, medians of queries and distance, and its costs."""

    success: float
    queries: float
    distance: float
    asked: float
    seconds: float
    forwards: float


def ours(method: str, norm: str, limit: int, model: nn.Module, x: Tensor, y: Tensor, tiny: bool) -> Line:
    seen = Timed(model).eval()
    victim = Victim(seen, access="hard" if method in HARD else "soft", budget=limit)
    start = clock()
    result = getattr(attacks, method)(victim, x, y, norm=norm, **settings(method, norm, limit, tiny))
    seconds = clock() - start
    spent = torch.where(result.success, result.first_success, limit).double().quantile(0.5)
    return told(seen, seconds, model, x, y, result.x_adv, norm, float(spent))


def told(
    seen: Timed, seconds: float, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str, queries: float
) -> Line:
    success, _ = strength(model, x, y, x_adv, norm, RADIUS[norm])
    _, distance = strength(model, x, y, x_adv, norm, None)
    return Line(success, queries, distance, seen.rows / len(x), seconds, seen.seconds / seconds)


def query_table(options: argparse.Namespace) -> None:
    """All methods with the same queries for each sample; a failure counts with all of them, at an infinite distance."""
    found, remarks = peers.available(peers.WANTED | peers.ASKING)
    for remark in remarks:
        print(remark, flush=True)
    print(f"at equal queries, ε = {RADIUS}, {setting()}; asked: rows per sample; forwards: their share of the time")
    print(
        f"{'model':16} {'attack':15} {'norm':>4} {'peer':12} {'limit':>5} {'success':>8} {'median':>7} {'distance':>8} "
        f"{'asked':>8} {'s':>7} {'forwards':>8}"
    )
    for name, batch, limit in product(options.models, options.batch, [60] if options.tiny else options.queries):
        model, x, y = net_and_batch(name, batch, options.device, options.tiny)
        for method, norm in ((m, n) for m in (*BUDGETED, *SHORTEST) for n in norms(m)):
            if not method.startswith(tuple(options.attacks)):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a start that was not found counts as a failure
                lines = {"-": ours(method, norm, limit, model, x, y, options.tiny)}
                for peer, package in found.items():
                    made = peers.MAKERS[peer](package).get(f"{method} {norm}")
                    if made is not None:
                        seen, few = Timed(model).eval(), slice(0, options.few)
                        run, start = made(eps=RADIUS[norm], queries=limit), clock()
                        x_adv = run(seen, x[few], y[few])
                        lines[peer] = told(seen, clock() - start, model, x[few], y[few], x_adv, norm, torch.nan)
            for peer, line in lines.items():
                print(
                    f"{name:16} {method:15} {norm:>4} {peer:12} {limit:5} {100 * line.success:6.1f} % "
                    f"{line.queries:7.0f} {line.distance:8.4f} {line.asked:8.1f} {line.seconds:7.2f} "
                    f"{100 * line.forwards:6.0f} %",
                    flush=True,
                )
        bare_table(name, model, x, y, 1 if options.tiny else options.rounds)


def norms(method: str) -> tuple[str, ...]:
    return ONE_NORM.get(method, ("l2",) if method in SHORTEST else ("linf", "l2"))


# Bare loops ------------------------------------------------------------------------------------------------------


def one_sided(model: nn.Module, x: Tensor, y: Tensor, noise: Noise, k: int) -> int:
    """A round of 20 differences to one side, as of ZO-signSGD: queries asked for each sample."""
    u = noise.quick_normal((k, 0), (20, *x.shape[1:]))
    u /= u.flatten(2).norm(dim=2)[..., None, None, None]
    scores = model((x[:, None] + 0.01 * u).clamp_(0, 1).flatten(0, 1)).log_softmax(dim=1)
    value = scores.gather(1, y.repeat_interleave(20)[:, None]).reshape(len(x), 1, 20)
    torch.bmm(value, u.flatten(2))
    return 20


def pairs(model: nn.Module, x: Tensor, y: Tensor, noise: Noise, k: int) -> int:
    """A round of 10 antithetic pairs, as of NES."""
    u = noise.quick_normal((k, 0), (10, *x.shape[1:]))
    step = 0.001 * u
    probes = torch.cat([x[:, None] + step, x[:, None] - step], dim=1).clamp_(0, 1)
    scores = model(probes.flatten(0, 1)).log_softmax(dim=1)
    value = scores.gather(1, y.repeat_interleave(20)[:, None]).reshape(len(x), 2, 10)
    torch.bmm((value[:, 0] - value[:, 1])[:, None], u.flatten(2))
    return 20


def labels(model: nn.Module, x: Tensor, y: Tensor, noise: Noise, k: int) -> int:
    """20 labels around a point, as of HopSkipJump and Sign-OPT, whose draws are the quick ones."""
    u = noise.quick_normal((k, 0), (20, *x.shape[1:]))
    u /= u.flatten(2).norm(dim=2)[..., None, None, None]
    met = model((x[:, None] + u).clamp_(0, 1).flatten(0, 1)).argmax(dim=1) != y.repeat_interleave(20)
    torch.bmm(met.to(u.dtype).reshape(len(x), 1, 20), u.flatten(2))
    return 20


def walk(model: nn.Module, x: Tensor, y: Tensor, noise: Noise, k: int) -> int:
    """A step of the boundary attack, to the side and inwards."""
    away, eta = (0.5 - x).flatten(1), noise.quick_normal((k, 0), x.shape[1:]).flatten(1)
    eta -= away * ((eta * away).sum(dim=1) / away.square().sum(dim=1))[:, None]
    eta *= (0.01 / eta.norm(dim=1))[:, None]
    aside = eta.add_(away)
    point = x + (aside * (0.99 * away.norm(dim=1) / aside.norm(dim=1))[:, None]).reshape(x.shape)
    assert len(model(point.clamp_(0, 1)).argmax(dim=1) == y) == len(x)
    return 1


def rays(model: nn.Module, x: Tensor, y: Tensor, noise: Noise, k: int) -> int:
    """Five points on one ray, as of the first directions of OPT and Sign-OPT: noise, and a distance that is halved."""
    toward = (x + noise.normal((k, 0), x.shape[1:])).clamp_(0, 1).lerp_(x, 0.5).sub_(x).flatten(1)
    size, sign = toward.abs(), toward.sign()
    room = torch.where(toward > 0, 1 - x.flatten(1), x.flatten(1))
    far, near = toward.norm(dim=1), torch.zeros(len(x), device=x.device)
    for _ in range(5):
        at = (far + near) / 2
        delta = torch.minimum(size * l2_filling(size, room, at[:, None]), room).mul_(sign)
        met = model((x + delta.reshape(x.shape)).clamp_(0, 1)).argmax(dim=1) != y
        far, near = torch.where(met, at, far), torch.where(met, near, at)
    return 5


def enlarged(model: nn.Module, x: Tensor, y: Tensor, noise: Noise, k: int) -> int:
    """A step of AutoZOOM before a success: a difference in an image of half the height, by the logistic function."""
    small, large = x.shape[2] // 2, x.shape[2]
    z = noise.quick_normal((k, 0), (x.shape[1], small, small))
    z /= z.flatten(1).norm(dim=1)[:, None, None, None]
    wide = nn.functional.interpolate(torch.eye(small, device=x.device)[None], large, mode="linear")[0]
    points = torch.stack([x, x + wide.T @ (z @ wide)], dim=1).mul_(2).sigmoid_()
    scores = model(points.flatten(0, 1))
    own = scores.gather(1, y.repeat_interleave(2)[:, None]).reshape(len(x), 2)
    total = (points - x[:, None]).flatten(2).double().square_().sum(dim=2) + own
    z.mul_((total[:, 1] - total[:, 0]).float()[:, None, None, None])
    return 2


def tiles(model: nn.Module, x: Tensor, y: Tensor, noise: Noise, k: int) -> int:
    """A round of bandits in l2: two probes of a prior of tiles, and a step back into ball and box."""
    u, side = noise.quick_normal(k, (1, x.shape[1], 9, 9)), torch.arange(x.shape[2], device=x.device) * 9 // x.shape[2]
    tile = (9 * side[:, None] + side).flatten()
    pair = torch.cat([u, -u], dim=1).reshape(-1, 81).index_select(1, tile).reshape(len(x), 2, *x.shape[1:])
    pair *= (0.01 / pair.flatten(2).norm(dim=2))[..., None, None, None]
    scores = model((x[:, None] + pair).clamp_(0, 1).flatten(0, 1))
    value = nn.functional.cross_entropy(scores, y.repeat_interleave(2), reduction="none").reshape(len(x), 2)
    move = pair[:, 0] * (100 * (value[:, 0] - value[:, 1]).sign())[:, None, None, None]
    inside = onto_l2_box(move.flatten(1), torch.full_like(x[:, 0, 0, :1], 0.5), -x.flatten(1), 1 - x.flatten(1))
    nn.functional.cross_entropy(model((x + inside.reshape(x.shape)).clamp_(0, 1)), y, reduction="none")
    return 3


def squares(model: nn.Module, x: Tensor, y: Tensor, noise: Noise, k: int) -> int:
    """A proposal of Square Attack in l2: a bump in one window, paid for by another, and the length of all restored."""
    delta, height, side = (0.5 - x).flatten(1), x.shape[2], x.shape[2] // 3
    unit = noise.uniform((k, 0), (5,), torch.float64)
    corner = (unit[:, :4] * (height - side + 1)).long()
    along = torch.arange(side, device=x.device)
    window = (along[:, None] * height + along).flatten()
    into, out_of = (corner[:, i, None] * height + corner[:, i + 1, None] + window for i in (0, 2))
    old = delta.gather(1, into)
    room = old.square().sum(dim=1) + delta.gather(1, out_of).square().sum(dim=1)
    fresh = old / old.norm(dim=1, keepdim=True) + (unit[:, 4:] - 0.5).sign().to(x.dtype)
    fresh *= (room.sqrt() / fresh.norm(dim=1))[:, None]
    delta = delta.scatter(1, out_of, 0.0).scatter_(1, into, fresh)
    delta /= delta.norm(dim=1, keepdim=True)
    scores = model((x + delta.reshape(x.shape)).clamp_(0, 1))
    own = scores.gather(1, y[:, None])
    assert len(own - scores.scatter(1, y[:, None], -torch.inf).amax(dim=1, keepdim=True)) == len(x)
    return 1


BARE: dict[str, tuple[Callable[..., int], str]] = {
    "one-sided": (one_sided, "zo_signsgd, zo_svrg, zo_ngd, zo_admm"),
    "pairs": (pairs, "nes"),
    "labels": (labels, "hsja, sign_opt"),
    "walk": (walk, "boundary"),
    "rays": (rays, "opt, sign_opt"),
    "enlarged": (enlarged, "autozoom"),
    "tiles": (tiles, "bandits l2"),
    "squares": (squares, "square l2"),
}


@torch.no_grad()
def bare_table(name: str, model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> None:
    """The model's share of the time in bare loops of as many samples, about 200 queries each."""
    for title, (loop, methods) in BARE.items():
        seen, noise, asked = Timed(model).eval(), Noise(0, torch.arange(len(x), device=x.device)), 0
        loop(model, x, y, noise, 10**6)
        start = clock()
        while asked < 20 * rounds:
            asked += loop(seen, x, y, noise, asked)
        share = 100 * seen.seconds / (clock() - start)
        print(f"{name:16} bare {title:10} {share:3.0f} % forwards ({methods})", flush=True)
