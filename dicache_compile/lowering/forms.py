"""The form of a graph: what two graphs have in common that may run the same compiled code.

Equal forms have the same operations in the same order with the same constants, on inputs of the same shapes, strides,
dtypes, devices and kinds, of which the same share memory. What the inputs hold is no part of a form.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..graph import values

_CONSTANTS = (
    bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum
)  # fmt: skip
_NONE = (type(None), type(Ellipsis))


def form(gm: fx.GraphModule) -> Hashable:
    """The form of a graph. To be compared while the graph is alive: objects that are unknown stand for themselves."""
    places: dict[fx.Node, int] = {node: place for place, node in enumerate(gm.graph.nodes)}
    memories: dict[int, int] = {}
    return tuple(_node(gm, node, places, memories) for node in gm.graph.nodes)


def _node(gm: fx.GraphModule, node: fx.Node, places: Mapping[fx.Node, int], memories: dict[int, int]) -> Hashable:
    if node.op == "placeholder":
        shared = tuple(memories.setdefault(memory, len(memories)) for memory in sorted(values.storages(node)))
        return (node.op, _input(values.value(node)), shared)
    target: Hashable = node.target
    if node.op == "get_attr":
        target = id(attrgetter(str(node.target))(gm))
    elif node.op == "call_module":
        target = id(gm.get_submodule(str(node.target)))
    told = node.meta.get("custom")
    return (node.op, target, _argument(node.args, places), _argument(node.kwargs, places), repr(told) if told else "")


def _argument(given: Any, places: Mapping[fx.Node, int]) -> Hashable:
    if isinstance(given, fx.Node):
        return ("node", places[given])
    if isinstance(given, (tuple, list)):
        return (type(given).__qualname__, *(_argument(one, places) for one in given))
    if isinstance(given, Mapping):
        return ("mapping", *((key, _argument(one, places)) for key, one in given.items()))
    if isinstance(given, slice):
        return ("slice", *(_argument(one, places) for one in (given.start, given.stop, given.step)))
    if isinstance(given, _CONSTANTS) or type(given) in _NONE:
        return (type(given).__qualname__, repr(given))  # so that 1, 1.0 and True are three, and -0.0 is not 0.0
    return ("object", id(given))


def _input(recorded: object) -> Hashable:
    """What is known of an input when a graph is compiled."""
    if not isinstance(recorded, torch.Tensor):
        return (type(recorded).__qualname__, str(recorded))
    plain = (
        type(recorded).__qualname__,
        isinstance(recorded, torch.nn.Parameter),
        recorded.requires_grad,
        recorded.is_conj(),
        recorded.is_neg(),
        recorded.dtype,
        str(recorded.device),
        recorded.layout,
        tuple(map(str, recorded.shape)),
    )
    if is_traceable_wrapper_subclass(recorded):
        names, context = recorded.__tensor_flatten__()
        inner = tuple((name, _input(getattr(recorded, name))) for name in names)
        return (*plain, inner, repr(context))
    if recorded.layout is not torch.strided:
        return (*plain, id(recorded))
    return (*plain, tuple(map(str, recorded.stride())), str(recorded.storage_offset()))
