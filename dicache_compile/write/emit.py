"""Writes a piece: copies nodes of the model's graph into a new one and traces plain torch functions after them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..graph import operators, symbols, values
from ..graph.copying import graph_module
from ..program import BLOCK, Kind, Piece, Value
from .constants import ConstantTracer, PlacesOnDevice
from .leaves import map_leaves
from .trial import method_name

if TYPE_CHECKING:
    from .agree import Agreeing


class Emitter:
    """A piece that is being written. Whatever it reads and does not hold becomes a placeholder."""

    def __init__(
        self,
        name: str,
        source: fx.GraphModule,
        autocast: Mapping[fx.Node, tuple[fx.Node, ...]],
        shaped_like: Mapping[Value, fx.Node],
        sizes: Mapping[Any, fx.Node],
        device: torch.device,
        blocks: Mapping[fx.Node, int] | None = None,
    ) -> None:
        """`shaped_like`: nodes of the model with the shapes of values that are none. `sizes`: those that give a symbol
        and can be read in every piece. `device`: where traced functions make tensors. `blocks`: of which block nodes
        are; their copies say so (`BLOCK`).
        """
        self.name = name
        self.graph = fx.Graph()
        self._source = source
        self._shaped_like, self._sizes = shaped_like, sizes
        self._autocast = autocast
        self._blocks = blocks or {}
        self._tracer = ConstantTracer(self.graph, device, prefix=f"_dicache_{name}_")
        self._device = device
        self._copies: dict[fx.Node, fx.Node] = {}
        self._inputs: dict[Value, fx.Node] = {}
        self._last_input: fx.Node | None = None
        self._offered: dict[Value, Any] = {}
        self._traced: list[fx.Node] = []
        self.agreeing: Agreeing | None = None  # where ranks decide as one

    def copy(self, nodes: Iterable[fx.Node], own: dict[fx.Node, fx.Node] | None = None) -> None:
        """Copies nodes, in graph order, inside the autocast scopes that they had.

        `own`: what they read in place of what others do. They are put there, and nobody else reads them.
        """

        def read(node: fx.Node) -> fx.Node:
            return own[node] if own is not None and node in own else self.read(node)

        entered: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            wanted = self._autocast.get(node, ())
            for scope in reversed([scope for scope in entered if scope not in wanted]):
                self._leave(entered.pop(scope))
            for scope in wanted:
                if scope not in entered:
                    entered[scope] = self.graph.node_copy(scope, read)
            copied = self.graph.node_copy(node, read)
            if node in self._blocks:
                copied.meta[BLOCK] = self._blocks[node]
            if own is not None:
                copied.meta.pop("example_value", None)  # which is of what the node read before
                own[node] = copied
                continue
            self._copies[node] = copied
            self.offer(Value(Kind.CROSSING, node.name), copied)
        for scope in reversed(list(entered)):
            self._leave(entered[scope])

    def _leave(self, scope: fx.Node) -> None:
        self.graph.call_function(torch.amp.autocast_mode._exit_autocast, (scope,))

    def has(self, node: fx.Node) -> bool:
        """Whether a node of the model was copied or replaced, or is read."""
        return node in self._copies

    def replace(self, node: fx.Node, stand_in: fx.Node) -> None:
        """From here on, who reads `node` reads `stand_in`, in later pieces too."""
        self._copies[node] = stand_in
        self.offer(Value(Kind.CROSSING, node.name), stand_in)

    def offer(self, value: Value, node: object) -> None:
        """Gives a value to the pieces that read it, if any do: a node, or what it is if it is no tensor."""
        self._offered[value] = node

    def read(self, node: fx.Node) -> fx.Node:
        """The copy of a node of the model. If there is none yet: an attribute or a Python number is copied here, and
        anything else becomes a placeholder.
        """
        if node not in self._copies:
            if node.op == "get_attr":
                with self._at_top():
                    self._copies[node] = self.graph.node_copy(node)
            elif values.is_recomputed(node):
                self._copies[node] = self.graph.node_copy(node, self.read)
            else:
                kind = Kind.INPUT if node.op == "placeholder" else Kind.CROSSING
                self._copies[node] = self.input(Value(kind, node.name))
                self._copies[node].meta = dict(node.meta)
                self._copies[node].type = node.type
        return self._copies[node]

    def input(self, value: Value) -> fx.Node:
        """The placeholder for a value."""
        if value not in self._inputs:
            with self._at_top():
                self._inputs[value] = self._last_input = self.graph.placeholder(str(value).replace(".", "_"))
        return self._inputs[value]

    def state(self, slot: str) -> fx.Node:
        """The placeholder for a slot of the stream's state."""
        return self.input(Value(Kind.STATE, slot))

    def _drop_unread(self) -> None:
        for node in sorted(set(self._traced), reverse=True):
            if not node.users:
                self.graph.erase_node(node)
        for value, node in list(self._inputs.items()):
            if not node.users:
                self.graph.erase_node(node)
                del self._inputs[value]

    def _define_sizes(self) -> None:
        """Adds the symbols that the shapes of the inputs need, as inputs."""
        nodes = {node.name: node for node in self._source.graph.nodes}
        of_model = (Kind.INPUT, Kind.CROSSING)
        shaped = [
            nodes[value.name] if value.kind in of_model else self._shaped_like.get(value) for value in self._inputs
        ]
        for symbol in symbols.missing(values.value(node) for node in shaped if node is not None):
            if symbol in self._sizes:
                self.read(self._sizes[symbol])

    def trace(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a plain torch function on nodes, records it, and gives nodes back. Containers pass through.

        What the function computes and nobody reads is left out in the end, so it must not write in place. Raises
        ValueError that names a method of a gate or an estimator which cannot be traced.
        """
        before = len(self.graph.nodes)
        wrapped = [map_leaves(argument, self._wrap) for argument in arguments]
        try:
            with self._device, PlacesOnDevice(self._tracer), self._tracer.watched_by(self._watcher(function)):
                result = function(*wrapped)
        except Exception as error:
            if not inspect.ismethod(function):
                raise
            name = method_name(function)
            raise ValueError(f"{name} cannot be traced into the graph: {type(error).__name__}: {error}") from error
        result = map_leaves(result, self._unwrap)
        self._traced += itertools.islice(reversed(self.graph.nodes), len(self.graph.nodes) - before)
        return result

    def trace_batch(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """As `trace`, for all rows of a batch at once, where each decides for itself."""
        return self.trace(function, *arguments)

    def split(self, node: fx.Node) -> fx.Node:
        """A value of the model, [B, ...], as traced functions take it: where rows decide for themselves one by one,
        each as a batch of its own.
        """
        return node

    def by_row(self, node: fx.Node) -> fx.Node:
        """A number for each row, [B, ...], as traced functions take it then: each row's alone."""
        return node

    def join(self, node: fx.Node) -> fx.Node:
        """What traced functions gave of such a form, as the model has it."""
        return node

    def choose(self, mask: fx.Node, new: fx.Node, other: fx.Node) -> fx.Node:
        """One of two values, [B, ...], for each row that decides for itself, in the second one's dtype."""
        raise NotImplementedError("all rows decide together")

    def part(self, node: fx.Node) -> fx.Node:
        """A value of which each rank may have another part than others."""
        if self.agreeing is not None:
            self.agreeing.parts.add(node)
        return node

    def is_whole(self, node: fx.Node) -> bool:
        """Whether what a node gives of its first operand is one number; where rows decide for themselves, one a row."""
        return len(node.args) == 1 and node.kwargs.keys() <= {"dtype"}

    def _watcher(self, function: Callable[..., Any]) -> Callable[[fx.Node], fx.Node] | None:
        return self.agreeing.watch if self.agreeing is not None and inspect.ismethod(function) else None

    def method(self, node: fx.Node, name: str, *arguments: Any) -> fx.Node:
        """A tensor method of a value of the model."""
        return self.graph.call_method(name, (node, *arguments))

    def _wrap(self, node: object) -> object:
        return fx.Proxy(node, self._tracer) if isinstance(node, fx.Node) else node

    def _unwrap(self, value: object) -> object:
        if isinstance(value, torch.Tensor):
            return self._tracer.constant(value)
        return value.node if isinstance(value, fx.Proxy) else value

    def _at_top(self) -> Any:
        if self._last_input is not None:
            return self.graph.inserting_after(self._last_input)
        return self.graph.inserting_before(next(iter(self.graph.nodes), None))

    def piece(self, wanted: Iterable[Value]) -> Piece:
        """Ends the piece. It gives those of the wanted values that it offers, in this order."""
        gives = tuple(value for value in dict.fromkeys(wanted) if value in self._offered)
        self.graph.output(tuple(self._offered[value] for value in gives))
        self._drop_unread()
        self._define_sizes()
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        own: dict[str, Any] = {name: it for name, it in self._tracer.constants.items() if name in read}
        attributes = {**{name: attrgetter(name)(self._source) for name in read - set(own)}, **own}
        module = graph_module(attributes, self.graph, self._source)
        return Piece(self.name, module, tuple(self._inputs), gives)


_SHARING = (operators.is_view, operators.is_item, operators.is_cast)


def memory_of(node: fx.Node) -> fx.Node:
    """The node whose memory a traced value may share: `state.float()` is `state` itself where that is float32."""
    while node.all_input_nodes and any(told(node) for told in _SHARING):
        node = node.all_input_nodes[0]
    return node


def write_back(emitter: Emitter, updates: Mapping[str, fx.Node]) -> None:
    """Ends a piece with in-place writes of `updates` (names of slots) to the state.

    No slot may take another's old value as it is: AOTAutograd moves such writes to the end of its graph in the order of
    the placeholders (seen in torch 2.13), and Inductor may run them after the other slot was written (2.11). That is
    why a history is a ring in which every place keeps itself or takes what is new.
    """
    targets = {name: emitter.state(name) for name in updates}
    for name, value in updates.items():
        source = memory_of(value)
        if source in targets.values() and source is not targets[name]:
            raise ValueError(f"the slot {name!r} takes another slot's old value as it is: give that one a history")
    for name, value in updates.items():
        if value is not targets[name]:
            emitter.graph.call_method("copy_", (targets[name], value))
