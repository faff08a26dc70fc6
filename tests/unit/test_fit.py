"""fit() against optima that SciPy and linear algebra find, and its promises about seeds, modes and errors."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import data, models
from robustlab.defenses import adversarial_training
from robustlab.geometry.keyed import Noise
from robustlab.training.fit import History, cross_entropy, fit
from robustlab.training.schedules import schedule_factor


def _toy(n: int = 60, d: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, generator=generator)
    return x, (x[:, :classes] + torch.randn(n, classes, generator=generator)).argmax(1)


def _sgd(parameters, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_least_squares_reaches_the_solution_of_the_normal_equations() -> None:
    x, _ = _toy()
    x = x.double()
    y = x @ torch.arange(5.0, dtype=torch.float64) + 2 + 0.1 * torch.randn(60, dtype=torch.float64)

    def squares(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        return F.mse_loss(model(x).squeeze(1), y)

    model = nn.Linear(5, 1).double()
    fit(model, (x, y), objective=squares, epochs=150, batch_size=60, lr=0.2, optimizer=_sgd, schedule="constant")
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], dim=1), y[:, None]).solution
    assert torch.allclose(_weights(model), best.flatten(), atol=1e-8)


def test_logistic_regression_reaches_scipys_optimum() -> None:
    """Minibatches and a decaying rate; weight decay c adds c/2·‖θ‖² to the objective."""
    x, y = _toy(120)
    decay = 0.05
    model = nn.Linear(5, 3).double()
    history = fit(
        model, (x.double(), y), epochs=200, batch_size=30, lr=0.3, optimizer=_sgd, schedule="cosine", weight_decay=decay
    )

    def loss(theta: np.ndarray) -> float:
        w, b = theta[:15].reshape(3, 5), theta[15:]
        logits = x.double().numpy() @ w.T + b
        picked = logits[np.arange(120), y.numpy()]
        top = logits.max(1)
        return (top + np.log(np.exp(logits - top[:, None]).sum(1)) - picked).mean() + decay / 2 * (theta**2).sum()

    optimum = scipy.optimize.minimize(loss, np.zeros(18), method="BFGS", options={"gtol": 1e-10})
    found = _weights(model).numpy()
    assert loss(found) - optimum.fun < 1e-5
    assert np.abs(found - optimum.x).max() < 5e-3
    assert history.loss[-1] == pytest.approx(loss(found) - decay / 2 * (found**2).sum(), abs=2e-3)


def test_one_step_is_the_gradient_step() -> None:
    x, y = _toy()
    model, twin = nn.Linear(5, 3), nn.Linear(5, 3)
    twin.load_state_dict(model.state_dict())
    fit(model, (x, y), epochs=1, batch_size=60, lr=0.5, optimizer=_sgd, schedule="constant")
    F.cross_entropy(twin(x), y).backward()
    with torch.no_grad():
        for p in twin.parameters():
            p -= 0.5 * p.grad
    assert torch.allclose(_weights(model), _weights(twin), atol=1e-6)
    assert all(p.grad is None for p in model.parameters()), "no gradient is left behind"


class _Recorder:
    """An objective that writes down how it was called."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.seeds: list[int] = []
        self.progress: list[float] = []
        self.modes: list[bool] = []
        self.x: list[Tensor] = []

    def set_progress(self, fraction: float) -> None:
        self.progress.append(fraction)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        self.ids.append(ids.clone())
        self.seeds.append(seed)
        self.modes.append(model.training)
        self.x.append(x.clone())
        return F.cross_entropy(model(x), y)


def test_every_epoch_visits_every_sample_once_in_a_new_order() -> None:
    x, y = _toy(61)
    seen = _Recorder()
    history = fit(nn.Linear(5, 3), (x, y), objective=seen, epochs=3, batch_size=20)
    assert [len(i) for i in seen.ids[:3]] == [20, 20, 21], "a last batch of one joins the batch before it"
    assert history.steps == len(seen.ids) == 9
    epochs = [torch.cat(seen.ids[i : i + 3]) for i in (0, 3, 6)]
    for order in epochs:
        assert torch.equal(order.sort().values, torch.arange(61))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    assert all(torch.equal(part, x[ids]) for part, ids in zip(seen.x, seen.ids, strict=True))
    assert len(set(seen.seeds)) == 9, "each step has its own seed"
    other = _Recorder()
    fit(nn.Linear(5, 3), (x, y), objective=other, epochs=1, batch_size=20, seed=1)
    assert not torch.equal(torch.cat(other.ids), epochs[0]), "another seed, another order"
    assert not set(other.seeds) & set(seen.seeds)
    assert seen.progress == pytest.approx([i / 9 for i in range(9)])
    assert all(seen.modes)


def test_history_is_the_mean_over_samples() -> None:
    def index(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        return ids.float().mean() + 0 * model(x).sum()

    x, y = _toy(53)
    history = fit(nn.Linear(5, 3), (x, y), objective=index, epochs=2, batch_size=20)
    assert isinstance(history, History) and history.seconds > 0
    assert history.loss == pytest.approx((26.0, 26.0))


def test_the_same_seed_gives_the_same_weights() -> None:
    x, y = data.load("mnist5k").subset(200, 10).x_train, data.load("mnist5k").y_train[:200]

    def run(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        net = models.mlp(hidden=(8,))
        model = nn.Sequential(net, nn.Dropout(0.5))
        fit(model, (x, y), epochs=2, batch_size=50, seed=seed, augment=data.random_shift(1))
        return _weights(model)

    assert torch.equal(run(0, 1), run(0, 2)), "whatever the global random state is"
    assert not torch.equal(run(0, 1), run(1, 1))


def test_the_global_random_state_and_the_data_are_untouched() -> None:
    x, y = _toy()
    kept = x.clone(), y.clone()
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fit(model, (x, y), epochs=1)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])


def test_modes_are_put_back_even_after_an_error() -> None:
    x, y = _toy()
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    model[1].train()
    modes = [m.training for m in model.modules()]
    seen: list[tuple[int, bool, bool]] = []
    history = fit(
        model, (x, y), epochs=2, on_epoch=lambda e, m: seen.append((e, m.training, torch.is_grad_enabled())) or e * 10
    )
    assert [m.training for m in model.modules()] == modes
    assert seen == [(0, False, False), (1, False, False)] and history.monitor == (0, 10)

    def broken(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        raise RuntimeError("broken")

    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        fit(model, (x, y), objective=broken, epochs=1)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_epoch_trains_in_train_mode_after_a_callback() -> None:
    x, y = _toy()
    seen = _Recorder()
    fit(nn.Linear(5, 3).eval(), (x, y), objective=seen, epochs=3, batch_size=30, on_epoch=lambda e, m: None)
    assert all(seen.modes)


def test_augmentation_gets_its_own_seeds_and_feeds_the_objective() -> None:
    x, y = _toy(40)
    calls: list[tuple[int, Tensor]] = []

    def augment(x: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        calls.append((seed, ids))
        return x + 100

    seen = _Recorder()
    fit(nn.Linear(5, 3), (x, y), objective=seen, epochs=1, batch_size=20, augment=augment)
    assert len({seed for seed, _ in calls} | set(seen.seeds)) == 4
    assert all(torch.equal(part, x[ids] + 100) for part, (_, ids) in zip(seen.x, calls, strict=True))


def test_schedules() -> None:
    assert schedule_factor("constant", 0.7) == 1
    assert schedule_factor("one-cycle", 0.0) == pytest.approx(1 / 25)
    assert schedule_factor("one-cycle", 0.15) == pytest.approx((1 + 1 / 25) / 2)
    assert schedule_factor("one-cycle", 0.3) == pytest.approx(1)
    assert schedule_factor("one-cycle", 0.65) == pytest.approx((1 + 1e-3) / 2)
    assert schedule_factor("cosine", 0.0) == 1
    for name in ("one-cycle", "cosine"):
        assert schedule_factor(name, 1.0) == pytest.approx(1e-3)
    assert [schedule_factor("piecewise", done) for done in (0.0, 0.49, 0.5, 0.74, 0.75)] == [1, 1, 0.1, 0.1, 0.01]
    x, y = _toy()
    for schedule in ("cosine", "piecewise", lambda done: 1 - done):
        history = fit(nn.Linear(5, 3), (x, y), epochs=4, batch_size=60, lr=2.0, schedule=schedule)
        assert history.lr == pytest.approx([2 * schedule_factor(schedule, k / 4) for k in range(4)])


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_named_optimizers_learn(optimizer: str) -> None:
    d = data.gaussians(300, 150)
    model = models.mlp(in_shape=(2,), hidden=(16,), classes=3)
    fit(model, d, epochs=30, batch_size=50, lr=0.05, optimizer=optimizer)
    assert (model(d.x_test).argmax(1) == d.y_test).float().mean() > 0.97


def test_frozen_parameters_stay() -> None:
    x, y = _toy()
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    frozen, free = _weights(model[0]), _weights(model[1])
    fit(model, (x, y), epochs=2, weight_decay=0.1)
    assert torch.equal(_weights(model[0]), frozen) and not torch.equal(_weights(model[1]), free)
    assert not model[0].weight.requires_grad


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    x, y = _toy()

    def bad(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        return cross_entropy(model, x, y, ids=ids, seed=seed) * float("nan")

    with pytest.raises(FloatingPointError, match="epoch 0"):
        fit(nn.Linear(5, 3), (x, y), objective=bad, epochs=1)


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"model": lambda x: x}, TypeError, "model"),
        ({"model": nn.ReLU()}, ValueError, "model"),
        ({"model": nn.Sequential(nn.Linear(5, 3), nn.Unflatten(1, (3, 1)))}, ValueError, "model"),
        ({"data": [1, 2]}, TypeError, "data"),
        ({"data": (torch.rand(4, 5), torch.zeros(3, dtype=torch.int64))}, ValueError, "data"),
        ({"data": (torch.rand(0, 5), torch.zeros(0, dtype=torch.int64))}, ValueError, "data"),
        ({"data": (torch.full((4, 5), torch.nan), torch.zeros(4, dtype=torch.int64))}, ValueError, "data"),
        ({"data": (torch.rand(4, 5).double(), torch.zeros(4, dtype=torch.int64))}, TypeError, "data"),
        ({"data": (torch.rand(4, 5), torch.zeros(4))}, TypeError, "data"),
        ({"data": (torch.rand(4, 5), torch.full((4,), 3))}, ValueError, "data"),
        ({"data": (torch.rand(4, 5), torch.full((4,), -1))}, ValueError, "data"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"epochs": 1.5}, TypeError, "epochs"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"lr": 0.0}, ValueError, "lr"),
        ({"lr": float("nan")}, ValueError, "lr"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"schedule": "step"}, ValueError, "schedule"),
        ({"schedule": lambda done: -1.0}, ValueError, "schedule"),
        ({"averaging": 1.0}, ValueError, "averaging"),
        ({"averaging": -0.1}, ValueError, "averaging"),
        ({"validate": 0.5}, TypeError, "validate"),
        ({"validate": lambda model: 0.5, "patience": 0}, ValueError, "patience"),
        ({"patience": 3}, ValueError, "patience"),
        ({"optimizer": "lion"}, ValueError, "optimizer"),
        ({"amp": "yes"}, ValueError, "amp"),
        ({"amp": True}, ValueError, "amp"),
        ({"objective": "ce"}, TypeError, "objective"),
        ({"objective": lambda m, x, y: m(x).sum()}, TypeError, "objective"),
        ({"objective": nn.CrossEntropyLoss()}, TypeError, "objective"),
        ({"on_epoch": 1}, TypeError, "on_epoch"),
        ({"on_epoch": lambda model: 0.5}, TypeError, "on_epoch"),
        ({"validate": lambda epoch, model: 0.5}, TypeError, "validate"),
        ({"objective": lambda m, x, y, *, ids, seed: m(x)}, ValueError, "objective"),
        ({"objective": lambda m, x, y, *, ids, seed: 1.0}, ValueError, "objective"),
        ({"objective": lambda m, x, y, *, ids, seed: torch.tensor(1.0)}, ValueError, "objective"),
    ],
)
def test_wrong_arguments_are_named(change: dict, kind: type[Exception], match: str) -> None:
    model = nn.Linear(5, 3)
    before = _weights(model)
    arguments = {"model": model, "data": _toy(), "epochs": 1, **change}
    with pytest.raises(kind, match=f"^{match}:"):
        fit(arguments.pop("model"), arguments.pop("data"), **arguments)
    assert torch.equal(_weights(model), before)


def test_it_trains_where_it_is_told_to(device: torch.device) -> None:
    d = data.load("mnist5k").subset(1000, 500)
    model = models.small_cnn(hidden=32)
    before = torch.random.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    fit(model, d, epochs=6, batch_size=50, lr=3e-3, device=device)
    assert next(model.parameters()).device.type == device.type
    assert all(p.dtype == torch.float32 for p in model.parameters())
    test = d.to(device)
    assert (model.eval()(test.x_test).argmax(1) == test.y_test).float().mean() > 0.8
    assert torch.equal(before, torch.random.get_rng_state())
    if on_device is not None:
        assert torch.equal(on_device, torch.cuda.get_rng_state(device))


@pytest.mark.gpu
def test_mixed_precision_and_full_precision_agree_on_cuda() -> None:
    d = data.load("mnist5k").subset(1000, 500)
    losses = {}
    for amp in (False, True, "auto"):
        model, kinds = models.small_cnn(hidden=32), []

        def objective(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, kinds: list = kinds) -> Tensor:
            logits = model(x)
            kinds.append(logits.dtype)
            return F.cross_entropy(logits, y)

        losses[amp] = fit(model, d, objective=objective, epochs=3, lr=3e-3, device="cuda", amp=amp).loss
        assert (kinds[0] == torch.float32) == (amp is False)
    assert losses[True][-1] == pytest.approx(losses[False][-1], rel=0.2)
    assert losses["auto"][-1] == pytest.approx(losses[False][-1], rel=0.2)


def test_data_that_want_a_gradient_get_none() -> None:
    x, y = _toy()
    x.requires_grad_(True)
    fit(nn.Linear(5, 3), (x, y), epochs=1)
    assert x.grad is None and x.requires_grad


def test_training_does_not_need_gradients_to_be_on() -> None:
    x, y = _toy()
    models_ = [nn.Linear(5, 3), nn.Linear(5, 3)]
    models_[1].load_state_dict(models_[0].state_dict())
    fit(models_[0], (x, y), epochs=1)
    with torch.no_grad():
        fit(models_[1], (x, y), epochs=1)
        assert not torch.is_grad_enabled()
    assert torch.equal(_weights(models_[0]), _weights(models_[1]))


def test_inference_mode_is_refused_before_any_work() -> None:
    x, y = _toy()
    model = nn.Linear(5, 3)
    before = _weights(model).clone()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"^fit: want .* outside torch.inference_mode"):
        fit(model, (x, y), epochs=1)
    assert torch.equal(_weights(model), before)


def test_what_modules_draw_differs_from_step_to_step_and_from_epoch_to_epoch() -> None:
    x, y = _toy(40)
    drawn: list[float] = []

    def objective(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        drawn.append(torch.rand(()).item())
        return F.cross_entropy(model(x), y)

    fit(nn.Linear(5, 3), (x, y), objective=objective, epochs=3, batch_size=20)
    assert len(set(drawn)) == 6


# Averaged weights, early stopping -------------------------------------------------------------------------------------


def test_averaged_weights_are_the_recursion_over_the_steps_and_training_goes_on_with_its_own() -> None:
    x, y = _toy(40)
    decay, walked, shown = 0.6, [], []

    def objective(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        walked.append(_weights(model).clone())
        return F.cross_entropy(model(x), y)

    def run(averaging: float) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
        kept = lambda epoch, model: shown.append(_weights(model).clone())  # noqa: E731
        fit(model, (x, y), objective=objective, epochs=3, batch_size=10, averaging=averaging, on_epoch=kept)
        return model

    plain, own = run(0.0), list(walked)
    walked.clear()
    shown.clear()
    averaged = run(decay)
    assert all(torch.equal(a, b) for a, b in zip(own, walked, strict=True)), "the average has no part in the training"
    mean = walked[0]
    for t, after in enumerate([*walked[1:], _weights(plain)]):
        d = min(decay, (1 + t) / (10 + t))
        mean = d * mean + (1 - d) * after
    assert torch.allclose(_weights(averaged), mean, atol=1e-6) and torch.equal(shown[-1], _weights(averaged))
    assert not torch.allclose(_weights(averaged), _weights(plain), atol=1e-4)
    assert int(averaged[1].num_batches_tracked) == 12
    assert not torch.equal(averaged[1].running_mean, plain[1].running_mean)


def test_the_best_epoch_on_validation_is_kept_and_patience_ends_the_training() -> None:
    x, y = _toy(40)
    values, shown = [0.2, 0.5, 0.4, 0.5, 0.1, 0.9], []

    def validate(model: nn.Module) -> float:
        assert not model.training and not torch.is_grad_enabled()
        shown.append(_weights(model).clone())
        return values[len(shown) - 1]

    for patience, epochs, best in ((None, 6, 5), (4, 6, 5), (3, 5, 1), (1, 3, 1)):
        shown.clear()
        model = nn.Linear(5, 3)
        history = fit(model, (x, y), epochs=6, batch_size=20, validate=validate, patience=patience)
        assert history.validation == tuple(values[:epochs]) and history.best_epoch == best
        assert len(history.loss) == epochs and history.steps == 2 * epochs
        assert torch.equal(_weights(model), shown[best])
    with pytest.raises(ValueError, match=r"^validate: want a finite number, got nan in epoch 0"):
        fit(nn.Linear(5, 3), (x, y), epochs=1, validate=lambda model: float("nan"))


# Resuming after a kill ------------------------------------------------------------------------------------------------


class _Stateful:
    """An objective whose loss depends on what it has seen."""

    def __init__(self) -> None:
        self.seen = torch.zeros(3)

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"].clone()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        self.seen = self.seen + y.bincount(minlength=3)
        return (F.cross_entropy(model(x), y, reduction="none") / self.seen[y]).sum()


def _dropping(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 3))


def _killed(file: str, better: int) -> None:
    """In a process of its own, which is killed in its third epoch."""

    def kill(epoch: int, model: nn.Module) -> int:
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return epoch

    fit(_dropping(), _toy(), resume=file, on_epoch=kill, **_settings(better))


def _settings(better: int) -> dict:
    """The best epoch is the last (1) or the first (−1)."""
    score = lambda model: better * float(model[1].num_batches_tracked)  # noqa: E731
    how = {"epochs": 6, "batch_size": 16, "averaging": 0.9, "seed": 4}
    return {**how, "objective": _Stateful(), "validate": score, "augment": _jitter}


def _jitter(x: Tensor, *, ids: Tensor, seed: int) -> Tensor:
    return x + 0.01 * Noise(seed, ids).normal(0, x.shape[1:], x.dtype)


@pytest.mark.parametrize("better", [1, -1])
def test_a_training_that_was_killed_ends_as_one_that_was_not(better: int, tmp_path: Path) -> None:
    """Dropout, batch norm, Adam, the average, the best epoch, and an objective with a state; bit by bit."""
    file = tmp_path / "training.safetensors"
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(str(file), better))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and [path.name for path in tmp_path.iterdir()] == [file.name]
    seen: list[int] = []
    resumed, whole = _dropping(seed=7), _dropping()
    note = lambda epoch, model: seen.append(epoch) or epoch  # noqa: E731
    here = fit(resumed, _toy(), resume=file, on_epoch=note, **_settings(better))
    assert seen == [2, 3, 4, 5]
    there = fit(whole, _toy(), on_epoch=lambda epoch, model: epoch, **_settings(better))
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
    )
    assert (here.loss, here.lr, here.monitor, here.validation, here.best_epoch, here.steps) == (
        there.loss, there.lr, there.monitor, there.validation, there.best_epoch, there.steps
    )  # fmt: skip
    seen.clear()
    again = _dropping(seed=9)
    fit(again, _toy(), resume=file, on_epoch=note, **_settings(better))
    assert seen == [] and torch.equal(_weights(again), _weights(whole)), "a training that is over only gives its end"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", _sgd])
def test_each_optimizer_resumes(optimizer, tmp_path: Path) -> None:
    ends = []
    for stop in (None, 1):
        file = tmp_path / f"{stop}.safetensors"

        def interrupt(epoch: int, model: nn.Module, stop: int | None = stop) -> None:
            if epoch == stop:
                raise KeyboardInterrupt

        model = _dropping()
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                fit(model, _toy(), epochs=3, optimizer=optimizer, resume=file, on_epoch=interrupt)
        fit(model, _toy(), epochs=3, optimizer=optimizer, resume=file)
        ends.append(_weights(model))
    assert torch.equal(*ends)


def test_a_file_of_another_radius_is_refused(tmp_path: Path) -> None:
    file, made = tmp_path / "training.safetensors", lambda eps: adversarial_training(eps=eps, steps=1)
    data = torch.rand(8, 5), torch.arange(8) % 3
    first, again = nn.Linear(5, 3), nn.Linear(5, 3)
    fit(first, data, objective=made(0.1), epochs=1, resume=file)
    with pytest.raises(ValueError, match=r"objective \(.*eps=0\.1.*, here .*eps=0\.2"):
        fit(nn.Linear(5, 3), data, objective=made(0.2), epochs=1, resume=file)
    fit(again, data, objective=made(0.1), epochs=1, resume=file)
    assert torch.equal(_weights(first), _weights(again))


def test_a_file_of_another_training_is_refused_by_what_is_other_and_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "training.safetensors"
    x, y = _toy()
    given = {"model": nn.Linear(5, 3), "data": (x, y), "epochs": 2, "resume": file}
    fit(given.pop("model"), given.pop("data"), **given)
    raw = file.read_bytes()
    for change, match in (
        ({"model": nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))}, r"model \("),
        ({"data": (x + 1e-3, y)}, r"data set \("),
        ({"data": (x, y.roll(1))}, r"data set \("),
        ({"objective": _Stateful()}, r"objective \(cross_entropy, here _Stateful\)"),
        ({"epochs": 3}, r"epochs \(2, here 3\)"),
        ({"seed": 1, "lr": 0.1}, r"lr \(0\.001, here 0\.1\), seed \(0, here 1\)"),
    ):
        arguments = {"model": nn.Linear(5, 3), "data": (x, y), **given, **change}
        model = arguments.pop("model")
        before = _weights(model).clone()
        with pytest.raises(ValueError, match=rf"^resume: want that of this run, got .*, of another {match}"):
            fit(model, arguments.pop("data"), **arguments)
        assert torch.equal(_weights(model), before) and file.read_bytes() == raw
    file.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"^resume: want a file that fit\(\) has written"):
        fit(nn.Linear(5, 3), (x, y), **given)
    for path in (tmp_path, tmp_path / "nowhere" / "file"):
        with pytest.raises(ValueError, match=r"^resume: want a file"):
            fit(nn.Linear(5, 3), (x, y), **{**given, "resume": path})
    with pytest.raises(ValueError, match=r"^on_epoch: want values that JSON holds"):
        fit(nn.Linear(5, 3), (x, y), epochs=1, resume=tmp_path / "other", on_epoch=lambda epoch, model: model)
