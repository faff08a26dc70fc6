"""VNN-LIB 2.0 where it says what 1.0 says: its tensors are written out as X_0, X_1, … and Y_0, Y_1, …

    (vnnlib-version <2.0>)
    (declare-network f (declare-input X float32 [1,5]) (declare-output Y float32 [1,5]))
    (assert (<= X[0,3] 0.5))

One network of one input and one output, of real numbers, is what both versions know. Elements are counted row by row.

Source: Daggitt et al., "VNN-LIB: the standard" (version 2.0), grammar in its appendix.
"""

from __future__ import annotations

import re
from math import prod

_WORD = r"[A-Za-z]\w*"
_SHAPE = r"\[([\d,\s]*)\]"
_VERSION = re.compile(r"\s*\(\s*vnnlib-version\s*<\s*([\d.]+)\s*>\s*\)")
_TENSOR = re.compile(rf"\(\s*declare-(\w+)\s+({_WORD})\s+(\w+)\s*{_SHAPE}\s*\)\s*")
_NETWORK = re.compile(rf"\s*\(\s*declare-network\s+{_WORD}\s*((?:{_TENSOR.pattern})*)\)")
_ELEMENT = re.compile(rf"(?<![\w.-])({_WORD})\s*(?:{_SHAPE})?")
TYPES = ("real", "float64", "float32", "float16", "bfloat16")
LARGEST = 2**24  # elements of a tensor


def as_first_version(text: str) -> str:
    """The text in version 1.0; a text without a version is returned as it is.

    Raises:
        ValueError: naming what version 1.0 cannot say, or an element that a tensor does not have.
    """
    head = _VERSION.match(bare := re.sub(r";[^\n]*", "", text))
    if head is None:
        return text
    if head[1] != "2.0":
        raise ValueError(f"property: want version 1.0 or 2.0 of VNN-LIB, got {head[1]}")
    network = _NETWORK.match(bare, head.end())
    if network is None:
        shown = " ".join(bare[head.end() :].split())[:70]
        raise ValueError(f"property: want one declare-network with declare-input and declare-output, got {shown}")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    kinds = []
    for kind, name, numbers, shape in _TENSOR.findall(network[1]):
        if numbers.lower() not in TYPES:
            raise ValueError(f"property: want tensors of {', '.join(TYPES)}, got {numbers} for {name}")
        kinds.append(kind)
        tensors[name] = "X" if kind == "input" else "Y", _integers(shape)
        if prod(tensors[name][1]) > LARGEST:
            raise ValueError(f"property: want at most {LARGEST:,} elements, got {name}[{shape}]")
    if sorted(kinds) != ["input", "output"] or len(tensors) != 2:
        raise ValueError(f"property: want one declare-input and one declare-output, got {', '.join(kinds) or 'none'}")
    rest = bare[network.end() :]
    for other in ("declare-", "!="):
        if other in rest:
            raise ValueError(f"property: want assertions that version 1.0 has too, got {other}")

    def element(match: re.Match[str]) -> str:
        name, index = match[1], match[2]
        if name not in tensors:
            return match[0]  # a word, or what the reader refuses
        letter, shape = tensors[name]
        at = _integers(index or "")
        if len(at) != len(shape) or any(i >= n for i, n in zip(at, shape, strict=True)):
            raise ValueError(f"property: want an element of {name} of shape {list(shape)}, got {match[0].strip()}")
        place = 0
        for i, n in zip(at, shape, strict=True):
            place = place * n + i
        return f" {letter}_{place} "

    declared = "".join(
        f"(declare-const {letter}_{i} Real)" for letter, shape in tensors.values() for i in range(prod(shape))
    )
    return declared + _ELEMENT.sub(element, rest).replace("==", "=")


def _integers(text: str) -> tuple[int, ...]:
    words = [word for word in re.split(r"[,\s]+", text.strip()) if word]
    return tuple(map(int, words))
