"""Makes one stack of lists whose blocks take turns: one for space and one for time, say."""

from __future__ import annotations

import itertools

from torch import fx

from ..graph import operators
from ..graph.dataflow import Dataflow
from ..plan import PAIR, Block
from .stacks import Nodes, Stack, is_entered_from

_AT_MOST = 4  # lists that take turns


def with_turns(stacks: list[Stack], flow: Dataflow) -> list[Stack]:
    """The stacks, with those that take turns made one. A list whose blocks mix no tokens may be one of them."""
    position = {node: i for i, node in enumerate(flow.order)}

    def place(stack: Stack) -> int:
        return position[stack.blocks[0].nodes[0]]

    left, found = list(stacks), list[Stack]()
    while left:
        first = left.pop(0)
        alike = sorted((stack for stack in left if _alternate(first, stack, position)), key=place)
        for count in range(min(len(alike), _AT_MOST - 1), 0, -1):
            together = tuple(sorted((first, *alike[:count]), key=place))
            if any(stack.mixes_tokens for stack in together) and _take_turns(together, position):
                left = [stack for stack in left if stack not in together]
                first = _made_one(together)
                break
        found.append(first)
    return found


def _alternate(one: Stack, other: Stack, position: dict[fx.Node, int]) -> bool:
    """Whether the blocks of two stacks run one after the other, none within another."""
    if len(one.blocks) != len(other.blocks) or len(one.blocks) < 2:
        return False
    first, second = sorted((one, other), key=lambda stack: position[stack.blocks[0].nodes[0]])
    turns = [block.nodes for pair in zip(first.blocks, second.blocks, strict=True) for block in pair]
    return all(position[here[-1]] < position[after[0]] for here, after in itertools.pairwise(turns))


def _take_turns(stacks: tuple[Stack, ...], position: dict[fx.Node, int]) -> bool:
    turns = [block.nodes for blocks in zip(*(s.blocks for s in stacks), strict=True) for block in blocks]
    if any(position[here[-1]] > position[after[0]] for here, after in itertools.pairwise(turns)):
        return False
    triples = zip(turns, turns[1:], turns[2:], strict=False)
    return all(is_entered_from(after, here, before) for before, here, after in triples)


def _made_one(stacks: tuple[Stack, ...]) -> Stack:
    owner = PAIR.join(stack.owner for stack in stacks)
    blocks = []
    for i, turn in enumerate(zip(*(stack.blocks for stack in stacks), strict=True)):
        *before, last = (block.nodes for block in turn)
        blocks.append(Block(owner, i, (*itertools.chain(*before), *_with_layout(last))))
    return Stack(owner, tuple(blocks))


def _with_layout(nodes: Nodes) -> Nodes:
    """A block with what only lays out its result anew: the way back from time first to space first."""
    inside, more = set(nodes), list(nodes)
    for node in more:
        outside = [user for user in node.users if user not in inside]
        if len(outside) == 1 and (operators.is_layout(outside[0]) or operators.hands_on(outside[0])):
            inside.add(outside[0])
            more.append(outside[0])
    return tuple(more)
