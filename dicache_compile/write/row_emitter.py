"""Writes a piece in which each row of a batch decides for itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from ..graph import values
from ..kernels.float8 import FLOAT8
from ..program import Kind, Slot, Value
from .emit import Emitter
from .leaves import map_leaves
from .row_wise import nodes_of, operations
from .rows import Rows

_FAKE = "example_value"


class RowEmitter(Emitter):
    """Writes a piece in which each row decides for itself."""

    def __init__(self, *arguments: Any, rows: Rows, slots: Mapping[str, Slot]) -> None:
        super().__init__(*arguments)
        self._rows, self._slots = rows, slots
        self._fakes: dict[fx.Node, Tensor] = {}
        self._by_row: set[fx.Node] = set()  # of which each row has a part
        self._split: dict[fx.Node, fx.Node] = {}

    def input(self, value: Value) -> fx.Node:
        node = super().input(value)
        if node in self._fakes:
            return node
        if value.kind is Kind.STATE:
            slot = self._slots[value.name]
            self._note(node, self._empty(slot), slot.of_rows)
        elif value in self._rows.given:
            self._note(node, *self._rows.given[value])
        return node

    def offer(self, value: Value, node: object) -> None:
        super().offer(value, node)
        if isinstance(node, fx.Node) and value.kind in (Kind.STEP, Kind.AID, Kind.DECISION):
            self._rows.given[value] = self._fake(node), node in self._by_row

    def by_row(self, node: fx.Node) -> fx.Node:
        self._by_row.add(node)
        return node

    def split(self, node: fx.Node) -> fx.Node:
        if node not in self._split:
            self._split[node] = self.by_row(self.trace_batch(_with_one, node))
        return self._split[node]

    def join(self, node: fx.Node) -> fx.Node:
        joined: fx.Node = self.trace_batch(_without_one, node)
        return joined

    def method(self, node: fx.Node, name: str, *arguments: Any) -> fx.Node:
        given: fx.Node = self.trace_batch(_call, node, name, *arguments)
        return given

    def trace_batch(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return super().trace(function, *arguments)

    def choose(self, mask: fx.Node, new: fx.Node, other: fx.Node) -> fx.Node:
        fake = self._fake(other)
        found: fx.Node = self.trace_batch(_chosen, mask, new, other, fake.dim(), fake.dtype)
        return found

    def trace(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a plain torch function for each row. What no row has a part of is seen as it is."""
        nodes = nodes_of(arguments)
        if not any(node in self._by_row for node in nodes):
            return self.trace_batch(function, *arguments)
        known = self._rows.traced
        if (key := self._key(function, arguments, nodes)) not in known:
            examples = [(self._fake(node), node in self._by_row) for node in nodes]
            known[key] = operations(function, arguments, dict(zip(nodes, examples, strict=True)), self._device)
        found = self._inserted(known[key].graph, nodes, self._watcher(function))
        self._by_row.update(found)
        return known[key].result(found)

    def _key(self, function: Callable[..., Any], arguments: Sequence[Any], nodes: Sequence[fx.Node]) -> Hashable:
        """What two calls of a function have in common of which the same is recorded."""
        places = {node: place for place, node in enumerate(nodes)}
        shape = map_leaves(arguments, lambda leaf: places[leaf] if isinstance(leaf, fx.Node) else repr(leaf))
        forms = [(str(fake.shape), fake.dtype, str(fake.stride()), fake.device) for fake in map(self._fake, nodes)]
        owner = getattr(function, "__self__", None)
        by_row = tuple(node in self._by_row for node in nodes)
        return id(owner), getattr(function, "__func__", function), repr(shape), tuple(forms), by_row

    def is_whole(self, node: fx.Node) -> bool:
        operand = node.args[0]
        assert isinstance(operand, fx.Node)
        return self._fake(node).dim() == 1 < self._fake(operand).dim()

    def _inserted(
        self, traced: fx.GraphModule, nodes: Sequence[fx.Node], watch: Callable[[fx.Node], fx.Node] | None
    ) -> list[Any]:
        """The nodes of what a graph gives for some nodes, copied into this one; `watch` may replace them."""
        given, copies = iter(nodes), dict[fx.Node, fx.Node]()
        for node in traced.graph.nodes:
            if node.op == "output":
                return [copies[one] for one in node.args[0]]
            if node.op == "placeholder":
                copies[node] = next(given)
                continue
            if node.op == "get_attr":
                copies[node] = self._constant(getattr(traced, str(node.target)))
            else:
                copies[node] = self.graph.node_copy(node, lambda needed: copies[needed])
                self._traced.append(copies[node])
            copies[node].meta = {_FAKE: node.meta.get("val")}
            if watch is not None:
                copies[node] = watch(copies[node])
        raise AssertionError("a graph without an output")

    def _constant(self, tensor: Tensor) -> fx.Node:
        constant = getattr(tensor, "constant", None) if isinstance(tensor, FakeTensor) else tensor
        if constant is None:
            raise ValueError("it makes a tensor whose values are not known while it is traced")
        return self._tracer.constant(constant)

    def _note(self, node: fx.Node, fake: Tensor, by_row: bool) -> None:
        self._fakes[node] = fake
        if by_row:
            self._by_row.add(node)

    def _fake(self, node: fx.Node) -> Tensor:
        if node not in self._fakes:
            found = values.tensor(node)
            self._fakes[node] = found if found is not None else self._run(node)
        return self._fakes[node]

    def _run(self, node: fx.Node) -> Tensor:
        """What a node gives that was traced for all rows at once."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._fake)
        if node.op == "get_attr":
            return self._rows.mode.from_tensor(self._tracer.constants[str(node.target)], static_shapes=True)
        with self._rows.mode, torch.no_grad():
            if node.op == "call_method":
                given: Tensor = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert callable(node.target)
                given = node.target(*args, **kwargs)
        node.meta[_FAKE] = given
        return given

    def _empty(self, slot: Slot) -> Tensor:
        like = values.tensor(slot.like) if slot.like is not None else None
        shape = slot.shape if like is None else slot.shape_of(like.shape)
        with self._rows.mode:
            return torch.empty(shape, dtype=slot.dtype, device=slot.device)


# Traced into the graph:


def _chosen(mask: Tensor, new: Tensor, other: Tensor, dimensions: int, dtype: torch.dtype) -> Tensor:
    mask, new = mask.reshape(-1, *[1] * (dimensions - 1)), new.to(dtype)
    if dtype not in FLOAT8:
        return torch.where(mask, new, other)
    # Of float8 PyTorch selects nothing but the bytes.
    return torch.where(mask, new.view(torch.uint8), other.view(torch.uint8)).view(dtype)


def _with_one(value: Tensor) -> Tensor:
    return value.unsqueeze(1)


def _without_one(value: Tensor) -> Tensor:
    return value.squeeze(1)


def _call(value: Tensor, name: str, *arguments: Any) -> Tensor:
    given: Tensor = getattr(value, name)(*arguments)
    return given
