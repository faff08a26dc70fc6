"""Other libraries behind one call each, at the settings of ours: torchattacks, foolbox, adv-lib, and for attacks that
only ask also ART and AutoAttack's Square. None is a dependency of ours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from types import ModuleType

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]

INSTALL = (
    "python -m pip install --target PEERS --no-deps torchattacks==3.5.1 foolbox==3.3.4 adv-lib==0.2.8 eagerpy "
    "GitPython gitdb smmap requests ml_collections absl-py contextlib2 six\n"
    "PYTHONPATH=PEERS python benchmarks/attacks.py peers"
)
WANTED = {"torchattacks": "3.5.1", "foolbox": "3.3.4", "adv_lib": "0.2.8"}
ASKING = {"art": "1.20.1", "pyautoattack": "0.2.0"}
"""Wanted beside attacks that ask."""
PACKAGES = {"art": "adversarial-robustness-toolbox"}


def available(wanted: dict[str, str] = WANTED) -> tuple[dict[str, ModuleType], list[str]]:
    """The peers that can be imported, and a line about each that cannot or is of another version."""
    sys.modules.setdefault("visdom", ModuleType("visdom"))  # adv-lib's live plots, which nobody asks for
    found, remarks = {}, []
    for name, version in wanted.items():
        try:
            found[name] = import_module(name)
        except ImportError as error:
            remarks.append(f"{name} is left out: {error}")
            continue
        if (have := metadata.version(PACKAGES.get(name, name))) != version:
            remarks.append(f"{name} is {have}; the published numbers are of {version}")
    return found, remarks


def torchattacks_runs(package: ModuleType) -> dict[str, Callable[..., Run]]:
    """Makers of runs by the name of the comparison; each takes that comparison's settings."""

    def pgd_linf(eps: float, step_size: float, steps: int) -> Run:
        return lambda m, x, y: package.PGD(m, eps=eps, alpha=step_size, steps=steps, random_start=True)(x, y)

    def pgd_l2(eps: float, step_size: float, steps: int) -> Run:
        return lambda m, x, y: package.PGDL2(m, eps=eps, alpha=step_size, steps=steps, random_start=True)(x, y)

    def deepfool(steps: int, overshoot: float, candidates: int) -> Run:
        # It always considers all classes, which for ten classes is what candidates=10 means.
        return lambda m, x, y: package.DeepFool(m, steps=steps, overshoot=overshoot)(x, y)

    def cw(steps: int, c: float, lr: float, search_steps: int) -> Run:
        if search_steps != 1:
            raise ValueError(f"search_steps: torchattacks tries one c only, got {search_steps}")
        return lambda m, x, y: package.CW(m, c=c, kappa=0, steps=steps, lr=lr)(x, y)

    def fab(norm: str, steps: int) -> Run:
        return lambda m, x, y: package.FAB(m, norm=norm, eps=1e4, steps=steps, n_restarts=1)(x, y)

    def square(eps: float, queries: int) -> Run:
        return lambda m, x, y: package.Square(m, norm="Linf", eps=eps, n_queries=queries, loss="margin")(x, y)

    return {
        "pgd linf": pgd_linf, "pgd l2": pgd_l2, "deepfool l2": deepfool, "cw l2, one c": cw, "square linf": square,
        "fab l2": partial(fab, "L2"), "fab linf": partial(fab, "Linf"),  # its L1 raises UnboundLocalError
    }  # fmt: skip


def foolbox_runs(package: ModuleType) -> dict[str, Callable[..., Run]]:
    """As :func:`torchattacks_runs`."""

    def run(attack: object, eps: float | None) -> Run:
        def call(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            wrapped = package.PyTorchModel(model, bounds=(0, 1), device=x.device)
            found = attack(wrapped, x, y, epsilons=eps)[1]
            # Where C&W fails, foolbox returns a black image, which is misread but was not searched for.
            black = (found == 0).flatten(1).all(dim=1)
            return torch.where(black.reshape(-1, *[1] * (x.dim() - 1)), x, found)

        return call

    def pgd_linf(eps: float, step_size: float, steps: int) -> Run:
        return run(package.attacks.LinfPGD(steps=steps, abs_stepsize=step_size, random_start=True), eps)

    def pgd_l2(eps: float, step_size: float, steps: int) -> Run:
        return run(package.attacks.L2PGD(steps=steps, abs_stepsize=step_size, random_start=True), eps)

    def deepfool(steps: int, overshoot: float, candidates: int) -> Run:
        return run(package.attacks.L2DeepFoolAttack(steps=steps, overshoot=overshoot, candidates=candidates), None)

    def cw(steps: int, c: float, lr: float, search_steps: int) -> Run:
        return run(
            package.attacks.L2CarliniWagnerAttack(
                binary_search_steps=search_steps, steps=steps, stepsize=lr, initial_const=c
            ),
            None,
        )

    def deepfool_linf(steps: int, overshoot: float, candidates: int) -> Run:
        return run(package.attacks.LinfDeepFoolAttack(steps=steps, overshoot=overshoot, candidates=candidates), None)

    def ead(steps: int, c: float, lr: float, search_steps: int, beta: float, rule: str) -> Run:
        settings = {"initial_const": c, "initial_stepsize": lr, "regularization": beta, "decision_rule": rule.upper()}
        return run(package.attacks.EADAttack(binary_search_steps=search_steps, steps=steps, **settings), None)

    def nes(eps: float, queries: int) -> Run:
        """It sums the losses of a batch, so that samples are attacked one by one. One more query per step."""
        estimated = package.gradient_estimators.es_gradient_estimator(
            package.attacks.LinfPGD, samples=50, sigma=1e-3, bounds=(0, 1), clip=True
        )
        alone = run(estimated(steps=max(1, queries // 51), abs_stepsize=eps / 5, random_start=False), eps)
        return lambda m, x, y: torch.cat([alone(m, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])

    def boundary(eps: float, queries: int) -> Run:
        """It asks once for each step, and once more in every tenth."""
        start = package.attacks.LinearSearchBlendedUniformNoiseAttack(directions=100, steps=10)
        return run(package.attacks.BoundaryAttack(init_attack=start, steps=max(1, int(queries / 1.1))), None)

    def hsja(constraint: str, eps: float, queries: int) -> Run:
        start = package.attacks.LinearSearchBlendedUniformNoiseAttack(directions=100, steps=10)
        steps = rounds_of_hsja(queries)
        return run(package.attacks.HopSkipJumpAttack(init_attack=start, steps=steps, constraint=constraint), None)

    def plain(name: str, steps: int) -> Run:
        return run(getattr(package.attacks, name)(steps=steps), None)

    return {
        "pgd linf": pgd_linf, "pgd l2": pgd_l2, "deepfool l2": deepfool, "deepfool linf": deepfool_linf,
        "cw l2, one c": cw, "cw l2, search": cw, "ead l1": ead, "ddn l2": partial(plain, "DDNAttack"), "nes linf": nes,
        "boundary l2": boundary, "hsja l2": partial(hsja, "l2"), "hsja linf": partial(hsja, "linf"),
        "fmn l0": partial(plain, "L0FMNAttack"), "fmn l1": partial(plain, "L1FMNAttack"),
        "fmn l2": partial(plain, "L2FMNAttack"), "fmn linf": partial(plain, "LInfFMNAttack"),
    }  # fmt: skip


def adv_lib_runs(package: ModuleType) -> dict[str, Callable[..., Run]]:
    """As :func:`torchattacks_runs`."""
    attacks = import_module("adv_lib.attacks")

    def fab(norm: float, steps: int) -> Run:
        return lambda m, x, y: attacks.fab(m, x, y, norm=norm, n_iter=steps)

    def pgd_linf(eps: float, step_size: float, steps: int) -> Run:
        return lambda m, x, y: attacks.pgd_linf(m, x, y, ε=eps, steps=steps, absolute_step_size=step_size)

    def ddn(steps: int) -> Run:
        return lambda m, x, y: attacks.ddn(m, x, y, steps=steps, levels=None)

    def fmn(norm: float, steps: int) -> Run:
        return lambda m, x, y: attacks.fmn(m, x, y, norm=norm, steps=steps)

    def sigma_zero(steps: int) -> Run:
        return lambda m, x, y: attacks.sigma_zero(m, x, y, num_steps=steps)

    def deepfool(norm: float, steps: int, overshoot: float, candidates: int) -> Run:
        # As torchattacks, it always considers all classes.
        return lambda m, x, y: attacks.df(m, x, y, steps=steps, overshoot=overshoot, norm=norm)

    def cw(steps: int, c: float, lr: float, search_steps: int) -> Run:
        settings = {"learning_rate": lr, "initial_const": c, "binary_search_steps": search_steps}
        return lambda m, x, y: attacks.carlini_wagner_l2(m, x, y, max_iterations=steps, **settings)

    def cw_linf(steps: int, c: float, lr: float) -> Run:
        settings = {"learning_rate": lr, "initial_const": c}
        return lambda m, x, y: attacks.carlini_wagner_linf(m, x, y, max_iterations=steps, **settings)

    orders = {"l0": 0, "l1": 1, "l2": 2, "linf": float("inf")}
    return {
        "pgd linf": pgd_linf,
        **{f"fab {norm}": partial(fab, orders[norm]) for norm in ("l1", "l2", "linf")},
        "ddn l2": ddn,
        **{f"fmn {norm}": partial(fmn, order) for norm, order in orders.items()},
        "sigma_zero l0": sigma_zero,
        **{f"deepfool {norm}": partial(deepfool, orders[norm]) for norm in ("l2", "linf")},
        "cw l2, search": cw,
        "cw linf": cw_linf,
    }


def rounds_of_hsja(queries: int) -> int:
    """How many rounds the queries pay for: 100·√t directions in the t-th, and about 30 for bisection and step."""
    spent, rounds = 0.0, 0
    while spent + 100 * (rounds + 1) ** 0.5 + 30 <= queries:
        rounds += 1
        spent += 100 * rounds**0.5 + 30
    return max(1, rounds)


class Single(nn.Module):
    """To float32: ART's Sign-OPT asks in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def art_runs(package: ModuleType) -> dict[str, Callable[..., Run]]:
    """As :func:`torchattacks_runs`. All but Square go from image to image, and stop by rounds, not by queries."""
    evasion = import_module("art.attacks.evasion")
    torch_models = import_module("art.estimators.classification")

    def run(build: Callable[[object], object], *, labeled: bool = False) -> Run:
        def call(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            classes = model(x[:1]).shape[1]
            single = nn.Sequential(Single(), model).eval()
            wrapped = torch_models.PyTorchClassifier(
                single, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, clip_values=(0.0, 1.0), device_type="cpu"
            )
            told = {"y": y.numpy()} if labeled else {}
            return torch.from_numpy(build(wrapped).generate(x.numpy(), **told))  # type: ignore[attr-defined]

        return call

    def hsja(norm: object, eps: float, queries: int) -> Run:
        rounds = rounds_of_hsja(queries)
        return run(lambda m: evasion.HopSkipJump(m, norm=norm, max_iter=rounds, verbose=False))

    def boundary(eps: float, queries: int) -> Run:  # at least 20 points to the side and 20 inwards in a round
        rounds = max(1, queries // 40)
        return run(lambda m: evasion.BoundaryAttack(m, targeted=False, max_iter=rounds, verbose=False))

    def sign_opt(eps: float, queries: int) -> Run:
        how = {"targeted": False, "query_limit": queries, "num_trial": max(1, queries // 20)}
        how["k"] = min(200, queries // 4)
        return run(lambda m: evasion.SignOPTAttack(m, **how), labeled=True)

    def zoo(eps: float, queries: int) -> Run:
        how = {"learning_rate": 0.05, "initial_const": 1.0, "nb_parallel": 16, "binary_search_steps": 1}
        how |= {"use_resize": False, "use_importance": False, "abort_early": False, "verbose": False}
        return run(lambda m: evasion.ZooAttack(m, max_iter=max(1, queries // 33), **how))

    def square(norm: object, eps: float, queries: int) -> Run:
        return run(lambda m: evasion.SquareAttack(m, norm=norm, eps=eps, max_iter=queries, verbose=False), labeled=True)

    return {
        "hsja l2": partial(hsja, 2), "hsja linf": partial(hsja, "inf"), "boundary l2": boundary,
        "sign_opt l2": sign_opt, "zoo l2": zoo, "square linf": partial(square, "inf"), "square l2": partial(square, 2),
    }  # fmt: skip


def pyautoattack_runs(package: ModuleType) -> dict[str, Callable[..., Run]]:
    """As :func:`torchattacks_runs`: AutoAttack's own Square."""

    def square(norm: str, eps: float, queries: int) -> Run:
        module = import_module("pyautoattack.square")
        return lambda m, x, y: module.SquareAttack(
            m, norm=norm, eps=eps, n_queries=queries, p_init=0.8, resc_schedule=True, seed=0, device="cpu"
        ).perturb(x, y)

    return {"square linf": partial(square, "Linf"), "square l2": partial(square, "L2")}


MAKERS = {
    "torchattacks": torchattacks_runs, "foolbox": foolbox_runs, "adv_lib": adv_lib_runs, "art": art_runs,
    "pyautoattack": pyautoattack_runs,
}  # fmt: skip
