"""Makes graph modules, of which most are only read: their Python code is written when one is first run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

try:
    from torch.fx._lazy_graph_module import _LazyGraphModule as _Module
except ImportError:  # not public; it only spares time
    _Module = fx.GraphModule  # type: ignore[misc, assignment]


def graph_module(attributes: nn.Module | Mapping[str, Any], graph: fx.Graph, like: fx.GraphModule) -> fx.GraphModule:
    """A module that runs a graph, with the metadata of another one."""
    root = attributes if isinstance(attributes, nn.Module) else dict(attributes)
    made = _Module(root, graph)
    made.meta = dict(like.meta)
    return made


def copy_module(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph module with what Dynamo left on it, sharing its weights. Its graph can be changed without `gm`'s."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(gm.graph, mapping))
    for old, new in mapping.items():
        new.meta.pop("grapharg", None)  # holds a weak reference to the weight, which Dynamo drops from its own graph
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    return graph_module(gm, graph, gm)
