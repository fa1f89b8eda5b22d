"""Cuts out parts of blocks: the attentions, the cross-attentions or the MLPs of a trunk, each a site of its own.

A block adds the results of branches to the stream: `x + gate * attention(norm(x))`. A branch is what leads from the
stream to such a result. It is told by what it contains: attention over the stream's own tokens, attention over others,
or neither. Its result is kept as it is, before the gate where there is one.
Requires: blocks whose results lead back to what enters them. Ensures: what is left out is read by the branch alone.
Not handled: branches that are added otherwise than by an addition of two tensors of one shape. A branch with an
attention and an MLP in it, as in a parallel block, is an attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from ..errors import NotCarriedError, NothingToSkipError
from ..graph import effects, operators, values
from ..graph.dataflow import Dataflow
from ..graph.residual_path import residual_path
from ..plan import Block, Carried, Partition, Region, Trunk
from .crossing import find_crossing
from .partition import check_effects
from .stacks import mixes_tokens

ATTENTION, CROSS_ATTENTION, MLP = KINDS = ("attention", "cross_attention", "mlp")


def cut_sublayers(
    gm: fx.GraphModule, trunk: Trunk, asked: Sequence[tuple[str, Trunk]], apart: bool = False
) -> list[Partition]:
    """The partition of a graph at the sublayers of these kinds, each of these blocks; or `apart`, one for each, where
    an attention over two streams is one.

    Raises NothingToSkipError where there are none, EffectError where one does more than compute.
    """
    flow = Dataflow(gm.graph)
    blocks = {block: {kind for kind, of in asked if block in of.blocks} for block in trunk.blocks}
    found: list[tuple[Block, fx.Node, set[fx.Node]]] = []
    for block, kinds in blocks.items():
        if kinds:
            found += [(block, result, nodes) for result, nodes in _branches(block, flow) if _kind(nodes, flow) in kinds]
    names = tuple(dict.fromkeys(kind for kind, _ in asked))
    if not found:
        what = ", ".join(trunk.owners)
        reason = f"no part of a block is {' or '.join(names)} by its form, among the blocks of {what}"
        raise NothingToSkipError(reason, advice="set sites= to another part, or to whole blocks")
    parts = " and ".join(names)
    groups = _apart(found) if apart else [found]
    return [_cut(gm, flow, group, parts, alone=apart or len(found) == 1) for group in groups]


def _apart(found: Sequence[tuple[Block, fx.Node, set[fx.Node]]]) -> list[list[tuple[Block, fx.Node, set[fx.Node]]]]:
    """The branches one by one, but together where they share what leads to their results."""
    groups: list[list[tuple[Block, fx.Node, set[fx.Node]]]] = []
    for one in found:
        sharing = [group for group in groups if any(one[2] & other[2] for other in group)]
        groups = [group for group in groups if group not in sharing]
        groups.append([*(branch for group in sharing for branch in group), one])
    return groups


def _cut(
    gm: fx.GraphModule, flow: Dataflow, found: Sequence[tuple[Block, fx.Node, set[fx.Node]]], parts: str, alone: bool
) -> Partition:
    """`alone`: whether it is one site, not all of them."""
    carried = tuple(Carried(result, result, result, "value") for _, result, _ in found)
    regions = _regions(flow, set().union(*(nodes for _, _, nodes in found)), sunk=alone)
    _check_carried(flow, regions, {value.y for value in carried})
    check_effects(flow, regions, carried, in_order=False)
    return Partition(
        gm,
        Trunk(tuple(dict.fromkeys(block for block, _, _ in found))),
        0,
        regions,
        carried,
        find_crossing(gm, regions, carried),
        effects.autocast_scopes(gm.graph),
        parts=parts,
        in_turns=len(found) > 1,
    )


def _branches(block: Block, flow: Dataflow) -> list[tuple[fx.Node, set[fx.Node]]]:
    """The results that a block adds to what it carries, each with the nodes that lead to it."""
    inside = set(block.nodes)
    results = [node for node in block.nodes if any(user not in inside for user in flow.needed_by(node))]
    paths = [path for node in results if (path := residual_path(node, lambda n: n not in inside)) is not None]
    stream = {node for path in paths for node in path}
    moving = flow.downstream({path[-1] for path in paths}) & inside
    found: dict[fx.Node, set[fx.Node]] = {}
    for path in paths:
        for added in path:
            if not operators.is_addition(added):
                continue
            for operand in added.all_input_nodes:
                if operand in moving and operand not in stream and values.same_size(operand, added):
                    result = _ungated(operand, moving)
                    found[result] = _leading(result, stream, moving, flow)
    order = {node: place for place, node in enumerate(block.nodes)}
    return sorted(found.items(), key=lambda one: order[one[0]])


def _ungated(result: fx.Node, moving: set[fx.Node]) -> fx.Node:
    """A branch's result before it is scaled by what does not depend on the stream."""
    while operators.is_product(result):
        operands = [n for n in result.all_input_nodes if n in moving and values.same_size(n, result)]
        others = [n for n in result.all_input_nodes if n in moving and n not in operands]
        if len(operands) != 1 or others:
            break
        (result,) = operands
    return result


def _leading(result: fx.Node, stream: set[fx.Node], moving: set[fx.Node], flow: Dataflow) -> set[fx.Node]:
    """What leads from the stream to a result, the result and what is written on the way included."""
    found, pending = {result}, [result]
    while pending:
        for needed in flow.needs(pending.pop()):
            if needed in moving and needed not in stream and needed not in found:
                found.add(needed)
                pending.append(needed)
    return found


def _kind(nodes: Iterable[fx.Node], flow: Dataflow) -> str:
    """What a branch is, by what it contains."""
    inside = set(nodes)
    mixing = [node for node in inside if mixes_tokens((node,))]
    if not mixing:
        return MLP if any(map(operators.is_heavy, inside)) else ""
    # Attention over others has keys that are projected of other tokens; a mask is projected of nothing.
    others = {needed for node in mixing for needed in node.all_input_nodes} - inside
    return CROSS_ATTENTION if any(map(operators.is_heavy, flow.upstream(others))) else ATTENTION


def _check_carried(flow: Dataflow, regions: dict[fx.Node, Region], carried: set[fx.Node]) -> None:
    """Raises NotCarriedError where something else than the results of branches is read outside of them."""
    inside = [node for node in flow.order if regions.get(node) is Region.DEEP and node not in carried]
    for node in inside:
        if any(user in regions and regions[user] is not Region.DEEP for user in flow.needed_by(node)):
            reason = "what a part of a block computes on its way is read outside of it"
            raise NotCarriedError(reason, node, "set sites= to another part, or to whole blocks")


def _regions(flow: Dataflow, deep: set[fx.Node], sunk: bool) -> dict[fx.Node, Region]:
    """Deep: the branches and what only they need. Prologue: what needs none of them. Epilogue: all else; `sunk`: what
    only that needs, too, as it may be another site's.
    """
    after = flow.downstream(deep)
    regions: dict[fx.Node, Region] = {}

    def unread_before(node: fx.Node) -> bool:
        return not effects.written(node) and all(
            regions.get(user, Region.EPILOGUE) is Region.EPILOGUE for user in flow.needed_by(node)
        )

    for node in reversed(flow.order):
        if node.op in ("placeholder", "get_attr", "output") or effects.is_mode(node):
            continue
        # What nobody reads, as what a last block makes of the prompt, is not missed either; but it is no one site's.
        users = flow.needed_by(node)
        unread = all(regions.get(user) is Region.DEEP for user in users) and bool(users or not sunk)
        if node in deep or (unread and not effects.written(node) and not effects.is_opaque(node)):
            regions[node] = Region.DEEP
        else:
            late = node in after or (sunk and unread_before(node))
            regions[node] = Region.EPILOGUE if late else Region.PROLOGUE
    for node in flow.order:
        if node in regions and effects.is_part(node):
            regions[node] = regions.get(node.args[0], regions[node])
    return {node: regions[node] for node in flow.order if node in regions}
