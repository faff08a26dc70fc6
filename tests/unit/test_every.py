"""The decorator that makes one test of many checks lists all that fail, and passes on nothing."""

from __future__ import annotations

import pytest

from tests.every import every


def test_all_that_fail_are_listed() -> None:
    @every("number", range(1, 7), label=lambda number: f"<{number}>")
    def test_is_even(number: int) -> None:
        """Even?"""
        assert number % 2 == 0, f"{number} is odd"

    with pytest.raises(AssertionError, match=r"(?s)3 of 6 fail:\n<1>: 1 is odd.*<3>: 3 is odd.*<5>: 5") as caught:
        test_is_even()
    assert caught.value.__cause__ is not None and "1 is odd" in str(caught.value.__cause__)
    assert (test_is_even.__name__, test_is_even.__doc__) == ("test_is_even", "Even?")


def test_an_error_is_a_failure_too_and_several_names_take_tuples() -> None:
    seen = []

    @every("left, right", [(4, 2), (1, 0), (3, 3)])
    def test_divides(left: int, right: int) -> None:
        seen.append((left, right))
        assert left / right > 0

    with pytest.raises(AssertionError, match=r"1 of 3 fail:\n\(1, 0\): division by zero"):
        test_divides()
    assert seen == [(4, 2), (1, 0), (3, 3)]


def test_nothing_to_check_is_an_error() -> None:
    with pytest.raises(ValueError, match="values: got none"):
        every("number", [])
