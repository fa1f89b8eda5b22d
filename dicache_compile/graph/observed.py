"""Runs a node once more on fake tensors, as it was traced, and tells which of PyTorch's operators it calls.

For what no name tells: functions that are written in Python, and tensors that are made of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from . import effects, values


@dataclass(frozen=True, slots=True)
class Called:
    """An operator that ran, with its arguments."""

    operator: Any  # torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def called(node: fx.Node) -> list[Called]:
    """The operators that a node calls, in order. Adds no guards. Raises whatever running the node raises."""
    if effects.switches(node):
        return []  # it would stay switched in the user's process
    given: Any = fx.node.map_arg((node.args, node.kwargs), _traced)  # type: ignore[arg-type]
    args, kwargs = given
    call: Callable[..., Any] = node.target if callable(node.target) else getattr(args[0], node.target)
    observer = _Observer()
    with torch.no_grad(), ExitStack() as modes:
        mode = _fake_mode(node.graph)
        if mode is not None:
            modes.enter_context(mode)
            if mode.shape_env is not None:
                modes.enter_context(mode.shape_env.suppress_guards())
                modes.enter_context(mode.shape_env.ignore_fresh_unbacked_symbols())
        modes.enter_context(observer)
        call(*(args if callable(node.target) else args[1:]), **kwargs)
    return observer.seen


def subgraphs(node: fx.Node) -> list[fx.GraphModule]:
    """The graphs that a node runs: those of a condition, a loop or a checkpoint."""
    parts = [getattr(node.graph.owning_module, str(n.target), None) for n in node.all_input_nodes if n.op == "get_attr"]
    return [part for part in parts if isinstance(part, fx.GraphModule)]


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
    """Sees every operator that runs; of a tensor that is made of others, those that run on its parts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Called] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.seen.append(Called(func, args, kwargs or {}))
        if any(kind is not FakeTensor and hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # the tensor's own class takes it apart
        return func(*args, **(kwargs or {}))
