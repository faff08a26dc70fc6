"""How modules, functions and methods of PyTorch become operators: one table for each.

An entry is ``convert(reader, thing, *args, **kwargs) -> Symbol``, where ``thing`` is the module or the function;
the arguments hold a ``Symbol`` in place of every tensor that depends on the input. To make another module known, add
a function of that form to ``MODULES``.
"""

from __future__ import annotations

from typing import Any

from robustlab.graph import convert_affine, convert_nonlinear, convert_shape
from robustlab.graph.reader import Convert

_PARTS = (convert_affine, convert_shape, convert_nonlinear)

MODULES: dict[type, Convert] = {key: how for part in _PARTS for key, how in part.MODULES.items()}
METHODS: dict[str, Convert] = {key: how for part in _PARTS for key, how in part.METHODS.items()}
FUNCTIONS: dict[Any, Convert] = {key: how for part in _PARTS for key, how in part.FUNCTIONS.items()}
