"""Writes a piece: copies nodes of the model's graph into a new one and traces plain torch functions after them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import fx


class Emitter:
    """A graph that is being written. Whatever it reads and does not hold becomes a placeholder."""

    def __init__(
        self,
        source: fx.GraphModule,
        autocast: Mapping[fx.Node, tuple[fx.Node, ...]],
        inputs: Sequence[str] | None = None,
    ) -> None:
        """`inputs`: the placeholders, if they are to be just these and in this order, read or not."""
        self.graph = fx.Graph()
        self._source = source
        self._autocast = autocast
        self._tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self._copies: dict[fx.Node, fx.Node] = {}
        self._named: dict[str, fx.Node] = {}
        self._last_input: fx.Node | None = None
        self.inputs: list[str] = []
        self._keep_inputs = inputs is not None
        for name in inputs or ():
            self.input(name)

    def copy(self, nodes: Iterable[fx.Node]) -> None:
        """Copies nodes, in graph order, inside the autocast scopes that they had."""
        entered: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            wanted = self._autocast.get(node, ())
            for scope in reversed([scope for scope in entered if scope not in wanted]):
                self._leave(entered.pop(scope))
            for scope in wanted:
                if scope not in entered:
                    entered[scope] = self.graph.node_copy(scope, self.read)
            self._copies[node] = self.graph.node_copy(node, self.read)
        for scope in reversed(list(entered)):
            self._leave(entered[scope])

    def _leave(self, scope: fx.Node) -> None:
        self.graph.call_function(torch.amp.autocast_mode._exit_autocast, (scope,))

    def replace(self, node: fx.Node, stand_in: fx.Node) -> None:
        """From here on, who reads `node` reads `stand_in`."""
        self._copies[node] = stand_in

    def read(self, node: fx.Node) -> fx.Node:
        """The copy of a node of the model; a new placeholder, or a copied attribute, if there is none yet."""
        if node not in self._copies:
            if node.op == "get_attr":
                with self._at_top():
                    self._copies[node] = self.graph.node_copy(node)
            else:
                self._copies[node] = self.input(node.name)
                self._copies[node].meta = dict(node.meta)
                self._copies[node].type = node.type
        return self._copies[node]

    def input(self, name: str) -> fx.Node:
        """The placeholder for a name of the step's environment."""
        if name not in self._named:
            with self._at_top():
                placeholder = self.graph.placeholder(name.replace(".", "_"))
            self._named[name] = self._last_input = placeholder
            self.inputs.append(name)
        return self._named[name]

    def _drop_unread(self) -> None:
        for name in [name for name in self.inputs if not self._named[name].users]:
            self.graph.erase_node(self._named.pop(name))
            self.inputs.remove(name)

    def put_first(self, names: Sequence[str]) -> None:
        """Moves the placeholders of these names before all others, in this order."""
        for name in reversed(names):
            next(iter(self.graph.nodes)).prepend(self._named[name])
        self.inputs = [*names, *(name for name in self.inputs if name not in names)]

    def trace(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a plain torch function on nodes, records it, and gives nodes back. Containers pass through."""
        result = function(*(_map(argument, self._wrap) for argument in arguments))
        return _map(result, _unwrap)

    def _wrap(self, node: object) -> object:
        return fx.Proxy(node, self._tracer) if isinstance(node, fx.Node) else node

    def _at_top(self) -> Any:
        if self._last_input is not None:
            return self.graph.inserting_after(self._last_input)
        return self.graph.inserting_before(next(iter(self.graph.nodes), None))

    def module(
        self, outputs: Sequence[object], attributes: Mapping[str, torch.nn.Module] | None = None
    ) -> fx.GraphModule:
        """Ends the graph with these outputs; `attributes` are modules that it reads besides the source's own."""
        self.graph.output(tuple(outputs))  # type: ignore[arg-type]
        if not self._keep_inputs:
            self._drop_unread()
        own = dict(attributes or {})
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"} - set(own)
        module = fx.GraphModule({**{name: attrgetter(name)(self._source) for name in read}, **own}, self.graph)
        module.meta = dict(self._source.meta)
        return module


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_map(item, change) for item in value)
    return change(value)


def _unwrap(value: object) -> object:
    return value.node if isinstance(value, fx.Proxy) else value


def write_back(emitter: Emitter, updates: Mapping[str, fx.Node]) -> None:
    """Ends a piece with in-place writes of `updates` (names of slots) to the state.

    A slot that takes another slot's old value is written before that other one is. AOTAutograd moves the writes to the
    end of its graph in the order of the placeholders, whatever the order here (seen in torch 2.13), so the
    placeholders are put into the order of the writes.
    """
    targets = {name: emitter.input(f"state.{name}") for name in updates}
    waiting = dict(updates)
    written: list[str] = []
    while waiting:
        # A slot may be written once no other slot that waits still wants its old value.
        free = [n for n in waiting if all(v is not targets[n] for other, v in waiting.items() if other != n)]
        if not free:
            raise AssertionError(f"slots take each other's values in a circle: {', '.join(waiting)}")
        for name in free:
            value = waiting.pop(name)
            if value is not targets[name]:
                emitter.graph.call_method("copy_", (targets[name], value))
                written.append(f"state.{name}")
    emitter.put_first(written)
