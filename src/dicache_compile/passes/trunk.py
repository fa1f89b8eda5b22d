"""Pass: trunk. Finds the chain of transformer blocks in a Dynamo graph by which ModuleList entries own its nodes, or,
where that gives none, by the form of the graph (`structure`).

Requires: nodes in the order in which they were traced. Ensures: at least two blocks, each reading what the one before
gives. Not handled: blocks that neither stand in ModuleLists nor have the same form.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

from torch import fx

from ..errors import UnsupportedGraphError
from ..plan import PAIR, Block, Trunk
from . import effects, values
from .dataflow import Dataflow
from .module_path import entries
from .residual_path import is_layout, residual_path
from .structure import repeated_blocks

Nodes = tuple[fx.Node, ...]
_ATTENTION = {"scaled_dot_product_attention", "flex_attention", "softmax"}
_CONTRACTIONS = {"matmul", "bmm", "baddbmm", "einsum", "__matmul__", "__rmatmul__"}


@dataclass(frozen=True, slots=True)
class _Stack:
    """One ModuleList whose entries run as a chain."""

    owner: str
    blocks: tuple[Block, ...]

    @property
    def weight(self) -> int:
        return sum(len(block.nodes) for block in self.blocks)


def find_trunk(gm: fx.GraphModule, flow: Dataflow, owners: tuple[str, ...] = ()) -> Trunk:
    """The heaviest chain of blocks, over one or several ModuleLists run in sequence.

    `owners` names the ModuleLists to take instead ("transformer_blocks", ...).
    Raises UnsupportedGraphError if there is none, or if `owners` names one that is not there.
    """
    stacks = _stacks(flow)
    if owners:
        return _named(stacks, owners, flow)
    try:
        return _heaviest(stacks, flow)
    except UnsupportedGraphError:
        # Blocks without names, or with the same name for all.
        unnamed = _unnamed_stacks(flow)
        if not unnamed:
            raise
    return _heaviest(unnamed, flow)


def _heaviest(stacks: list[_Stack], flow: Dataflow) -> Trunk:
    mixing = [stack for stack in stacks if all(_mixes_tokens(block) for block in stack.blocks)]
    outer = _paired([stack for stack in mixing if not any(_is_inside(stack, other) for other in mixing)], flow)
    if not outer:
        raise UnsupportedGraphError("trunk", "no repeated transformer block found")
    chain = max(_chains(outer, flow), key=lambda chain: sum(stack.weight for stack in chain))
    blocks = tuple(block for stack in chain for block in stack.blocks)
    if len(blocks) < 2:
        raise UnsupportedGraphError("trunk", f"only one transformer block found ({blocks[0].path}): nothing to skip")
    return Trunk(blocks)


def _named(stacks: list[_Stack], owners: tuple[str, ...], flow: Dataflow) -> Trunk:
    known = {stack.owner: stack for stack in stacks}
    for owner in owners:
        if owner not in known:
            options = ", ".join(
                f"{s.owner!r} ({len(s.blocks)} blocks)" for s in sorted(stacks, key=lambda s: -s.weight)[:8]
            )
            raise UnsupportedGraphError("trunk", f"no blocks in {owner!r}; found: {options or 'none'}")
    blocks = tuple(block for stack in _paired([known[owner] for owner in owners], flow) for block in stack.blocks)
    if len(blocks) < 2:
        raise UnsupportedGraphError("trunk", f"only one block in {', '.join(owners)}: nothing to skip")
    reached = _reached_blocks(flow, list(blocks))
    for position, (before, block) in enumerate(itertools.pairwise(blocks)):
        if not any(reached[node] >> position & 1 for node in block.nodes):
            raise UnsupportedGraphError(
                "trunk", f"{block.path} reads nothing of {before.path}: are the lists in order?"
            )
    return Trunk(blocks)


def _stacks(flow: Dataflow) -> list[_Stack]:
    """Every ModuleList of the graph, cut down to its longest run of chained entries."""
    owned: dict[str, dict[tuple[int, str], list[fx.Node]]] = defaultdict(lambda: defaultdict(list))
    for node in flow.order:
        for entry in entries(node) if node.op in ("call_function", "call_method", "call_module") else ():
            owned[entry.owner][entry.index, entry.call].append(node)
    blocks = [
        Block(owner, index, tuple(nodes)) for owner, parts in owned.items() for (index, _), nodes in parts.items()
    ]
    return _chained(flow, blocks)


def _chained(flow: Dataflow, all_blocks: list[Block]) -> list[_Stack]:
    """The blocks by owner, each list cut down to its longest run in which every block reads the one before."""
    reached = _reached_blocks(flow, all_blocks)
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
        stacks.append(_Stack(owner, tuple(all_blocks[position] for position in longest)))
    return stacks


def _unnamed_stacks(flow: Dataflow) -> list[_Stack]:
    """The same from the form of the graph alone; the owners are made up."""
    stacks: list[_Stack] = []
    for alike in repeated_blocks(flow, lambda nodes: _mixes_tokens(Block("", 0, nodes))):
        chains: list[list[Nodes]] = []
        for nodes in alike:
            if not chains or not _is_entered_from(nodes, chains[-1][-1]):
                chains.append([])
            chains[-1].append(nodes)
        for chain in chains:
            owner = f"repeated{len(stacks)}"
            stacks.append(_Stack(owner, tuple(Block(owner, i, nodes) for i, nodes in enumerate(chain))))
    return stacks


def _is_entered_from(after: Nodes, before: Nodes, rather_than: Nodes = ()) -> bool:
    """Whether a stream that enters `after` comes out of `before`, and not out of `rather_than`."""
    inside, ends = set(after), {*before, *rather_than}
    for result in (node for node in after if any(user not in inside for user in node.users)):
        path = residual_path(result, lambda node: node not in inside)
        onward = residual_path(path[-1], lambda node: node in ends) if path is not None else None
        if onward is not None:
            return onward[-1] in before
    return False


def _with_layout(nodes: Nodes) -> Nodes:
    """A block with what only lays out its result anew: the way back from time first to space first."""
    inside, more = set(nodes), list(nodes)
    for node in more:
        outside = [user for user in node.users if user not in inside]
        if len(outside) == 1 and is_layout(outside[0]):
            inside.add(outside[0])
            more.append(outside[0])
    return tuple(more)


def _paired(stacks: list[_Stack], flow: Dataflow) -> list[_Stack]:
    """The stacks with two that take turns made one: space and time, each with its own list of blocks."""
    position = {node: i for i, node in enumerate(flow.order)}
    paired = list(stacks)
    for first, second in itertools.permutations(stacks, 2):
        if first not in paired or second not in paired or len(first.blocks) != len(second.blocks):
            continue
        turns = [block.nodes for pair in zip(first.blocks, second.blocks, strict=True) for block in pair]
        if any(position[here[-1]] > position[after[0]] for here, after in itertools.pairwise(turns)):
            continue
        triples = zip(turns, turns[1:], turns[2:], strict=False)
        if len(turns) > 2 and all(_is_entered_from(after, here, before) for before, here, after in triples):
            owner = f"{first.owner}{PAIR}{second.owner}"
            pairs = [(*a, *_with_layout(b)) for a, b in zip(turns[::2], turns[1::2], strict=True)]
            paired[paired.index(first)] = _Stack(owner, tuple(Block(owner, i, pair) for i, pair in enumerate(pairs)))
            paired.remove(second)
    return paired


def _reached_blocks(flow: Dataflow, blocks: list[Block]) -> dict[fx.Node, int]:
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


def _mixes_tokens(block: Block) -> bool:
    """Whether a block computes attention, or otherwise multiplies activations with each other."""
    for node in block.nodes:
        called = effects.name(node)
        if called in _ATTENTION or "attention" in called or "attn" in called:
            return True
        if called in _CONTRACTIONS:
            tensors = [n for n in node.all_input_nodes if values.tensor(n) is not None]
            if sum(n.op != "placeholder" or not values.is_weight(n) for n in tensors) >= 2:
                return True
    return False


def _is_inside(inner: _Stack, outer: _Stack) -> bool:
    """Whether the entries of `inner` are parts of one entry of `outer`, which is itself a chain."""
    if len(outer.blocks) < 2:
        return inner is not outer and outer.owner.startswith(inner.owner + ".") and len(inner.blocks) > 1
    return any(inner.owner == block.path or inner.owner.startswith(block.path + ".") for block in outer.blocks)


def _chains(stacks: list[_Stack], flow: Dataflow) -> list[list[_Stack]]:
    """Stacks joined where one carries on all that the one before gives."""
    position = {node: i for i, node in enumerate(flow.order)}
    ordered = sorted(stacks, key=lambda stack: position[stack.blocks[0].nodes[0]])
    chains: list[list[_Stack]] = []
    for stack in ordered:
        for chain in chains:
            if _carries_on(chain[-1], stack, flow):
                chain.append(stack)
                break
        else:
            chains.append([stack])
    return chains


def _carries_on(before: _Stack, after: _Stack, flow: Dataflow) -> bool:
    """Whether every stream that enters `after` comes out of `before`, joined with nothing else on the way.

    FLUX's single blocks carry on its double blocks. The main layers of a model with refiners do not carry on the
    refiner: they join its result with another one's, or take the image from elsewhere.
    """
    first, last = set(after.blocks[0].nodes), set(before.blocks[-1].nodes)
    later = flow.downstream(last)
    streams = [
        node for node in first if any(user not in first for user in node.users) and values.tensor(node) is not None
    ]
    found = False
    for stream in streams:
        path = residual_path(stream, lambda node: node not in first)
        if path is None:
            continue
        onward = residual_path(path[-1], lambda node: node in last)
        if onward is None:
            return False
        joined = [node for node in (*path, *onward) if effects.name(node) in ("cat", "concat", "concatenate")]
        if any(part not in later for node in joined for part in node.all_input_nodes):
            return False
        found = True
    return found
