"""What blocks hand on to each other, told by their form alone.

Two neighbours of one form have the same operations in the same order. What block i + 1 takes from block i stands at the
same place as what block i takes from the one before it, and so on back to what enters the first: no operation has to be
recognised, so that a residual may be written in any way, or not be there at all.

Requires: blocks in the order in which they run. Not handled: neighbours of different forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from ..plan import Block, Trunk
from . import operators, values
from .align import in_order


@dataclass(frozen=True, slots=True)
class Link:
    """One value that goes from block to block."""

    entries: tuple[fx.Node, ...]  # what enters each block
    exit: fx.Node  # what leaves the last one


def links(trunk: Trunk, last: int | None = None) -> tuple[Link, ...]:
    """All that go through the trunk from its first block to its last, or to block `last`, in the order of their use."""
    blocks = trunk.blocks[: None if last is None else last + 1]
    if len(blocks) < 2:
        return ()
    first, second = blocks[0], blocks[1]
    alike = [_places(first, block) for block in blocks]
    results = {node: place for place, node in enumerate(first.nodes)}
    found: dict[tuple[fx.Node, ...], Link] = {}
    for place, node in enumerate(first.nodes):
        for operand, enters in enumerate(node.all_input_nodes):
            other = alike[1].get(place)
            if enters in results or other is None or operand >= len(second.nodes[other].all_input_nodes):
                continue
            leaves = results.get(second.nodes[other].all_input_nodes[operand])
            if leaves is None:
                continue
            link = _followed(blocks, alike, place, operand, leaves)
            if link is not None:
                found.setdefault(link.entries, link)
    return tuple(found.values())


def _followed(
    blocks: Sequence[Block], alike: Sequence[dict[int, int]], place: int, operand: int, leaves: int
) -> Link | None:
    """The link that enters at an operand of a place and leaves at another place, if every block has both."""
    entries: list[fx.Node] = []
    for i, block in enumerate(blocks):
        here, out = alike[i].get(place), alike[i].get(leaves)
        if here is None or out is None or operand >= len(block.nodes[here].all_input_nodes):
            return None
        entered = block.nodes[here].all_input_nodes[operand]
        if i and entered is not blocks[i - 1].nodes[alike[i - 1][leaves]]:
            return None
        entries.append(entered)
    exit = blocks[-1].nodes[alike[-1][leaves]]
    same = values.tensor(exit) is not None and all(values.same_size(entered, exit) for entered in entries)
    return Link(tuple(entries), exit) if same else None


def _places(first: Block, other: Block) -> dict[int, int]:
    """For places in one block's nodes the same ones in another's."""
    mine, theirs = ([operators.name(node) for node in block.nodes] for block in (first, other))
    if mine == theirs:
        return {place: place for place in range(len(mine))}
    numbers = {name: number for number, name in enumerate({*mine, *theirs})}
    return dict(in_order([numbers[name] for name in mine], [numbers[name] for name in theirs]))
