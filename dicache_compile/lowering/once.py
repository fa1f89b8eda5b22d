"""Numbers that a piece computes for itself are computed once.

Inductor writes what gives a small tensor into each loop that reads it. On a CPU the compiler cannot take it out of that
loop again: what the loop stores might be what it loads. So the weights of an estimate, with their divisions and the
places of a ring, would be computed anew for every vector of the carried value.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from ..graph import values

_FEW = 4096  # elements of what is computed apart, at most
_TIMES = 16  # that a reader is larger, at least: a vector of float32 on a CPU


def compute_once(gm: fx.GraphModule) -> None:
    """Has Inductor keep small tensors in memory where something large reads them.

    Of nodes that this package wrote alone: the model's own are compiled as without it. To be used after
    `record_fake_values`.
    """
    for node in tuple(gm.graph.nodes):
        recorded = _number(node)
        readers = [reader for reader in node.users if _is_larger(reader, recorded)] if recorded is not None else []
        if recorded is None or not readers:
            continue
        # What is read by its strides is in memory.
        with gm.graph.inserting_after(node):
            kept = gm.graph.call_function(torch.as_strided, (node, tuple(recorded.shape), recorded.stride()))
        kept.meta["example_value"] = recorded
        for reader in readers:
            reader.replace_input_with(node, kept)
    gm.recompile()


def _number(node: fx.Node) -> Tensor | None:
    """The fake tensor of a few numbers that this package computes, in memory one after the other; None for others."""
    found = values.value(node)
    if node.op not in ("call_function", "call_method") or "stack_trace" in node.meta or not isinstance(found, Tensor):
        return None
    sizes = [size for size in found.shape if not (isinstance(size, int) and size == 1)]
    plain = len(sizes) <= 1 and all(isinstance(size, int) for size in sizes) and found.is_contiguous()
    few = plain and found.numel() <= _FEW and found.device.type == "cpu" and not found._is_view()
    return found if few else None


def _is_larger(reader: fx.Node, number: Tensor) -> bool:
    return any(one.numel() >= _TIMES * number.numel() for one in _tensors(reader))


def _tensors(node: fx.Node) -> Iterator[Tensor]:
    found = values.value(node)
    for one in found if isinstance(found, (tuple, list)) else (found,):
        if isinstance(one, Tensor):
            yield one
