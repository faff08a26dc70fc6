"""Every operator's three rules against brute force, and every relaxation against dense grids."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.graph.forms import Forms, units
from robustlab.graph.hinge import Clamp, Hinge
from robustlab.graph.operators import Rule
from robustlab.graph.smooth import CURVES, Smooth
from robustlab.models import Normalize
from robustlab.verification import Bounds, trace
from robustlab.verification.propagation.backward import backward

HINGES = {
    "relu": Hinge(0.0, 1.0), "leaky": Hinge(0.1, 1.0), "abs": Hinge(-1.0, 1.0),
    "clamp": Clamp(-0.5, 1.5), "relu6": Clamp(0.0, 6.0), "below": Clamp(-math.inf, 0.3), "above": Clamp(-0.2, math.inf),
}  # fmt: skip
CURVED = {name: Smooth(name) for name in CURVES}
NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}


def net(name: str, shape: tuple[int, ...]):
    """Registers a module, or a function of x, under a name."""

    def register(forward):
        if isinstance(forward, nn.Module):
            NETS[name] = forward, shape
        else:
            NETS[name] = type(name, (nn.Module,), {"forward": lambda self, x: forward(x)})(), shape
        return forward

    return register


torch.manual_seed(0)
W = torch.randn(4, 6, dtype=torch.float64)
net("linear", (5,))(nn.Linear(5, 3))
net("linear on the last dimension", (2, 5))(nn.Linear(5, 3, bias=False))
net("conv", (2, 7, 6))(nn.Conv2d(2, 4, 3))
net("conv stride padding", (2, 7, 6))(nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 2)))
net("conv dilation groups", (4, 8, 9))(nn.Conv2d(4, 6, 3, dilation=2, groups=2, padding=2))
net("conv same", (2, 5, 5))(nn.Conv2d(2, 3, 3, padding="same"))
net("conv 1-d", (3, 9))(nn.Conv1d(3, 4, 3, stride=2, padding=1))
net("batch norm", (3, 4, 4))(nn.BatchNorm2d(3))
net("batch norm 1-d", (6,))(nn.BatchNorm1d(6))
net("normalize", (3, 4, 4))(Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
net("average pool", (2, 6, 6))(nn.AvgPool2d(3, stride=2, padding=1))
net("adaptive pool", (2, 6, 4))(nn.AdaptiveAvgPool2d((3, 1)))
net("flatten", (2, 3, 4))(nn.Flatten())
net("dropout", (6,))(nn.Dropout(0.5))
net("add", (6,))(lambda x: x + 2 * x.flip(1) + 1.5)
net("sub", (6,))(lambda x: 1 - x - (3 - x.roll(1, 1)))
net("constants", (6,))(lambda x: -(torch.arange(6.0, dtype=torch.float64) * x - 2) / 4)
net("matrix", (6,))(lambda x: x @ W.T)
net("reshape", (2, 6))(lambda x: x.view(x.size(0), 3, -1).transpose(1, 2).reshape(x.shape[0], -1))
net("permute", (2, 3, 4))(lambda x: x.permute(0, 3, 1, 2)[:, 1:, :, ::2])
net("concat", (2, 3, 4))(lambda x: torch.cat([x, x.flip(2), 2 * x], dim=1))
net("concat last", (2, 3, 4))(lambda x: torch.cat([x, x], dim=-1))
net("mean", (2, 3, 4))(lambda x: x.mean((2, 3)) + x.sum(dim=(1, 3))[:, :2])
net("broadcast", (4,))(lambda x: x - x.mean(dim=1, keepdim=True))
net("average pool inside", (2, 6, 6))(nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False))
net("pad", (2, 3, 4))(lambda x: F.pad(x, (1, 2, 0, 1), value=0.7))
net("pad by reflection", (2, 3, 4))(lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"))
net("chunk", (6,))(lambda x: x.chunk(2, dim=1)[0] * 3 - x.chunk(2, dim=1)[1])
net("unbind", (3, 2))(lambda x: x.unbind(1)[2] - x.unbind(dim=1)[0])


@net("split", (5, 3))
def split_net(x: Tensor) -> Tensor:
    first, second, last = torch.split(x, [2, 2, 1], dim=1)
    return first - 2 * second + torch.cat([last, last], dim=1)


AFFINE = tuple(NETS)
net("elu", (6,))(nn.ELU(0.6))
net("selu", (6,))(F.selu)
net("hardswish", (6,))(nn.Hardswish())
net("hardsigmoid", (6,))(lambda x: F.hardsigmoid(5 * x))
net("gelu by tanh", (6,))(nn.GELU(approximate="tanh"))
net("prelu", (6,))(nn.PReLU(init=0.3))
net("prelu per channel", (3, 2))(nn.PReLU(3, init=0.1))
net("power", (6,))(lambda x: x**2 - x.pow(2).mean(1, keepdim=True))
net("exp", (6,))(torch.exp)
net("softmax", (5,))(nn.Softmax(dim=1))
net("softmax of channels", (3, 2, 2))(lambda x: x.softmax(1))
net("layer norm", (2, 4))(nn.LayerNorm(4))
net("layer norm of maps", (2, 3, 2))(lambda x: F.layer_norm(x, (3, 2), W[:3, :2], W[1:4, :2], eps=0.3))
net("max pool 1-d", (2, 7))(nn.MaxPool1d(3, stride=2, padding=1))
net("two matrices", (3, 4))(lambda x: (x @ x.transpose(1, 2)) @ x)
net("attention", (3, 4))(lambda x: F.scaled_dot_product_attention(x[..., :2], x[..., 1:3], x[..., 2:]))
net("relu", (6,))(nn.ReLU())
net("leaky", (6,))(nn.LeakyReLU(0.2))
net("tanh", (6,))(torch.tanh)
net("gelu", (6,))(nn.GELU())
net("silu", (6,))(F.silu)
net("softplus", (6,))(nn.Softplus(beta=3))
net("hardtanh", (6,))(nn.Hardtanh(-0.4, 0.6))
net("clamp", (6,))(lambda x: x.clamp(min=-0.3).clamp(max=0.5))
net("abs", (6,))(lambda x: x.abs() + abs(x - 0.5))
net("max pool", (2, 5, 5))(nn.MaxPool2d(2))
net("max pool overlapping", (1, 6, 6))(nn.MaxPool2d(3, stride=1, padding=1))
net("max pool dilated", (1, 6, 6))(nn.MaxPool2d(2, stride=2, dilation=2))
net("product", (6,))(lambda x: x * x.flip(1))
net("square", (6,))(torch.square)


def prepared(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    module, shape = NETS[name]
    generator = torch.Generator().manual_seed(1)
    for buffer in module.buffers():
        if buffer.dim() and "running" in str([n for n, b in module.named_buffers() if b is buffer]):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module.double().eval().requires_grad_(False), shape


def boxes(shape: tuple[int, ...], n: int = 4, seed: int = 0) -> Bounds:
    """Boxes of all widths, some of them points, around numbers of both signs."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    width = torch.rand(n, *shape, generator=generator, dtype=torch.float64) * torch.tensor(
        [0.0, 0.05, 0.5, 3.0]
    ).reshape(-1, *[1] * len(shape))
    return Bounds(a, a + width)


def corners(box: Bounds, count: int = 300, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(count, *box.lower.shape, generator=generator, dtype=torch.float64)
    t[: count // 2] = t[: count // 2].round()
    t[1], t[2] = 0.0, 1.0
    return box.lower + t * box.width


@pytest.mark.parametrize("name", NETS)
def test_the_graph_computes_what_the_module_computes(name: str) -> None:
    module, shape = prepared(name)
    x = torch.randn(5, *shape, dtype=torch.float64)
    torch.testing.assert_close(trace(module, x)(x), module(x), rtol=0, atol=1e-8)  # PyTorch's softplus has a threshold


@pytest.mark.parametrize("name", NETS)
def test_intervals_hold_and_are_reached(name: str) -> None:
    module, shape = prepared(name)
    box = boxes(shape)
    graph = trace(module, torch.zeros(1, *shape, dtype=torch.float64))
    bounds = [box]
    for node in graph.nodes[1:]:
        bounds.append(node.op.interval(*(bounds[i] for i in node.inputs)))
    values = module(corners(box).flatten(0, 1)).unflatten(0, (-1, 4))
    assert bool((values >= bounds[-1].lower - 1e-9).all() and (values <= bounds[-1].upper + 1e-9).all())
    torch.testing.assert_close(bounds[-1].lower[0], values[0, 0], rtol=0, atol=1e-7)  # a point stays a point
    single = len(graph.nodes) == 2
    if single and values[0, 0].numel() <= 6 and "pool" not in name:
        tight = (values.amin(0) - bounds[-1].lower).abs()
        assert float(tight.median()) < 0.2 * float(bounds[-1].width.median() + 0.01)


@pytest.mark.parametrize("name", AFFINE)
def test_affine_backward_rules_are_the_jacobian(name: str) -> None:
    module, shape = prepared(name)
    graph = trace(module, torch.zeros(1, *shape, dtype=torch.float64))
    x = torch.randn(2, *shape, dtype=torch.float64)
    coef = torch.randn(6, *graph.output_shape, dtype=torch.float64)
    sample = torch.tensor([0, 1, 0, 1, 1, 0])
    found, constant = carried(graph, Forms(coef, sample), {})
    value = (coef * module(x)[sample]).flatten(1).sum(1)
    torch.testing.assert_close(found.dot(x[sample]) + constant, value, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NETS if n not in AFFINE])
@pytest.mark.parametrize("rule", [Rule(), Rule(relu="parallel", pool="parallel")])
def test_nonlinear_backward_rules_stay_below(name: str, rule: Rule) -> None:
    module, shape = prepared(name)
    graph, box = trace(module, torch.zeros(1, *shape, dtype=torch.float64)), boxes(shape)
    bounds, lines = [box], {}
    for node in graph.nodes[1:]:
        inputs = [bounds[i] for i in node.inputs]
        lines[node.index] = node.op.relax(rule, *inputs)
        bounds.append(node.op.interval(*inputs))
    sample = torch.arange(4).repeat(5)
    coef = torch.randn(20, *graph.output_shape, dtype=torch.float64)
    forms, constant = carried(graph, Forms(coef, sample), lines)
    points = corners(box)
    below = torch.stack([forms.dot(p[sample]) + constant for p in points])
    value = torch.stack([(coef * module(p)[sample]).flatten(1).sum(1) for p in points])
    assert bool((below <= value + 1e-9).all())
    torch.testing.assert_close(below[0, sample == 0], value[0, sample == 0], rtol=0, atol=1e-6)  # exact at a point


def carried(graph, forms: Forms, lines: dict) -> tuple[Forms, Tensor]:
    return backward(graph, lines, forms, len(graph.nodes) - 1)


@pytest.mark.parametrize("name", [n for n in AFFINE if "conv" in n and "1-d" not in n] + ["average pool"])
def test_windows_are_the_whole_map_where_it_is_not_zero(name: str) -> None:
    """One neuron's form as a window and written out, through two convolutions."""
    module, shape = prepared(name)
    channels = module(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
    two = nn.Sequential(module, nn.Conv2d(channels, 2, 2, padding=1), nn.ReLU()).double()
    graph = trace(two, torch.zeros(1, *shape, dtype=torch.float64))
    node = graph.nodes[2]
    size = math.prod(node.shape)
    place, sample = torch.arange(size), torch.arange(size) % 3
    windows = units(sample, place, node.shape, torch.ones(size, dtype=torch.float64))
    a, c = backward(graph, {}, windows, 2)
    b, d = backward(graph, {}, windows.full(node.shape), 2)
    torch.testing.assert_close(a.full(shape).coef, b.coef, rtol=0, atol=1e-12)
    torch.testing.assert_close(c, d, rtol=0, atol=1e-12)
    values = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(a.dot(a.pick(values)), b.dot(b.pick(values)), rtol=0, atol=1e-10)


class Branches(nn.Module):
    """The sum of two branches that see different windows of x."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.first, self.one, self.other, self.relu = nn.Conv2d(2, 2, 2), one, other, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.relu(self.one(z) + self.other(z))


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (nn.Conv2d(2, 2, 3, padding=1), nn.Identity(), True),
        (nn.Identity(), nn.Conv2d(2, 2, 3, padding=1), True),
        (nn.Conv2d(2, 3, (3, 1), stride=2, padding=(1, 0)), nn.Conv2d(2, 3, 1, stride=2), True),
        (nn.Conv2d(2, 2, (3, 1), padding=(1, 0)), nn.Conv2d(2, 2, (1, 3), padding=(0, 1)), True),
        (nn.Conv2d(2, 2, 3), nn.AvgPool2d(3, stride=1), True),
        (nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 4, stride=2, padding=3), False),
        (nn.Conv2d(2, 2, 5, padding=(3, 2)), nn.Conv2d(2, 2, 3, padding=(2, 1)), True),
    ],
)
def test_windows_of_two_branches_meet_in_one(one: nn.Module, other: nn.Module, joined: bool) -> None:
    shape = (2, 9, 8) if joined else (2, 8, 8)
    module = Branches(one, other).double().requires_grad_(False)
    graph = trace(module, torch.zeros(1, *shape, dtype=torch.float64))
    node = graph.nodes[-2]
    size = math.prod(node.shape)
    place, sample = torch.arange(size), torch.arange(size) % 3
    windows = units(sample, place, node.shape, torch.ones(size, dtype=torch.float64))
    a, c = backward(graph, {}, windows, node.index)
    b, d = backward(graph, {}, windows.full(node.shape), node.index)
    assert (a.window is not None) == joined
    torch.testing.assert_close(a.full(shape).coef, b.coef, rtol=0, atol=1e-12)
    torch.testing.assert_close(c, d, rtol=0, atol=1e-12)
    values = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(a.dot(a.pick(values)), b.dot(b.pick(values)), rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HINGES, *CURVED])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_lines_hold_on_dense_grids(name: str, dtype: torch.dtype) -> None:
    """Random intervals of all sizes and places, points among them."""
    op = {**HINGES, **CURVED}[name]
    generator = torch.Generator().manual_seed(3)
    middle = torch.randn(400, generator=generator, dtype=torch.float64) * 3
    width = 10 ** (torch.rand(400, generator=generator, dtype=torch.float64) * 5 - 4)
    width[:20] = 0
    box = Bounds((middle - width).to(dtype), (middle + width).to(dtype))
    lines = op.relax(Rule(), box)
    low_bias = 0 if lines.lower_bias is None else lines.lower_bias
    t = torch.linspace(0, 1, 501, dtype=torch.float64)[:, None]
    z = (box.lower.double() + t * box.width.double()).clamp(box.lower.double(), box.upper.double())
    f = op.forward(z)
    scale = 0 if dtype == torch.float64 else 1e-6 * (1 + z.abs())
    assert bool((lines.lower_slope.double() * z + low_bias <= f + 1e-10 + scale).all())
    assert bool((lines.upper_slope.double() * z + lines.upper_bias.double() >= f - 1e-10 - scale).all())
    assert all(bool(v.isfinite().all()) for v in (lines.lower_slope, lines.upper_slope, lines.upper_bias))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HINGES, *CURVED])
def test_lines_are_the_best_of_their_kind(name: str) -> None:
    """No line below (above) is higher (lower) at the middle, and so none has less area."""
    op = {**HINGES, **CURVED}[name]
    generator = torch.Generator().manual_seed(4)
    middle = torch.randn(60, generator=generator, dtype=torch.float64) * 2
    width = 0.05 + 4 * torch.rand(60, generator=generator, dtype=torch.float64)
    box = Bounds(middle - width, middle + width)
    lines = op.relax(Rule(), box)
    low_bias = 0 if lines.lower_bias is None else lines.lower_bias
    z = box.lower + torch.linspace(0, 1, 801, dtype=torch.float64)[:, None] * box.width
    f = op.forward(z)
    slopes = torch.linspace(-1.2, 1.2, 481, dtype=torch.float64)[:, None, None]
    best_low = ((f - slopes * z).amin(dim=1) + slopes[:, 0] * middle).amax(dim=0)
    best_high = ((f - slopes * z).amax(dim=1) + slopes[:, 0] * middle).amin(dim=0)
    assert float((best_low - (lines.lower_slope * middle + low_bias)).max()) < 5e-3
    assert float((lines.upper_slope * middle + lines.upper_bias - best_high).max()) < 5e-3


@pytest.mark.parametrize("name", CURVES)
def test_derivatives_and_inflections(name: str) -> None:
    """Against finite differences: the slope is the derivative, and it increases exactly on the convex pieces."""
    curve = CURVES[name]
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    ends = torch.tensor([end for piece in curve.convex + curve.concave for end in piece if math.isfinite(end)] + [0.0])
    x = x[(x[:, None] - ends).abs().amin(1) > 1e-5]  # a bend has two slopes
    numeric = (curve.value(x + 1e-6) - curve.value(x - 1e-6)) / 2e-6
    torch.testing.assert_close(curve.slope(x), numeric, rtol=0, atol=1e-8)
    bend = torch.diff(curve.slope(x))
    inside = torch.stack([(x[1:] > a + 0.01) & (x[:-1] < b - 0.01) for a, b in curve.convex]).any(dim=0)
    near = torch.stack([(x[1:] - e).abs() < 0.02 for piece in curve.convex for e in piece]).any(dim=0)
    assert bool((bend[inside & ~near] >= 0).all() and (bend[~inside & ~near] <= 0).all())
