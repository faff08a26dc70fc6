"""From a PyTorch module to a graph, by ``torch.fx``.

``torch.fx`` runs the model's own ``forward`` once on a placeholder and writes down what is called. This module reads
that list: what does not depend on the input is computed at once (weights, shapes, constants), what does becomes an
operator. The model is always read in evaluation mode: dropout does nothing, batch norm uses its running statistics.
The operators hold the model's own parameters, so bounds can be differentiated in them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from robustlab import checks
from robustlab.graph import convert_shape
from robustlab.graph.arithmetic import full_precision
from robustlab.graph.convert import FUNCTIONS, METHODS, MODULES
from robustlab.graph.node import Builder, Graph
from robustlab.graph.reader import Reader, Symbol, without_chance
from robustlab.models.modes import evaluating


class _Proxy(fx.Proxy):
    """Writes ``z += 1`` down as what it is; fx's own falls back to z + 1, which leaves z as it was."""

    def _in_place(function: Callable[..., Any]) -> Callable[..., fx.Proxy]:
        return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})

    __iadd__, __isub__ = _in_place(operator.iadd), _in_place(operator.isub)
    __imul__, __itruediv__ = _in_place(operator.imul), _in_place(operator.itruediv)


class _Tracer(fx.Tracer):
    """Goes into the user's own modules, and stops at those that ``MODULES`` can read."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _whole(m)


def _whole(m: nn.Module) -> bool:
    """Whether a module is read, or refused, as one."""
    return _kind(m) in MODULES or (m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential))


def _kind(m: nn.Module) -> type:
    """A module's class; where its weights are computed from others (``torch.nn.utils.parametrize``), that before."""
    return type(m).__bases__[0] if is_parametrized(m) else type(m)


def trace(model: nn.Module | Graph, sample: Tensor | Sequence[int]) -> Graph:
    """Read a model as a graph of operators.

    Args:
        model: a module from (N, ...) to (N, ...); a graph is returned as it is.
        sample: inputs (N, ...), at which the graph is compared with the model, or the shape of one input.

    Returns:
        The graph; its operators hold the model's own parameters.

    Raises:
        TypeError: if the model is not a module, or the numbers are neither float32 nor float64.
        ValueError: naming the node, if an operator is not known or the model's control flow depends on its input; if
            what was read computes something else at the sample than the model.
    """
    if isinstance(model, Graph):
        return model
    if not isinstance(model, nn.Module):
        hint = "; say read_onnx(path, dtype=x.dtype)" if isinstance(model, (str, Path)) else ""
        raise TypeError(f"model: want an nn.Module or a Graph, got {type(model).__name__}{hint}")
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    like = sample if isinstance(sample, Tensor) else weight
    shape = sample.shape[1:] if isinstance(sample, Tensor) else tuple(sample)
    dtype, device = (like.dtype, like.device) if like is not None else (torch.float32, None)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"model: verifiers want float32 or float64, got {dtype}; say model.float()")
    if isinstance(sample, Tensor) and weight is not None:
        checks.at_home(model, sample, "sample", device=False)
    wrapped = nn.Sequential(model) if _whole(model) else model
    try:
        with evaluating(wrapped, freeze=False):
            traced = without_chance(lambda: _Tracer().trace(wrapped), "model: its forward")
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"model: cannot be read, since its forward asks about the values or the shape of its input ({error}); "
            "want a forward without such branches"
        ) from error
    _no_hooks(wrapped, traced)
    _no_stale_values(wrapped, traced)
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
                given = type(args[0]).__name__.removeprefix("immutable_")  # of torch.fx
                raise ValueError(f"model: want one tensor as output, got {given}; wrap it in a module of its logits")
            graph = reader.builder.finish(args[0].index)
            if isinstance(sample, Tensor):
                _compare(model, graph, sample[:8])
            return graph
        elif node.op == "get_attr":
            values[node] = operator.attrgetter(node.target)(wrapped)
        elif node.op == "call_module":
            module = wrapped.get_submodule(node.target)
            kind = _kind(module)
            values[node] = reader.call(MODULES.get(kind), module, args, kwargs, node.name, kind)
        elif node.op == "call_function":
            values[node] = reader.call(FUNCTIONS.get(node.target), node.target, args, kwargs, node.name, node.target)
        else:
            run = operator.methodcaller(node.target, *args[1:], **kwargs)
            how = METHODS.get(node.target)
            values[node] = reader.call(how, lambda x, *a, _r=run, **k: _r(x), args, kwargs, node.name, node.target)
    raise ValueError("model: want a forward that returns something")


def _compare(model: nn.Module, graph: Graph, x: Tensor) -> None:
    """Ask both at x: what a table of operators does not know about a model shows in its answers."""
    if not len(x) or not bool(x.isfinite().all()):
        return
    with torch.no_grad(), full_precision(), evaluating(model, freeze=False):
        wanted, found = model(x), graph(x)
    if not isinstance(wanted, Tensor) or wanted.shape != found.shape:
        raise ValueError(f"model: want one tensor of shape {tuple(found.shape)} as output, got {_form(wanted)}")
    apart = (wanted.to(found) - found).abs().max() if found.numel() else found.new_zeros(())
    scale = 1 + wanted.abs().max() if found.numel() else 1.0
    if float(apart) > float(scale) * (1e-3 if found.dtype == torch.float32 else 1e-6):
        raise ValueError(
            f"model: what was read from it differs from its own answers by up to {float(apart):.3g}; want a forward of "
            "known operators alone, without random numbers, hidden state, or a look at the batch"
        )


def _form(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _no_hooks(model: nn.Module, traced: fx.Graph) -> None:
    """Hooks of the model itself and of the modules that ``MODULES`` reads do not show in a trace."""
    read = {node.target: model.get_submodule(node.target) for node in traced.nodes if node.op == "call_module"}
    for name, module in {"": model, **read}.items():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"model: {name or 'the model itself'} has forward hooks, which a trace does not see; remove them "
                "(weight norm: torch.nn.utils.parametrizations has one without hooks)"
            )


_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def _overwrites(model: nn.Module, node: fx.Node) -> bool:
    """Whether a call writes its result into its first argument."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return getattr(module, "inplace", False) and not isinstance(module, nn.modules.dropout._DropoutNd)
    if node.op == "call_function":
        return node.target in _IN_PLACE or bool(node.kwargs.get("inplace")) or any(a is True for a in node.args[1:])
    name = str(node.target)
    return node.op == "call_method" and name.endswith("_") and not name.startswith("__")


def _no_stale_values(model: nn.Module, traced: fx.Graph) -> None:
    """A value that was overwritten, or a view of it, may not be used again: the trace would use the old one."""
    root: dict[fx.Node, fx.Node] = {}  # the node whose memory a node may share
    gone: dict[fx.Node, fx.Node] = {}  # root → who overwrote it
    for node in traced.nodes:
        for used in node.all_input_nodes:
            by = gone.get(root[used])
            if by is not None:
                raise ValueError(
                    f"model: node {by.name!r} overwrites its input in place, and node {node.name!r} uses that again; "
                    "want inplace=False, or z = z + 1 in place of z += 1"
                )
        first = next(iter(node.all_input_nodes), None)
        root[node] = root[first] if first is not None and _may_be_view(model, node) else node
        if first is not None and _overwrites(model, node):
            gone[root[first]] = node


def _may_be_view(model: nn.Module, node: fx.Node) -> bool:
    """Whether the result may share memory with the first argument without overwriting it."""
    thing = type(model.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    known = thing in convert_shape.MODULES or thing in convert_shape.FUNCTIONS or thing in convert_shape.METHODS
    return node.op.startswith("call") and known and thing not in (torch.cat, torch.concat, getattr, "size")


def _default(node: fx.Node) -> Any:
    if not node.args:
        raise ValueError(f"model: want a forward of one argument, got another one, {node.name!r}")
    return node.args[0]
