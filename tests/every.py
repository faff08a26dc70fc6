"""One test over many names: ``parametrize`` for checks so quick that pytest's own work per item is most of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def every(name: str, values: Iterable[Any], label: Callable[[Any], str] = str) -> Callable[..., Callable[[], None]]:
    """Makes one test of a check with the argument ``name``: it goes through all ``values`` and lists whichever fail.

    Several names, separated by commas, take their values from tuples; ``label`` names a value in the list.
    """
    names, cases = [part.strip() for part in name.split(",")], list(values)
    if not cases:
        raise ValueError("values: got none, want at least one: a check of nothing cannot fail")

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        def test() -> None:
            __tracebackhide__ = True
            failed: dict[str, Exception] = {}
            for value in cases:
                try:
                    check(**dict(zip(names, value if len(names) > 1 else (value,), strict=True)))
                except Exception as error:
                    failed[label(value)] = error
            if failed:
                lines = [f"{who}: {str(error).strip() or type(error).__name__}" for who, error in failed.items()]
                first = next(iter(failed.values()))
                raise AssertionError("\n".join([f"{len(failed)} of {len(cases)} fail:", *lines])) from first

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        return test

    return decorate
