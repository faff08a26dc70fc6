"""Forms in windows, in groups, and in parts: what is spared changes no bound."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.graph.forms import Forms, units
from robustlab.graph.interval import Bounds
from robustlab.graph.tracing import trace
from robustlab.verification import Ball
from robustlab.verification.propagation import backward as backward_file
from robustlab.verification.propagation import layers as layers_file
from robustlab.verification.propagation.backward import backward
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import layer_bounds
from robustlab.verification.propagation.lower_bound import lower_bound
from robustlab.verification.propagation.parts import largest_form, parts
from robustlab.verification.propagation.region import Box

DTYPE = torch.float64


class Blocks(nn.Module):
    """Shifts before padded convolutions, convolutions that follow each other, batch norm, shortcuts, strides."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(1, 3, 3, padding=1, bias=False)
            self.norm = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.c, self.d = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.side, self.last = nn.Conv2d(3, 4, 1, stride=2), nn.Linear(4 * 36, 3)
            for norm in self.norm:
                norm.running_mean.uniform_(-0.3, 0.3)
                norm.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(norm.weight, 0.5, 2.0)
                nn.init.uniform_(norm.bias, -0.3, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm[0](self.first(2 * x - 0.4)).relu()
        h = (self.norm[1](self.b(self.a(h))) + h).relu()  # two convolutions without a bend between them
        h = (self.norm[3](self.d(self.norm[2](self.c(h)).relu())) + self.side(h)).relu()
        return self.last(h.flatten(1))


def net(seed: int) -> nn.Module:
    return Blocks(seed).to(DTYPE).eval().requires_grad_(False)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def same(one: list[Bounds], other: list[Bounds]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.lower, b.lower, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.upper, b.upper, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_windows_are_whole_maps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each form written out from the beginning, batch norm as a step of its own and samples mixed in the parts."""
    graph, region, options = trace(net(seed), images(2)), Ball(images(2, seed), 0.03), BoundOptions(intersect=False)
    loose: list[bool] = []
    plain = Forms.inside

    def seen(forms: Forms, shape: Any) -> Forms:
        loose.append(forms.loose and bool((forms.coef != plain(forms, shape).coef).any()))
        return plain(forms, shape)

    monkeypatch.setattr(Forms, "inside", seen)
    found = layer_bounds(graph, region, options)
    assert any(loose), "some forms reach beyond their maps"
    monkeypatch.setattr(layers_file, "units", lambda *told: units(*told[:4]).full(told[2]))
    monkeypatch.setattr(backward_file, "_with_scale", lambda graph, node, *_: (node.op, node.inputs))
    monkeypatch.setattr(layers_file, "parts", lambda sample, n, most: [(torch.arange(len(sample)), None)])
    same(found.bounds, layer_bounds(graph, region, options).bounds)


def test_how_large_a_form_becomes() -> None:
    """What is told before a pass is what passes carry at most, from each node."""
    graph = trace(net(0), images(1))
    lines = layer_bounds(graph, Ball(images(1), 0.03), BoundOptions(intermediate="interval")).lines
    sizes: list[int] = []
    plain = Forms.__init__

    def counted(forms: Forms, coef: Tensor, *rest: Any, **named: Any) -> None:
        plain(forms, coef, *rest, **named)
        sizes.append(coef.numel())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forms, "__init__", counted)
        for node in graph.nodes[1:]:
            sizes.clear()
            middle = torch.tensor([prod(node.shape) // 2])
            backward(
                graph, lines, units(torch.zeros(1).long(), middle, node.shape, torch.ones(1, dtype=DTYPE)), node.index
            )
            assert max(sizes) == largest_form(graph, node), node.name
    assert largest_form(graph, graph.nodes[1]) == 1 < graph.widest


def test_forms_in_groups_meet_the_same_values() -> None:
    generator = torch.Generator().manual_seed(0)
    coef, values = torch.randn(12, 2, 3, generator=generator), torch.randn(7, 2, 3, generator=generator)
    for first, each in ((0, 2), (1, 2), (5, 12), (3, 3)):
        sample = first + torch.arange(12) // each
        plain, grouped = Forms(coef, sample), Forms(coef, sample, group=(first, each))
        assert torch.equal(grouped.pick(values).expand(12, 2, 3), values[sample])
        torch.testing.assert_close(grouped.against(values), plain.dot(values[sample]))
        torch.testing.assert_close(plain.against(values), plain.dot(values[sample]))
        a, b = grouped.by_sample(values)
        torch.testing.assert_close((a * b).reshape(12, 2, 3), coef * values[sample])
        alone = replace(grouped, sample=torch.zeros(12).long())
        torch.testing.assert_close(alone.against(values[:1]), plain.dot(values[:1]))


@pytest.mark.parametrize("most", [1, 4, 10, 1000])
def test_parts_hold_every_row_once(most: int) -> None:
    for counts in ((3, 0, 5, 2), (7,), (0, 0), (1, 1, 1), (0, 9)):
        sample = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        found = parts(sample, len(counts), most)
        rows = [int(row) for some, _ in found for row in some]
        assert rows == list(range(sum(counts)))
        assert all(0 < len(some) <= most for some, _ in found)
        for some, only in found:
            assert only is None or bool((sample[some] == only).all())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_is_its_samples(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rows of a sample are too many for a part; and terms that are known are those that are found."""
    model, x = net(1).to(dtype), images(4).to(dtype)
    graph, options = trace(model, x), BoundOptions()
    C = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    apart = 1e-12 if dtype == torch.float64 else 1e-5
    for budget in (2**20, 3 * graph.widest, 7 * graph.widest):
        for module in ("layers", "lower_bound"):
            monkeypatch.setattr(f"robustlab.verification.propagation.{module}.BUDGET", budget)
        region = Box(x - 0.02, x + 0.02)
        found = lower_bound(graph, region, C, options)
        each = [
            lower_bound(graph, Box(x[i : i + 1] - 0.02, x[i : i + 1] + 0.02), C[i : i + 1], options) for i in range(4)
        ]
        torch.testing.assert_close(found, torch.cat(each), rtol=apart, atol=apart)
        layers = layer_bounds(graph, region, options)
        torch.testing.assert_close(
            found,
            lower_bound(graph, region, C, options, layers=replace(layers, terms=None)),
            rtol=0.1 * apart,
            atol=apart,
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(3))
def test_the_deciding_side_first(seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer forms; sampled values lie within; the same neurons are unstable, with both ends as they were where nothing
    before them had a looser interval; and the end that made a neuron stable is the tight one."""
    x = images(3, seed).to(dtype)
    model = net(seed).to(dtype)
    graph, region = trace(model, x), Ball(x, 0.02)
    counts: list[int] = []

    def counted(sample: Tensor, *rest: Any) -> Forms:
        counts.append(len(sample))
        return units(sample, *rest)

    monkeypatch.setattr(layers_file, "units", counted)
    both = layer_bounds(graph, region, BoundOptions()).bounds
    every = sum(counts)
    counts.clear()
    found = layer_bounds(graph, region, BoundOptions(sides="deciding")).bounds
    assert 0 < sum(counts) < every
    values = graph.values(
        (region.hull.lower + torch.rand(200, *x.shape, dtype=dtype) * region.hull.width).flatten(0, 1)
    )
    room = 1e-9 if dtype == torch.float64 else 1e-5
    for i in graph.pre_activations:
        value, b = values[i].unflatten(0, (200, 3)), found[i]
        assert bool((value >= b.lower - room).all() and (value <= b.upper + room).all())
    for i in graph.pre_activations[:2]:  # the first has exact intervals, so the second is bounded from the same lines
        a, b = both[i], found[i]
        open_ = (a.lower < 0) & (a.upper > 0)
        assert torch.equal(open_, (b.lower < 0) & (b.upper > 0)) and bool(open_.any())
        torch.testing.assert_close(b.lower[open_], a.lower[open_], rtol=room, atol=room)
        torch.testing.assert_close(b.upper[open_], a.upper[open_], rtol=room, atol=room)
        assert torch.equal(a.lower >= 0, b.lower >= 0) and torch.equal(a.upper <= 0, b.upper <= 0)
