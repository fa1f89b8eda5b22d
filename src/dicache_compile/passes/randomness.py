"""Which nodes draw random numbers: by what PyTorch says of its operators, or by running a node on fake tensors.

An operator that may draw has the tag `nondeterministic_seeded`, and its arguments say whether it does: dropout with a
probability of 0, or out of training, draws nothing. A function that is written in Python is run as it was traced, and
the operators that it calls are looked at.
Not handled: random numbers of operators that do not have the tag, as a user's own.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from . import effects, values

_KNOWN = "dicache_random"  # in a node's metadata, once it has been looked at
_PROBABILITIES = ("p", "dropout_p", "dropout")
_SWITCHES = ("train", "training")


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers; dropout counts only where it is on."""
    if node.op not in ("call_function", "call_method"):
        return False
    if _KNOWN not in node.meta:
        node.meta[_KNOWN] = _draws(node)
    return bool(node.meta[_KNOWN])


def _draws(node: fx.Node) -> bool:
    parts = [getattr(node.graph.owning_module, str(n.target), None) for n in node.all_input_nodes if n.op == "get_attr"]
    graphs = [part.graph for part in parts if isinstance(part, fx.GraphModule)]  # of a condition, a loop, a checkpoint
    if graphs:
        return any(is_random(inner) for graph in graphs for inner in graph.nodes)
    may = any(torch.Tag.nondeterministic_seeded in overload.tags for overload in _overloads(node))
    if not may and not isinstance(node.target, types.FunctionType):
        return False
    try:
        return _run(node)
    except Exception:  # what cannot be run once more is as random as its operator may be
        return may


def _overloads(node: fx.Node) -> Sequence[Any]:
    """The operators that a node may call, as far as its name tells."""
    if isinstance(node.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return effects.overloads(node.target)
    try:
        return effects.overloads(getattr(torch.ops.aten, effects.name(node)))
    except AttributeError:
        return ()


def _run(node: fx.Node) -> bool:
    """Whether a random operator runs where a node is run as it was traced."""
    given: Any = fx.node.map_arg((node.args, node.kwargs), _traced)  # type: ignore[arg-type]
    args, kwargs = given
    call: Callable[..., Any] = node.target if callable(node.target) else getattr(args[0], str(node.target))
    observer = _Observer()
    with torch.no_grad(), ExitStack() as modes:
        mode = _fake_mode(node.graph)
        if mode is not None:
            modes.enter_context(mode)
            if mode.shape_env is not None:  # running it must neither add guards nor count as a use of new symbols
                modes.enter_context(mode.shape_env.suppress_guards())
                modes.enter_context(mode.shape_env.ignore_fresh_unbacked_symbols())
        modes.enter_context(observer)
        call(*(args if callable(node.target) else args[1:]), **kwargs)
    return observer.drew


def _traced(node: fx.Node) -> object:
    """What a node's value was when it was traced: a number that may change between calls, as it was then."""
    recorded = values.value(node)
    if isinstance(recorded, torch.SymFloat):
        known = recorded.node.hint
        return 1.0 if known is None else float(known)
    return recorded


def _fake_mode(graph: fx.Graph) -> FakeTensorMode | None:
    fakes = (values.value(node) for node in graph.nodes)
    return next((fake.fake_mode for fake in fakes if isinstance(fake, FakeTensor)), None)


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether an operator draws random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False

    def __torch_dispatch__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and _is_on(func._schema, args, kwargs or {}):
            self.drew = True
        return func(*args, **(kwargs or {}))


def _is_on(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator that may draw random numbers does with these arguments."""
    passed = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    passed |= dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs)
    off = any(name in passed and passed[name] == 0 for name in _PROBABILITIES)
    return not off and not any(passed.get(name) is False for name in _SWITCHES)
