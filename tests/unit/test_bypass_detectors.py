"""Classifier and detector attacked together: the construction, an exact optimum, and a detector that is bypassed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacker.victim import Victim
from robustlab.attacks import bypass_detectors, cw, nes, pgd, square
from robustlab.attacks.whitebox.bypass_detectors import Joint
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.data import load
from robustlab.defenses import feature_squeezing
from robustlab.defenses.broken import NoiseDetector
from robustlab.evaluation import bpda


class Fixed(nn.Module):
    """The same logits for every input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def test_the_extra_class_wins_exactly_where_the_detector_fires() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(500, 4, generator=generator, dtype=torch.float64)
    score = torch.randn(500, generator=generator, dtype=torch.float64)
    for constant in (0.0, -100.0, 100.0):  # the paper's formula alone breaks where all logits are negative
        out = Joint(Fixed(logits + constant), lambda x: score, threshold=0.3)(torch.zeros(500, 1))
        fires = score > 0.3
        assert torch.equal(out.argmax(1) == 4, fires)
        assert torch.equal(out[:, :4].argmax(1), logits.argmax(1))


def test_it_is_the_papers_formula_on_centered_logits() -> None:
    logits = torch.tensor([[2.0, -1.0, -1.0], [0.5, 1.5, -2.0]])
    score = torch.tensor([-0.5, 0.25])
    out = Joint(Fixed(logits), lambda x: score)(torch.zeros(2, 1))
    torch.testing.assert_close(out, torch.cat([logits, ((score + 1) * logits.amax(1))[:, None]], dim=1))


def affine(seed: int, d: int = 8) -> tuple[nn.Linear, nn.Linear, Tensor, Tensor]:
    """Two classes and a detector, all affine, and points that are not detected."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, detector = nn.Linear(d, 2).double(), nn.Linear(d, 1).double()
        x = torch.randn(80, d).double()
    score = detector(x).squeeze(1)
    x = x[(score > -0.4) & (score < -0.02)]
    return net, detector, x.detach(), net(x).argmax(1)


def optimum(net: nn.Linear, detector: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """(N,) the smallest ‖δ‖∞ that reaches the other class without the detector firing, by linear programs."""
    weight, bias = net.weight.detach().numpy(), net.bias.detach().numpy()
    d_weight, d_bias = detector.weight.detach().numpy()[0], detector.bias.detach().numpy()[0]
    best = []
    for point, label in zip(x.numpy(), y.tolist(), strict=True):
        d = len(point)
        w, b = weight[label] - weight[1 - label], bias[label] - bias[1 - label]
        rows = [np.append(w, 0), np.append(d_weight, 0)]
        limits = [-(w @ point + b), -(d_weight @ point + d_bias)]
        for i in range(d):
            for sign in (1, -1):
                row = np.zeros(d + 1)
                row[i], row[d] = sign, -1
                rows.append(row)
                limits.append(0.0)
        found = linprog(
            np.append(np.zeros(d), 1), np.array(rows), np.array(limits), bounds=[(None, None)] * d + [(0, None)]
        )
        best.append(found.fun)
    return torch.tensor(best, dtype=torch.float64)


@pytest.mark.slow
def test_on_affine_models_it_finds_what_a_linear_program_finds() -> None:
    """Never below the optimum of classifier and detector together; within 5 % of it nearly always."""
    found, met = [], []
    for seed in range(4):
        net, detector, x, y = affine(seed)
        wide, best = Victim(net, bounds=(-50, 50)), optimum(net, detector, x, y)
        below = bypass_detectors(wide, x, y, detector=detector, eps=0.999 * best, steps=100)
        above = bypass_detectors(wide, x, y, detector=detector, eps=1.05 * best, steps=200)
        assert not below.success.any()
        won = above.success
        assert (net(above.x_adv).argmax(1) != y)[won].all() and (detector(above.x_adv).squeeze(1) <= 0)[won].all()
        found.append(won)
        alone = pgd(wide, x, y, eps=1.05 * best, steps=100)
        met.append(detector(alone.x_adv).squeeze(1)[alone.success] > 0)
    assert torch.cat(found).double().mean() > 0.95
    assert torch.cat(met).double().mean() > 0.05  # the classifier's own attack runs into the detector


def test_being_detected_is_no_success() -> None:
    net, _, x, y = affine(0)
    wide = Victim(net, bounds=(-50, 50))
    assert pgd(wide, x, y, eps=20.0).success.all()
    caught = bypass_detectors(wide, x, y, detector=lambda t: torch.ones(len(t)).double(), eps=20.0, steps=10)
    assert not caught.success.any()
    wrong = bypass_detectors(wide, x, 1 - y, detector=lambda t: torch.ones(len(t)).double(), eps=20.0, steps=10)
    assert not wrong.success.any()  # misread at x, but refused
    free = bypass_detectors(wide, x, 1 - y, detector=lambda t: -torch.ones(len(t)).double(), eps=20.0, steps=10)
    assert free.success.all() and (free.queries == 1).all() and torch.equal(free.x_adv, x)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, NoiseDetector, Tensor, Tensor]:
    data = load("mnist5k")
    rough = NoiseDetector(1.0)(data.x_train) / 5 + 1
    x, y = data.x_test[:60], data.y_test[:60]
    return zoo.load("mnist_cnn").requires_grad_(False), NoiseDetector(float(rough.quantile(0.99))), x, y


def test_a_detector_that_catches_pgd_is_bypassed(digits: tuple[nn.Module, NoiseDetector, Tensor, Tensor]) -> None:
    net, detector, x, y = digits
    oblivious = pgd_maximize(net, x, y, eps=0.2, steps=20)
    caught = detector(oblivious) > 0
    assert (detector(x) > 0).float().mean() < 0.05 and caught.float().mean() > 0.6
    result = bypass_detectors(net, x, y, detector=detector, eps=0.2, steps=20)
    assert result.success.float().mean() > 0.95
    assert torch.equal((net(result.x_adv).argmax(1) != y) & (detector(result.x_adv) <= 0), result.success)


@pytest.mark.slow
def test_other_attacks_and_detectors_without_gradients(digits: tuple[nn.Module, NoiseDetector, Tensor, Tensor]) -> None:
    net, detector, x, y = digits
    hard = bpda(lambda t: torch.where(detector(t) > 0, 1.0, -1.0)[:, None], lambda t: detector(t)[:, None])
    assert bypass_detectors(net, x[:20], y[:20], detector=hard, eps=0.2, steps=20).success.float().mean() > 0.9
    near = cw(Joint(net, detector), x[:10], y[:10], target=(y[:10] + 1) % 10, steps=80, search_steps=3, lr=0.1, c=5.0)
    assert near.success.all() and (detector(near.x_adv) <= 0).all()


def test_the_unit_of_the_score_changes_neither_where_it_fires_nor_the_rest() -> None:
    """A detector of a million times the score in units of a million is the same detector, point by point."""
    net, detector, x, y = affine(1)
    told = {"eps": 0.5, "steps": 20}
    plain = bypass_detectors(Victim(net, bounds=(-50, 50)), x, y, detector=detector, **told)
    large = bypass_detectors(
        Victim(net, bounds=(-50, 50)), x, y, detector=lambda t: 1e6 * detector(t), scale=1e6, **told
    )
    assert torch.allclose(plain.x_adv, large.x_adv, atol=1e-9) and torch.equal(plain.success, large.success)
    score = torch.tensor([torch.inf, 5e30, -torch.inf, 1e-9, -1e-9], dtype=torch.float64)
    logits = torch.tensor([[1.0, 0.0, -1.0]] * 5, dtype=torch.float64)
    out = Joint(Fixed(logits), lambda t: score, scale=100.0)(torch.zeros(5, 1))
    assert torch.isfinite(out).all() and (out.argmax(1) == 3).tolist() == [True, True, False, True, False]
    half = Joint(Fixed(logits), lambda t: torch.full((5,), 53.0), threshold=3.0, scale=100.0)(torch.zeros(5, 1))
    assert torch.allclose(half[:, 3], torch.tensor(1.5, dtype=half.dtype)), "half a unit above: half the top logit more"


@pytest.mark.slow
def test_a_detector_without_gradients_is_bypassed_by_scores_alone(
    digits: tuple[nn.Module, NoiseDetector, Tensor, Tensor],
) -> None:
    """Square asks classifier and detector together, in scores of a sort that no gradient passes through."""
    net, _, x, y = digits
    found = feature_squeezing(net, x, load("mnist5k").x_test[500:700], bits=None)
    x, y = x[:15], y[:15]

    def detector(t: Tensor) -> Tensor:
        with torch.no_grad():
            return found.details.score(t)

    box = Victim(lambda t: net(t), access="soft")
    told = {"detector": detector, "threshold": found.threshold, "scale": 0.05}
    result = bypass_detectors(box, x, y, eps=0.3, targets=1, attack=square, queries=400, **told)
    alone = square(Victim(net, access="soft"), x, y, eps=0.3, queries=400)
    seen = [(net(r.x_adv).argmax(1) != y) & (detector(r.x_adv) <= found.threshold) for r in (result, alone)]
    assert torch.equal(seen[0], result.success) and (result.gradients == 0).all()
    assert int(seen[0].sum()) > int(seen[1].sum()) + 6
    with pytest.raises(ValueError, match=r"^access: this attack needs 'white' access"):
        bypass_detectors(box, x, y, eps=0.1, **told)


def test_wrong_detectors_are_named() -> None:
    net, _, x, y = affine(0)
    wide = Victim(net, bounds=(-50, 50))
    with pytest.raises(TypeError, match=r"^detector: want a callable, got int"):
        bypass_detectors(wide, x, y, detector=1, eps=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^scale: want"):
        bypass_detectors(wide, x, y, detector=lambda t: t[:, 0], eps=1.0, scale=0.0)
    with pytest.raises(ValueError, match=r"^detector: want one score per sample"):
        bypass_detectors(wide, x, y, detector=lambda t: t, eps=1.0)
    with pytest.raises(TypeError, match=r"^detector: want scores, .* got flags"):
        bypass_detectors(wide, x, y, detector=lambda t: t[:, 0] > 0, eps=1.0)
    soft = Victim(net, bounds=(-50, 50), access="soft", budget=300)
    found = bypass_detectors(soft, x, y, detector=lambda t: (t[:, 0] > 50).float(), attack=nes, eps=1.0)
    assert torch.equal(found.success, net(found.x_adv).argmax(1) != y)  # the advice works


def test_a_detector_is_held_still_though_the_victim_s_mode_is_its_own() -> None:
    net, _, x, y = affine(0)
    detector, seen = nn.Sequential(nn.Linear(8, 1).double(), nn.Dropout(0.5)), []
    detector.register_forward_hook(lambda module, *_: seen.append((module.training, module[0].weight.requires_grad)))
    bypass_detectors(Victim(net, bounds=(-50, 50), mode="asis"), x, y, detector=detector.train(), eps=1.0, steps=2)
    assert seen and set(seen) == {(False, False)} and detector.training and detector[0].weight.requires_grad


def test_a_radius_of_0_leaves_the_clean_errors_that_are_not_detected() -> None:
    net, detector, x, y = affine(0)
    y = y.clone()
    y[::2] = 1 - y[::2]
    result = bypass_detectors(Victim(net, bounds=(-50, 50)), x, y, detector=detector, eps=0.0, steps=2)
    assert torch.equal(result.x_adv, x) and torch.equal(result.success, torch.arange(len(x)) % 2 == 0)
