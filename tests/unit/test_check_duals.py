"""The checks of the Lagrangian dual's value and of the tubes of a hue: right makes pass, each slip gets its cause."""

from __future__ import annotations

import colorsys
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlab.data.color import rgb_to_hsv
from robustlab.teaching import check
from robustlab.teaching.check.dual_value import SIZES, _apart, _case, by_definition
from robustlab.teaching.check.hue_tube import by_colorsys, colorful, lines
from tests.every import every
from tests.planted import cause_of, run

DUAL = """
def dual_value(layers, ends, a, price, low, high):
    (W, b), hidden = layers[-1], layers[:-1]
    value, a = a @ b, a @ W
    for i in reversed(range(len(hidden))):
        (l, u), (W, b), mu = ends[i], hidden[i], price(i, a)
        bend = torch.zeros_like(l).clamp(l, u)
        h = torch.stack([l, bend, u])[:, None]
        value = value + (a * h.clamp_min(0) - mu * h).amin(0).sum(1)
        value, a = value + mu @ b, mu @ W
    return value + a @ (low + high) / 2 - a.abs() @ (high - low) / 2
"""
ROW_BY_ROW = """
def dual_value(layers, ends, a, price, low, high):
    coefficients, found = a @ layers[-1][0], 0
    for i in range(len(layers) - 2, -1, -1):
        mu, (l, u) = price(i, coefficients), ends[i]
        least = []
        for c, m in zip(coefficients, mu):
            total = 0
            for k in range(len(l)):
                places = [l[k], u[k]] + ([0 * l[k]] if l[k] < 0 < u[k] else [])
                total = total + min(c[k] * p.clamp_min(0) - m[k] * p for p in places)
            least.append(total)
        found = found + torch.stack(least) + (mu * layers[i][1]).sum(1)
        coefficients = mu @ layers[i][0]
    ends = torch.where(coefficients >= 0, low, high)
    return (coefficients * ends).sum(1) + found + a @ layers[-1][1]
"""
DUAL_SLIPS = [
    ("the bend is left out", "[l, bend, u]", "[l, u]"),
    ("the bend counts where 0 is not between the ends", ".clamp(l, u)", ""),
    ("a sign: whoever moves h is charged", "- mu * h", "+ mu * h"),
    ("a hidden layer's bias is left out", "value + mu @ b", "value"),
    ("the last layer's bias is left out", "a @ b, a @ W", "a.new_zeros(len(a)), a @ W"),
    ("the largest value on the box of inputs, not the least", "- a.abs() @", "+ a.abs() @"),
    ("the inputs stay in the middle of their box", "- a.abs() @ (high - low) / 2", ""),
    ("the largest of the candidates, not the least", ".amin(0)", ".amax(0)"),
    ("not the prices are handed down", "mu @ W\n", "a @ W\n"),
    ("not the rows times the last weights", "a @ b, a @ W", "a @ b, (a @ W).abs()"),
    ("a sign, or a term that is missing", "(low + high) / 2", "(low + high)"),
    ("detached: nothing could climb", "price(i, a)", "price(i, a).detach()"),
    ("a layer is left out", "price(i, a)", "(price(i, a) if i else 0 * a)"),
    ("wrong shape", ".sum(1)\n", ".sum()[None, None]\n"),
    (
        "batch-dependent: rows share something that each should have alone",
        "- a.abs() @ (high - low) / 2",
        "- a.abs() @ (high - low) / 2 - 0.1 * (len(a) == 1)",
    ),
]
HUE = """
def turned(x, phi):
    most = x.amax(1, keepdim=True)
    chroma = most - x.amin(1, keepdim=True)
    hue = rgb_to_hsv(x)[:, :1]
    m = torch.tensor([5.0, 3.0, 1.0], dtype=x.dtype)[:, None, None]
    p = (m + 6 * (hue + phi)) % 6
    return most - chroma * torch.minimum(p, 4 - p).clamp(0, 1)


def tube(x, low, high):
    hue = rgb_to_hsv(x)[:, :1]
    m = torch.tensor([5.0, 3.0, 1.0], dtype=x.dtype)[:, None, None]
    p_low = (m + 6 * (hue + low)) % 6
    places = [torch.full_like(x, low), torch.full_like(x, high)]
    for knot in (0, 1, 3, 4):
        phi = low + ((knot - p_low) % 6) / 6
        places.append(phi.clamp(low, high))
    values = [turned(x, phi) for phi in places]
    slope = (values[1] - values[0]) / (high - low)
    left = torch.stack([v - slope * phi for v, phi in zip(values, places)])
    return slope, left.amin(0), left.amax(0)
"""
HUE_SLIPS = [
    ("the bends are left out", "(0, 1, 3, 4)", "()"),
    ("the middle in place of the bends", "phi = low + ((knot - p_low) % 6) / 6", "phi = x * 0 + (low + high) / 2"),
    ("a place where the pixel bends is left out", "(0, 1, 3, 4)", "(0, 1, 3)"),
    ("a place where the pixel bends is left out", "(knot - p_low) % 6", "(knot - p_low)"),
    ("right, and wider than it has to be", "places.append(phi.clamp(low, high))", "places.append(phi)"),
    ("the slope is not divided by the length of the part", " / (high - low)", ""),
    ("all slopes are 0: a box, not a tube", "(values[1] - values[0])", "0 * values[0]"),
    ("below and above are exchanged", "left.amin(0), left.amax(0)", "left.amax(0), left.amin(0)"),
    ("offsets are values, not what is left of them", "v - slope * phi", "v"),
    ("red and blue are exchanged", "[5.0, 3.0, 1.0]", "[1.0, 3.0, 5.0]"),
    ("the circle is gone round the other way", "(hue + phi)", "(hue - phi)"),
    ("the turn is not in turns of the circle", "6 * (hue + phi)", "6 * hue + phi"),
    ("the slope is not that of the line through both ends", ".clamp(0, 1)", ".clamp(0, 2)"),
    ("a division by zero", "(hue + phi)", "(hue + 0 * x / chroma + phi)"),
    ("wrong shape", "return slope, left", "return slope[:, :1], left"),
    (
        "batch-dependent: images share something that each should have alone",
        "left.amax(0)",
        "left.amax(0) + 1e-3 * (len(x) == 1)",
    ),
]


def dual(source: str, *replaced: tuple[str, str]) -> Any:
    return run(source, *replaced)["dual_value"]


def hue(*replaced: tuple[str, str]) -> Any:
    return run(HUE, *replaced, rgb_to_hsv=rgb_to_hsv)["tube"]


def test_right_values_pass(capsys: pytest.CaptureFixture[str]) -> None:
    for source in (DUAL, ROW_BY_ROW):
        check.dual_value(dual(source))
        check.dual_value(dual(source), seed=9)
        with torch.no_grad():  # a chapter may have it so
            check.dual_value(dual(source))
    assert capsys.readouterr().out.count("dual_value: holds") == 6


@every("cause, old, new", DUAL_SLIPS)
def test_each_slip_of_a_value_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.dual_value, dual(DUAL, (old, new))) == cause


def test_all_combinations_and_the_minimum_taken_apart_agree() -> None:
    for seed in range(4):
        for sizes in SIZES:
            layers, ends, low, high = _case(sizes, seed)
            generator = torch.Generator().manual_seed(seed)
            a, *prices = (torch.randn(3, n, generator=generator).double() for n in (sizes[-1], *sizes[1:-1]))
            told = (layers, ends, a, prices, low, high)
            torch.testing.assert_close(by_definition(*told), _apart(*told))
            assert any(bool((l > 0).any() and (u < 0).any()) for l, u in ends)  # both kinds of stable neurons


def point_by_point(x: Tensor, low: float, high: float) -> list[Tensor]:
    """The same from bends a little on either side of each sixth, color by color."""
    out = [torch.zeros_like(x) for _ in range(3)]
    for n in range(len(x)):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                h, s, v = colorsys.rgb_to_hsv(*x[n, :, i, j].tolist())
                at = [low, high, *(k / 6 - h for k in range(-12, 19) if low < k / 6 - h < high)]
                color = torch.tensor([colorsys.hsv_to_rgb((h + phi) % 1, s, v) for phi in at], dtype=x.dtype)
                slope = (color[1] - color[0]) / (high - low)
                left = color - slope * torch.tensor(at, dtype=x.dtype)[:, None]
                for part, value in zip(out, (slope, left.amin(0), left.amax(0)), strict=True):
                    part[n, :, i, j] = value
    return out


def test_right_tubes_pass(capsys: pytest.CaptureFixture[str]) -> None:
    check.hue_tube(hue())
    check.hue_tube(hue(("(0, 1, 3, 4)", "range(6)")), seed=3)
    check.hue_tube(point_by_point)
    assert capsys.readouterr().out.count("hue_tube: holds") == 3


@every("cause, old, new", HUE_SLIPS)
def test_each_slip_of_a_tube_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.hue_tube, hue((old, new))) == cause


def test_the_lines_hold_on_a_dense_grid_and_touch_it() -> None:
    x = colorful(5)
    turns, colors = by_colorsys(x, -0.3, 0.45)
    slope, below, above = lines(turns, colors)
    grid = torch.linspace(-0.3, 0.45, 1501, dtype=x.dtype).tolist()
    _, dense = by_colorsys(x, -0.3, 0.45, only=tuple((phi + 0.3) / 0.75 for phi in grid))
    left = dense[2:] - slope * torch.tensor(grid, dtype=x.dtype)[:, None, None, None, None]
    assert bool((left >= below - 1e-9).all() and (left <= above + 1e-9).all())
    assert float((left.amin(0) - below).max()) < 6 * 0.75 / 1500
    assert float((above - left.amax(0)).max()) < 6 * 0.75 / 1500
