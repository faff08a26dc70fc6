"""Sources with a planted slip, run, and the cause that a check of `robustlab.teaching.check` names for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustlab.teaching import check


def run(source: str, *replaced: tuple[str, str], **names: Any) -> dict[str, Any]:
    """What a source defines, beside torch and ``names``, after replacements that must all find their text."""
    for old, new in replaced:
        assert old in source, f"the slip replaces {old!r}, which is not there"
        source = source.replace(old, new)
    found = {"torch": torch, **names}
    exec(source, found)
    return found


def cause_of(checked: Callable[..., None], *arguments: Any, **options: Any) -> str:
    """The cause for which a check does not hold; if it has hints, the first is shown."""
    with pytest.raises(check.Wrong) as wrong:
        checked(*arguments, **options)
    assert "Hint 1 of" in str(wrong.value) or not wrong.value.hints
    return wrong.value.cause
