"""Cuts a trunk at one site or several: ranges of its blocks that a step may leave out.

Each site is cut as if it were the only one. What runs between two of them runs on every step, and reads what the first
one gives; of the probe, only the first has one.
Requires: ranges in order. Ensures: what each site carries, the first one's first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import fx

from ..errors import NothingToSkipError
from ..graph.dataflow import Dataflow
from ..plan import Asked, Partition, Region, Trunk
from .crossing import ABOVE, find_crossing
from .partition import partition
from .sublayers import cut_sublayers


def cut_sites(gm: fx.GraphModule, flow: Dataflow, trunk: Trunk, asked: Asked) -> Partition:
    """The partition of a graph, to which it may add nodes.

    Raises what `partition` does, and NothingToSkipError where the trunk has no such ranges.
    """
    if asked.parts:
        return cut_sublayers(gm, flow, trunk, asked.parts)
    if not asked.sites:
        return partition(gm, flow, trunk, asked.probe_depth)
    found: list[Partition] = []
    for blocks in _ranges(trunk, asked):
        flow = Dataflow(gm.graph) if found else flow  # an earlier site may have added nodes
        found.append(partition(gm, flow, blocks, 0 if found else asked.probe_depth))
    first = found[0]
    carried = tuple(value for one in found for value in one.carried)
    regions = {node: _region([one.regions.get(node) for one in found]) for node in found[-1].regions}
    return dataclasses.replace(
        first,
        trunk=Trunk(tuple(block for one in found for block in one.trunk.blocks)),
        regions=regions,
        carried=carried,
        crossing=find_crossing(gm, regions, carried),
        autocast=found[-1].autocast,
        whole=trunk,
        in_turns=len(found) > 1,
    )


def _region(regions: Sequence[Region | None]) -> Region:
    """Where a node runs, of its regions in the cuts at each site. None: it was added at a later one."""
    if Region.DEEP in regions:
        return Region.DEEP
    first = next(region for region in regions if region is not None)
    return first if first in ABOVE and regions[0] is not None else Region.EPILOGUE


def _ranges(trunk: Trunk, asked: Asked) -> list[Trunk]:
    count, end, found = len(trunk.blocks), 0, list[Trunk]()
    for site in asked.sites:
        first, last = (place + count if place < 0 else place for place in site)
        least = max(2, 1 + (0 if found else asked.probe_depth))
        if not end <= first < last <= count or last - first < least:
            need = f"ranges in order of at least {least} blocks, in the first of them the probe's {asked.probe_depth}"
            found_not = f"sites: {site!r} is no such range of the trunk's {count} blocks"
            raise NothingToSkipError(found_not, advice=f"give {need}")
        found.append(Trunk(trunk.blocks[first:last]))
        end = last
    return found
