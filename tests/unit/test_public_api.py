"""The public surface: documented, typed, and the same for editors as for Python."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import robustlab
from robustlab.attacker.results import AttackResult
from robustlab.teaching.catalogue import rows
from tests.every import every

ROOT = Path(robustlab.__file__).parent
LAZY = sorted(path.parent.name for path in ROOT.glob("*/__init__.pyi"))


def modules() -> list[ModuleType]:
    found = [robustlab]
    for info in pkgutil.walk_packages(robustlab.__path__, "robustlab."):
        if not info.name.endswith(("__main__", "make_embedded")):
            found.append(importlib.import_module(info.name))
    return found


def public() -> dict[str, Any]:
    """Functions and classes without a leading underscore, where they are defined."""
    found = {}
    for module in modules():
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                found[f"{module.__name__}.{name}"] = thing
    return found


PUBLIC = public()
METHODS = {row.key: row for row in rows(done=True)}


def method(key: str) -> Any:
    module, _, name = str(METHODS[key].callable).partition(":")
    return getattr(importlib.import_module(module), name)


def missing_words(doc: str, parameters: list[str]) -> list[str]:
    """Arguments that a docstring does not name at the start of an entry (``a, b: …`` names two)."""
    named = set()
    for line in doc.splitlines():
        if entry := re.match(r"\s*([\w*, ]+):", line):
            named |= {word.strip(" *") for word in entry.group(1).split(",")}
    return [name for name in parameters if name not in named]


@every("module", modules(), label=lambda module: module.__name__)
def test_modules_say_what_they_are(module: ModuleType) -> None:
    file = Path(str(module.__file__))
    if file.read_text().strip():
        assert module.__doc__ and len(module.__doc__.strip()) > 20


@every("name", PUBLIC)
def test_everything_public_has_a_docstring(name: str) -> None:
    thing = PUBLIC[name]
    assert thing.__doc__ and not thing.__doc__.startswith(f"{thing.__name__}("), f"{name} has no docstring"
    first = thing.__doc__.strip().splitlines()[0]
    assert 10 < len(first) <= 120 and first.rstrip().endswith((".", ":", "…")), f"{name}: {first!r}"


@every("name", [n for n, t in PUBLIC.items() if inspect.isfunction(t)])
def test_public_functions_are_typed(name: str) -> None:
    function = PUBLIC[name]
    hints = function.__annotations__
    for parameter in inspect.signature(function).parameters:
        assert parameter in hints, f"{name}: {parameter} has no type"
    assert "return" in hints, f"{name} has no return type"


@every("key", METHODS)
def test_methods_are_documented_in_full(key: str) -> None:
    """Every argument, what is raised, the source with a year."""
    function = method(key)
    doc = inspect.getdoc(function) or ""
    if inspect.isfunction(function):
        parameters = list(inspect.signature(function).parameters)
        shared = re.search(r"other arguments.*?those\s+of\s+:func:`([\w.~]+)`", doc, re.DOTALL)
        if shared:
            module, _, other = shared.group(1).lstrip("~").rpartition(".")
            doc += "\n" + (inspect.getdoc(getattr(importlib.import_module(module), other)) or "")
        assert missing_words(doc, parameters) == [], f"{key}: arguments that its docstring does not name"
    assert "Raises:" in doc or "errors are those" in doc.replace("\n", " "), f"{key}: what does it raise?"
    assert re.search(r"Source:\s.*\(\d{4}\w?\)", doc, re.DOTALL), f"{key}: whose method is it?"


@every("key", [k for k, row in METHODS.items() if row.kind == "attack"])
def test_attacks_share_one_signature(key: str) -> None:
    """(victim, x, y=None, *, …), keyword-only after the data, with seed, ids and progress; eps if it has a budget."""
    parameters = inspect.signature(method(key)).parameters
    assert list(parameters)[:3] == ["victim", "x", "y"] and parameters["y"].default is None
    named = {name: p for name, p in parameters.items() if name not in ("victim", "x", "y")}
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in named.values())
    row = METHODS[key]
    expected = {"seed", "ids", "progress", *(["target"] if row.targeted else []), *(["norm"] if row.norms else [])}
    assert expected <= set(parameters)
    if row.norms or row.min_norm:
        assert row.min_norm or "eps" in parameters
    if "eps" in parameters:
        assert (parameters["eps"].default is parameters["eps"].empty) is not row.min_norm
    assert parameters["seed"].default == 0 and parameters["ids"].default is None
    assert issubclass(get_type_hints(method(key))["return"], AttackResult)


@every("package", LAZY)
def test_lazy_packages_show_editors_what_python_finds(package: str) -> None:
    """Each name of the stub exists where the stub says, and the package has these names and no others."""
    module = importlib.import_module(f"robustlab.{package}")
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text())
    shown = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, f"{alias.name}: write `as {alias.name}`, or editors hide it"
                shown[alias.name] = str(node.module)
    assert sorted(shown) == sorted(module.__all__) == sorted(dir(module))
    for name, where in shown.items():
        assert getattr(module, name) is getattr(importlib.import_module(where), name)


@every("module", modules(), label=lambda module: module.__name__)
def test_what_a_module_lists_it_defines(module: ModuleType) -> None:
    """``__all__`` of a module with methods has the methods too: it says all that users import."""
    listed = vars(module).get("__all__")
    is_package = hasattr(module, "__path__")
    if listed is not None and not is_package:
        assert {row.key for row in METHODS.values() if row.module == module.__name__} <= set(listed)
        assert all(vars(module)[name].__module__ == module.__name__ for name in listed)


def test_typed_marker_and_version() -> None:
    assert (ROOT / "py.typed").exists()
    assert re.fullmatch(r"\d+\.\d+\.\d+", robustlab.__version__)


def test_no_method_file_holds_two_ideas() -> None:
    """About 250 lines are one idea."""
    for family in ("attacks", "defenses", "verification", "evaluation", "applications"):
        for file in (ROOT / family).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 270, file


def test_the_check_of_arguments_sees_a_gap() -> None:
    doc = "One line.\n\nArgs:\n    x: a thing.\n    y, *z: two things.\n"
    assert missing_words(doc, ["x", "y", "z", "eps"]) == ["eps"]
