"""The checks that chapters hold their cells from scratch to: right makes pass, each slip gets its cause."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from robustlab.teaching import check
from robustlab.teaching.check.hard_label import half_space
from robustlab.teaching.check.triggers import TARGET, planted, smallest_size
from robustlab.teaching.check.worst_margins import _case, _own, through_corners
from tests.every import every
from tests.planted import cause_of, run


def made(source: str, name: str, *replaced: tuple[str, str]) -> Any:
    """A function of a source in which parts are replaced."""
    return run(source, *replaced, cross_entropy=cross_entropy)[name]


SLOPES = """
def estimate(g, x, u, mu):
    middle = x[:, None].clamp((mu * u).abs(), 1 - (mu * u).abs())
    slope = (g(middle + mu * u) - g(middle - mu * u)) / (2 * mu)
    return (slope[..., None, None, None] * u).mean(dim=1)
"""
PAIR = "(g(middle + mu * u) - g(middle - mu * u)) / (2 * mu)"
SLOPE_SLIPS = {
    "sign lost": ("g(middle + mu * u) - g(middle - mu * u)", "g(middle - mu * u) - g(middle + mu * u)"),
    "a pair is as long as 2·mu, not mu": ("/ (2 * mu)", "/ mu"),
    "a difference from x alone is divided by 2·mu": ("- g(middle - mu * u)", "- g(middle)"),
    "a one-sided difference": (PAIR, "(g(middle + mu * u) - g(middle)) / mu"),
    "the length of the step is ignored": (" / (2 * mu)", ""),
    "a sum over the directions, not their mean": (".mean(dim=1)", ".sum(dim=1)"),
    "batch-dependent: samples share something that each should have alone": (
        ".mean(dim=1)",
        ".mean(dim=(0, 1)).expand_as(x)",
    ),
    "pairs leave the box": ("x[:, None].clamp((mu * u).abs(), 1 - (mu * u).abs())", "x[:, None]"),
    "a pair is clamped to another length": (
        PAIR,
        "(g((x[:, None] + mu * u).clamp(0, 1)) - g((x[:, None] - mu * u).clamp(0, 1))) / (2 * mu)",
    ),
    "more questions than two per direction": (PAIR, PAIR + " + 0 * g(middle)"),
    "wrong shape of the points": ("g(middle + mu * u)", "g((middle + mu * u).flatten(0, 1))"),
    "wrong shape": (".mean(dim=1)", ".mean(dim=0)"),
    "another mean than that of slope times direction": ("* u)", "* u.sign())"),
}


def test_right_estimates_pass(capsys: pytest.CaptureFixture[str]) -> None:
    check.slope_estimate(made(SLOPES, "estimate"))
    one_by_one = """
def estimate(g, x, u, mu):
    total = torch.zeros_like(x)
    for j in range(u.shape[1]):
        m = torch.minimum(torch.maximum(x, mu * u[:, j].abs()), 1 - mu * u[:, j].abs())
        both = g(torch.stack([m + mu * u[:, j], m - mu * u[:, j]], dim=1))
        total += (both[:, 0] - both[:, 1]).reshape(-1, 1, 1, 1) / (2 * mu) * u[:, j]
    return total / u.shape[1]
"""
    check.slope_estimate(made(one_by_one, "estimate"), seed=5)
    assert capsys.readouterr().out.count("slope_estimate: holds") == 2


@every("cause", [*SLOPE_SLIPS])
def test_each_slip_of_a_slope_is_named(cause: str) -> None:
    assert cause_of(check.slope_estimate, made(SLOPES, "estimate", SLOPE_SLIPS[cause])) == cause


HARD = """
def attack(wrong, x, far):
    draws, d = torch.Generator().manual_seed(0), x.numel()
    point = search(wrong, x, far)
    for k in range(1, 21):
        u = torch.randn(150, *x.shape[1:], generator=draws, dtype=x.dtype)
        u = u / u.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        probes = (point + 0.05 * (point - x).norm() * u).clamp(0, 1)
        phi = 2.0 * wrong(probes) - 1
        normal = ((phi - phi.mean()).reshape(-1, 1, 1, 1) * (probes - point)).mean(dim=0)
        step = (point - x).norm() / k**0.5
        while step > 1e-6 and not wrong(next := (point + step * normal / normal.norm()).clamp(0, 1)):
            step = step / 2
        point = search(wrong, x, next) if step > 1e-6 else point
    return point


def search(wrong, x, far):
    low, high = 0.0, 1.0
    for _ in range(30):
        t = (low + high) / 2
        low, high = (low, t) if wrong(x + t * (far - x)) else (t, high)
    return x + high * (far - x)
"""
RANGE = "range(1, 21)"
TURNED = "the direction is never turned"
HARD_SLIPS = [
    ("the right side of the boundary was returned", "return x + high", "return x + low"),
    (TURNED, RANGE, "range(0)"),
    (TURNED, "step * normal", "-step * normal"),
    ("the wrong way, or no step back to the boundary", "search(wrong, x, next) if", "far if"),
    ("the search ends early, or its normals are poor", "search(wrong, x, next) if", "next if"),
    ("the search ends early, or its normals are poor", RANGE, "range(1, 3)"),
    (TURNED, "2.0 * wrong(probes) - 1", "torch.ones(150).to(x)"),
    ("no clamp to [0, 1]", "normal.norm()).clamp(0, 1)", "normal.norm())"),
    ("wrong shape", "return point\n", "return point[0]\n"),
    ("x was changed in place", "return point\n", "x += 0.1\n    return point\n"),
]


@every("seed", range(0, 60, 10))
def test_a_right_attack_passes(seed: int) -> None:
    check.hard_label(made(HARD, "attack"), seed=seed)


@every("cause, old, new", HARD_SLIPS)
def test_each_slip_of_a_hard_label_attack_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.hard_label, made(HARD, "attack", (old, new))) == cause


@every("at_ends", [False, True])
def test_the_nearest_point_is_that_of_a_quadratic_program(at_ends: bool) -> None:
    from scipy.optimize import minimize

    for seed in range(3):
        wrong, x, far = half_space((1, 3, 3), at_ends, seed=seed)
        w, start, least = wrong.w.flatten().numpy(), x.flatten().numpy(), wrong.nearest()
        found = minimize(
            lambda p, a=start: ((p - a) ** 2).sum(),
            far.flatten().numpy(),
            jac=lambda p, a=start: 2 * (p - a),
            bounds=[(0, 1)] * 9,
            constraints=[{"type": "ineq", "fun": lambda p, a=start, n=w, s=wrong: n @ (p - a) - s.lead}],
        )
        assert abs(float((least - x).norm()) - found.fun**0.5) < 1e-5
        assert bool(wrong.holds(least)) and bool(wrong.holds(far)) and not bool(wrong.holds(x))
        assert float((wrong.crossing(far) - x).norm()) > 1.5 * float((least - x).norm())


SPECTRAL = """
def scores(features):
    rows = features - features.mean(dim=0)
    _, _, v = torch.linalg.svd(rows, full_matrices=False)
    return (rows @ v[0]).square()
"""
SPECTRAL_SLIPS = {
    "the rows are not centered": ("rows = features - features.mean(dim=0)", "rows = features"),
    "the direction is that of centered rows, the products are with rows that are not": ("(rows @", "(features @"),
    "no square": (".square()", ".abs()"),
    "the left singular vector, without the singular value": ("(rows @ v[0])", "torch.linalg.svd(rows)[0][:, 0]"),
    "the length in all directions": ("(rows @ v[0]).square()", "rows.square().sum(dim=1)"),
    "the last direction, not the first": ("(rows @ v[0])", "(rows @ v[3])"),
    "the second direction": ("(rows @ v[0])", "(rows @ v[1])"),
    "another direction or another product": ("v[0]", "v[0].abs()"),
    "wrong shape": ("return (rows", "return (rows[1:]"),
}


@every(
    "source",
    [SPECTRAL, SPECTRAL.replace("rows @ v[0]", "torch.linalg.svd(rows)[0][:, 0] * torch.linalg.svd(rows)[1][0]")],
)
def test_right_scores_pass(source: str) -> None:
    check.spectral_scores(made(source, "scores"))


@every("cause", [*SPECTRAL_SLIPS])
def test_each_slip_of_the_scores_is_named(cause: str) -> None:
    assert cause_of(check.spectral_scores, made(SPECTRAL, "scores", SPECTRAL_SLIPS[cause])) == cause


SIZE = """
def size(network, x, target, steps=80):
    a, b = (torch.full(x.shape[1:], v).requires_grad_() for v in (-3.0, 0.0))
    optimizer, price, best = torch.optim.Adam([a, b], lr=0.2), 0.1, torch.inf
    for _ in range(steps):
        m, p = a.sigmoid(), b.sigmoid()
        z, total = network((1 - m) * x + m * p), m.sum()
        works = bool((z.argmax(dim=1) == target).double().mean() >= 0.99)
        if works:
            best = min(best, total.item())
        price = 1.1 * price if works else price / 1.1
        optimizer.zero_grad()
        (cross_entropy(z, torch.full((len(x),), target)) + price * total).backward()
        optimizer.step()
    return best
"""
SIZE_SLIPS = {
    "a mask counts that does not work": ("if works:", "if True:"),
    "the mask is not held to [0, 1]": ("a.sigmoid(), b.sigmoid()", "a, b"),
    "the mean of the mask, not its sum": ("best = min(best, total.item())", "best = min(best, m.mean().item())"),
    "the price rises before anything works, or the steps are too few": ("steps=80", "steps=1"),
    "nothing makes the mask small, or all goals share one": (" + price * total", ""),
}


@pytest.mark.slow
@every("cause", [*SIZE_SLIPS])
def test_each_slip_of_a_size_is_named(cause: str) -> None:
    assert cause_of(check.trigger_size, made(SIZE, "size", SIZE_SLIPS[cause])) == cause


@pytest.mark.slow
def test_a_right_size_passes_and_one_shared_by_all_goals_does_not() -> None:
    right = made(SIZE, "size")
    check.trigger_size(right)
    with pytest.raises(check.Wrong):
        check.trigger_size(lambda network, x, k: right(network, x, TARGET))


def test_the_smallest_size_is_reached_and_not_passed() -> None:
    """The planted class by hand: one bright pixel of weight 12 closes the largest lead of another class."""
    network, x = planted()
    z = network(x).detach()
    lead = float((z.amax(dim=1) - z[:, TARGET]).max())
    assert lead / 12 - 1e-6 < smallest_size(network, x, TARGET) < 1.05 * lead / 12


MARGINS = """
def through(layers, x, eps):
    low, high, ends = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1), []
    for W, b in layers[:-1]:
        center, tau = (low + high) / 2 @ W.T + b, (high - low) / 2 @ W.abs().T
        ends.append((center - tau, center + tau))
        low, high = (end.clamp_min(0) for end in ends[-1])
    return ends, low, high


def ibp(layers, x, y, eps):
    _, low, high = through(layers, x, eps)
    W, b = layers[-1]
    rows, shift = W[y][:, None] - W, b[y][:, None] - b
    center, tau = ((low + high) / 2)[:, None], ((high - low) / 2)[:, None]
    return (rows * center - rows.abs() * tau).sum(2) + shift


def crown_ibp(layers, x, y, eps):
    ends, _, _ = through(layers, x, eps)
    W, b = layers[-1]
    A, c = W[y][:, None] - W, b[y][:, None] - b
    for (W, b), (l, u) in zip(layers[-2::-1], ends[::-1]):
        l, u = l.clamp_max(0)[:, None], u.clamp_min(0)[:, None]
        chord, below = u / (u - l).clamp_min(1e-9), (u >= -l).to(u)
        up, down = A.clamp_min(0), A.clamp_max(0)
        c = c - (down * chord * l).sum(2)
        A = up * below + down * chord
        A, c = A @ W, c + A @ b
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    center, tau = (low + high)[:, None] / 2, (high - low)[:, None] / 2
    return (A * center - A.abs() * tau).sum(2) + c
"""
BOX = "(x - eps).clamp(0, 1), (x + eps).clamp(0, 1)"
MERGED = "rows, shift = W[y][:, None] - W, b[y][:, None] - b\n"
APART = """
    ends, _, _ = through([*layers, None], x, eps)
    low, high = ends[-1]
    return (low.gather(1, y[:, None]) - high).scatter(1, y[:, None], 0.0)
"""
MARGIN_SLIPS = [
    ("no clamp to [0, 1]", BOX, "x - eps, x + eps"),
    ("the last layer is not merged with the difference", MERGED, MERGED + APART),
    ("the last layer is not merged with the difference", "rows.abs() * tau", "(W[y].abs()[:, None] + W.abs()) * tau"),
    ("no lower bound: sign, center or half-width is off", "- rows.abs() * tau", "+ rows.abs() * tau"),
    ("no lower bound: sign, center or half-width is off", "(high - low) / 2 @", "(high - low) / 4 @"),
    ("right, and wider than it has to be", "(high - low) / 2 @", "(high - low) @"),
    (
        "batch-dependent: samples share something that each should have alone",
        "return ends, low, high",
        "return ends, low.amin(dim=0).expand_as(low), high",
    ),
    ("wrong shape", ".sum(2) + shift", ".sum(2)[:, 1:] + shift[:, 1:]"),
]
LINE_SLIPS = [
    ("right, and wider than it has to be", "(u >= -l).to(u)", "(u < -l).to(u)"),
    ("no lower bound: sign, center or half-width is off", "(down * chord * l)", "(up * chord * l)"),
    ("no lower bound: sign, center or half-width is off", "c + A @ b", "c"),
    ("a division by zero", ".clamp_min(1e-9)", ""),
    ("no clamp to [0, 1]", BOX, "x - eps, x + eps"),
]


def test_right_margins_pass(capsys: pytest.CaptureFixture[str]) -> None:
    check.worst_margins(made(MARGINS, "ibp"))
    check.worst_margins(made(MARGINS, "crown_ibp"), "crown_ibp", seed=7)
    assert capsys.readouterr().out.count("worst_margins: holds") == 2


@every("cause, old, new", MARGIN_SLIPS)
def test_each_slip_of_interval_margins_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.worst_margins, made(MARGINS, "ibp", (old, new))) == cause


@every("cause, old, new", LINE_SLIPS)
def test_each_slip_of_lines_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.worst_margins, made(MARGINS, "crown_ibp", (old, new)), "crown_ibp") == cause


def test_corners_of_the_hidden_box_and_robustlab_agree() -> None:
    for seed in range(5):
        layers, x, y, eps = _case((5, 6, 3), seed)
        low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        assert torch.allclose(through_corners(layers, x, y, eps), _own(layers, x, y, low, high, "ibp"), atol=1e-9)
