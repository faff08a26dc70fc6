"""A graph is the model's own function, or an error names the node: what a trace does not see must not be certified."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from robustlab.graph.arithmetic import full_precision
from robustlab.verification import Ball, Box, bounds, branch_and_bound, certify, lirpa, milp, trace
from robustlab.verification.complete.milp import minimum
from robustlab.verification.complete.query import Case, Clock
from robustlab.verification.propagation.certify import METHODS


class Block(nn.Module):
    """Two dense layers, and what a test does between them."""

    def __init__(self, between, **modules: nn.Module) -> None:
        super().__init__()
        self.between, self.first, self.last = between, nn.Linear(4, 8), nn.Linear(8, 3)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


def overwritten_statement(m: nn.Module, z: Tensor) -> Tensor:
    m.relu(z)
    return z


def added_in_place(m: nn.Module, z: Tensor) -> Tensor:
    y = z
    y += 1
    return y + z


def added_in_place_elsewhere(m: nn.Module, z: Tensor) -> Tensor:
    y = z
    y += F.relu(z - 100)  # nothing, at the inputs of the test
    return y + z


def overwritten_view(m: nn.Module, z: Tensor) -> Tensor:
    seen = z.view(-1, 8)
    return m.relu(z) + seen


IN_PLACE = {"relu": nn.ReLU(inplace=True)}
REFUSED = {
    "pre-activation": (lambda m, z: m.relu(z) + z, IN_PLACE, "overwrites its input in place"),
    "statement": (overwritten_statement, IN_PLACE, "overwrites its input in place"),
    "view": (overwritten_view, IN_PLACE, "overwrites its input in place"),
    "functional in place": (lambda m, z: F.relu(z, inplace=True) + z, {}, "overwrites its input in place"),
    "functional in place, by position": (lambda m, z: F.relu(z, True) + z, {}, "overwrites its input in place"),
    "iadd": (added_in_place, {}, "overwrites its input in place"),
    "iadd of zero": (added_in_place_elsewhere, {}, "overwrites its input in place"),
    "cast to integers": (lambda m, z: (4 * z).to(torch.int64).to(z.dtype), {}, "casts to torch.int64"),
    "cast by keyword": (lambda m, z: z.to(dtype=torch.uint8).float(), {}, "casts to torch.uint8"),
    "half precision": (lambda m, z: z.to(torch.bfloat16).float(), {}, "casts to torch.bfloat16"),
    "active dropout": (lambda m, z: F.dropout(z, 0.5), {}, "drops at random"),
    "noise": (lambda m, z: z + 0.5 * torch.randn(8), {}, "draws random numbers"),
    # torch 2.6 stops before the draw, at a shape that is not yet known.
    "noise of its shape": (lambda m, z: z + torch.randn(z.shape), {}, r"draws random numbers|its input \(randn"),
    "batch statistics": (
        lambda m, z: F.batch_norm(z, torch.zeros(8), torch.ones(8), training=True), {}, "by the batch",
    ),
    "softplus": (lambda m, z: F.softplus(z, threshold=0.0), {}, "threshold of at least 20, got 0.0"),
    "softplus module": (lambda m, z: m.act(z), {"act": nn.Softplus(threshold=1.0)}, "threshold of at least 20"),
    "clamp": (lambda m, z: z.clamp(0.5, 0.2), {}, "want numbers min ≤ max"),
    "clamp by tensors": (lambda m, z: z.clamp(torch.zeros(8), torch.ones(8)), {}, "want numbers min ≤ max"),
    "look at the batch": (lambda m, z: z / z.shape[0], {}, "differs from its own answers"),
    "an unknown module": (lambda m, z: m.act(z), {"act": nn.Softsign()}, "do not know"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [dict, tuple, list])
def test_other_outputs_are_named_and_what_to_do(kind: type) -> None:
    class Telling(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            logits = super().forward(x)
            return {"logits": logits} if kind is dict else kind([logits])

    with pytest.raises(ValueError, match=rf"^model: want one tensor as output, got {kind.__name__}; wrap it"):
        certify(Telling(4, 3), torch.rand(2, 4), eps=0.1)


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_trace_does_not_see_is_refused(case: str) -> None:
    between, modules, message = REFUSED[case]
    torch.manual_seed(0)
    model, x = Block(between, **modules).eval().requires_grad_(False), torch.rand(3, 4)
    state = torch.get_rng_state()
    for method in (certify, branch_and_bound, milp):
        with pytest.raises(ValueError, match=message):
            method(model, x, eps=0.1)
    assert torch.equal(state, torch.get_rng_state())


def test_hooks_are_refused() -> None:
    x = torch.rand(2, 4)
    for where in ("first", "last", ""):
        model = Block(lambda m, z: z.relu())
        model.get_submodule(where).register_forward_hook(lambda m, i, o: 2 * o)
        with pytest.raises(ValueError, match=f"model: {where or 'the model itself'} has forward hooks"):
            certify(model, x, eps=0.1)
    model = Block(lambda m, z: z.relu())
    model.first.register_forward_pre_hook(lambda m, i: (2 * i[0],))
    with pytest.raises(ValueError, match="forward hooks"):
        trace(model, x)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_weights_that_are_computed_from_others(norm) -> None:
    """As the hooks' error recommends; alone and in a net."""
    torch.manual_seed(0)
    for model in (norm(nn.Linear(4, 3)), nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3))):
        x = torch.rand(5, 4)
        torch.testing.assert_close(trace(model.eval(), x)(x), model(x))


class Residual(nn.Module):
    """The usual block: what is overwritten in place is not used again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True)
        self.drop, self.out = nn.Dropout(0.5, inplace=True), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu(self.norm(self.conv(x)))
        n = x.shape[0]
        n *= 1
        out = self.norm(self.conv(z))
        out += z
        out = F.relu(out, inplace=True).float()
        return self.out(F.dropout(self.drop(out.reshape(n, -1)), training=self.training))


def test_harmless_overwriting_is_read() -> None:
    torch.manual_seed(0)
    model, x = Residual().train().requires_grad_(False), torch.rand(3, 2, 4, 4)
    graph = trace(model, x)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(graph(x), model.eval()(x))


def test_other_numbers_are_refused() -> None:
    model = Block(lambda m, z: z.relu())
    with pytest.raises(TypeError, match=r"want float32 or float64, got torch\.float16; say model\.float\(\)"):
        certify(model.half(), torch.rand(2, 4).half(), eps=0.1)
    with pytest.raises(TypeError, match=r"region: want the model's dtype torch\.float32, got torch\.float64"):
        bounds(model.float(), Ball(torch.rand(2, 4, dtype=torch.float64), 0.1))
    with pytest.raises(TypeError, match=r"sample: want the model's dtype torch\.float32, got torch\.float64"):
        trace(model, torch.rand(2, 4, dtype=torch.float64))


def test_a_graph_is_a_model_too() -> None:
    """In its own numbers alone, as a module is; what only a module has is said."""
    model, x = Block(lambda m, z: z.relu()).double(), torch.rand(2, 4, dtype=torch.float64)
    graph = trace(model, (4,))
    for method in METHODS:
        read, given = (certify(m, x, eps=0.01, method=method) for m in (graph, model))
        assert torch.equal(read.verified, given.verified) and torch.equal(read.radius, given.radius)
        with pytest.raises(TypeError, match=r"x: want the model's dtype torch\.float64, got torch\.float32"):
            certify(graph, x.float(), eps=0.01, method=method)
    with pytest.raises(TypeError, match=r"region: want the model's dtype torch\.float64, got torch\.float32"):
        bounds(graph, Ball(x.float(), 0.01))
    assert torch.equal(lirpa(graph, x, eps=0.01).verified, lirpa(model, x, eps=0.01).verified)
    with pytest.raises(TypeError, match="model: want the module whose parameters weights names, got Graph"):
        lirpa(graph, x, eps=0.01, weights={"first.weight": 0.1})
    with pytest.raises(TypeError, match=r"model: want an nn\.Module or a Graph, got str; say read_onnx\(path"):
        certify("net.onnx", x, eps=0.01)  # type: ignore[arg-type]


def test_regions_are_finite_and_inside() -> None:
    x = torch.rand(2, 4)
    with pytest.raises(ValueError, match=r"x: want values in \[0, 1\]"):
        Ball(x + 1, 0.1)
    with pytest.raises(ValueError, match="x: want"):
        Ball(torch.full((2, 4), torch.nan), 0.1, box=None)
    with pytest.raises(ValueError, match="x: want"):
        Ball(x, 0.1, box=(1.0, 0.0))
    with pytest.raises(ValueError, match="want finite"):
        Box(torch.full((2, 4), -torch.inf), torch.full((2, 4), torch.inf))


class Tied(nn.Module):
    def __init__(self, how) -> None:
        super().__init__()
        self.how, self.a, self.out = how, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.how(self.a, torch.relu(self.a(x))))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.weight", lambda a, z: F.linear(z, a.weight.t())),
        ("a.weight", lambda a, z: F.linear(z, 2 * a.weight)),
        ("a.bias", lambda a, z: z * a.bias),
        ("a.bias", lambda a, z: z + a.bias),
    ],
    ids=["transposed", "scaled", "as a scale", "as a shift"],
)
def test_tied_weights_are_refused(name: str, how) -> None:
    model, x = Tied(how), torch.rand(2, 4)
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"weights: '{name}' also enters node"):
        lirpa(model, x, eps=0.0, weights={name: 0.1})
    assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())
    assert lirpa(Tied(lambda a, z: a(z)), x, eps=0.0, weights={name: 1e-6}).status  # the same layer twice is read


def test_bounds_are_computed_in_full_precision() -> None:
    torch.manual_seed(0)
    model, x = Block(lambda m, z: z.relu()).requires_grad_(False), torch.rand(3, 4)
    wanted = bounds(model, Ball(x, 0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bounds(model, Ball(x, 0.1))
        assert certify(model, x, eps=0.1).status == certify(model, x, eps=0.1, method="lirpa").status
    assert found.lower.dtype == torch.float32
    torch.testing.assert_close(found.lower, wanted.lower, rtol=0, atol=0)


def test_full_precision_puts_the_settings_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        with pytest.raises(KeyError), full_precision():
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_a_program_without_open_relus_is_proved() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double().requires_grad_(False)
    model[0].bias.fill_(10.0)
    low = torch.zeros(2, dtype=torch.float64)
    case = Case(low, low + 0.1, torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    proved, least, _ = minimum(trace(model, (2,)), case, Clock(None))
    assert proved == pytest.approx(least) == pytest.approx(float(model(low + 0.0).sum()), abs=5.0)
