"""The product of cases and variants, of which every run takes one combination of each method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, TypeVar
from zlib import crc32

import pytest

Test = TypeVar("Test", bound=Callable[..., None])


def one_of(cases: Iterable[Any], *, slow: bool = False, **variants: Sequence[Any]) -> Callable[[Test], Test]:
    """Runs a test ``(case, ...)`` over cases that have a catalogue row, and over every combination of the variants.

    `make test` takes one combination of each row: always the same, but another one from test to test, so that all tests
    together meet a method's norms, its targeted mode and the variants. The rest of the product, one item for each row,
    is marked ``full``. An error names its case.
    """

    def mark(test: Test) -> Test:
        of_row: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
        for case, values in product(cases, product(*variants.values())):
            combination = (case, dict(zip(variants, values, strict=True)))
            of_row.setdefault(case.row.key, []).append(combination)
        items = []
        for key, combinations in of_row.items():
            pick = crc32(f"{test.__name__} {key}".encode()) % len(combinations)
            items.append(pytest.param([combinations.pop(pick)], id=key, marks=[pytest.mark.slow] if slow else []))
            if combinations:
                items.append(pytest.param(combinations, id=f"{key}-rest", marks=[pytest.mark.slow, pytest.mark.full]))
        return pytest.mark.parametrize("combinations", items)(_loop(test, variants))

    return mark


def _loop(test: Test, variants: Iterable[str]) -> Test:
    """The test as a loop over combinations, with the test's fixtures."""

    def run(combinations: list[tuple[Any, dict[str, Any]]], **fixtures: Any) -> None:
        for case, values in combinations:
            try:
                test(case=case, **values, **fixtures)
            except BaseException as error:
                error.add_note(f"in the case {case} {values or ''}".rstrip())
                raise

    kind = inspect.Parameter.KEYWORD_ONLY
    given = inspect.signature(test)
    fixtures = [p.replace(kind=kind) for p in given.parameters.values() if p.name not in ("case", *variants)]
    vars(run).update(vars(test))  # marks
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.__signature__ = given.replace(parameters=[inspect.Parameter("combinations", kind), *fixtures])  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]
