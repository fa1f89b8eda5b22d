"""How much work a node is, from the shapes that it was traced with: nothing runs, and no guard is added."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from ..plan import Trunk
from . import operators, values


def work(nodes: Iterable[fx.Node]) -> int:
    """About how many multiplications these nodes are: only products count, attention as two of them."""
    return sum(_multiplications(node) for node in nodes if operators.is_heavy(node))


def trunk_work(trunk: Trunk) -> int:
    """That of all blocks: of two trunks in the graphs of one model the heavier is the trunk."""
    return sum(work(block.nodes) for block in trunk.blocks)


def _multiplications(node: fx.Node) -> int:
    result = _shape(node)
    operands = [shape for needed in node.all_input_nodes if (shape := _shape(needed))]
    if result is None or not operands:
        return 0
    if operators.is_dot_product(node) and len(operands) > 1:
        return 2 * _count(operands[0]) * operands[1][-2]
    if operators.is_convolution(node) and len(operands) > 1:
        return _count(result) * _count(operands[1][1:])
    # A product sums over what its operands have and its result has not.
    return _count(result) * operands[0][-1]


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    recorded = values.value(node)
    recorded = recorded[0] if isinstance(recorded, tuple) and recorded else recorded
    return values.shape_hint(recorded) if isinstance(recorded, torch.Tensor) else None


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
