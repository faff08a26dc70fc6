"""torchattacks and foolbox behind one call each, at the settings of ours. Neither is a dependency of robustlab."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from types import ModuleType

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]

INSTALL = (
    "python -m pip install --target PEERS --no-deps torchattacks==3.5.1 foolbox==3.3.4 eagerpy GitPython gitdb smmap "
    "requests ml_collections absl-py contextlib2 six\n"
    "PYTHONPATH=PEERS python benchmarks/attacks.py peers"
)
WANTED = {"torchattacks": "3.5.1", "foolbox": "3.3.4"}


def available() -> tuple[dict[str, ModuleType], list[str]]:
    """The peers that can be imported, and a line about each that cannot or is of another version."""
    found, remarks = {}, []
    for name, version in WANTED.items():
        try:
            found[name] = import_module(name)
        except ImportError as error:
            remarks.append(f"{name} is left out: {error}")
            continue
        if metadata.version(name) != version:
            remarks.append(f"{name} is {metadata.version(name)}; the published numbers are of {version}")
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

    return {"pgd linf": pgd_linf, "pgd l2": pgd_l2, "deepfool l2": deepfool, "cw l2, one c": cw}


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

    return {"pgd linf": pgd_linf, "pgd l2": pgd_l2, "deepfool l2": deepfool, "cw l2, one c": cw, "cw l2, search": cw}


MAKERS = {"torchattacks": torchattacks_runs, "foolbox": foolbox_runs}
