"""Gives blocks what they do outside of their own modules.

`x = x + block(x)` adds in the model's own code, and a loop `for norm, attention, mlp in self.layers` calls nothing but
parts. What runs between two blocks of a list, and leads from one to the other, belongs to the earlier one; what belongs
to the last one is what belongs to the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import fx

from ..graph import effects, operators
from ..graph.dataflow import Dataflow
from ..graph.residual_path import residual_path
from ..plan import Block


def completed(blocks: tuple[Block, ...], flow: Dataflow, called: bool) -> tuple[Block, ...]:
    """The blocks of a list with what runs between them, where they are not complete without it.

    `called`: whether each block is a module that is called itself.
    """
    if len(blocks) < 2 or (called and _carries(blocks[0], blocks[1], flow)):
        return blocks
    order = {node: place for place, node in enumerate(flow.order)}
    owned = {node for block in blocks for node in block.nodes}
    more = [_between(block, after, owned, flow, order) for block, after in itertools.pairwise(blocks)]
    tail = [node for node in more[-1] if order[node] > order[blocks[-2].nodes[-1]]]
    last = _between(blocks[-1], blocks[-1], owned, flow, order)
    last += _alike(blocks[-1], last, tail, flow, order)
    # What the last block does not end with, the others begin with.
    begins = tail[sum(order[node] > order[blocks[-1].nodes[-1]] for node in last) :]
    first = _before(blocks[0], begins, flow, order) if begins else []
    if first:
        count = len(begins)
        more = [first + more[0][:-count], *(a[-count:] + b[:-count] for a, b in itertools.pairwise(more))]
        last = begins + last
    return tuple(_with(block, nodes, order) for block, nodes in zip(blocks, (*more, last), strict=True))


def _between(
    block: Block, after: Block, owned: set[fx.Node], flow: Dataflow, order: dict[fx.Node, int]
) -> list[fx.Node]:
    """What nobody owns of the nodes that lead from one block to the next, or within one."""
    start, end = order[block.nodes[0]], order[after.nodes[0 if after is not block else -1]]
    leads = flow.between(set(block.nodes), set(after.nodes), flow.order[start : order[after.nodes[-1]] + 1])
    between = [node for node in flow.order[start:end] if node in leads and node not in owned]
    return [node for node in between if node.op.startswith("call_") and not effects.is_mode(node)]


def _carries(first: Block, second: Block, flow: Dataflow) -> bool:
    """Whether a block hands on the stream that it got: what the second one needs of it leads back to its outside."""
    into_second, inside = flow.upstream(second.nodes), set(first.nodes)
    results = [n for n in first.nodes if any(u in into_second and u not in inside for u in flow.needed_by(n))]
    return any(residual_path(result, lambda node: node not in inside) is not None for result in results)


def _with(block: Block, more: Sequence[fx.Node], order: dict[fx.Node, int]) -> Block:
    nodes = tuple(sorted((*block.nodes, *more), key=lambda node: order[node]))
    return Block(block.owner, block.index, nodes, block.key)


def _alike(
    block: Block, within: Sequence[fx.Node], wanted: Sequence[fx.Node], flow: Dataflow, order: dict[fx.Node, int]
) -> list[fx.Node]:
    """The nodes after the last block that are what those after the one before it are."""
    inside, found = {*block.nodes, *within}, list[fx.Node]()
    for node in flow.order[order[block.nodes[-1]] + 1 :]:
        if len(found) == len(wanted):
            break
        if not any(needed in inside for needed in node.all_input_nodes):
            continue
        if operators.name(node) != operators.name(wanted[len(found)]):
            break
        found.append(node)
        inside.add(node)
    return found


def _before(block: Block, wanted: Sequence[fx.Node], flow: Dataflow, order: dict[fx.Node, int]) -> list[fx.Node]:
    """The nodes before the first block that are what those before the others are; none where they are not all there."""
    inside, found = set(block.nodes), list[fx.Node]()
    for node in reversed(flow.order[: order[block.nodes[0]]]):
        if len(found) == len(wanted):
            break
        if not any(user in inside for user in node.users) or not node.op.startswith("call_"):
            continue
        if operators.name(node) == operators.name(wanted[-1 - len(found)]):
            found.append(node)
            inside.add(node)
    return found[::-1] if len(found) == len(wanted) else []
