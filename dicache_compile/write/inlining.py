"""Puts the graphs of pieces into one graph, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import fx

from ..graph.copying import graph_module
from ..program import Kind, Piece, Value


class Inlined:
    """A graph that is made of pieces. What a piece reads and none before it gives becomes a placeholder."""

    def __init__(self, dtypes: Mapping[Value, torch.dtype] | None = None) -> None:
        """`dtypes`: those of the state. With them a new state is a value, whose slot `written` has; without, pieces
        write to it in place.
        """
        self.graph = fx.Graph()
        self.reads: dict[Value, fx.Node] = {}  # the placeholders
        self.known: dict[Value, Any] = {}  # every value: a node, or a number, or None
        self.written: set[Value] = set()  # of the state
        self.attributes: dict[str, Any] = {}
        self._dtypes = dtypes
        self._last: fx.Node | None = None

    def placeholder(self, value: Value, like: fx.Node) -> fx.Node:
        """The placeholder for a value, with the metadata of another one for it."""
        if self._last is not None:
            place: Any = self.graph.inserting_after(self._last)
        else:
            place = self.graph.inserting_before(next(iter(self.graph.nodes), None))
        with place:
            self._last = self.graph.placeholder(str(value).replace(".", "_"), type_expr=like.type)
        self._last.meta = dict(like.meta)
        self.reads[value] = self.known[value] = self._last
        return self._last

    def add(self, piece: Piece) -> None:
        """Adds a piece's graph, and what it gives to what is known."""
        copies: dict[fx.Node, Any] = {}
        slots: dict[fx.Node, Value] = {}
        reads = iter(piece.reads)
        for node in piece.graph_module.graph.nodes:
            if node.op == "placeholder":
                value = next(reads)
                copies[node] = self.known[value] if value in self.known else self.placeholder(value, node)
                if value.kind is Kind.STATE:
                    slots[node] = value
            elif node.op == "output":
                for value, given in zip(piece.gives, node.args[0], strict=True):
                    self.known[value] = copies[given] if isinstance(given, fx.Node) else given
            elif self._dtypes is not None and node.target == "copy_" and node.args[0] in slots:
                value = slots[node.args[0]]
                self.known[value] = self._fresh(copies[node.args[1]], self._dtypes[value])
                self.written.add(value)
            else:
                if node.op == "get_attr":
                    self.attributes[node.target] = attrgetter(node.target)(piece.graph_module)
                copies[node] = self.graph.node_copy(node, lambda needed: copies[needed])

    def _fresh(self, new: fx.Node, dtype: torch.dtype) -> fx.Node:
        return self.contiguous(self.graph.call_method("to", (new, dtype)))

    def contiguous(self, node: fx.Node) -> fx.Node:
        """A copy in memory of its own, with its dimensions in order."""
        return self.graph.call_method("clone", (node,), {"memory_format": torch.contiguous_format})

    def piece(self, name: str, gives: Iterable[Value], like: fx.GraphModule) -> Piece:
        """Ends the graph, which gives these values; the metadata of its module are those of another one."""
        gives = tuple(gives)
        self.graph.output(tuple(self.known[value] for value in gives))
        return Piece(name, graph_module(self.attributes, self.graph, like), tuple(self.reads), gives)
