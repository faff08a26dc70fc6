"""Four published defenses: each does what its paper says, and falls to the adaptive attack that was made for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.data import load
from robustlab.defenses.broken import Broken
from robustlab.defenses.published import ActivationPruning, MixupInference, published
from robustlab.defenses.published_training import distillation, mixup
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


def test_distillation_has_its_least_loss_where_the_teacher_is_copied_and_its_own_temperature() -> None:
    x, y, told = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), {"ids": torch.arange(6), "seed": 0}
    teacher, pupil = nn.Linear(3, 3), nn.Linear(3, 3)
    learns = distillation(4.0, teacher)
    (at_teacher,) = torch.autograd.grad(learns(teacher, x, y, **told), teacher.weight)
    assert float(at_teacher.abs().max()) < 1e-6
    q, p = ((net(x) / 4).log_softmax(dim=1) for net in (teacher, pupil))
    apart = (q.exp() * (q - p)).sum(dim=1).mean()  # Kullback and Leibler
    assert torch.isclose(learns(pupil, x, y, **told) - learns(teacher, x, y, **told), apart, atol=1e-6)
    hard = distillation(4.0)(pupil, x, y, **told)
    assert torch.isclose(hard, -p[torch.arange(6), y].mean(), atol=1e-6)
    with pytest.raises(ValueError, match=r"^temperature: want"):
        distillation(0.0)


@pytest.mark.slow
def test_mixup_mixes_labels_as_it_mixes_images() -> None:
    shares = []
    for seed in range(300):
        seen: list[Tensor] = []

        def model(x: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(x)
            return 3 * x

        rows = torch.eye(5, dtype=torch.float64)  # row i is the one-hot label i, so a mixture is its own soft label
        loss = mixup()(model, rows, torch.arange(5), ids=torch.arange(5), seed=seed)  # type: ignore[arg-type]
        (mixed,) = seen
        assert float(loss) == pytest.approx(float(-(mixed * (3 * mixed).log_softmax(dim=1)).sum(dim=1).mean()))
        assert torch.allclose(mixed.sum(dim=0), torch.ones(5, dtype=torch.float64))  # partners are a permutation
        shares += [float(mixed[i, i]) for i in range(5) if float(mixed[i, i]) < 1][:1]
    quarters = torch.tensor(shares).quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert len(shares) > 290 and torch.allclose(quarters, torch.tensor([0.25, 0.5, 0.75]), atol=0.1)  # uniform


class Colder(nn.Module):
    """The logits in front of the saturation: divided by the temperature of the distillation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits / 100


def adapted(name: str, model: nn.Module) -> nn.Module:
    """What an attacker climbs who knows the defense."""
    if name == "thermometer":
        code, net = model.children()
        return nn.Sequential(bpda(code, code.smooth), net).eval()  # type: ignore[arg-type]
    if name == "distillation":
        return Colder(model).eval()
    return eot(model, samples=2 if name == "mixup_inference" else 4, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "thermometer",
        "distillation",
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
