"""The suites whose methods are still to come, each check seen to fail on a specimen that is broken on purpose."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from tests.suite.kinds import specimens as good
from tests.suite.kinds import test_applications as application
from tests.suite.kinds import test_certified as certified
from tests.suite.kinds import test_physical as physical
from tests.suite.kinds import test_solvers as solver
from tests.suite.kinds import test_trainers as trainer
from tests.suite.kinds import test_universal as universal
from tests.suite.kinds.cases import CPU, specimen

CAUGHT = (AssertionError, pytest.fail.Exception, RuntimeError, TypeError)
Method = Callable[..., Any]


def like(function: Method) -> Callable[[Method], Method]:
    """A broken method with the signature of a good one."""
    return functools.wraps(function)


def returning(function: Method, **changes: Callable[..., Any]) -> Method:
    """The method with other fields in its result: name → function of the result and the second argument."""

    @like(function)
    def broken(first: Any, second: Any, *more: Any, **kw: Any) -> Any:
        result = function(first, second, *more, **kw)
        return replace(result, **{name: change(result, second) for name, change in changes.items()})

    return broken


def given(function: Method, **changes: Callable[[Any], Any]) -> Method:
    """The method with other arguments: name → function of what was given."""

    @like(function)
    def broken(*args: Any, **kw: Any) -> Any:
        names = list(inspect.unwrap(good.__dict__[function.__name__]).__code__.co_varnames)
        whole = dict(zip(names, args, strict=False)) | kw
        whole |= {name: change(whole.get(name)) for name, change in changes.items()}
        positional = [whole.pop(name) for name in names[: len(args)]]
        return function(*positional, **whole)

    return broken


def after(function: Method, step: Callable[..., Any]) -> Method:
    """The method, before which something is done to its arguments."""

    @like(function)
    def broken(*args: Any, **kw: Any) -> Any:
        step(*args, **kw)
        return function(*args, **kw)

    return broken


def caught(check: Callable[..., None], case: Any) -> None:
    with pytest.raises(CAUGHT):
        check(case, CPU)


# Universal -----------------------------------------------------------------------------------------------------------


def one_for_each(victim: Any, x: Tensor, y: Tensor | None = None, **kw: Any) -> Any:
    """A "universal" δ made on the first image alone, and success by its own δ for each image."""
    results = [good.common_gradient(victim, x[i : i + 1], **kw) for i in range(len(x))]
    whole = good.common_gradient(victim, x, y, **kw)
    return replace(whole, success=torch.cat([r.success for r in results]), delta=results[0].delta)


def against_labels(victim: Any, x: Tensor, y: Tensor | None = None, **kw: Any) -> Any:
    result = good.common_gradient(victim, x, y, **kw)
    if y is None:
        return result
    with torch.no_grad():
        return replace(result, success=Victim.of(victim).model((x + result.delta).clamp(0, 1)).argmax(1) != y)


def unclipped(victim: Any, x: Tensor, y: Tensor | None = None, **kw: Any) -> Any:
    result = good.common_gradient(victim, x, y, **kw)
    Victim.of(victim).model(x + result.delta)
    return result


UNIVERSAL = [
    (given(good.common_gradient, eps=lambda eps: 1.05 * eps), universal.check_delta_and_success),
    (against_labels, universal.check_delta_and_success),
    (returning(good.common_gradient, success=lambda r, x: ~r.success), universal.check_delta_and_success),
    (returning(good.common_gradient, delta=lambda r, x: r.delta[None].expand_as(x)), universal.check_delta_and_success),
    (returning(good.common_gradient, delta=lambda r, x: r.delta.float()), universal.check_delta_and_success),
    (one_for_each, universal.check_delta_and_success),
    (given(good.common_gradient, eps=lambda eps: eps / 10), universal.check_held_out),
    (returning(good.common_gradient, queries=lambda r, x: r.queries - 1), universal.check_universal_counts),
    (unclipped, universal.check_universal_counts),
    (given(good.common_gradient, eps=lambda eps: max(eps, 0.01)), universal.check_edges),
    (after(good.common_gradient, lambda victim, x, *_, **kw: Victim.of(victim).model(x)), universal.check_edges),
    (after(good.common_gradient, lambda *_, **kw: torch.rand(1)), universal.check_universal_manners),
    (after(good.common_gradient, lambda victim, *_, **kw: victim.eval()), universal.check_universal_manners),
    (given(good.common_gradient, x=lambda x: torch.as_tensor(x).nan_to_num(0.5)), universal.check_universal_bad_input),
]


@pytest.mark.parametrize(("bug", "check"), UNIVERSAL)
def test_broken_universal_attacks_are_seen(bug: Method, check: Callable[..., None]) -> None:
    case = next(case for case in universal.CASES if str(case) == "common_gradient-linf")
    check(case, CPU)
    caught(check, replace(case, attack=like(case.attack)(bug)))


# Physical ------------------------------------------------------------------------------------------------------------


def made_on_what_judges(
    victim: Any, x: Tensor, y: Tensor | None = None, *, scenes: Any, held_out: Any, **kw: Any
) -> Any:
    return good.printed_patch(victim, x, y, scenes=held_out[1], held_out=held_out, **kw)


def judged_by_its_own_scenes(victim: Any, x: Tensor, y: Any = None, *, scenes: Any, held_out: Any, **kw: Any) -> Any:
    own = good.printed_patch(victim, x, y, scenes=scenes, held_out=(x[:1].expand_as(held_out[0]), scenes * 2), **kw)
    return replace(own, success=own.success[:, : len(held_out[1])])


PHYSICAL = [
    (returning(good.printed_patch, texture=lambda r, x: r.texture + 0.01 * ~r.mask), physical.check_texture),
    (returning(good.printed_patch, texture=lambda r, x: r.texture * 0.95), physical.check_texture),
    (returning(good.printed_patch, texture=lambda r, x: r.texture * 2), physical.check_texture),
    (returning(good.printed_patch, mask=lambda r, x: ~r.mask), physical.check_texture),
    (returning(good.printed_patch, success=lambda r, x: ~r.success), physical.check_held_out_success),
    (judged_by_its_own_scenes, physical.check_held_out_success),
    (given(good.printed_patch, colors=lambda c: torch.full_like(c, 0.5)), physical.check_held_out_success),
    (made_on_what_judges, physical.check_made_on_its_own_scenes),
    (returning(good.printed_patch, queries=lambda r, x: r.queries + 1), physical.check_physical_counts),
    (after(good.printed_patch, lambda victim, x, *_, mask, **kw: mask.fill_(True)), physical.check_physical_manners),
    (returning(good.printed_patch, texture=lambda r, x: r.texture + torch.rand(())), physical.check_physical_manners),
    (given(good.printed_patch, scenes=lambda s: s or [lambda i, t, m: i]), physical.check_physical_bad_input),
]


@pytest.mark.parametrize(("bug", "check"), PHYSICAL)
def test_broken_physical_attacks_are_seen(bug: Method, check: Callable[..., None]) -> None:
    case = next(case for case in physical.CASES if str(case) == "printed_patch")
    check(case, CPU)
    caught(check, replace(case, attack=like(case.attack)(bug)))


# Estimators, solvers, wrappers ---------------------------------------------------------------------------------------


def without_d(values: Any, x: Tensor, **kw: Any) -> Tensor:
    """The classical slip: the factor d is lost."""
    return good.sphere_gradient(values, x, **kw) / len(x)


def only_positive(values: Any, x: Tensor, *, seed: int = 0, **kw: Any) -> Tensor:
    return good.sphere_gradient(values, x, seed=seed, **kw).abs()


def stops_early(values: Any, x: Tensor, **kw: Any) -> Any:
    return good.coordinate_descent(values, x, steps=1)


def cached(values: Any, x: Tensor, **kw: Any) -> Any:
    values(x[None])
    return good.coordinate_descent(values, x, **kw)


def one_more_at_odd_seeds(values: Any, x: Tensor, *, seed: int = 0, **kw: Any) -> Tensor:
    values(x[None].repeat(seed % 2, 1))
    return good.sphere_gradient(values, x, seed=seed, **kw)


def shrinks(values: Any, x: Tensor, **kw: Any) -> None:
    x.data.mul_(0.9)


SOLVERS = [
    ("sphere_gradient", without_d, solver.check_unbiased),
    ("sphere_gradient", only_positive, solver.check_unbiased),
    ("coordinate_descent", stops_early, solver.check_descends),
    ("coordinate_descent", cached, solver.check_values_are_counted),
    ("sphere_gradient", one_more_at_odd_seeds, solver.check_values_are_counted),
    ("sphere_gradient", after(good.sphere_gradient, lambda f, x, **kw: torch.rand(1)), solver.check_solver_manners),
    ("coordinate_descent", after(good.coordinate_descent, shrinks), solver.check_solver_manners),
    ("sphere_gradient", given(good.sphere_gradient, q=lambda q: max(q or 3, 1)), solver.check_solver_bad_input),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bug", "check"), SOLVERS)
def test_broken_solvers_are_seen(name: str, bug: Method, check: Callable[..., None]) -> None:
    case = next(case for case in solver.CASES if case.row.key == name)
    check(case, CPU)
    caught(check, replace(case, function=like(case.function)(bug)))


class Doubled(nn.Module):
    """A wrapper whose gradient is twice the map's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(2 * x - x.detach())


class Noisy(nn.Module):
    """Draws from the global generator."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + torch.randn_like(x))


def test_broken_wrappers_are_seen() -> None:
    for wrapper in (Doubled, Noisy):

        def broken(model: nn.Module, *, seed: int = 0, wrapper: type[nn.Module] = wrapper) -> nn.Module:
            return wrapper(model)

        case = specimen("solver", broken)
        caught(solver.check_wrapped_gradient, case)
        if wrapper is Noisy:
            caught(solver.check_wrapper_manners, case)
    caught(solver.check_wrapper_bad_input, specimen("solver", lambda transform: nn.Identity()))


# Trainers ------------------------------------------------------------------------------------------------------------


def losing(change: Callable[..., Tensor]) -> Method:
    """Noise training with another loss: ``change(loss, model, x, y, seed)``."""

    def broken(*, sigma: float = 0.1) -> Callable[..., Tensor]:
        whole = good.gaussian_noise(sigma=sigma)

        def loss(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
            return change(whole(model, x, y, ids=ids, seed=seed), model, x, y, seed)

        loss.takes_labels = True  # type: ignore[attr-defined]
        return loss

    return broken


def own_ids(*, sigma: float = 0.1) -> Callable[..., Tensor]:
    whole = good.gaussian_noise(sigma=sigma)
    return lambda model, x, y, *, ids, seed: whole(model, x, y, ids=torch.arange(len(x)), seed=seed)


def labels_unseen(*, sigma: float = 0.1) -> Callable[..., Tensor]:
    whole = good.gaussian_noise(sigma=sigma)
    return lambda model, x, y, *, ids, seed: whole(model, x, y.remainder(3), ids=ids, seed=seed)


def silent(*, sigma: float = 0.1) -> Callable[..., Tensor]:
    """With the arguments of another one."""
    made = good.gaussian_noise(sigma=0.1)
    made.arguments = {"sigma": 0.1}  # type: ignore[attr-defined]
    return made


def seedless(*, sigma: float = 0.1) -> Callable[..., Tensor]:
    whole = good.gaussian_noise(sigma=sigma)

    def loss(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        torch.seed()
        return whole(model, x, y, ids=ids, seed=int(torch.randint(100, ())))

    return loss


TRAINERS = [
    (losing(lambda loss, *_: 1.01 * loss), trainer.check_loss_is_the_formula),
    (own_ids, trainer.check_loss_is_the_formula),
    (losing(lambda loss, *_: loss.bfloat16()), trainer.check_mixed_precision),
    (losing(lambda loss, *_: loss + loss.detach()), trainer.check_gradient),
    (losing(lambda loss, model, *_: loss + 0 * model.train()[-1].bias.sum()), trainer.check_objective_manners),
    (losing(lambda loss, model, x, *_: loss + 0 * torch.rand(())), trainer.check_objective_manners),
    (seedless, trainer.check_same_seed_same_weights),
    (labels_unseen, trainer.check_training_bad_data),
    (silent, trainer.check_arguments_are_told),
]


@pytest.mark.parametrize(("bug", "check"), TRAINERS)
def test_broken_trainers_are_seen(bug: Method, check: Callable[..., None]) -> None:
    case = next(case for case in trainer.CASES if case.row.key == "gaussian_noise")
    check(case, CPU)
    caught(check, replace(case, function=bug))


def test_a_trainer_without_a_formula_is_seen() -> None:
    case = next(case for case in trainer.CASES if case.row.key == "gaussian_noise")
    with pytest.raises(AssertionError, match="want a function `formula`"):
        trainer.check_loss_is_the_formula(replace(case, row=replace(case.row, key="pgd", cite="madry2018")), CPU)


# Certified defenses --------------------------------------------------------------------------------------------------

CERTIFIED = [
    ("smoothed_majority", {"radius": lambda r, x: r.radius * 2}, certified.check_no_radius_is_broken),
    ("lipschitz_radius", {"radius": lambda r, x: r.radius * 2.1}, certified.check_no_radius_is_broken),
    ("smoothed_majority", {"radius": lambda r, x: r.radius + 0.01}, certified.check_form),
    ("smoothed_majority", {"confidence": lambda r, x: 1.0}, certified.check_form),
    ("smoothed_majority", {"confidence": lambda r, x: 0.5}, certified.check_form),
    ("lipschitz_radius", {"radius": lambda r, x: -r.radius}, certified.check_form),
    ("lipschitz_radius", {"method": lambda r, x: "certify"}, certified.check_form),
    ("lipschitz_radius", {"radius": lambda r, x: r.radius / max(len(x), 1)}, certified.check_samples_stand_alone),
    ("lipschitz_radius", {"radius": lambda r, x: r.radius * torch.rand(())}, certified.check_certified_manners),
]


@pytest.mark.parametrize(("name", "changes", "check"), CERTIFIED)
def test_broken_certificates_are_seen(name: str, changes: dict[str, Method], check: Callable[..., None]) -> None:
    case = next(case for case in certified.CASES if case.row.key == name)
    check(case, CPU)
    caught(check, replace(case, function=returning(case.function, **changes)))


def test_certificates_of_bad_input_are_seen() -> None:
    case = next(case for case in certified.CASES if case.row.key == "smoothed_majority")
    certified.check_certified_bad_input(case, CPU)
    for name, change in (("sigma", lambda s: abs(s or 1.0)), ("x", lambda x: torch.as_tensor(x).nan_to_num(0.5))):
        caught(certified.check_certified_bad_input, replace(case, function=given(case.function, **{name: change})))


# Applications --------------------------------------------------------------------------------------------------------


def unchecked(model: nn.Module, data: Any, **kw: Any) -> Any:
    x, y = data
    return good.reprogram(model, (x.nan_to_num(0.5), y), **kw)


APPLICATIONS = [
    (returning(good.reprogram, accuracy=lambda r, data: r.accuracy + 0.01), application.check_result_is_measured_again),
    (returning(good.reprogram, program=lambda r, data: r.program - 1), application.check_result_is_measured_again),
    (after(good.reprogram, lambda model, data, **kw: data[0].mul_(0.5)), application.check_application_manners),
    (after(good.reprogram, lambda model, data, **kw: model.eval()), application.check_application_manners),
    (unchecked, application.check_application_bad_input),
]


@pytest.mark.parametrize(("bug", "check"), APPLICATIONS)
def test_broken_applications_are_seen(bug: Method, check: Callable[..., None]) -> None:
    case = next(case for case in application.CASES if case.row.key == "reprogram")
    check(case, CPU)
    caught(check, replace(case, function=like(case.function)(bug)))
