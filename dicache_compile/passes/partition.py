"""Pass: partition. Gives every node its region by reachability, and finds the streams that the trunk carries.

Requires: a trunk of the graph. Ensures: no region reads a value of a later one; every value that leaves the deep
region has an x and an h of its own shape.
Not handled: random numbers and outside effects in the deep region, deep results with no counterpart in the probe.
Those are refused, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import fx

from ..errors import CrossingError, EffectError, NotCarriedError, NothingToSkipError, UnsupportedGraphError
from ..graph import effects, operators, randomness, values
from ..graph.dataflow import Dataflow
from ..graph.links import links
from ..graph.residual_path import residual_path
from ..plan import AskedRule, Carried, Partition, Region, Trunk
from .carried import find_carried
from .crossing import ABOVE, find_crossing, not_passable
from .modulated import modulated_input


def why_not_splittable(trunk: Trunk, probe_depth: int) -> str | None:
    """The reason why a trunk cannot be cut after `probe_depth` blocks, or None."""
    if probe_depth >= len(trunk.blocks):
        return f"probe_depth={probe_depth} leaves nothing to skip ({len(trunk.blocks)} blocks found)"
    return None


def partition(gm: fx.GraphModule, flow: Dataflow, trunk: Trunk, rule: AskedRule) -> Partition:
    """Cuts `gm` after the probe's blocks of its trunk. Raises UnsupportedGraphError where it must not."""
    probe_depth = rule.probe_depth
    if reason := why_not_splittable(trunk, probe_depth):
        raise NothingToSkipError(reason, advice="set a smaller probe_depth")
    regions = regions_of(flow, trunk, probe_depth)
    pulled = _with_slices_pulled(regions, flow)
    try:
        streams = find_carried(flow, trunk, rule, pulled)
        regions = pulled
    except UnsupportedGraphError:  # the slice is of a stream that is never apart from its neighbour: keep it whole
        streams = find_carried(flow, trunk, rule, regions)
    if rule.modulated:
        first, *others = streams
        looked_at = modulated_input(flow, trunk, first.x)
        streams = dataclasses.replace(first, h=looked_at), *others
        # Of what was deep, that runs before the decision now. What was added to the graph stays where it is.
        earlier = regions_of(flow, trunk, probe_depth, looked_at)
        moved = {node: region for node, region in earlier.items() if region.value < regions[node].value}
        regions = {**regions, **moved}
    check_effects(flow, regions, streams)
    _check_sizes(streams)
    crossing = find_crossing(gm, regions, streams)
    if (node := not_passable(crossing)) is not None:
        kind = type(values.value(node)).__name__
        raise CrossingError(f"`{node.name}` of type {kind} crosses the cut; only tensors and sizes can", node)
    return Partition(gm, trunk, probe_depth, regions, streams, crossing, effects.autocast_scopes(gm.graph))


def regions_of(
    flow: Dataflow, trunk: Trunk, probe_depth: int, looked_at: fx.Node | None = None
) -> dict[fx.Node, Region]:
    """`looked_at`: what runs before the decision in place of blocks."""
    probe_blocks = [node for block in trunk.blocks[:probe_depth] for node in block.nodes]
    deep_blocks = [node for block in trunk.blocks[probe_depth:] for node in block.nodes]
    # A block also computes things of its own that no stream enters (the modulation from the timestep, the keys of the
    # prompt). What carries a stream is downstream of the first block's streams; the rest is free to run elsewhere.
    entries = _entries(flow, trunk)
    entered = _entered(flow, trunk, entries)
    deep = flow.upstream(deep_blocks) & entered
    probe = flow.upstream(probe_blocks if looked_at is None else [looked_at]) & entered
    deep -= probe
    regions: dict[fx.Node, Region] = {}
    for node in flow.order:
        if is_anywhere(node):
            continue
        if node in probe:
            regions[node] = Region.PROBE
        elif node in deep:
            regions[node] = Region.DEEP
        elif node in entered:
            regions[node] = Region.EPILOGUE
    if not probe_blocks:
        # What enters the trunk is what the gate sees and the estimate is added to, whoever else reads it.
        regions.update({node: Region.PROLOGUE for node in entries if not is_anywhere(node)})
    scopes = {node: scope for scope in effects.vmap_scopes(flow.order) for node in scope}
    for scope in set(scopes.values()):
        of_streams = [regions[node] for node in scope if node in regions]
        if of_streams:
            regions.update(dict.fromkeys(scope, max(of_streams, key=lambda region: region.value)))
    _place_free_nodes(flow, regions, scopes)
    return regions


def is_anywhere(node: fx.Node) -> bool:
    """Whether every region has a node without computing it."""
    return node.op in ("placeholder", "get_attr", "output") or effects.is_mode(node)


def _entries(flow: Dataflow, trunk: Trunk) -> set[fx.Node]:
    """Where the streams that link the first block to the second enter the first."""
    first, second = trunk.blocks[0], trunk.blocks[1]
    into_second = flow.upstream(second.nodes)
    # The first block's nodes on the way to the second, and of those the ones on the residual stream or after it.
    results = [n for n in first.nodes if any(u in into_second and u not in first.nodes for u in flow.needed_by(n))]
    inside = set(first.nodes)
    entries: set[fx.Node] = set()
    for result in results:
        path = residual_path(result, lambda node: node not in inside)
        if path is not None:
            entries.add(path[-1])
    # Residuals that are not written as additions, or none at all: what the second block takes of the first one says
    # where the first one takes its own.
    return entries or {link.entries[0] for link in links(trunk, last=1)}


def _entered(flow: Dataflow, trunk: Trunk, entries: set[fx.Node]) -> set[fx.Node]:
    """All nodes that a stream of the trunk reaches."""
    after_first = flow.downstream(trunk.blocks[0].nodes)
    return {node for node in flow.downstream(entries) if node in after_first} if entries else after_first


def _place_free_nodes(
    flow: Dataflow, regions: dict[fx.Node, Region], scopes: Mapping[fx.Node, tuple[fx.Node, ...]]
) -> None:
    """Puts the nodes that no stream enters where they are needed; those of one `vmap` together.

    A reused step must not pay for what only the deep blocks read.
    """
    for node in reversed(flow.order):
        if node in regions or is_anywhere(node):
            continue
        together = scopes.get(node, (node,))
        needing = {regions[user] for part in together for user in flow.needed_by(part) if user in regions}
        region = needing.pop() if needing in ({Region.DEEP}, {Region.EPILOGUE}) else Region.PROLOGUE
        regions.update(dict.fromkeys(together, region))
    for node in flow.order:
        if effects.is_part(node) and node.args[0] in regions:
            regions[node] = regions[node.args[0]]


def _with_slices_pulled(regions: dict[fx.Node, Region], flow: Dataflow) -> dict[fx.Node, Region]:
    """The regions with a slice right after the trunk in deep: text + image leave it, only the image goes on."""
    regions = dict(regions)
    for node in flow.order:
        if regions.get(node) is not Region.DEEP:
            continue
        outside = [user for user in node.users if regions.get(user) is not Region.DEEP and user.op != "output"]
        is_split = values.tensor(node) is None and all(effects.is_part(user) for user in node.users)
        if len(outside) != 1 and not is_split:
            continue
        for user in outside:
            needs = flow.needs(user)
            if operators.takes_part(user) and all(
                n not in regions or regions[n].value <= Region.DEEP.value for n in needs
            ):
                regions[user] = Region.DEEP
    return regions


def check_effects(
    flow: Dataflow, regions: dict[fx.Node, Region], streams: tuple[Carried, ...], in_order: bool = True
) -> None:
    """Raises EffectError where the deep region does more than compute, or a region reads one below it.

    The probe must leave x as it is and the deep blocks h: the anchors are differences of the three. `in_order`: whether
    regions follow each other, as those of one site do.
    """
    outside = _memories(node for node in flow.order if node.op == "placeholder")
    earlier = _memories(n for n, region in regions.items() if region in ABOVE)
    for node in flow.order:
        if regions.get(node) is not Region.DEEP:
            continue
        if randomness.is_random(node):
            advice = "call model.eval() if it is dropout, or draw the numbers before the blocks"
            raise EffectError("the deep region draws random numbers", node, advice)
        for target in effects.written(node):
            if values.storages(target) & outside:
                raise EffectError("the deep region writes to an input or a buffer of the model", node)
            if values.storages(target) & earlier:
                raise EffectError("the deep region writes in place to a value from before it", node)
    for node in flow.order if in_order else ():
        for needed in flow.needs(node):
            if node in regions and needed in regions and regions[needed].value > regions[node].value:
                raise EffectError(f"`{needed.name}`, which runs in a later region, is needed before", node)
    for node in flow.order:
        for target in effects.written(node):
            memory = values.storages(target)
            for stream in streams:
                for kept, writers in ((stream.x, (Region.PROBE, Region.DEEP)), (stream.h, (Region.DEEP,))):
                    itself = kept is stream.y  # which is kept as it is, and of which nothing before it is known
                    if regions.get(node) in writers and not itself and values.storages(kept) & memory:
                        raise EffectError("the blocks write in place to what the trunk carries", node)


def _memories(nodes: Iterable[fx.Node]) -> set[int]:
    return {memory for node in nodes for memory in values.storages(node)}


def _check_sizes(streams: tuple[Carried, ...]) -> None:
    for stream in streams:
        size = values.size_text(stream.x) or ()
        if any(map(values.is_data_dependent, size)):
            found = f"the stream `{stream.x.name}` has a size that depends on data: ({', '.join(size)})"
            raise NotCarriedError(found, stream.x, "pad it to a size that the shapes of the inputs tell")
