"""Three published defenses: each does what its paper says, and falls to the adaptive attack that was made for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.data import load
from robustlab.defenses.broken import Broken
from robustlab.defenses.published import ActivationPruning, MixupInference, published
from robustlab.evaluation import bpda, eot
from robustlab.models import Thermometer

N = 20


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load("mnist5k")
    return data.x_test[:N], data.y_test[:N]


@pytest.fixture(scope="module")
def defenses(digits: tuple[Tensor, Tensor]) -> dict[str, Broken]:
    return published(*digits)


def test_activation_pruning_is_unbiased_and_keeps_as_often_as_its_formula_says() -> None:
    torch.manual_seed(0)
    h = torch.tensor([[3.0, 1.0, 0.5, 0.0, -0.5]], dtype=torch.float64)
    many = ActivationPruning(0.8)(h.expand(20_000, 5))  # r = 4
    p = h.abs()[0] / h.abs().sum()
    kept = 1 - (1 - p) ** 4
    assert torch.allclose((many != 0).double().mean(dim=0), kept, atol=0.015)  # 4 deviations
    assert torch.allclose(many.mean(dim=0), h[0], atol=0.03)


def test_activation_pruning_leaves_a_silent_layer_and_its_neighbors_alone() -> None:
    torch.manual_seed(0)
    h = torch.tensor([[0.0, 0.0], [0.0, 2.0]], requires_grad=True)
    out = ActivationPruning()(h)
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(out, h) and bool(h.grad.isfinite().all())  # type: ignore[union-attr]


def test_a_thermometer_counts_the_thresholds_below_a_pixel() -> None:
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    code = Thermometer(10)(x)
    assert code.shape == (2, 30, 4, 5)
    assert torch.equal(code.view(2, 3, 10, 4, 5).sum(dim=2), (10 * x).ceil())
    (slope,) = torch.autograd.grad(code.sum(), x)
    assert not slope.any()


def test_the_smooth_code_is_the_sum_of_clipped_ramps() -> None:
    x = torch.full((1, 1, 1, 1), 0.37, dtype=torch.float64)
    wanted = [max(0.37 - k / 4, 0.0) for k in range(4)]
    assert torch.allclose(Thermometer(4).smooth(x).flatten(), torch.tensor(wanted, dtype=torch.float64))


def test_mixup_inference_never_mixes_with_the_predicted_class() -> None:
    class Sees(nn.Module):
        """A classifier that remembers what it is asked about; it always predicts class 1."""

        def forward(self, x: Tensor) -> Tensor:
            self.asked = x
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3)

    pool, labels = torch.tensor([[10.0], [20.0], [30.0], [40.0]]), torch.tensor([0, 1, 2, 1])
    mixing = MixupInference(Sees(), pool, labels, weight=0.75, mixtures=50)
    out = mixing(torch.tensor([[4.0], [8.0]]))
    mixed = mixing.net.asked.view(2, 50)  # type: ignore[operator, union-attr]
    assert set(mixed[0].tolist()) == {3 + 2.5, 3 + 7.5} and set(mixed[1].tolist()) == {6 + 2.5, 6 + 7.5}
    assert torch.allclose(out, torch.tensor([0.0, 1.0, 0.0]).log_softmax(0).expand(2, 3))


def adapted(name: str, model: nn.Module) -> nn.Module:
    """What an attacker climbs who knows the defense."""
    if name == "thermometer":
        code, net = model.children()
        return nn.Sequential(bpda(code, code.smooth), net).eval()  # type: ignore[arg-type]
    return eot(model, samples=2 if name == "mixup_inference" else 4, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "thermometer",
        *(pytest.param(n, marks=pytest.mark.full) for n in ("activation_pruning", "mixup_inference")),
    ],
)
def test_an_adaptive_attack_breaks_what_plain_pgd_leaves(
    defenses: dict[str, Broken], digits: tuple[Tensor, Tensor], name: str
) -> None:
    entry, (x, y) = defenses[name], digits
    found = pgd_maximize(adapted(name, entry.model), x, y, eps=entry.claim.eps, steps=10)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(99)  # draws that the attack has not seen
        left = sum(float((entry.model(found).argmax(1) == y).double().mean()) for _ in range(4)) / 4
    assert entry.claim.clean_accuracy is not None and entry.claim.clean_accuracy >= 0.85
    assert entry.claim.robust_accuracy is not None and left <= min(0.15, entry.claim.robust_accuracy - 0.25)
