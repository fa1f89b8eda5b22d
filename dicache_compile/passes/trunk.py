"""Pass: trunk. Finds the chains of transformer blocks in a Dynamo graph by which containers' entries own its nodes, and
by the form of the graph (`structure`), of which the trunk is one.

Requires: nodes in the order in which they were traced. Ensures: at least two blocks in each, each reading what the one
before gives. Not handled: blocks that neither stand in containers nor have the same form.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import fx

from ..errors import NothingToSkipError, NoTrunkError
from ..graph.dataflow import Dataflow
from ..graph.latents import latents
from ..graph.module_path import entries
from ..graph.work import trunk_work, work
from ..plan import Trunk
from .chains import Chain, chains
from .stacks import Stack, named_stacks, reached_blocks, unnamed_stacks
from .turns import with_turns


def find_trunk(gm: fx.GraphModule, flow: Dataflow, owners: tuple[str, ...] = ()) -> Trunk:
    """The likeliest of `find_trunks`."""
    return next(find_trunks(gm, flow, owners))


def find_trunks(gm: fx.GraphModule, flow: Dataflow, owners: tuple[str, ...] = ()) -> Iterator[Trunk]:
    """The chains of blocks, over one or several containers run in sequence, that may be the trunk; the likeliest first.

    A trunk is made from the latents and leads to the output; of several that do the one with the most work is it.
    `owners` names the containers to take instead ("transformer_blocks", ...).
    Raises NoTrunkError if there is none, or if `owners` names one that is not there.
    """
    stacks = named_stacks(flow)
    if owners:
        yield _named(stacks, owners, flow)
        return
    denoised = _denoised(flow)
    total = work(flow.order)

    def share(trunks: list[Trunk]) -> float:
        return max((trunk_work(trunk) for trunk in trunks if _is_denoised(trunk, denoised)), default=0) / max(total, 1)

    found = _trunks(stacks, flow)
    if found and share(found) < 2 / 3:  # blocks without names may go on where those with names end
        taken = {node for trunk in found for block in trunk.blocks for node in block.nodes}
        if unnamed := unnamed_stacks(flow, taken):
            found += _trunks([*stacks, *unnamed], flow)
    if share(found) < 1 / 2 and not (found and _is_called_again(flow)):
        # No names, one for all, or names of the lesser part. Of a loop around a model each step looks alike.
        found += _trunks(unnamed_stacks(flow), flow)
    if not found:
        raise NoTrunkError("no repeated transformer block found")
    found.sort(key=lambda trunk: (_is_denoised(trunk, denoised), trunk_work(trunk)), reverse=True)
    if len(found[0].blocks) < 2:
        only = found[0].blocks[0].path
        raise NothingToSkipError(f"only one transformer block found ({only}): nothing to skip")
    first = _is_denoised(found[0], denoised)
    yield from (trunk for trunk in found if len(trunk.blocks) > 1 and _is_denoised(trunk, denoised) is first)


def _is_called_again(flow: Dataflow) -> bool:
    return any(entry.call for node in flow.order for entry in entries(node))


def _denoised(flow: Dataflow) -> set[fx.Node]:
    return flow.downstream(latents(flow)) & flow.upstream([flow.order[-1]])


def _is_denoised(trunk: Trunk, denoised: set[fx.Node]) -> bool:
    """Whether what the latents become goes through every block on its way to the output."""
    return len(trunk.blocks) > 1 and all(any(node in denoised for node in block.nodes) for block in trunk.blocks)


def _trunks(stacks: list[Stack], flow: Dataflow) -> list[Trunk]:
    stacks = with_turns(stacks, flow)
    mixing = [stack for stack in stacks if stack.mixes_tokens]
    outer = [stack for stack in mixing if not any(stack.is_inside(other) for other in mixing)]
    return [_trunk(chain) for chain in chains(_apart(outer, flow), flow)]


def _apart(stacks: list[Stack], flow: Dataflow) -> list[Stack]:
    """The stacks without those whose nodes are another's: a list of parts is completed with what other lists run."""
    order = {node: place for place, node in enumerate(flow.order)}
    found, taken = list[Stack](), set[fx.Node]()
    for stack in sorted(stacks, key=lambda stack: (-stack.weight, order[stack.blocks[0].nodes[0]])):
        nodes = {node for block in stack.blocks for node in block.nodes}
        if taken.isdisjoint(nodes):
            found.append(stack)
            taken |= nodes
    return found


def _trunk(chain: Chain) -> Trunk:
    return Trunk(tuple(block for stack in chain for block in stack.blocks))


def _named(stacks: list[Stack], owners: tuple[str, ...], flow: Dataflow) -> Trunk:
    known = {stack.owner: stack for stack in stacks}
    for owner in owners:
        if owner not in known:
            options = ", ".join(
                f"{s.owner!r} ({len(s.blocks)} blocks)" for s in sorted(stacks, key=lambda s: -s.weight)[:8]
            )
            found = f"no blocks in {owner!r}; found: {options or 'none'}"
            raise NoTrunkError(found, advice="set trunk= to one of these, or leave it out")
    blocks = _trunk(tuple(with_turns([known[owner] for owner in owners], flow))).blocks
    if len(blocks) < 2:
        raise NothingToSkipError(f"only one block in {', '.join(owners)}: nothing to skip")
    reached = reached_blocks(flow, list(blocks))
    for position, (before, block) in enumerate(itertools.pairwise(blocks)):
        if not any(reached[node] >> position & 1 for node in block.nodes):
            raise NoTrunkError(
                f"{block.path} reads nothing of {before.path}", advice="give trunk= its lists in the order of their run"
            )
    return Trunk(blocks)
