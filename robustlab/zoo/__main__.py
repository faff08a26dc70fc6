"""``python -m robustlab.zoo list | train NAME | check [NAME]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from robustlab.files import require_writable
from robustlab.zoo.recipes import recipe
from robustlab.zoo.shipped import carries_trigger, info, names
from robustlab.zoo.training import check, measure, save, ship, train_with_trigger


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, 1 if a check fails."""
    parser = argparse.ArgumentParser(prog="python -m robustlab.zoo", description="The shipped checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the checkpoints with their recorded accuracies")
    training = commands.add_parser("train", help="train a checkpoint by its recipe")
    training.add_argument("name", choices=names(), metavar="NAME")
    training.add_argument("--out", type=Path, help="file to write (default: NAME.safetensors in this folder)")
    training.add_argument("--device", help="such as cuda (default: cpu)")
    training.add_argument("--progress", action="store_true", help="show a bar, in a terminal")
    training.add_argument("--ship", action="store_true", help="replace the shipped file and its record")
    checking = commands.add_parser("check", help="measure the recorded accuracies again")
    checking.add_argument("name", nargs="?", choices=names(), metavar="NAME", help="default: all of them")
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal that has no Greek shows ? for it
        sys.stdout.reconfigure(errors="replace")
    if arguments.command == "list":
        return _list()
    if arguments.command == "check":
        return _check([arguments.name] if arguments.name else list(names()))
    if arguments.ship and arguments.out:
        parser.error("--ship and --out exclude each other")
    if arguments.ship:
        measured = ship(arguments.name, device=arguments.device, progress=arguments.progress)
        where = "shipped"
    else:
        path = arguments.out or Path(f"{arguments.name}.safetensors")
        try:
            require_writable(path)
        except ValueError as error:
            parser.error(str(error))
        model, key = train_with_trigger(arguments.name, device=arguments.device, progress=arguments.progress)
        save(model, path, key if carries_trigger(arguments.name) else None)
        measured, where = measure(model, arguments.name, key=key), str(path)
    attack = recipe(arguments.name).attack
    print(
        f"{arguments.name}: accuracy {measured.accuracy:.3f}, under {_named(attack)} {measured.robust_accuracy:.3f}"
        + (f", under AutoAttack {measured.autoattack_accuracy:.3f}" if measured.autoattack_accuracy is not None else "")
        + (f", certified by IBP {measured.ibp_accuracy:.3f}" if measured.ibp_accuracy is not None else "")
        + (f", by CROWN {measured.crown_accuracy:.3f}" if measured.crown_accuracy is not None else "")
        + (f", backdoor {measured.attack_success:.3f}" if measured.attack_success is not None else "")
        + f" ({where})"
    )
    return 0


def _named(attack: Mapping[str, Any]) -> str:
    """The attack under which a checkpoint was measured; a shirt and words have no norm."""
    if "changes" in attack:
        return f"paraphrases of {attack['changes']:.0%} of the words"
    if "eps" not in attack:
        return "a T-shirt made for it"
    return f"PGD-{attack['steps']} at {attack.get('norm', 'linf')} {attack['eps']}"


def _list() -> int:
    print(f"{'name':<22}{'data':<18}{'weights':>8}{'accuracy':>10}{'under PGD-40':>19}   model")
    for name in names():
        facts = info(name)
        eps = facts["attack"].get("eps", facts["attack"].get("changes"))
        robust = f"{facts['robust_accuracy']:.3f} @ " + ("shirt" if eps is None else f"{eps:g}")
        print(
            f"{name:<22}{facts['dataset']:<18}{facts['parameters']:>8,}{facts['accuracy']:>10.3f}{robust:>19}   "
            f"{facts['title']}"
        )
    return 0


def _check(wanted: list[str]) -> int:
    failed = False
    for name in wanted:
        before, now, agree = check(name)
        failed |= not agree
        shown = ", ".join(f"{key} {now[key]:.3f} (recorded {before[key]:.3f})" for key in before)
        print(f"{name}: {shown}: {'ok' if agree else 'DIFFERS'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
