"""From a PyTorch module to a graph, by ``torch.fx``.

``torch.fx`` runs the model's own ``forward`` once on a placeholder and writes down what is called. This module reads
that list: what does not depend on the input is computed at once (weights, shapes, constants), what does becomes an
operator. The model is always read in evaluation mode: dropout does nothing, batch norm uses its running statistics.
The operators hold the model's own parameters, so bounds can be differentiated in them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustlab.verification.graph.convert import FUNCTIONS, METHODS, MODULES
from robustlab.verification.graph.node import Builder, Graph
from robustlab.verification.graph.reader import Reader, Symbol


class _Tracer(fx.Tracer):
    """Goes into the user's own modules, and stops at those that ``MODULES`` can read."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or (m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential))


def trace(model: nn.Module | Graph, sample: Tensor | Sequence[int]) -> Graph:
    """Read a model as a graph of operators.

    Args:
        model: a module from (N, ...) to (N, ...); a graph is returned as it is.
        sample: inputs (N, ...), of which only the shape, dtype and device are read, or the shape of one input.

    Returns:
        The graph; its operators hold the model's own parameters.

    Raises:
        TypeError: if the model is not a module.
        ValueError: naming the node, if an operator is not known or the model's control flow depends on its input.
    """
    if isinstance(model, Graph):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want an nn.Module, got {type(model).__name__}")
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    like = sample if isinstance(sample, Tensor) else weight
    shape = sample.shape[1:] if isinstance(sample, Tensor) else tuple(sample)
    dtype, device = (like.dtype, like.device) if like is not None else (torch.float32, None)
    wrapped = nn.Sequential(model) if type(model) in MODULES else model
    modes = {module: module.training for module in wrapped.modules()}
    try:
        for module in modes:
            module.training = False
        traced = _Tracer().trace(wrapped)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"model: cannot be read, since its forward asks about the values or the shape of its input ({error}); "
            "want a forward without such branches"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    reader = Reader(Builder(shape, dtype=dtype, device=device))
    values: dict[fx.Node, Any] = {}

    def known(thing: Any) -> Any:
        return fx.node.map_arg(thing, lambda node: values[node])

    for node in traced.nodes:
        args, kwargs = known(node.args), known(node.kwargs)
        if node.op == "placeholder":
            values[node] = Symbol(0) if not values else _default(node)
        elif node.op == "output":
            if not isinstance(args[0], Symbol):
                raise ValueError(f"model: want one tensor as output, got {type(args[0]).__name__}")
            return reader.builder.finish(args[0].index)
        elif node.op == "get_attr":
            values[node] = operator.attrgetter(node.target)(wrapped)
        elif node.op == "call_module":
            module = wrapped.get_submodule(node.target)
            values[node] = reader.call(MODULES.get(type(module)), module, args, kwargs, node.name, type(module))
        elif node.op == "call_function":
            values[node] = reader.call(FUNCTIONS.get(node.target), node.target, args, kwargs, node.name, node.target)
        else:
            run = operator.methodcaller(node.target, *args[1:], **kwargs)
            how = METHODS.get(node.target)
            values[node] = reader.call(how, lambda x, *a, _r=run, **k: _r(x), args, kwargs, node.name, node.target)
    raise ValueError("model: want a forward that returns something")


def _default(node: fx.Node) -> Any:
    if not node.args:
        raise ValueError(f"model: want a forward of one argument, got another one, {node.name!r}")
    return node.args[0]
