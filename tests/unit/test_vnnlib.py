"""VNN-LIB files against what an evaluator of their expressions says of sampled points."""

from __future__ import annotations

import gzip
import re
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from robustlab.graph.time_limit import OutOfTime, time_limit
from robustlab.verification.complete.vnnlib import parse_vnnlib, read_vnnlib

HEAD = "".join(f"(declare-const {letter}_{i} Real)\n" for letter in "XY" for i in range(2))
BOX = "(assert (>= X_0 -1)) (assert (<= X_0 1.5)) (assert (>= X_1 0)) (assert (<= X_1 2e-1)) ; a comment (\n"


def python(text: str) -> str:
    """The assertions as a Python expression: an evaluator that shares nothing with the reader."""
    tokens = re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text))

    def parse(at: int) -> tuple[Any, int]:
        if tokens[at] != "(":
            return tokens[at], at + 1
        at, items = at + 1, []
        while tokens[at] != ")":
            item, at = parse(at)
            items.append(item)
        return items, at + 1

    def show(e: Any) -> str:
        if isinstance(e, str):
            return e
        op, *args = e
        parts = [show(a) for a in args]
        if op == "-" and len(parts) == 1:
            return f"(-{parts[0]})"
        joint = {"and": " and ", "or": " or ", "=": " == "}.get(op, f" {op} ")
        return "(" + joint.join(parts) + ")"

    claims, at = [], 0
    while at < len(tokens):
        e, at = parse(at)
        if e[0] == "assert":
            claims.append(show(e[1]))
    return " and ".join(claims)


SPECS = {
    "conjunction": "(assert (<= Y_0 Y_1)) (assert (>= Y_0 -0.5))",
    "disjunction": "(assert (or (and (<= Y_0 Y_1)) (and (>= Y_0 1.0) (<= Y_1 0.25))))",
    "two disjunctions": "(assert (or (<= Y_0 0) (>= Y_1 0.5))) (assert (or (<= Y_1 Y_0) (>= Y_0 0.9)))",
    "mixed": "(assert (or (and (>= X_0 0.5) (<= Y_0 0.3)) (and (<= X_0 -0.25) (or (>= Y_1 0.1) (<= Y_0 -0.7)))))",
    "linear terms": "(assert (<= (+ (* 2 Y_0) (- Y_1) 0.5) (- Y_1 (* Y_0 3.0) 0.25)))",
    "nested": "(assert (and (or (<= Y_0 0.2) (and (<= Y_1 0) (or (>= Y_0 0.4) (< Y_1 -0.4)))) (> Y_0 -0.8)))",
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_same_unsafe_set(spec: str) -> None:
    text = HEAD + BOX + spec
    found, truth = parse_vnnlib(text), compile(python(text), "spec", "eval")
    generator = torch.Generator().manual_seed(0)
    cases = list(found)
    x = torch.rand(400, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 0.25]) - torch.tensor(
        [1.25, 0.02]
    )
    y = torch.rand(400, 2, generator=generator, dtype=torch.float64) * 4 - 2
    for xi, yi in zip(x, y, strict=True):
        values = {"X_0": float(xi[0]), "X_1": float(xi[1]), "Y_0": float(yi[0]), "Y_1": float(yi[1])}
        ours = any(
            bool((xi >= case.low).all() and (xi <= case.high).all() and case.margin(yi[None])[0] <= 0) for case in cases
        )
        assert ours == eval(truth, dict(values)) == found.holds(values), (values, spec)


def test_equality_and_empty_box() -> None:
    (case,) = parse_vnnlib(HEAD + BOX + "(assert (= X_0 0.25)) (assert (<= Y_0 1))")
    assert float(case.low[0]) == float(case.high[0]) == 0.25
    assert list(parse_vnnlib(HEAD + BOX + "(assert (>= X_0 2)) (assert (<= Y_0 1))")) == []


@pytest.mark.parametrize(
    ("claim", "cases"),
    [
        ("(< Y_0 Y_0)", 0),
        ("(<= Y_0 Y_0)", 1),
        ("(> 0.3 (+ 0.1 0.2))", 0),  # in float64, 0.1 + 0.2 is more than 0.3
        ("(>= 0.3 (+ 0.1 0.2))", 1),
        ("(or (< (- Y_0 Y_1) (- Y_0 Y_1)) (<= Y_1 0))", 1),
        ("(> (* 0 Y_0) 0)", 0),
    ],
)
def test_what_holds_of_every_number_or_of_none(claim: str, cases: int) -> None:
    """A claim in which no variable is left is true or false, and no search has to find that out."""
    assert len(list(parse_vnnlib(HEAD + BOX + f"(assert {claim})"))) == cases


@pytest.mark.parametrize(
    ("claims", "cases"),
    [
        ("(< X_0 -1)", 0),  # beside it stands X_0 >= -1
        ("(<= X_0 -1)", 1),
        ("(> X_1 0.2)", 0),
        ("(= X_0 0.25) (> X_0 0.25)", 0),
        ("(< X_0 0.5) (> X_0 0.5)", 0),
        ("(>= X_0 0.1) (<= (* 3 X_0) 0.3)", 1),  # in float64, 0.3 / 3 is less than 0.1
        ("(> X_0 0.1) (<= (* 3 X_0) 0.3)", 0),
        ("(>= X_0 0.1) (<= (* 3 X_0) 0.29999999999999999)", 0),  # 0.3 in float64
        ("(< X_0 0.1) (>= X_0 0.0999999999999999999)", 1),  # 0.1 in float64
        ("(or (< X_0 -1) (and (> X_1 0.2) (<= Y_0 0)) (<= Y_1 0))", 1),
        ("(< Y_0 0.5) (>= Y_0 0.5)", 0),
        ("(<= Y_0 0.5) (>= Y_0 0.5)", 1),
        ("(> Y_0 Y_1) (>= (+ Y_1 1) (+ Y_0 1))", 0),
        ("(< (* 3 Y_0) 0.3) (>= (* 3 Y_0) 0.29999999999999999)", 1),
        ("(or (< Y_0 Y_1) (<= Y_0 -9)) (>= Y_0 Y_1)", 1),
    ],
)
def test_an_edge_that_is_taken_away_leaves_no_case(claims: str, cases: int) -> None:
    """Nothing is below −1 and at least −1: no search has to find that out, and no rounding may say so."""
    assert len(list(parse_vnnlib(HEAD + BOX + "".join(f"(assert {c})" for c in split(claims))))) == cases


def split(claims: str) -> list[str]:
    return re.findall(r"\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\)", claims)


SECOND = """; the same words
(vnnlib-version <2.0>)
(declare-network f (declare-input in Real [1, 2]) (declare-output out float32 [2]))
(assert (and (>= in[0,0] -1) (<= in [0, 0] 1.5))) (assert (>= in[0,1] 0)) (assert (<= in[0,1] 2e-1))
(assert (or (and (<= out[0] out[1]) (== in[0,1] 0.1)) (>= (+ (* 2 out[0]) 1.0) 0.0)))
"""


def test_second_version() -> None:
    """Elements of tensors are variables; compared with version 2.0's own reader by test_vnnlib_peer."""
    claim = "(assert (or (and (<= Y_0 Y_1) (= X_1 0.1)) (>= (+ (* 2 Y_0) 1.0) 0.0)))"
    found, wanted = list(parse_vnnlib(SECOND)), list(parse_vnnlib(HEAD + BOX + claim))
    assert len(found) == len(wanted) == 2
    for ours, theirs in zip(found, wanted, strict=True):
        for name in ("low", "high", "C", "d"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    scalar = SECOND.replace("float32 [2]", "float32 []").replace("out[0]", "out").replace("out[1]", "0.5")
    assert parse_vnnlib(scalar).outputs == 1
    rows = "".join(
        f"(assert (>= in[{i},{j}] {3 * i + j})) (assert (<= in[{i},{j}] 9))" for i in (0, 1) for j in range(3)
    )
    head = "(vnnlib-version <2.0>) (declare-network f (declare-input in Real [2,3]) (declare-output out Real [1]))"
    (case,) = parse_vnnlib(head + rows + "(assert (<= out[0] 0))")
    assert case.low.tolist() == [0, 1, 2, 3, 4, 5], "row by row"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<2.0>", "<3.0>", "want version 1.0 or 2.0 of VNN-LIB, got 3.0"),
        ("in[0,1] 0)", "in[0,2] 0)", "an element of in of shape [1, 2], got in[0,2]"),
        ("in[0,1] 0)", "in[1] 0)", "an element of in of shape [1, 2], got in[1]"),
        ("float32", "int8", "want tensors of real, float64"),
        ("[2]))", "[2]) (declare-output more Real [1]))", "one declare-input and one declare-output"),
        ("[2]))", "[2]) (declare-hidden h Real [1] layer))", "want one declare-network"),
        ("==", "!=", "version 1.0 has too, got !="),
        ("(<= out[0]", "(<= other[0]", "a declared variable, got other[0]"),
    ],
)
def test_what_the_first_version_cannot_say(old: str, new: str, message: str) -> None:
    assert old in SECOND
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_vnnlib(SECOND.replace(old, new))


def test_gz(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress((HEAD + BOX + "(assert (<= Y_0 Y_1))").encode()))
    (case,) = read_vnnlib(path)
    torch.testing.assert_close(case.low, torch.tensor([-1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(case.high, torch.tensor([1.5, 0.2], dtype=torch.float64))
    assert case.C.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "(assert (<= X_0 1)) (assert (<= Y_0 1))", "both bounds"),
        (HEAD + BOX + "(assert (<= X_0 Y_0))", "bounds of single inputs"),
        (HEAD + BOX + "(assert (<= (* Y_0 Y_1) 1))", "linear term"),
        (HEAD + BOX + "(assert (implies Y_0 Y_1))", "and, or or a comparison"),
        (HEAD + BOX + "(assert (<= Y_7 1))", "declared variable, got Y_7"),
        (HEAD + BOX + "(assert (<= Y_0 1)", "balanced"),
        (HEAD + BOX + "(assert (<= Y_0 1)))", "balanced"),
        ("(declare-const Z Real)", "X_i and Y_j"),
        ("(check-sat)", "declare-const or assert"),
        ("(declare-const X_1 Real)(declare-const Y_0 Real)", "X_0, X_1"),
        (HEAD + BOX + "(assert (>= Y_0 nan))", "a declared variable, got nan"),
        (HEAD + BOX + "(assert (>= Y_0 -inf))", "a declared variable, got -inf"),
        (HEAD + BOX + "(assert (>= Y_0 1_0))", "a declared variable, got 1_0"),
        (HEAD + BOX + "(assert (>= Y_0 \u0661))", "a declared variable, got \u0661"),
        ("(declare-const X_1\u0661 Real)", "X_i and Y_j, got X_1\u0661"),
        (HEAD + BOX + "(assert (>= Y_0 1e999))", "numbers of float64"),
        (HEAD + BOX + "(assert (>= Y_0 (* 1e300 1e300)))", "numbers of float64"),
        (HEAD + BOX + "(assert " * 3000 + ")" * 3000, "levels of parentheses"),
        (HEAD + BOX + "(assert (<= Y_0 " + "(- " * 2000 + "1" + ")" * 2000 + "))", "levels of parentheses"),
        (HEAD + BOX + "word", "declare-const or assert, got word"),
        (HEAD + "(declare-const X_0 Real)", "X_0 again"),
        (HEAD + BOX + "(assert ())", "and, or or a comparison"),
        (HEAD + BOX + "(assert (or (<= Y_0 1) (<= X_0 (+ X_1 Y_0))))", "bounds of single inputs"),
        ("(declare-const X_99999999999 Real)", "X_i and Y_j"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_vnnlib(text)


@pytest.mark.parametrize(
    "raw",
    [b"(assert \xff)", gzip.compress(b"(assert")[:-3], gzip.compress(b"\0" * 2**27), b"\x1f\x8b", b""],
    ids=["not UTF-8", "cut", "a bomb", "two bytes", "nothing"],
)
def test_broken_files(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "p.vnnlib").write_bytes(raw)
    with pytest.raises(ValueError, match=r"^p\.vnnlib: .*want"):
        read_vnnlib(tmp_path / "p.vnnlib")
    with pytest.raises(ValueError, match=r"^none\.vnnlib: want a file"):
        read_vnnlib(tmp_path / "none.vnnlib")


def test_cases_are_made_one_by_one() -> None:
    """40 choices of two: 2⁴⁰ cases, of which three are asked for; and what contradicts itself is cut off early."""
    many = "".join(f"(assert (or (<= Y_0 {i}) (>= Y_1 {i})))\n" for i in range(40))
    first, second, third = islice(parse_vnnlib(HEAD + BOX + many), 3)
    assert first.C.shape == (40, 2) and not torch.equal(first.C, second.C) and not torch.equal(second.C, third.C)
    halves = "".join(f"(assert (or (>= X_0 {2 + i}) (<= X_0 1)))\n" for i in range(40))
    (only,) = parse_vnnlib(HEAD + BOX + halves + "(assert (<= Y_0 1))")
    assert float(only.high[0]) == 1.0


def test_time_limit_while_reading() -> None:
    many = "".join(f"(assert (or (<= Y_0 {i}) (>= Y_1 {i})))\n" for i in range(40))
    found = parse_vnnlib(HEAD + BOX + many)
    with pytest.raises(OutOfTime), time_limit(time.monotonic() + 0.1):
        for _ in found:
            pass
    with pytest.raises(OutOfTime), time_limit(time.monotonic() - 1):
        parse_vnnlib(HEAD + BOX)


@pytest.mark.slow
def test_reading_is_linear() -> None:
    """Four times the inputs take about four times as long, not sixteen."""

    def seconds(n: int) -> float:
        text = "".join(f"(declare-const X_{i} Real)\n" for i in range(n)) + "(declare-const Y_0 Real)\n"
        text += "".join(f"(assert (>= X_{i} 0))\n(assert (<= X_{i} 1))\n" for i in range(n))
        start = time.process_time()
        (case,) = parse_vnnlib(text + "(assert (<= Y_0 0))")
        assert len(case.low) == n
        return time.process_time() - start

    few, many = min(seconds(3072) for _ in range(3)), min(seconds(12_288) for _ in range(2))
    assert many < 8 * few, (few, many)


def test_exact_arithmetic() -> None:
    """0.1 + 0.2 is 0.3 as it is written, though not in float64; strict inequalities are strict."""
    weak = parse_vnnlib(HEAD + BOX + "(assert (>= (* 3 Y_0) 0.3)) (assert (<= (+ 0.1 0.2 Y_1) 0.3))")
    values = {"X_0": 0.0, "X_1": 0.0, "Y_0": 0.1, "Y_1": 0.0}
    assert weak.holds(values) and not weak.holds(values | {"Y_1": 1e-300}) and not weak.holds(values | {"X_0": 1.6})
    strict = parse_vnnlib(HEAD + BOX + "(assert (< Y_0 0)) (assert (> Y_1 0))")
    assert strict.holds(values | {"Y_0": -1e-300, "Y_1": 1e-300}) and not strict.holds(
        values | {"Y_0": 0.0, "Y_1": 1.0}
    )
    assert not strict.holds(values | {"Y_0": -1.0, "Y_1": 0.0})
