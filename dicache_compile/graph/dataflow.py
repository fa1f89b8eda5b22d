"""Reachability over a graph, with the edges that in-place writes add."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import fx

from . import effects


class Dataflow:
    """What each node needs and what needs it. Built once for a graph; does not follow later changes of it."""

    def __init__(self, graph: fx.Graph) -> None:
        self.order = tuple(graph.nodes)
        extra = effects.ordering(graph)
        self._needs = {node: (*node.all_input_nodes, *extra.get(node, ())) for node in self.order}
        self._needed_by: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node, inputs in self._needs.items():
            for needed in inputs:
                self._needed_by[needed].append(node)

    def needs(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The nodes that must have run right before this one can."""
        return self._needs[node]

    def needed_by(self, node: fx.Node) -> tuple[fx.Node, ...]:
        return tuple(self._needed_by[node])

    def upstream(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """These nodes and all that they need, directly or not."""
        return self._closure(nodes, self._needs)

    def downstream(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """These nodes and all that need them, directly or not."""
        return self._closure(nodes, self._needed_by)

    def between(
        self, sources: Collection[fx.Node], targets: Collection[fx.Node], nodes: Sequence[fx.Node]
    ) -> set[fx.Node]:
        """Those of some nodes, which stand next to each other in the graph, on the way from sources to targets."""
        reached, led = set(sources), set(targets)
        for node in nodes:
            if any(needed in reached for needed in self._needs[node]):
                reached.add(node)
        for node in reversed(nodes):
            if node in led:
                led.update(self._needs[node])
        return reached & led & set(nodes)

    @staticmethod
    def _closure(nodes: Iterable[fx.Node], edges: Mapping[fx.Node, Sequence[fx.Node]]) -> set[fx.Node]:
        seen, pending = set(nodes), list(nodes)
        while pending:
            for other in edges.get(pending.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    pending.append(other)
        return seen
