"""Pass: choose. Takes of the chains of blocks that may be the trunk the one that can be cut and skips the most.

The blocks of a ControlNet are as large as those that they control; but who cuts the controlled ones skips both. A chain
that is refused gives way to another one only if that is about as large: a cut that skips next to nothing would hide the
reason.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from ..errors import NoCounterpartError
from ..graph.copying import copy_module
from ..graph.dataflow import Dataflow
from ..graph.work import trunk_work, work
from ..plan import Asked, Partition, Plan, Region, Trunk
from .complete import completed
from .partition import regions_of, why_not_splittable
from .sites import cut_sites
from .trunk import find_trunks


def cut_trunk(plan: Plan) -> Plan:
    """Cuts the graph after the first blocks of its trunk. What that adds to the graph it adds to a copy.

    Raises UnsupportedGraphError, with the likeliest trunk's reason, where none can be cut.
    """
    gm, asked = copy_module(plan.graph_module), plan.asked
    found = find_partitions(gm, Dataflow(gm.graph), asked)
    return dataclasses.replace(plan, graph_module=gm, found=found)


def find_partitions(gm: fx.GraphModule, flow: Dataflow, asked: Asked) -> tuple[Partition, ...]:
    """The partitions of a graph, to which it may add nodes. Raises what `cut_trunk` does."""
    trunks, probe_depth = list(find_trunks(gm, flow, asked.trunk)), asked.rules[0].probe_depth
    sizes = {trunk: trunk_work(trunk) for trunk in trunks}
    alike = [trunk for trunk in trunks if sizes[trunk] * 2 >= max(sizes.values())]
    if len(alike) > 1:
        alike.sort(key=lambda trunk: _skipped(flow, trunk, probe_depth), reverse=True)
    refusals: list[NoCounterpartError] = []
    for trunk in alike:
        # Where blocks are not all that carries the streams: fewer values leave them with what runs between them.
        whole = Trunk(completed(trunk.blocks, flow, called=False))
        for blocks in sorted((trunk, whole), key=lambda blocks: _leaving(flow, blocks, probe_depth)):
            try:
                return cut_sites(gm, flow, blocks, asked)
            except NoCounterpartError as error:  # any other refusal is one of what the blocks do
                refusals.append(error)
    raise refusals[0]


def _skipped(flow: Dataflow, trunk: Trunk, probe_depth: int) -> int:
    """About how much a reused step would not compute."""
    if why_not_splittable(trunk, probe_depth):
        return 0
    regions = regions_of(flow, trunk, probe_depth)
    return work(node for node, region in regions.items() if region is Region.DEEP)


def _leaving(flow: Dataflow, trunk: Trunk, probe_depth: int) -> int:
    """How many values go from the deep region to the epilogue."""
    if why_not_splittable(trunk, probe_depth):
        return 0
    regions = regions_of(flow, trunk, probe_depth)
    deep = (node for node, region in regions.items() if region is Region.DEEP)
    return sum(any(regions.get(user) is not Region.DEEP for user in node.users) for node in deep)
