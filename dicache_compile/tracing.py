"""The graphs that Dynamo makes of one call of a model."""

from __future__ import annotations

import inspect
import itertools
import logging
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import torch
from torch import fx, nn

from .graph.calling import changes, note_call

Traced: TypeAlias = tuple[fx.GraphModule, Sequence[Any]]  # a graph, and what it was traced with


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Traced]:
    """The graphs of one call: one full graph if Dynamo can make it, else what it makes of the call.

    A full graph is traced and not run, so the model may be of tensors without values (meta or fake ones).
    """
    with without_logs():  # of what a full graph fails at
        try:
            return _graphs(model, args, kwargs, fullgraph=True)
        except torch._dynamo.exc.TorchDynamoException:
            return _graphs(model, args, kwargs, fullgraph=False)


@contextmanager
def without_logs() -> Iterator[None]:
    """Inside, fake tensors do not log the traceback of what they cannot run."""
    noisy = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, noisy.disabled = noisy.disabled, True
    try:
        yield
    finally:
        noisy.disabled = disabled


@dataclass(frozen=True, slots=True)
class Whole:
    """One call as one graph, with all that Dynamo does around it."""

    graph_module: fx.GraphModule
    examples: Sequence[Any]  # what the graph was traced with
    outputs: Sequence[Any]  # what stood in for the graph's outputs
    result: Any  # what the call returned, made of them
    changes: tuple[str, ...]  # the Python objects that the call would have changed


def trace_whole(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Whole | None:
    """One call as one full graph, which is not run; None where there is nothing in it.

    Raises what Dynamo raises where it cannot make one graph.
    """
    found: list[tuple[Any, ...]] = []

    def capture(gm: fx.GraphModule, examples: Sequence[Any], **_: Any) -> Any:
        note_call(gm)
        (returned,) = gm.graph.find_nodes(op="output")
        outputs = [torch.empty(0) for _ in returned.args[0]]
        found.append((gm, examples, outputs, changes()))
        return lambda *_: outputs

    with without_logs():
        result = _call(model, args, kwargs, capture, fullgraph=True)
    if not found:
        return None
    gm, examples, outputs, changed = found[0]
    return Whole(gm, examples, outputs, result, changed)


def _graphs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], fullgraph: bool) -> list[Traced]:
    found: list[Traced] = []

    def capture(gm: fx.GraphModule, examples: Sequence[Any], **_: Any) -> Any:
        note_call(gm)
        found.append((gm, examples))
        # What comes after a graph break is traced only once what is before it has run.
        return _end if fullgraph else gm.forward

    with suppress(_Ended):
        _call(model, args, kwargs, capture, fullgraph)
    return found


def _call(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], backend: Callable[..., Any], fullgraph: bool
) -> Any:
    """Calls a model as compiled by a backend, whatever it is compiled with itself."""
    args, kwargs = _by_name(model, args, kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    with torch.no_grad(), uncompiled(model):
        return torch.compile(own_code(call), backend=backend, dynamic=False, fullgraph=fullgraph)(*args, **kwargs)


def own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does the same by a code object of its own.

    Dynamo keeps what it compiled by code, so what it has of the function's and of the model's stays as it is.
    """
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_alone")
    return types.FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, a model that is compiled in place is called as it would be without.

    Else what comes after a graph break would be compiled by its own backend, and run, in place of being looked at.
    """
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled


class _Ended(Exception):  # noqa: N818 - no error: it ends the call
    pass


def _end(*_: Any) -> NoReturn:
    raise _Ended


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call by the names that `forward` gives them, which is how inputs are told apart."""
    parameters = inspect.signature(model.forward).parameters
    by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = list(itertools.takewhile(lambda name: parameters[name].kind is by_name, parameters))
    if len(args) > len(names) or isinstance(model, fx.GraphModule):  # an exported module wants them as they were
        return args, kwargs
    return (), {**dict(zip(names, args, strict=False)), **kwargs}
