"""Attention, layer norm and softmax in bounds: small transformers between an attack, samples and their certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacks import pgd
from robustlab.graph.read_onnx import read_onnx
from robustlab.verification import Bounds, trace
from robustlab.verification.propagation.certify import BoundName, bounds, certified_radius, certify
from robustlab.verification.propagation.region import Box


class Transformer(nn.Module):
    """Four patches of an 8×8 image, one block of attention, the mean over patches; with ``softmax``, probabilities."""

    def __init__(self, wide: int = 6, heads: int = 2, *, module: bool = False, softmax: bool = False) -> None:
        super().__init__()
        self.wide, self.heads, self.softmax = wide, heads, softmax
        self.patches = nn.Conv2d(1, wide, 4, stride=4)
        self.before, self.between = nn.LayerNorm(wide), nn.LayerNorm(wide)
        self.attention = nn.MultiheadAttention(wide, heads, batch_first=True) if module else None
        self.queries, self.out = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide)
        self.hidden = nn.Sequential(nn.Linear(wide, 10), nn.GELU(approximate="tanh"), nn.Linear(10, wide))
        self.head = nn.Linear(wide, 3)

    def attended(self, z: Tensor) -> Tensor:
        if self.attention is not None:
            return self.attention(z, z, z, need_weights=False)[0]
        queries, keys, values = self.queries(z).chunk(3, dim=-1)
        if self.heads == 1:
            return self.out((queries @ keys.transpose(1, 2) / self.wide**0.5).softmax(dim=-1) @ values)
        split = [p.reshape(-1, 4, self.heads, self.wide // self.heads).transpose(1, 2) for p in (queries, keys, values)]
        return self.out(F.scaled_dot_product_attention(*split).transpose(1, 2).reshape(z.size(0), 4, self.wide))

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = z + self.attended(self.before(z))
        z = z + self.hidden(self.between(z))
        logits = 3 * self.head(z.mean(dim=1))
        return logits.softmax(dim=1) if self.softmax else logits


class Dropping(nn.Module):
    """Attention that drops in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)


class Crossed(nn.Module):
    """Attention of some rows of the input to others, whose values are a third part; every bias counts."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 3, batch_first=True)
        for name, p in self.named_parameters():
            nn.init.uniform_(p, -1, 1) if "bias" in name else nn.init.normal_(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, :2], x[:, 2:5], x[:, 5:])[0].flatten(1)


def net(seed: int = 0, **how: Any) -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(**how).double().eval().requires_grad_(False)


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_attention_between_different_inputs_is_read_with_all_its_biases() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Crossed().double().eval().requires_grad_(False)
    x = torch.rand(5, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(trace(model, (8, 6))(x), model(x))


@pytest.mark.parametrize("how", [{}, {"module": True}, {"heads": 1}, {"heads": 3, "softmax": True}], ids=str)
def test_the_graph_is_the_model(how: dict[str, Any]) -> None:
    model, x = net(**how), images(7)
    torch.testing.assert_close(trace(model, x)(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ibp", "crown", "alpha_crown", "lirpa"])
@pytest.mark.parametrize("softmax", [False, True])
def test_bounds_hold_for_samples_and_corners(method: BoundName, softmax: bool) -> None:
    model, x = net(1, softmax=softmax), images(2)
    for eps in (0.001, 0.02):
        found: Bounds = bounds(model, Box(x - eps, x + eps), method=method)
        share = 2 * torch.rand(400, *x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype) - 1
        share[::2] = share[::2].sign()
        values = torch.stack([model(x + eps * t) for t in share])
        assert not bool((values < found.lower - 1e-12).any() | (values > found.upper + 1e-12).any())
        if method == "crown" and eps == 0.001:
            wide = (found.upper - found.lower) / (values.amax(0) - values.amin(0))
            assert float(wide.max()) < 4, "and they are of the size of what happens"


@pytest.mark.slow
def test_no_attack_breaks_a_certificate_and_intervals_are_not_tighter() -> None:
    for seed in range(2):
        model, x = net(seed, softmax=seed == 1), images(3)
        y = model(x).argmax(1)
        radius = certified_radius(model, x, y, norm="linf", start=0.004, steps=2)
        assert float(radius.radius.min()) > 1e-4
        # Where the certificate ends the attack fails; and at some larger budget it succeeds, so it is one.
        assert not bool(pgd(model, x, y, eps=radius.radius, steps=30, seed=0).success.any())
        assert bool(pgd(model, x, y, eps=0.5, steps=30, seed=0).success.any())
        by_intervals = certify(model, x, y, eps=radius.radius, method="ibp")
        assert not bool((by_intervals.verified & ~certify(model, x, y, eps=radius.radius).verified).any())


@pytest.mark.slow
@pytest.mark.parametrize(("dynamo", "heads"), [(False, 1), (False, 2), (True, 1)])
def test_files_of_both_exporters(tmp_path: Path, dynamo: bool, heads: int) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    model, path = net(heads=heads, softmax=True).float(), tmp_path / "m.onnx"
    x = images(1).float()
    torch.onnx.export(model, (x,), str(path), dynamo=dynamo, **({"verbose": False} if dynamo else {}))
    graph = read_onnx(path, dtype=torch.float32)
    torch.testing.assert_close(graph(x), model(x), atol=1e-6, rtol=1e-5)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (said,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(graph(x), torch.from_numpy(said), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (lambda: nn.MultiheadAttention(4, 2), (3, 4), "batch_first=True"),
        (lambda: nn.Softmax(dim=0), (4,), "dim=1 or later"),
        (lambda: nn.LayerNorm(3), (4,), "layer norm over the last"),
        (lambda: Dropping(), (3, 4), "drops at random; want dropout_p=0"),
    ],
)
def test_what_is_not_known_is_named(build: object, shape: tuple[int, ...], message: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = build()  # type: ignore[operator]

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x, x, x)[0] if isinstance(self.part, nn.MultiheadAttention) else self.part(x)

    with pytest.raises(ValueError, match=message):
        trace(Model().eval(), shape)
