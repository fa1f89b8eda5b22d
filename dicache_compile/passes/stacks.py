"""Finds stacks of blocks: by the entries of containers that own a graph's nodes, or by the form of the graph.

Requires: nodes in the order in which they were traced. Ensures: in each stack every block reads what the one before
gives.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from torch import fx

from ..graph import operators, values
from ..graph.dataflow import Dataflow
from ..graph.module_path import Entry, entries
from ..graph.residual_path import residual_path
from ..plan import Block
from .complete import completed
from .structure import repeated_blocks

Nodes = tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks of one container that run as a chain."""

    owner: str
    blocks: tuple[Block, ...]

    @property
    def weight(self) -> int:
        return sum(len(block.nodes) for block in self.blocks)

    @property
    def mixes_tokens(self) -> bool:
        """Whether each block computes attention, or otherwise multiplies activations with each other."""
        return all(mixes_tokens(block.nodes) for block in self.blocks)

    def is_inside(self, outer: Stack) -> bool:
        """Whether its entries are parts of one entry of `outer`, which is itself a chain."""
        inside = any(self.owner == block.path or self.owner.startswith(block.path + ".") for block in outer.blocks)
        return inside and len(outer.blocks) > 1


def named_stacks(flow: Dataflow) -> list[Stack]:
    """Every container of the graph, cut down to its longest run of chained entries."""
    owned: dict[str, dict[tuple[str, str], list[fx.Node]]] = defaultdict(lambda: defaultdict(list))
    made_of: dict[str, set[Entry]] = defaultdict(set)
    for node in flow.order:
        for entry in entries(node) if node.op in ("call_function", "call_method", "call_module") else ():
            owned[entry.owner][entry.key, entry.call].append(node)
            made_of[entry.owner].add(entry)
    blocks = [
        Block(owner, int(key) if key.isdigit() else place, tuple(nodes), "" if key.isdigit() else key)
        for owner, parts in owned.items()
        if _is_container(made_of[owner])
        for place, ((key, _), nodes) in enumerate(parts.items())
    ]
    stacks = _chained(flow, blocks)
    called = {owner: all(entry.is_called for entry in found) for owner, found in made_of.items()}
    return [Stack(stack.owner, completed(stack.blocks, flow, called[stack.owner])) for stack in stacks]


def _is_container(found: set[Entry]) -> bool:
    """Whether entries may be blocks: those of a list, or those of a dict that are all of one class."""
    return all(entry.key.isdigit() for entry in found) or len({entry.kind for entry in found}) == 1


def _chained(flow: Dataflow, all_blocks: list[Block]) -> list[Stack]:
    """The blocks by owner, each list cut down to its longest run in which every block reads the one before."""
    reached = reached_blocks(flow, all_blocks)
    by_owner: dict[str, list[int]] = defaultdict(list)
    for position, block in enumerate(all_blocks):
        by_owner[block.owner].append(position)
    stacks = []
    for owner, positions in by_owner.items():
        runs: list[list[int]] = [[positions[0]]]
        for before, here in itertools.pairwise(positions):
            chained = any(reached[node] >> before & 1 for node in all_blocks[here].nodes)
            if not chained:
                runs.append([])
            runs[-1].append(here)
        longest = max(runs, key=len)
        stacks.append(Stack(owner, tuple(all_blocks[position] for position in longest)))
    return stacks


def reached_blocks(flow: Dataflow, blocks: list[Block]) -> dict[fx.Node, int]:
    """For each node, the blocks upstream of it, as the bits of a number."""
    own: dict[fx.Node, int] = defaultdict(int)
    for position, block in enumerate(blocks):
        for node in block.nodes:
            own[node] |= 1 << position
    reached: dict[fx.Node, int] = {}
    for node in flow.order:
        bits = 0
        for needed in flow.needs(node):
            bits |= reached[needed] | own[needed]
        reached[node] = bits
    return reached


def unnamed_stacks(flow: Dataflow, taken: Collection[fx.Node] = ()) -> list[Stack]:
    """The same from the form of the graph alone, but for the nodes that are `taken`; the owners are made up."""
    stacks: list[Stack] = []
    for alike in repeated_blocks(flow, mixes_tokens, taken):
        chains: list[list[Nodes]] = []
        for nodes in alike:
            if not chains or not is_entered_from(nodes, chains[-1][-1]):
                chains.append([])
            chains[-1].append(nodes)
        for chain in chains:
            owner = f"repeated{len(stacks)}"
            stacks.append(Stack(owner, tuple(Block(owner, i, nodes) for i, nodes in enumerate(chain))))
    return stacks


def is_entered_from(after: Nodes, before: Nodes, rather_than: Nodes = ()) -> bool:
    """Whether a stream that enters `after` comes out of `before`, and not out of `rather_than`."""
    inside, ends = set(after), {*before, *rather_than}
    for result in (node for node in after if any(user not in inside for user in node.users)):
        path = residual_path(result, lambda node: node not in inside)
        onward = residual_path(path[-1], lambda node: node in ends) if path is not None else None
        if onward is not None:
            return onward[-1] in before
    return False


def mixes_tokens(nodes: Nodes) -> bool:
    """Whether some nodes compute attention, or otherwise multiply activations with each other."""
    for node in nodes:
        if operators.is_of_attention(node):
            return True
        if operators.is_contraction(node):
            tensors = [n for n in node.all_input_nodes if values.tensor(n) is not None]
            if sum(n.op != "placeholder" or not values.is_weight(n) for n in tensors) >= 2:
                return True
    return False
