"""The robust-accuracy curve: against a model whose robust accuracy is known, and by what must not change it."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks import cw, deepfool, fgsm, pgd
from robustlab.data import gaussians
from robustlab.evaluation import RobustAccuracy, evaluate
from robustlab.geometry.norms import get_norm
from robustlab.intervals import wilson
from robustlab.models import build


class Affine(nn.Module):
    """Two classes, margin ⟨w, x⟩ + b: the robust radius of a sample is |margin| / ‖w‖_q."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(6, generator=generator, dtype=dtype))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += len(x)
        score = (x - 0.5) @ self.w + 0.03
        return torch.stack([-score, score], dim=1) / 2


def batch(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Points so far inside the box that it plays no part for small ε, some with a wrong label."""
    generator = torch.Generator().manual_seed(1)
    x = 0.5 + 0.25 * (torch.rand(n, 6, generator=generator, dtype=dtype) - 0.5)
    y = Affine(dtype)(x).argmax(dim=1)
    y[::7] = 1 - y[::7]
    return x, y


def true_radius(x: Tensor, y: Tensor, norm: str) -> Tensor:
    model = Affine(x.dtype)
    logits = model(x).detach()
    distance = (logits[:, 1] - logits[:, 0]).abs() / get_norm(norm).dual.length(model.w.detach()[None])
    return torch.where(logits.argmax(dim=1) == y, distance, 0.0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", [pgd, fgsm, deepfool])
def test_exact_on_an_affine_model(attack, norm: str) -> None:
    if attack is deepfool and norm == "l1":
        with pytest.raises(ValueError, match="norm"):
            evaluate(Affine(), *batch(5), attack=attack, eps=[0.1], norm=norm)
        return
    x, y = batch(120)
    truth = true_radius(x, y, norm)
    eps = [float(truth.quantile(q)) + 1e-4 for q in (0.2, 0.4, 0.6, 0.9)]
    curve = evaluate(Affine(), x, y, attack=attack, eps=eps, norm=norm)
    want = truth > torch.tensor([0.0, *eps])[:, None]
    close = ((truth[None] - curve.eps[:, None]).abs() < 0.025 * curve.eps[:, None]).any(dim=0)  # overshoot of DeepFool
    assert int(close.sum()) < 30
    assert torch.equal(curve.survivors[:, ~close], want[:, ~close])
    assert curve.norm == norm and curve.attack == attack.__name__ and curve.n == 120
    assert 0 < int(curve.correct[-1]) < int(curve.correct[0]) == 120 - 18


def test_shapes_and_intervals() -> None:
    curve = evaluate(Affine(), *batch(50), attack=pgd, eps=[0.05, 0.01, 0.05, 0.0], steps=3, confidence=0.9)
    assert curve.eps.tolist() == [0.0, 0.01, 0.05] and len(curve) == 3
    assert curve.survivors.shape == (3, 50) and curve.survivors.dtype == torch.bool
    assert torch.equal(curve.correct, curve.survivors.sum(dim=1))
    assert torch.equal(curve.accuracy, curve.correct.double() / 50)
    low, high = wilson(curve.correct, 50, 0.9)
    assert torch.equal(curve.low, low) and torch.equal(curve.high, high)
    assert bool((curve.low <= curve.accuracy).all()) and bool((curve.accuracy <= curve.high).all())
    assert len(curve.summary().splitlines()) == 4 and "90 %" in curve.summary()


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [functools.partial(pgd, steps=5, restarts=2), functools.partial(cw, steps=40, search_steps=2, c=10.0, lr=0.05)],
)
def test_batch_size_does_not_matter(attack) -> None:
    model = build("mlp", in_shape=(6,), hidden=(16,), classes=3).double()
    x, _ = batch(41)
    y = model(x).argmax(dim=1)
    y[3] = (y[3] + 1) % 3
    norm, eps = ("linf", [0.18, 0.21, 0.25]) if attack.func is pgd else ("l2", [0.42, 0.5, 0.6])
    whole, parts, singles = (evaluate(model, x, y, attack=attack, eps=eps, norm=norm, batch_size=b) for b in (41, 7, 2))
    assert len(set(whole.correct.tolist())) >= 3, "a case in which something happens"
    for other in (parts, singles):
        assert torch.equal(whole.survivors, other.survivors)
        assert torch.equal(whole.queries, other.queries) and torch.equal(whole.gradients, other.gradients)
        torch.testing.assert_close(whole.radius, other.radius, rtol=1e-6, atol=1e-9)


def test_ids_are_places_in_the_data() -> None:
    seen: list[int] = []

    def spy(victim, x, y, *, eps, norm, seed, ids) -> AttackResult:
        seen.extend(ids.tolist())
        return pgd(victim, x, y, eps=eps, norm=norm, seed=seed, ids=ids, steps=2)

    x, y = batch(30)
    curve = evaluate(Affine(), x, y, attack=spy, eps=[1e-9], batch_size=4)
    right = (Affine()(x).argmax(dim=1) == y).nonzero().flatten().tolist()
    assert seen == right
    assert curve.correct.tolist() == [len(right), len(right)]


def test_only_the_standing_are_attacked_and_the_curve_falls() -> None:
    asked: list[tuple[float, int]] = []

    def forgetful(victim, x, y, *, eps, norm="linf") -> AttackResult:
        """Fools nobody at the larger radii: what fell before must stay down."""
        asked.append((eps, len(x)))
        result = pgd(victim, x, y, eps=eps, steps=5)
        return result if eps < 0.03 else replace(result, x_adv=x, success=torch.zeros_like(result.success))

    x, y = batch(60)
    curve = evaluate(Affine(), x, y, attack=forgetful, eps=[0.04, 0.02, 0.01], batch_size=100)
    assert asked == [(0.01, int(curve.correct[0])), (0.02, int(curve.correct[1])), (0.04, int(curve.correct[2]))]
    assert bool((curve.correct.diff() <= 0).all()) and int(curve.correct[1]) > int(curve.correct[2]) > 0
    assert int(curve.correct[3]) == int(curve.correct[2])


def test_a_success_counts_at_every_radius_that_holds_it() -> None:
    """Found at ε = 0.04 but at distance 0.02: not robust at 0.02 either, though the run at 0.02 missed it."""

    def late(victim, x, y, *, eps) -> AttackResult:
        result = pgd(victim, x, y, eps=0.0199, norm="linf", steps=20)
        return result if eps == 0.04 else replace(result, x_adv=x, success=torch.zeros_like(result.success))

    curve = evaluate(Affine(), *batch(40), attack=late, eps=[0.01, 0.02, 0.04])
    assert int(curve.correct[0]) > int(curve.correct[2]) == int(curve.correct[3]) > 0


def test_minimum_norm_attack_is_run_once() -> None:
    model, (x, y) = Affine(), batch(50)
    model.calls = 0
    curve = evaluate(model, x, y, attack=deepfool, eps=[0.01, 0.02, 0.05], norm="l2")
    right = model(x).argmax(dim=1) == y
    once = deepfool(model, x[right], y[right], norm="l2")
    torch.testing.assert_close(curve.radius[right], once.radius("l2"))
    assert bool((curve.radius[~right] == 0).all())
    assert torch.equal(curve.queries[right], once.queries + 1)


def test_counts_are_those_of_the_model() -> None:
    model, (x, y) = Affine(), batch(50)
    model.calls = 0
    curve = evaluate(model, x, y, attack=pgd, eps=[0.001, 0.01, 0.03], steps=4, batch_size=8)
    assert int(curve.queries.sum()) == model.calls


def test_targeted_and_per_sample_arguments() -> None:
    model = build("mlp", in_shape=(6,), hidden=(16,), classes=3).double()
    x, _ = batch(40)
    y = model(x).argmax(dim=1)
    target = (y + 1 + torch.arange(40) % 2) % 3
    arguments = {"norm": "l2", "seed": 5, "steps": 10, "target": target}
    curve = evaluate(model, x, y, attack=pgd, eps=[0.7], batch_size=9, **arguments)
    direct = pgd(model, x, y, eps=0.7, **arguments)
    assert 0 < int(direct.success.sum()) < 40
    assert torch.equal(~curve.survivors[1], direct.success)


def test_kappa_does_not_move_the_clean_point() -> None:
    x, y = batch(40)
    plain, sure = (evaluate(Affine(), x, y, attack=cw, eps=[1.0], norm="l2", steps=20, kappa=k) for k in (0.0, 0.05))
    assert int(plain.correct[0]) == int(sure.correct[0])


def test_dataset_victim_and_device(device: torch.device) -> None:
    data = gaussians(40).to(device)
    low, high = float(data.x_test.min()), float(data.x_test.max())
    model = build("mlp", in_shape=(2,), hidden=(8,), classes=len(data.classes)).to(device)
    victim = Victim(model, bounds=(min(low, 0.0), max(high, 1.0)))
    curve = evaluate(victim, data, attack=pgd, eps=0.05, steps=3, batch_size=16)
    assert curve.n == len(data.y_test) and curve.eps.tolist() == [0.0, 0.05]
    clean = (model(data.x_test).argmax(dim=1) == data.y_test).sum()
    assert int(curve.correct[0]) == int(clean)
    assert curve.radius.device.type == "cpu"


def test_plot_shows_the_curve() -> None:
    import matplotlib

    matplotlib.use("Agg")
    curve = evaluate(Affine(), *batch(20), attack=pgd, eps=[0.01, 0.03], steps=2)
    axes = curve.plot(label="mine")
    line = axes.get_lines()[0]
    assert list(line.get_xdata()) == curve.eps.tolist()
    assert list(line.get_ydata()) == curve.accuracy.tolist()
    assert curve.plot(axes) is axes
    assert "mine" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_loader_is_read_batch_by_batch() -> None:
    held: list[int] = []

    def spy(victim, x, y, *, eps, ids, target, norm) -> AttackResult:
        held.append(len(x))
        return pgd(victim, x, y, eps=eps, steps=10, ids=ids, target=target, norm=norm)

    model, (x, _) = build("mlp", in_shape=(6,), hidden=(16,), classes=3).double(), batch(41)
    y = model(x).argmax(dim=1)
    target = (y + 1 + torch.arange(41) % 2) % 3
    run = {"attack": spy, "eps": [0.6, 0.7], "norm": "l2", "target": target}
    whole = evaluate(model, x, y, **run)
    pairs = [(point, int(label)) for point, label in zip(x, y, strict=True)]
    held.clear()
    for data in (DataLoader(TensorDataset(x, y), 10), DataLoader(pairs, 10)):
        curve = evaluate(model, data, **run)
        assert torch.equal(curve.survivors, whole.survivors) and torch.equal(curve.queries, whole.queries)
        torch.testing.assert_close(curve.radius, whole.radius, rtol=1e-6, atol=1e-9)
    assert 0 < int(whole.correct[2]) < int(whole.correct[0])
    assert max(held) <= 10, "no more than a batch of the loader is held"
    assert evaluate(model, TensorDataset(x, y), **run).n == 41


def test_a_loaders_draws_stay_its_own() -> None:
    x, y = batch(20)
    state = torch.get_rng_state()
    shuffled = evaluate(Affine(), DataLoader(TensorDataset(x, y), 8, shuffle=True), attack=pgd, eps=[0.02], steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    ordered = evaluate(Affine(), x, y, attack=pgd, eps=[0.02], steps=2)
    assert not torch.equal(shuffled.survivors, ordered.survivors)
    assert torch.equal(shuffled.correct, ordered.correct)


def test_bad_batches_of_a_loader_are_named() -> None:
    x, y = batch(6)
    refuses(TypeError, "^x: want .* pairs, got list of Tensor", x=DataLoader(TensorDataset(x), 2))
    refuses(TypeError, "^x: want .* got Tensor", x=DataLoader(x, 2))
    refuses(ValueError, "^x: want at least one sample", x=DataLoader(TensorDataset(x[:0], y[:0]), 2))
    refuses(TypeError, "^y: want integers", x=DataLoader(TensorDataset(x, y.double()), 2))


def test_nothing_of_the_callers_is_changed() -> None:
    model, (x, y) = Affine().train(), batch(20)
    before, state = (x.clone(), y.clone()), torch.get_rng_state()
    evaluate(model, x, y, attack=pgd, eps=[0.02], steps=2)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert model.training and model.w.requires_grad and model.w.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def refuses(error: type[Exception], match: str, **changes) -> None:
    def never(victim, x, y, *, eps, ids=None, seed=0, norm="linf", steps=1):
        raise AssertionError("no work before the arguments are checked")

    arguments = {"model": Affine(), "x": batch(6), "attack": never, "eps": [0.1]} | changes
    with pytest.raises(error, match=match):
        evaluate(**arguments)


def test_bad_input() -> None:
    x, y = batch(6)
    refuses(TypeError, "^y: want labels .* beside x, got None", x=x)
    refuses(TypeError, "^y: want None beside x that has labels itself", y=y)
    refuses(TypeError, "^x: want a torch.Tensor, got list", x=[1.0], y=y)
    refuses(TypeError, "^x: want a Dataset, a pair .* or a torch DataLoader.*, got float", x=0.5)
    refuses(TypeError, "^x: want .* got tuple of Tensor, list", x=(x, [0, 1]))
    refuses(ValueError, "^x: want .* at least one", x=(x[:0], y[:0]))
    refuses(ValueError, "^x: want as many inputs as labels", x=(x, y[:3]))
    refuses(ValueError, "^y: want shape", x=(x, y[:, None]))
    refuses(TypeError, "y: want integers", x=(x, y.double()))
    refuses(ValueError, "x: want values in", x=(x + 1, y))
    refuses(TypeError, "dtype", x=(x.float(), y))
    refuses(ValueError, "y: want labels", x=(x, y + 5))
    for eps in ([], [-0.1], [0.1, float("nan")], float("inf")):
        refuses(ValueError, "eps", eps=eps)
    refuses(TypeError, "eps", eps=["a"])
    refuses(TypeError, "eps", eps=None)
    refuses(ValueError, "norm", norm="l3")
    refuses(ValueError, "batch_size", batch_size=0)
    refuses(ValueError, "confidence", confidence=95)
    refuses(TypeError, "attack", attack="pgd")
    refuses(TypeError, "step: want an argument of never", step=3)
    refuses(TypeError, "ids", ids=torch.arange(6))


def test_an_attack_that_cheats_is_found_out() -> None:
    def cheat(victim, x, y, *, eps) -> AttackResult:
        return pgd(victim, x, y, eps=2 * eps)

    with pytest.raises(RuntimeError, match="cheat claims a success at distance"):
        evaluate(Affine(), *batch(30), attack=cheat, eps=[0.02])
    with pytest.raises(TypeError, match="AttackResult"):
        evaluate(Affine(), *batch(30), attack=lambda victim, x, y, *, eps: x, eps=[0.02])


def test_float32_rounding_is_no_cheating() -> None:
    x, y = batch(200, torch.float32)
    for eps in (1e-3, 3e-3, 0.1):
        curve = evaluate(Affine(torch.float32), x, y, attack=pgd, eps=[eps], steps=5)
        assert bool((curve.radius[curve.radius.isfinite()] <= eps).all())


def test_lazy_names() -> None:
    import robustlab.evaluation as evaluation

    assert set(dir(evaluation)) >= {"evaluate", "RobustAccuracy"}
    assert evaluation.RobustAccuracy is RobustAccuracy
    with pytest.raises(AttributeError, match="nothing"):
        _ = evaluation.nothing


def test_inference_mode_changes_nothing() -> None:
    x, y = batch(40)
    model = Affine()
    plain = evaluate(model, x, y, attack=pgd, eps=[0.05, 0.1], steps=3, batch_size=15)
    with torch.inference_mode():
        ours = evaluate(model, x * 1, y * 1, attack=pgd, eps=[0.05, 0.1], steps=3, batch_size=15)
    assert torch.equal(ours.radius, plain.radius) and torch.equal(ours.queries, plain.queries)


def test_numpy_numbers_are_numbers() -> None:
    data = batch(20)
    plain = evaluate(Affine(), data, attack=pgd, eps=0.125, steps=3, batch_size=15, seed=4)
    for eps in (np.float32(0.125), np.float64(0.125), np.array([0.125])):
        ours = evaluate(
            Affine(), data, attack=pgd, eps=eps, steps=np.int64(3), batch_size=np.int32(15), seed=np.int64(4)
        )
        assert torch.equal(ours.radius, plain.radius)
