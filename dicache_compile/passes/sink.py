"""Pass: sink. Moves from the probe's piece to the deep one what only the deep blocks need.

A block of two streams ends with the prompt's: that half is there for the next block alone, which a reused step does not
run. Plain dead-code elimination cannot remove it, as a deep step reads it after the branch.

Requires: a partition. Ensures: the pieces compute what they did; a deep step runs the same operations as before, and a
reused one those that the decision, the estimate and the epilogue need. What is moved is read by the deep region alone,
writes nothing and draws nothing.
Not handled: operations that are cheap throughout (no linear, convolution, matrix product or attention among them),
which would only make more values cross the cut; those inside of a `vmap`. Where something above the cut has an effect
that cannot be told, nothing is moved.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from ..graph import effects, operators, randomness
from ..graph.dataflow import Dataflow
from ..plan import Partition, Plan, Region
from .crossing import ABOVE, find_crossing, not_passable
from .sites import is_inside


def sink(plan: Plan) -> Plan:
    """The same graph, cut with those nodes in the deep regions."""
    flow = Dataflow(plan.graph_module.graph)
    return dataclasses.replace(
        plan, found=tuple(_sunk(flow, one, _elsewhere(one, place, plan.found)) for place, one in enumerate(plan.found))
    )


def _elsewhere(partition: Partition, place: int, cuts: tuple[Partition, ...]) -> set[fx.Node]:
    """What is above a cut, but runs in a piece of a cut before it."""
    found = set[fx.Node]()
    for before in cuts[:place]:
        here = Region.DEEP if is_inside(partition, before) else Region.EPILOGUE
        found |= {node for node, region in before.regions.items() if region is not here}
    return found


def _sunk(flow: Dataflow, partition: Partition, elsewhere: set[fx.Node]) -> Partition:
    regions = partition.regions
    above = {node for node in flow.order if regions.get(node) in ABOVE}
    if any(map(effects.is_opaque, above)):
        return partition
    above -= elsewhere
    free = above - flow.upstream(_kept(flow, partition))
    heavy = {node for node in free if operators.is_heavy(node)}
    moved = free & flow.upstream(heavy)
    # What needs something that moves cannot stay; nothing that is kept does.
    moved |= free & flow.downstream(moved)
    moved -= {node for node in moved if effects.is_part(node) and node.args[0] not in moved}
    if not moved:
        return partition
    sunk = {**regions, **dict.fromkeys(moved, Region.DEEP)}
    crossing = find_crossing(partition.graph_module, sunk, partition.carried)
    if not_passable(crossing) is not None:
        return partition
    return dataclasses.replace(partition, regions=sunk, crossing=crossing)


def _kept(flow: Dataflow, partition: Partition) -> set[fx.Node]:
    """What a step needs before the branch or on either side of it, and what has an effect."""
    regions = partition.regions
    kept: set[fx.Node] = set()
    for stream in partition.carried:
        for node in (stream.x, stream.h):
            kept.update((node, *node.all_input_nodes))  # of a slice that the partition added, the flow knows nothing
    for node in flow.order:
        if node.op == "output" or regions.get(node) is Region.EPILOGUE:
            kept.update(node.all_input_nodes)
        elif effects.written(node) or randomness.is_random(node):
            kept.add(node)
    kept.update(node for scope in effects.vmap_scopes(flow.order) for node in scope)
    return {node for node in kept if regions.get(node) in ABOVE}
