"""AutoAttack beyond the suite (it is exact on affine models): its cost, its file, and what makes it blind."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlab.attacker.victim import Victim
from robustlab.attacks import apgd, fab
from robustlab.evaluation import AutoAttackReport, autoattack
from robustlab.geometry.keyed import derive_seed
from tests.suite.cases import noise_box
from tests.suite.models import IMAGE, Counting, GradientOf, Then, mlp
from tests.suite.oracles import affine_problem, free_optimum

CPU = torch.device("cpu")
EPS = 0.1


@cache
def problem(n: int = 20, classes: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    """A net and samples of which it gets all but two right."""
    model, x = mlp(IMAGE, classes), noise_box(n, IMAGE, torch.float64, seed=2)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[3], y[7] = (y[3] + 1) % classes, (y[7] + 1) % classes
    return model, x, y


def same(ours: AutoAttackReport, theirs: AutoAttackReport) -> None:
    assert torch.equal(ours.broken_by, theirs.broken_by)
    assert torch.equal(ours.queries, theirs.queries) and torch.equal(ours.gradients, theirs.gradients)
    torch.testing.assert_close(ours.x_adv, theirs.x_adv, rtol=0, atol=1e-6)
    assert [(r.name, r.tried, r.fooled) for r in ours.attacks] == [(r.name, r.tried, r.fooled) for r in theirs.attacks]
    assert ours.flags == theirs.flags


@pytest.fixture
def short_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 queries instead of 5,000."""
    monkeypatch.setattr(importlib.import_module("robustlab.evaluation.protocol.autoattack"), "_QUERIES", 300)


@pytest.mark.slow
def test_report_adds_up(short_square: None) -> None:
    model, x, y = problem()
    seen = Counting(model)
    report = autoattack(seen, x, y, eps=EPS, attacks=["apgd-ce", "apgd-t", "fab-t", "square"], batch_size=8)
    assert int(report.queries.sum()) == seen.forwards and int(report.gradients.sum()) == seen.backwards
    assert report.clean_accuracy == 0.9 and report.broken_by[[3, 7]].tolist() == [0, 0]
    tried, left = 18, 18
    for k, run in enumerate(report.attacks, start=1):
        assert run.tried == tried, "only those that are left are handed on"
        assert run.fooled == int((report.broken_by == k).sum())
        tried = left = left - run.fooled
        assert run.accuracy == left / 20 and (run.tried == 0 or run.queries > 0) and run.seconds >= 0
    assert report.robust_accuracy == left / 20 and 0 < left < 18
    assert report.interval[0] < report.robust_accuracy < report.interval[1]
    broken = report.broken_by > 0
    with torch.no_grad():
        assert bool((model(report.x_adv[broken]).argmax(1) != y[broken]).all())
    assert torch.equal(report.x_adv[~broken], x[~broken])
    assert bool(((report.x_adv - x).abs().amax((1, 2, 3)) <= EPS + 1e-12).all())
    assert report.flags == {} and len(report) == 20
    lines = report.summary().splitlines()
    assert len(lines) == 5 and "clean 90.0 %" in lines[0] and lines[1].startswith("apgd-ce")
    first = report.broken_by == 1
    rest = report.broken_by < 0
    assert int(report.queries[first].max()) < 120 < 1300 < int(report.queries[rest].min())


@pytest.mark.slow
def test_batch_size_does_not_matter() -> None:
    model, x, y = problem()
    reports = [autoattack(model, x, y, eps=EPS, attacks=["apgd-ce", "apgd-t"], batch_size=b) for b in (20, 7)]
    # The first look, at the first batch, costs its samples some queries: they are left out of the comparison.
    assert torch.equal(reports[0].broken_by, reports[1].broken_by)
    torch.testing.assert_close(reports[0].x_adv, reports[1].x_adv, rtol=0, atol=1e-6)
    assert [(r.tried, r.fooled, r.queries) for r in reports[0].attacks] == [
        (r.tried, r.fooled, r.queries) for r in reports[1].attacks
    ]


def test_each_label_gets_the_samples_that_the_labels_before_have_left() -> None:
    """APGD-T by hand, label by label, likeliest first."""
    model, x, y = problem()
    report = autoattack(model, x, y, eps=EPS, attacks=["apgd-t"])
    with torch.no_grad():
        z = model(x)
    left = (z.argmax(1) == y).nonzero().flatten()
    ranked = z.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    queries = len(left)  # the look at the logits
    for label in ranked.T[:4]:
        run = {"eps": EPS, "loss": "dlr", "seed": derive_seed(0, 1), "ids": left}
        result = apgd(model, x[left], y[left], toward=label[left], **run)
        queries += int(result.queries.sum())
        left = left[~result.success]
    assert torch.equal(report.robust.nonzero().flatten(), left)
    assert report.attacks[0].queries == queries


class Fails(nn.Module):
    """A model that gives up after so many calls."""

    def __init__(self, model: nn.Module, calls: int) -> None:
        super().__init__()
        self.model, self.calls = model, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.model(x)


@pytest.mark.slow
def test_goes_on_after_an_interruption(tmp_path: Path) -> None:
    model, x, y = problem()
    run = {"eps": 0.05, "attacks": ["apgd-ce", "apgd-t"], "batch_size": 6}
    whole = Fails(model, 10**9)
    expected = autoattack(whole, x, y, **run)
    total = 10**9 - whole.calls
    file = tmp_path / "run.safetensors"
    interruptions, spent = 0, 0
    while True:
        fragile = Fails(model, 550)
        try:
            report = autoattack(fragile, x, y, state=file, **run)
            break
        except KeyboardInterrupt:
            interruptions += 1
            spent += 550
        assert interruptions < 20, "no progress is kept"
    assert interruptions >= 1
    same(report, expected)
    assert spent + 550 - fragile.calls < 2 * total, "what was done is not done again"
    same(autoattack(Fails(model, 0), x, y, state=file, **run), expected)


def test_the_place_of_the_state_is_tried_before_the_model(tmp_path: Path) -> None:
    model, x, y = problem()
    for file in (tmp_path / "nowhere" / "state", tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match=r"^state: want a file in a folder that takes files"):
            autoattack(Fails(model, 0), x, y, eps=EPS, state=file)


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    model, x, y = problem()
    file = tmp_path / "run.safetensors"
    run = {"eps": EPS, "attacks": ["apgd-ce"], "state": file}
    autoattack(model, x, y, **run)
    for word, changes in {
        "eps": {"eps": 0.2}, "attacks": {"attacks": ["apgd-dlr"]}, "seed": {"seed": 1}, "norm": {"norm": "l2"},
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"^state: want that of this run, got .* of another {word} "):
            autoattack(model, x, y, **(run | changes))
    with pytest.raises(ValueError, match="another data"):
        autoattack(model, 1 - x, y, **run)
    with pytest.raises(ValueError, match="another model"):
        autoattack(mlp(IMAGE, 5, seed=1), x, y, **run)
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"^state: want a file that AutoAttack has written"):
        autoattack(model, x, y, **run)


def test_fab_counts_within_eps_only() -> None:
    """FAB knows no ε: what it finds farther away breaks nothing."""
    model, x, y = problem()
    far = fab(model, x, y, norm="linf")
    eps = float(far.distances["linf"].median())
    report = autoattack(model, x, y, eps=eps, attacks=["fab"])
    within = far.success & (far.distances["linf"] <= eps)
    assert 2 < int(within.sum()) < int(far.success.sum())
    assert torch.equal(~report.robust, within)


# Flags ---------------------------------------------------------------------------------------------------------------


def noisy(model: nn.Module) -> nn.Module:
    return Then(model, lambda z: z + 0.01 * torch.randn_like(z))


class Adapts(nn.Module):
    """Takes a gradient of its own whenever it is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(self.model(inner).logsumexp(1).sum(), inner)
        return self.model(x + 1e-9 * grad)


class Learns(nn.Module):
    """Writes into a buffer whenever it is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("asked", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return self.model(x)


class Quantizes(nn.Module):
    """Rounds its input: the gradient is 0 everywhere, and random search does not care."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * 20).round() / 20)


@pytest.mark.parametrize(
    ("word", "defend"),
    [
        ("randomized", noisy),
        ("randomized", lambda model: Then(noisy(model), lambda z: F.pad(z, (0, 1), value=-torch.inf))),
        ("probabilities", lambda model: Then(model, lambda z: z.softmax(1))),
        ("dynamic", Adapts),
        ("dynamic", Learns),
        ("batch_dependent", lambda model: Then(model, lambda z: z - z.mean(0))),
        ("batch_dependent", lambda model: Then(model, lambda z: F.pad(z - z.mean(0), (0, 1), value=-torch.inf))),
        ("batch_dependent", lambda model: Then(model, lambda z: 1e-9 * (z - z.mean(0)))),
        ("zero_gradients", lambda model: GradientOf(model, 0.0)),
    ],
)
def test_flags_of_the_first_look(word: str, defend: Callable[[nn.Module], nn.Module]) -> None:
    model, x, y = problem()
    flags = autoattack(defend(model), x, y, eps=1e-3, attacks=["apgd-ce"]).flags
    assert set(flags) == {word} and flags[word]


def test_probabilities_that_are_declared_are_no_flag() -> None:
    model, x, y = problem()
    victim = Victim(Then(model, lambda z: z.softmax(1)), output="probs")
    report = autoattack(victim, x, y, eps=EPS, attacks=["apgd-ce"])
    assert report.flags == {}
    assert torch.equal(report.broken_by, autoattack(model, x, y, eps=EPS, attacks=["apgd-ce"]).broken_by)


def test_square_unmasks_a_quantizer(short_square: None) -> None:
    model, x, y = problem()
    report = autoattack(Quantizes(model), x, y, eps=0.12, attacks=["apgd-ce", "square"])
    assert {"zero_gradients", "square_decisive"} <= set(report.flags)
    assert report.attacks[1].fooled > report.attacks[0].fooled


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int) -> None:
    model, x, y = affine_problem(classes, 12, 8, CPU, spread=1.0)
    truth = free_optimum(model, x, y, "l2")
    eps = float(truth.median()) * 1.01
    names = ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t"]
    report = autoattack(Victim(model, bounds=(-50.0, 50.0)), x, y, norm="l2", eps=eps, attacks=names)
    assert "few_classes" in report.flags and f"{classes} classes" in report.flags["few_classes"]
    assert torch.equal(report.robust, truth > eps)


def test_square_is_left_out_where_it_cannot_run() -> None:
    model, x, y = affine_problem(4, 6, 8, CPU, spread=0.5)
    report = autoattack(Victim(model, bounds=(-1.0, 1.0)), x, y, eps=0.05, attacks=["apgd-ce", "square"])
    assert [run.name for run in report.attacks] == ["apgd-ce"] and "no_square" in report.flags


def test_versions(short_square: None) -> None:
    model, x, y = problem(n=20)
    few = (x[:3], y[:3])
    assert [r.name for r in autoattack(model, few, eps=0.9).attacks] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    plus = autoattack(model, few, eps=0.9, version="plus")
    assert [r.name for r in plus.attacks] == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert plus.robust_accuracy == 0.0 and plus.attacks[-1].tried == 0, "nobody is left: nothing is done"


def test_nothing_of_the_callers_is_changed() -> None:
    model, x, y = problem()
    model.train()
    before, state = (x.clone(), y.clone()), torch.get_rng_state()
    autoattack(model, x, y, eps=EPS, attacks=["apgd-ce"])
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input() -> None:
    model, x, y = problem()

    def refused(match: str, error: type[Exception] = ValueError, **changes: object) -> None:
        seen = Counting(model)
        with pytest.raises(error, match=match):
            autoattack(seen, **({"x": (x, y), "eps": 0.1} | changes))  # type: ignore[arg-type]
        assert seen.calls == 0

    for eps in (-0.1, float("nan"), float("inf")):
        refused("^eps: want", eps=eps)
    refused("^eps: want", TypeError, eps="0.1")
    refused("^eps: want one number", eps=torch.full((20,), 0.1))
    refused("^norm: want", norm="l0")
    refused("^version: want", version="rand")
    for attacks in ([], ["pgd"], "square", ["apgd-ce", "apgd-ce"]):
        refused("^attacks: want", attacks=attacks)
    refused("^batch_size: want", batch_size=0)
    refused("^confidence: want", confidence=95)
    refused("^y: want labels", TypeError, x=x)
    refused("^x: want", x=(x[:0], y[:0]))
    refused("^x: want values", x=(x + 1, y))
    with pytest.raises(ValueError, match=r"^access"):
        autoattack(Victim(model, access="soft"), x, y, eps=0.1)


@pytest.mark.slow
def test_a_loader_is_read_batch_by_batch(tmp_path: Path, short_square: None) -> None:
    model, x, y = problem()
    run = {"eps": EPS, "attacks": ["apgd-ce", "apgd-t"], "batch_size": 4, "seed": 2}
    whole, loader = autoattack(model, x, y, **run), DataLoader(TensorDataset(x, y), 7)
    for _ in range(2):  # the second time from the files
        report = autoattack(model, loader, state=tmp_path / "run", **run)
        assert report.x_adv is None and report.flags == whole.flags
        assert torch.equal(report.broken_by, whole.broken_by) and torch.equal(report.queries, whole.queries)
        assert [(r.tried, r.fooled) for r in report.attacks] == [(r.tried, r.fooled) for r in whole.attacks]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.0", "run.1", "run.2"]
    assert 0 < int(whole.robust.sum()) < len(x)


@pytest.mark.slow
def test_inference_mode_changes_nothing() -> None:
    model, x, y = problem()
    plain = autoattack(model, x, y, eps=EPS, attacks=["apgd-ce", "apgd-t"], batch_size=8)
    with torch.inference_mode():
        ours = autoattack(model, x * 1, y * 1, eps=EPS, attacks=["apgd-ce", "apgd-t"], batch_size=8)
    same(ours, plain)


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    model, x, y = problem()
    plain = autoattack(model, x, y, eps=0.125, attacks=["apgd-ce"], batch_size=8, seed=3)
    settings = {"eps": np.float32(0.125), "batch_size": np.int64(8), "seed": np.int64(3)}
    for _ in range(2):  # the second time from the file
        same(autoattack(model, x, y, attacks=["apgd-ce"], state=tmp_path / "run", **settings), plain)


LIES: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], object]] = {
    "outside the box": lambda t, f: t["x_adv"].add_(2.0),
    "not finite": lambda t, f: t["x_adv"].fill_(torch.nan),
    "at distance": lambda t, f: t.update(x_adv=1 - t["x_adv"].round()),
    "the tensors": lambda t, f: t.update(code=torch.zeros(1)),
    "the facts": lambda t, f: f.update(command="ls"),
    "that is none of": lambda t, f: t["seen_by"].fill_(7),
    "have not seen": lambda t, f: t["seen_by"].fill_(-1),
    "below 0": lambda t, f: t["queries"].fill_(-1),
    "broken_by is": lambda t, f: t.update(broken_by=t["broken_by"][:1].clone()),
    "its numbers": lambda t, f: f.update(seconds=[float("inf")]),
    "its flags": lambda t, f: f.update(flags=[]),
    "without a run": lambda t, f: f.pop("run"),
}


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
def test_a_state_is_checked_before_it_is_believed(tmp_path: Path, lie: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    (model, x, y), file = problem(), tmp_path / "run.safetensors"
    run = {"eps": EPS, "attacks": ["apgd-ce"], "state": file}
    honest = autoattack(model, x, y, **run)
    same(autoattack(model, x, y, **run), honest)
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["robustlab"])
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    LIES[lie](tensors, facts)
    save_file(tensors, file, {"robustlab": json.dumps(facts)})
    with pytest.raises(ValueError, match=rf"^state: want a file that AutoAttack has written.*{lie}"):
        autoattack(model, x, y, **run)


@pytest.mark.slow
def test_a_masked_class_is_aimed_at_like_another(short_square: None) -> None:
    """It has no logit but −∞, with which y must not tie when the classes are ranked."""
    model, x, y = problem(8, classes=4)
    masked = Then(model, lambda z: torch.cat([z, torch.full_like(z[:, :1], -torch.inf)], dim=1))
    plain = Then(model, lambda z: torch.cat([z, torch.full_like(z[:, :1], -30.0)], dim=1))
    ours, theirs = (autoattack(net, x, y, eps=0.1) for net in (masked, plain))
    assert torch.equal(ours.robust, theirs.robust)
