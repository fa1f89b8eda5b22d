"""Sizes that are not numbers: which symbols a value's shape needs, and which values give a symbol.

A piece of a dynamic graph may read a tensor of (height // 2) * (width // 2) tokens and nothing of height or width.
Inductor can only compile it if both are among its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from . import values


def missing(inputs: Iterable[object]) -> list[Any]:
    """The symbols that the shapes of these values need and no value gives, in a fixed order."""
    needed: set[Any] = set()
    given: set[Any] = set()
    for recorded in inputs:
        for expression in _expressions(recorded):
            needed |= expression.free_symbols
        given |= {size for size in _sizes(recorded) if size.is_Symbol}
    return sorted(needed - given, key=str)


def definers(nodes: Iterable[fx.Node]) -> Mapping[Any, fx.Node]:
    """The first node whose value is a symbol, for each symbol that has one."""
    found: dict[Any, fx.Node] = {}
    for node in nodes:
        recorded = values.value(node)
        if isinstance(recorded, torch.SymInt) and recorded.node.expr.is_Symbol:
            found.setdefault(recorded.node.expr, node)
    return found


def _sizes(recorded: object) -> list[Any]:
    sizes = recorded.shape if isinstance(recorded, torch.Tensor) else (recorded,)
    return [size.node.expr for size in sizes if isinstance(size, torch.SymInt)]


def _expressions(recorded: object) -> list[Any]:
    if not isinstance(recorded, torch.Tensor) or recorded.layout is not torch.strided:
        return _sizes(recorded)
    strides: Sequence[int | torch.SymInt] = recorded.stride()
    return [*_sizes(recorded), *(stride.node.expr for stride in strides if isinstance(stride, torch.SymInt))]
