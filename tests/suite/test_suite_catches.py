"""Each check of the suite, seen to fail on an attack that is broken on purpose.

A plant takes a working attack and returns it with one bug that real attacks have had; the named check must object.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.suite.test_bad_input as bad_input
import tests.suite.test_batch as in_batch
import tests.suite.test_box_and_budget as box
import tests.suite.test_channel_bounds as channels
import tests.suite.test_counts as counts
import tests.suite.test_edges as edges
import tests.suite.test_invariance as invariance
import tests.suite.test_no_side_effects as side_effects
import tests.suite.test_optimum as optimum
import tests.suite.test_pathological as pathological
import tests.suite.test_success as success
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from tests.suite.cases import CASES, Case, over

CPU = torch.device("cpu")
Attack = Callable[..., AttackResult]


def case(name: str) -> Case:
    return next(c for c in CASES if str(c) == name)


def planted(name: str, bug: Callable[[Attack], Attack]) -> Case:
    """The case of that name with a bug; the attack keeps its signature."""
    good = case(name)
    return replace(good, attack=functools.wraps(good.attack)(bug(good.attack)))


def after(change: Callable[..., AttackResult]) -> Callable[[Attack], Attack]:
    """A bug in what is returned: ``change(result, x, y, model, **arguments)``."""

    def bug(attack: Attack) -> Attack:
        def broken(victim: Any, x: Tensor, y: Tensor | None = None, **kw: Any) -> AttackResult:
            return change(attack(victim, x, y, **kw), x, y, Victim.of(victim).model, **kw)

        return broken

    return bug


def before(change: Callable[..., dict[str, Any]]) -> Callable[[Attack], Attack]:
    """A bug in what is looked at: ``change(victim, x, y, **arguments)`` names the arguments to replace."""

    def bug(attack: Attack) -> Attack:
        def broken(victim: Any, x: Tensor, y: Tensor | None = None, **kw: Any) -> AttackResult:
            new = {"victim": victim, "x": x, "y": y, **kw}
            new |= change(**new)
            return attack(new.pop("victim"), new.pop("x"), new.pop("y"), **{k: v for k, v in new.items() if k != "-"})

        return broken

    return bug


def around(step: Callable[..., Any]) -> Callable[[Attack], Attack]:
    """A bug beside the attack: ``step(model, x, y)`` is done first."""

    def bug(attack: Attack) -> Attack:
        def broken(victim: Any, x: Tensor, y: Tensor | None = None, **kw: Any) -> AttackResult:
            step(Victim.of(victim).model, x, y)
            return attack(victim, x, y, **kw)

        return broken

    return bug


@contextmanager
def caught(*more: type[Exception]) -> Iterator[None]:
    with pytest.raises((AssertionError, *more)):
        yield


# Box, budget, form ---------------------------------------------------------------------------------------------------

PLAIN = box.Problem((3,), 3, 3, torch.float64, "mixed", (0.0, 1.0), 1.0, 1, True)
SINGLE = replace(PLAIN, dtype=torch.float32)


@pytest.mark.parametrize(
    ("bug", "problem"),
    [
        (before(lambda eps, **_: {"eps": eps * 1.01}), PLAIN),
        (after(lambda r, x, *_, **k: replace(r, x_adv=r.x_adv - 0.3)), PLAIN),
        (after(lambda r, x, *_, **k: replace(r, x_adv=r.x_adv + torch.nan)), PLAIN),
        (after(lambda r, x, *_, **k: replace(r, x_adv=r.x_adv.double())), SINGLE),
        (after(lambda r, x, *_, **k: replace(r, x_adv=r.x_adv.flatten())), PLAIN),
        (after(lambda r, x, *_, **k: replace(r, success=r.success.float())), PLAIN),
        (after(lambda r, x, *_, **k: replace(r, distances={"linf": r.distances["l2"]})), PLAIN),
        (after(lambda r, x, *_, **k: replace(r, success=~r.success)), PLAIN),
        (around(lambda model, x, y: model(x * 1.5)), PLAIN),
        (around(lambda model, x, y: model(x.new_zeros(1, *x.shape[1:]))), replace(PLAIN, n=0)),
    ],
    ids=["budget", "box", "nan", "dtype", "shape", "bool", "distances", "success", "query", "empty"],
)
def test_box_and_budget(bug: Callable[[Attack], Attack], problem: box.Problem) -> None:
    box.check_box_and_budget(case("pgd-linf"), problem, CPU)
    with caught():
        box.check_box_and_budget(planted("pgd-linf", bug), problem, CPU)


def test_box_of_each_channel() -> None:
    def numbers(victim: Any, **_: Any) -> dict[str, Any]:
        """One box around the boxes of all channels."""
        low, high = Victim.of(victim).bounds
        around = float(torch.as_tensor(low).min()), float(torch.as_tensor(high).max())
        return {"victim": Victim(Victim.of(victim).model, bounds=around)}

    def wider(victim: Any, eps: Any, **_: Any) -> dict[str, Any]:
        return {"eps": eps * 1.1 if isinstance(Victim.of(victim).bounds[0], Tensor) else eps}

    cifar = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    channels.check_normalized(case("pgd-l2"), CPU, *cifar)
    for name in ("pgd-linf", "pgd-l2", "ddn-l2"):
        with caught():
            channels.check_normalized(planted(name, before(numbers)), CPU, *cifar)
    for check in (channels.check_equal_ends, channels.check_translated):
        with caught():
            check(planted("pgd-l2", before(wider)), CPU)


def test_failure_that_does_not_return_x() -> None:
    def last_iterate(r: AttackResult, x: Tensor, *_: Any, **k: Any) -> AttackResult:
        return replace(r, x_adv=torch.where(r.success[:, None, None, None], r.x_adv, (x + 0.01).clamp(0, 1)))

    with caught():
        success.check_failure(planted("deepfool-l2", after(last_iterate)), CPU)
    with caught():
        success.check_failure(planted("pgd-linf", after(last_iterate)), CPU)


# Success -------------------------------------------------------------------------------------------------------------


def to_the_boundary(r: AttackResult, x: Tensor, y: Tensor, model: nn.Module, **k: Any) -> AttackResult:
    """Bisects back to the decision boundary and stops there, without a margin."""
    low, high = x.clone(), r.x_adv.clone()
    for _ in range(60):
        middle = (low + high) / 2
        with torch.no_grad():
            met = (model(middle).argmax(1) != y)[:, None, None, None]
        low, high = torch.where(met, low, middle), torch.where(met, middle, high)
    return replace(r, x_adv=high)


@pytest.mark.parametrize(
    "bug",
    [
        after(lambda r, *_, **k: replace(r, success=r.success & False)),
        after(lambda r, x, *_, **k: replace(r, x_adv=x + (r.x_adv - x) * 0.9)),
        after(lambda r, *_, **k: replace(r, first_success=r.queries + 1)),
        after(to_the_boundary),
    ],
    ids=["never", "shrunk", "first", "thin"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_success_is_true(bug: Callable[[Attack], Attack], dtype: torch.dtype) -> None:
    with caught():
        success.check_success_is_true(planted("deepfool-l2", bug), CPU, dtype)


def test_success_that_is_claimed() -> None:
    always = after(lambda r, *_, **k: replace(r, success=torch.ones_like(r.success)))
    with caught():
        success.check_success_is_true(planted("pgd-linf", always), CPU, torch.float64)


def test_untargeted_run_in_targeted_mode() -> None:
    def untargeted(r: AttackResult, x: Tensor, y: Tensor, model: nn.Module, target: Any = None, **k: Any) -> Any:
        return case("pgd-linf").attack(model, x, y, **k)

    broken = planted("pgd-linf-targeted", after(untargeted))
    with caught():
        success.check_targeted_means_targeted(broken, CPU)
    with caught():
        success.check_success_is_true(broken, CPU, torch.float64)


@pytest.mark.parametrize("every", [False, True])
def test_samples_that_are_done(every: bool) -> None:
    nudge = after(lambda r, x, *_, **k: replace(r, x_adv=(x + 0.01).clamp(0, 1)))
    waste = after(lambda r, *_, **k: replace(r, queries=r.queries + 1))
    slope = after(lambda r, *_, **k: replace(r, gradients=r.gradients.clamp_min(1)))
    lost = after(lambda r, *_, **k: replace(r, success=r.success & (r.queries > 1)))
    for bug in (nudge, waste, slope, lost):
        with caught():
            success.check_untouched_where_goal_is_met(planted("pgd-l2", bug), CPU, every)


def test_own_prediction() -> None:
    zeros = before(lambda x, y, **_: {"y": torch.zeros(len(x), dtype=torch.int64) if y is None else y})
    with caught():
        success.check_own_prediction_by_default(planted("pgd-l2", zeros), CPU)


def test_two_classes() -> None:
    third = around(lambda model, x, y: model(x).topk(3, dim=1))
    with caught(RuntimeError):
        success.check_two_classes(planted("pgd-linf", third), CPU)


# Batch ---------------------------------------------------------------------------------------------------------------


def test_batch_dependence() -> None:
    own_ids = before(lambda x, **_: {"ids": torch.arange(len(x))})
    shared = before(lambda x, eps, **_: {"eps": eps * (1 + x.mean())})
    for bug in (own_ids, shared):
        with caught():
            in_batch.check_batch_independence(planted("pgd-linf", bug), CPU)
    with caught():
        in_batch.check_ids_permute(planted("pgd-linf", own_ids), CPU)

    def stops_together(r: AttackResult, *_: Any, **k: Any) -> AttackResult:
        return replace(r, queries=r.queries.clamp_min(int(r.queries.max())))

    with caught():
        in_batch.check_batch_independence(planted("deepfool-l2", after(stops_together)), CPU)


def test_global_randomness() -> None:
    moved = before(lambda seed, **_: {"seed": int(torch.randint(10**6, ()))})
    with caught():
        in_batch.check_determinism(planted("pgd-linf", moved), CPU)
    with caught():
        side_effects.check_no_side_effects(planted("pgd-linf", around(lambda *_: torch.rand(1))), CPU, "eval")


def test_scalar_for_all() -> None:
    spread = before(lambda x, eps, **_: {"eps": eps if isinstance(eps, Tensor) else eps / len(x)})
    with caught():
        in_batch.check_scalars_stand_for_all(planted("pgd-linf", spread), CPU)


# Side effects --------------------------------------------------------------------------------------------------------


def trains(model: nn.Module, x: Tensor, y: Any) -> None:
    with torch.no_grad():
        model.train()(x)


def backward(model: nn.Module, x: Tensor, y: Any) -> None:
    model(x.detach()).sum().backward()


@pytest.mark.parametrize(
    "step",
    [
        trains,
        backward,
        lambda model, x, y: model.eval(),
        lambda model, x, y: model.requires_grad_(False),
        lambda model, x, y: x.data.clamp_(0.01, 0.99),
        lambda model, x, y: x.requires_grad_(False),
        lambda model, x, y: setattr(x, "grad", None),
        lambda model, x, y: y.add_(1).remainder_(3),
        lambda model, x, y: model.register_forward_hook(lambda *_: None),
    ],
    ids=["statistics", "grad", "mode", "requires_grad", "x", "x.requires_grad", "x.grad", "y", "hook"],
)
def test_side_effects(step: Callable[..., Any]) -> None:
    side_effects.check_no_side_effects(case("pgd-linf"), CPU, "eval")
    with caught():
        side_effects.check_no_side_effects(planted("pgd-linf", around(step)), CPU, "eval")


def test_result_that_is_the_input() -> None:
    with caught():
        side_effects.check_no_side_effects(
            planted("pgd-linf", after(lambda r, x, *_, **k: replace(r, x_adv=x))), CPU, "eval"
        )


def test_no_clean_up_after_an_error() -> None:
    def forgetful(attack: Attack) -> Attack:
        def broken(victim: Any, x: Tensor, y: Tensor | None = None, **kw: Any) -> AttackResult:
            model = Victim.of(victim).model
            modes = [(m, m.training) for m in model.modules()]
            model.eval()
            result = attack(victim, x, y, **kw)
            for module, training in modes:  # no finally
                module.training = training
            return result

        return broken

    broken = planted("pgd-linf", forgetful)
    side_effects.check_no_side_effects(broken, CPU, "eval")
    for at in (1, 2):
        with caught():
            side_effects.check_no_side_effects_of_errors(broken, CPU, "eval", at, RuntimeError("planted"))


def test_model_gets_the_callers_memory() -> None:
    with caught():
        side_effects.check_model_that_writes_into_its_input(
            planted("pgd-linf", around(lambda model, x, y: model(x))), CPU
        )


# Counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bug",
    [
        after(lambda r, *_, **k: replace(r, queries=r.queries - 1)),
        after(lambda r, *_, **k: replace(r, gradients=r.gradients - 1)),
        around(lambda model, x, y: model(x)),
        after(lambda r, *_, **k: replace(r, queries=r.queries.flip(0))),
    ],
    ids=["final", "gradients", "uncounted", "shared"],
)
def test_counts(bug: Callable[[Attack], Attack]) -> None:
    with caught():
        counts.check_counts(planted("pgd-l2", bug), CPU)


def test_budget_of_queries() -> None:
    ignored = before(lambda victim, **_: {"victim": Victim.of(victim).model})
    late = before(lambda victim, **_: {"victim": Victim(victim.model, budget=victim.budget + 1)})
    for bug in (ignored, late):
        with caught():
            counts.check_budget_of_queries(planted("pgd-l2", bug), CPU, 4)
    halved = before(lambda victim, steps, **_: {"steps": steps // 2 if Victim.of(victim).budget else steps})
    with caught():
        counts.check_large_budget_changes_nothing(planted("pgd-l2", halved), CPU)


# Invariance ----------------------------------------------------------------------------------------------------------


def zero_mask(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """The classical slip: the label is taken out of the maximum by multiplying with 0."""
    hot = nn.functional.one_hot(y, logits.shape[1])
    return ((logits * hot).sum(1) - (logits * (1 - hot)).amax(1)).clamp_min(0)


def test_logit_shift() -> None:
    with caught():
        invariance.check_logit_shift(planted("pgd-linf", before(lambda **_: {"loss": zero_mask})), CPU, -300.0)

    def needs_positive(r: AttackResult, x: Tensor, y: Tensor, model: nn.Module, **k: Any) -> AttackResult:
        with torch.no_grad():
            return replace(r, success=r.success & (model(r.x_adv).amax(1) > 0))

    with caught():
        invariance.check_logit_shift(planted("deepfool-l2", after(needs_positive)), CPU, -300.0)


def test_layout() -> None:
    blind = before(lambda x, **_: {"x": torch.as_strided(x, x.shape, torch.empty(x.shape).stride())})
    for layout in ("transposed", "channels_last", "strided"):
        with caught(RuntimeError):
            invariance.check_layout(planted("pgd-linf", blind), CPU, layout)
    with caught(RuntimeError):
        invariance.check_layout(planted("pgd-linf", around(lambda model, x, y: x.mul_(1.0))), CPU, "expanded")


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_gradient_mode(mode: str) -> None:
    def differentiates(model: nn.Module, x: Tensor, y: Tensor) -> None:
        points = x.detach().clone().requires_grad_(True)
        torch.autograd.grad(model(points).sum(), points)

    with caught(RuntimeError):
        invariance.check_gradient_mode(planted("pgd-linf", around(differentiates)), CPU, mode)


def test_saturated_pixels() -> None:
    def atanh_without_margin(r: AttackResult, x: Tensor, *_: Any, **k: Any) -> AttackResult:
        return replace(r, x_adv=torch.where((x == 0) | (x == 1), torch.nan, r.x_adv))

    def stuck(r: AttackResult, x: Tensor, *_: Any, **k: Any) -> AttackResult:
        return replace(r, x_adv=torch.where((x == 0) | (x == 1), x, r.x_adv), success=r.success & False)

    for name, bug in (("cw-l2", atanh_without_margin), ("cw-l2", stuck), ("pgd-linf", stuck)):
        with caught():
            invariance.check_batch_of_one_on_saturated_pixels(planted(name, after(bug)), CPU)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug",
    [
        before(lambda eps, **_: {"eps": abs(eps) + 1e-3 if isinstance(eps, (int, float)) else eps}),
        before(lambda x, **_: {"x": x.clamp(0, 1) if isinstance(x, Tensor) else x}),
        before(lambda x, **_: {"x": x.double() if isinstance(x, Tensor) else x}),
        before(lambda y, **_: {"y": y.long().clamp(0, 2) if isinstance(y, Tensor) else y}),
        around(lambda model, x, y: model(torch.full((3, 2, 4, 4), 0.5, dtype=torch.float64))),
        before(lambda **_: {"norm": "linf"}),
    ],
    ids=["eps", "box", "dtype", "labels", "work first", "norm"],
)
def test_bad_arguments(bug: Callable[[Attack], Attack]) -> None:
    with caught():
        bad_input.check_bad_arguments(planted("pgd-linf", bug), CPU)


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("semantic_hsv", lambda x, **_: {"x": x.expand(-1, 3, -1, -1) if x.shape[1:] == (1, 4, 4) else x}),
        ("semantic_hsv", lambda x, **_: {"x": x[:, :3, None, None] if x.dim() == 2 else x}),
        ("one_pixel", lambda x, **_: {"x": x[..., None, None] if x.dim() == 2 else x}),
    ],
    ids=["gray", "flat", "flat, one pixel"],
)
def test_bad_dims(name: str, bug: Callable[..., dict[str, Any]]) -> None:
    bad = list(bad_input.bad_dims(case(name), torch.zeros(3, 2, 4, 4, dtype=torch.float64)))
    assert len(bad) == (2 if name == "semantic_hsv" else 1)
    with caught(pytest.fail.Exception, RuntimeError):
        for one in bad:
            bad_input.check_bad_argument(planted(name, before(bug)), one, CPU)
    for one in bad:
        bad_input.check_bad_argument(case(name), one, CPU)


def test_bad_targets_models_and_access() -> None:
    away = before(lambda y, target, **_: {"target": torch.where(target == y, (target + 1) % 3, target)})
    with pytest.raises(pytest.fail.Exception):
        bad_input.check_target_names_the_rows(planted("pgd-linf-targeted", away), CPU)
    anything = before(lambda victim, **_: {"victim": _Padded(Victim.of(victim).model)})
    with caught(pytest.fail.Exception, TypeError):
        bad_input.check_bad_models(planted("pgd-linf", anything), CPU)
    all_white = before(lambda victim, **_: {"victim": Victim.of(victim).model})
    with pytest.raises(pytest.fail.Exception):
        bad_input.check_access(planted("pgd-linf", all_white), CPU)
    swallows = before(lambda loss, **_: {"loss": "margin" if loss == "dlr" else loss})
    with pytest.raises(pytest.fail.Exception):
        bad_input.check_losses_that_need_classes(planted("pgd-linf", swallows), CPU)
    insists = around(lambda model, x, y: next(model.parameters()))
    with caught(StopIteration):
        bad_input.check_models_without_parameters(planted("pgd-linf", insists), CPU)


class _Padded(nn.Module):
    """Makes (N, K) of whatever a model returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).reshape(len(x), -1).repeat(1, 3)


# Broken models -------------------------------------------------------------------------------------------------------


def test_broken_models() -> None:
    def naive(r: AttackResult, x: Tensor, y: Tensor, model: nn.Module, **k: Any) -> AttackResult:
        points = x.detach().clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(points), y), points)
        return replace(r, x_adv=(x + 0.1 * grad / grad.abs().amax()).clamp(0, 1))

    for kind in ("nan-gradient", "zero-gradient"):
        with caught():
            pathological.check_broken_model(planted("pgd-linf", after(naive)), CPU, kind)
    claims = after(lambda r, *_, **k: replace(r, success=torch.ones_like(r.success)))
    with caught():
        pathological.check_constant_model(planted("pgd-linf", claims), CPU)
    with caught():
        pathological.check_nan_away_from_x(planted("pgd-linf", claims), CPU)
    with caught():
        pathological.check_nan_rows(planted("pgd-linf", claims), CPU)
    with caught():
        pathological.check_infinite_logits(planted("pgd-linf-targeted", claims), CPU)
    logits_only = before(lambda victim, **_: {"victim": Victim.of(victim).model})
    with caught():
        pathological.check_probabilities(planted("deepfool-l2", logits_only), CPU)


# Edges ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bug",
    [
        before(lambda eps, **_: {"eps": eps + 1e-12}),
        after(lambda r, x, *_, **k: replace(r, x_adv=(r.x_adv + 1e-16).clamp(0, 1) - 1e-16)),
        after(lambda r, *_, **k: replace(r, success=r.success & False)),
        before(lambda eps, **_: {"eps": torch.as_tensor(eps).max()}),
    ],
    ids=["floor", "rounding", "success", "one for all"],
)
def test_zero_budget(bug: Callable[[Attack], Attack]) -> None:
    edges.check_zero_budget(case("pgd-linf"), CPU)
    with caught():
        edges.check_zero_budget(planted("pgd-linf", bug), CPU)


def test_callers_batches() -> None:
    def one_of_many(r: AttackResult, x: Tensor, *_: Any, **k: Any) -> AttackResult:
        return replace(r, success=r.success ^ (torch.arange(len(x)) == 5))

    returns_x = after(lambda r, x, *_, **k: replace(r, x_adv=x))
    for size in (1, 3):
        for bug in (after(one_of_many), returns_x):
            with caught():
                edges.check_callers_batches(planted("pgd-linf", bug), CPU, size)


def test_least_likely_target() -> None:
    def likeliest(victim: Any, x: Tensor, y: Tensor, **_: Any) -> dict[str, Any]:
        others = Victim.of(victim).model(x).detach().scatter(1, y[:, None], -torch.inf)
        return {"target": others.argmax(dim=1)}

    gives_up = before(lambda eps, **_: {"eps": eps / 100})
    for bug in (before(likeliest), gives_up):
        with caught():
            edges.check_least_likely_target(planted("pgd-linf-targeted", bug), CPU)


def test_two_threads() -> None:
    def swaps_modes(attack: Attack) -> Attack:
        def broken(victim: Any, x: Tensor, y: Tensor | None = None, **kw: Any) -> AttackResult:
            model = Victim.of(victim).model
            time.sleep(0.02 * kw["seed"])
            modes = [(m, m.training) for m in model.modules()]
            model.eval()
            time.sleep(0.05 + 0.15 * kw["seed"])
            result = attack(victim, x, y, **kw)
            for module, training in modes:  # what the other thread has set, perhaps
                module.training = training
            return result

        return broken

    with caught():
        edges.check_two_threads(planted("pgd-linf", swaps_modes), CPU)


def test_every_combination_is_run() -> None:
    """One of each attack in every run, the rest of the product in the full one; an error names its case."""
    seen = []

    @over(case("pgd-l1"), case("pgd-l2"), case("fgsm-l2"), number=(1, 2))
    def test_that_fails_once(case: Case, number: int) -> None:
        seen.append((str(case), number))
        assert (str(case), number) != ("pgd-l2", 2)

    (mark,) = test_that_fails_once.pytestmark
    items = {item.id: item for item in mark.args[1]}
    assert sorted(items) == ["fgsm", "fgsm-rest", "pgd", "pgd-rest"]
    assert all(("full" in [m.name for m in items[key].marks]) == key.endswith("-rest") for key in items)
    for item in items.values():
        try:
            test_that_fails_once(item.values[0])
        except AssertionError as error:
            assert error.__notes__ == ["in the case pgd-l2 {'number': 2}"]
        else:
            assert item.id != "pgd-rest"
    assert len(seen) >= 5 and len(set(seen)) == len(seen)


# The optimum ---------------------------------------------------------------------------------------------------------


def test_optimum_of_budget_attacks() -> None:
    short = before(lambda eps, **_: {"eps": eps * 0.998})
    far = before(lambda eps, **_: {"eps": eps * 1.002})
    for bug in (short, far):
        for name in ("pgd-linf", "pgd-l2", "fgsm-l1"):
            with caught():
                optimum.check_budget_attack_two_classes(planted(name, bug), CPU, optimum.WIDE)
    with caught():
        optimum.check_budget_attack_two_classes(planted("fgsm-l2", short), CPU, optimum.TIGHT)
    for bug in (short, far, before(lambda loss, **_: {"loss": "ce", "steps": 3})):
        with caught():
            optimum.check_budget_attack_many_classes(planted("pgd-linf-targeted", bug), CPU)


def test_optimum_of_minimum_norm_attacks() -> None:
    far = before(lambda **_: {"overshoot": 0.01})

    def shorter(r: AttackResult, *_: Any, **k: Any) -> AttackResult:
        return replace(r, distances={name: d * 0.99 for name, d in r.distances.items()})

    fails = after(lambda r, *_, **k: replace(r, success=r.success & False))
    for classes in (2, 5):
        for bug in (far, after(shorter), fails):
            with caught():
                optimum.check_minimum_norm_attack(planted("deepfool-l2", bug), CPU, classes, optimum.WIDE, 1.002)
