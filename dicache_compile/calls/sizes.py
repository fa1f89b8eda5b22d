"""Shapes of state at run time: numbers for a static graph, expressions over the inputs' sizes for a dynamic one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..graph import values
from ..program import Slot


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shapes of a state's tensors, for the inputs of one call."""

    fixed: Mapping[str, tuple[int, ...]] | None  # by slot; None: they depend on the inputs
    expressions: Mapping[str, tuple[Any, ...]]  # sympy expressions, by slot
    symbols: Mapping[Any, tuple[int, int | None]]  # sympy symbol -> (input, its dimension or None for a SymInt)

    def key(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        """What the shapes depend on: equal keys, equal shapes."""
        if self.fixed is not None:
            return ()
        return tuple(_size(inputs[i], dim) for i, dim in self.symbols.values())

    def shapes(self, inputs: Sequence[Any]) -> Mapping[str, tuple[int, ...]]:
        if self.fixed is not None:
            return self.fixed
        known = dict(zip(self.symbols, self.key(inputs), strict=True))
        return {n: tuple(int(size.xreplace(known)) for size in shape) for n, shape in self.expressions.items()}


def read_sizes(graph: fx.Graph, slots: Sequence[Slot]) -> Sizes:
    """How the shapes of `slots` follow from the placeholders of a graph."""
    expressions = {slot.name: _shape(slot) for slot in slots}
    needed = {symbol for shape in expressions.values() for size in shape for symbol in size.free_symbols}
    if not needed:
        return Sizes({name: tuple(int(size) for size in shape) for name, shape in expressions.items()}, {}, {})
    symbols: dict[Any, tuple[int, int | None]] = {}
    for i, placeholder in enumerate(graph.find_nodes(op="placeholder")):
        recorded = values.value(placeholder)
        if isinstance(recorded, torch.SymInt):
            symbols.setdefault(recorded.node.expr, (i, None))
        elif isinstance(recorded, torch.Tensor):
            for dim, size in enumerate(recorded.shape):
                if isinstance(size, torch.SymInt):
                    symbols.setdefault(size.node.expr, (i, dim))
    return Sizes(None, expressions, {symbol: place for symbol, place in symbols.items() if symbol in needed})


def _shape(slot: Slot) -> tuple[Any, ...]:
    import sympy

    carried = values.tensor(slot.like) if slot.like is not None else None
    sizes: Sequence[Any] = slot.shape if carried is None else slot.shape_of(carried.shape)
    return tuple(size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size) for size in sizes)


def _size(value: Any, dim: int | None) -> int:
    return int(value) if dim is None else int(value.shape[dim])
