"""Copies a graph module with what Dynamo left on it, sharing its weights."""

from __future__ import annotations

from torch import fx


def copy_module(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph module whose graph can be changed without changing `gm`'s."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(gm.graph, mapping))
    for old, new in mapping.items():
        new.meta.pop("grapharg", None)  # holds a weak reference to the weight, which Dynamo drops from its own graph
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    copy = fx.GraphModule(gm, graph)
    copy.meta = dict(gm.meta)
    return copy
