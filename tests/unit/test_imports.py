"""Imports point one way, form no circle, and cost little. Read from the source, so that lazy imports count too."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.every import every

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "robustlab"

# Layers, lowest first. A unit may import units of its own layer (without circles) or of a lower one.
LAYERS = (
    ("_lazy", "checks", "files", "intervals", "progress", "teaching.plot", "teaching.reports"),
    ("geometry",),
    ("models",),
    ("graph",),
    ("data", "attacker"),
    ("training",),
    ("zoo",),
    ("attacks",),
    ("verification",),
    ("defenses",),
    ("evaluation",),
    ("applications",),
    (
        "teaching.claims",
        "teaching.check",
        "teaching.handout",
        "teaching.metered",
        "teaching.recorded",
        "teaching.sounds",
    ),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
ALONE = ("teaching.catalogue", "teaching.plot", "teaching.reports")  # import nothing of robustlab's
REPORTING = ("teaching.claims", "teaching.recorded", "teaching.sounds")  # report what they find by teaching.reports
UNSEEN = ("teaching.catalogue", "teaching.reports", *REPORTING)  # the library imports none of them
HEAVY = ("matplotlib", "torchvision", "scipy", "cvxpy", "safetensors", "tqdm", "IPython", "ipywidgets", "sklearn")
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of all that a module imports, at its top and inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@cache
def graph() -> dict[str, set[str]]:
    """Module → the modules of robustlab that it imports."""
    names = {name_of(file) for file in FILES}
    edges = {}
    for file in FILES:
        name = name_of(file)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        found = set(imports(ast.parse(file.read_text()), package)) & names
        edges[name] = found - {name, "robustlab", "robustlab.teaching"}
    return edges


def unit(module: str) -> str:
    """The room of a module: the package below robustlab, and in ``teaching`` the one below that."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[0] == "teaching" else parts[:1])


def wrong_way(edges: dict[str, set[str]]) -> list[str]:
    """Imports that point to a higher layer, or to what the library does without."""
    wrong = []
    for module, found in edges.items():
        for other in found if module != "robustlab" else ():
            ours, theirs = unit(module), unit(other)
            if ours == theirs or (ours in REPORTING and theirs == "teaching.reports"):
                continue
            if ours in ALONE or theirs in UNSEEN or RANK[theirs] > RANK[ours]:
                wrong.append(f"{module} imports {other}")
    return wrong


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves. A package's own __init__ may import its parts; nobody's parts import it."""
    found = []
    for start in edges:
        seen, todo = set(), list(edges[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo.extend(edges[module])
        if start in seen:
            found.append(start)
    return found


@pytest.mark.slow
def test_every_unit_has_a_rank() -> None:
    units = {unit(name) for name in graph() if name not in ("robustlab", "robustlab.teaching")}
    known = {*RANK, "teaching.catalogue"}
    assert units <= known, f"give a layer to {sorted(units - known)}"


def test_imports_point_one_way() -> None:
    assert wrong_way(graph()) == []


def test_no_circles() -> None:
    assert circles(graph()) == []


def test_these_checks_see_what_is_planted() -> None:
    lazy = ast.parse("def f():\n    from robustlab.attacks.whitebox import pgd\n    import robustlab.attacker.victim")
    assert {"robustlab.attacks.whitebox.pgd", "robustlab.attacker.victim"} <= set(imports(lazy, "robustlab"))
    relative = ast.parse("from ..whitebox import pgd")
    assert "robustlab.attacks.whitebox.pgd" in set(imports(relative, "robustlab.attacks.softlabel"))
    assert wrong_way({"robustlab.geometry.norms": {"robustlab.attacks.whitebox.pgd"}})
    assert wrong_way({"robustlab.teaching.catalogue.row": {"robustlab.geometry.norms"}})
    assert wrong_way({"robustlab.attacks.whitebox.pgd": {"robustlab.teaching.catalogue"}})
    assert wrong_way({"robustlab.graph.node": {"robustlab.attacker.victim"}})
    assert not wrong_way({"robustlab.attacker.victim": {"robustlab.graph.node"}})
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    assert len(graph()["robustlab.attacks.whitebox.pgd"]) >= 5


@pytest.mark.slow
@every("file", FILES, label=name_of)
def test_nobody_imports_chapters_book_or_tests(file: Path) -> None:
    package = name_of(file).rpartition(".")[0]
    tops = {name.split(".")[0] for name in imports(ast.parse(file.read_text()), package)}
    assert not tops & {"chapters", "book", "tests", "benchmarks", "pytest", "hypothesis"}


def test_attacks_never_go_through_numpy() -> None:
    """But for fits to a few hundred numbers, which SciPy and scikit-learn do better than we could."""
    fits = {PACKAGE / "attacks" / name for name in ("poisoning/skew_normal.py", "softlabel/improvement.py")}
    for file in set((PACKAGE / "attacks").rglob("*.py")) - fits:
        tops = {name.split(".")[0] for name in imports(ast.parse(file.read_text()), "robustlab")}
        assert not tops & {"numpy", "scipy"}, file


def shadowing(files: Iterable[Path]) -> list[str]:
    """Modules and packages of Python's own names: who runs a file of their folder imports them in its place."""
    names = {file.parent.name if file.name == "__init__.py" else file.stem for file in files}
    return sorted(names & sys.stdlib_module_names)


def test_no_module_has_a_name_of_pythons_own() -> None:
    ours = ("robustlab", "tests", "book", "assignments", "benchmarks", "experiments")
    assert shadowing(file for top in ours for file in (ROOT / top).rglob("*.py") if file.name != "__main__.py") == []
    planted = [PACKAGE / "trace.py", PACKAGE / "code" / "__init__.py", PACKAGE / "tracing.py"]
    assert shadowing(planted) == ["code", "trace"]


def test_family_packages_are_empty() -> None:
    """So that a module and its function of the same name never shadow each other."""
    for family in ("attacks", "defenses", "verification"):
        for file in (PACKAGE / family).glob("*/**/__init__.py"):
            assert file.read_text() == "", file


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_import_is_light() -> None:
    """`import robustlab` and its core cost less than a second over torch, and bring nothing heavy along."""
    code = (
        "import sys, time, torch\n"
        "before, start = set(sys.modules), time.process_time()\n"
        "import robustlab, robustlab.attacks, robustlab.attacker.victim, robustlab.teaching.catalogue\n"
        "from robustlab.attacks import *\n"
        "print(time.process_time() - start, *sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    cost, *loaded = run(code).split()
    if float(cost) >= 1.0:  # a busy machine may be slow once
        cost = min(cost, run(code).split()[0], key=float)
    assert float(cost) < 1.0, f"importing took {float(cost):.2f} s over torch"
    assert not set(loaded) & set(HEAVY), loaded


@pytest.mark.slow
def test_attacks_load_only_what_is_asked_for() -> None:
    out = run(
        "import sys, robustlab.attacks\nprint(*sorted(m for m in sys.modules if m.startswith('robustlab.')))\n"
        "from robustlab.attacks import fgsm\nprint('robustlab.attacks.whitebox.cw' in sys.modules)"
    )
    assert out.splitlines() == ["robustlab._lazy robustlab.attacks", "False"]
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        importlib.import_module("robustlab.attacks").nonsense  # noqa: B018
