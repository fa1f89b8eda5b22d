"""Cuts a trunk at its sites: ranges of its blocks, or parts of these, that a step may leave out, each under its rule.

Each site is cut as if it were the only one. Those of one rule are one partition, as what runs between them runs in both
of its ways; where another rule has a site between them, each is a partition of its own.
Requires: ranges in order. Ensures: partitions in the order in which they run, each after the ones before it or inside
of them; of a rule, only the first site has a probe.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from torch import fx

from ..errors import NothingToSkipError
from ..graph.dataflow import Dataflow
from ..plan import Asked, AskedRule, AskedSite, Partition, Region, Trunk
from .crossing import ABOVE, find_crossing
from .partition import check_effects, partition
from .sublayers import cut_sublayers
from .whole_model import MODEL, cut_model

Sites = Callable[[bool], "list[Partition]"]  # of a rule: as one partition, or (True) as one for each site


def cut_sites(gm: fx.GraphModule, flow: Dataflow, trunk: Trunk, asked: Asked) -> tuple[Partition, ...]:
    """The partitions of a graph, to which it may add nodes.

    Raises what `partition` does, and NothingToSkipError where the trunk has no such ranges or those of two rules
    overlap.
    """
    found = [_sites(gm, flow, trunk, rule, number) for number, rule in enumerate(asked.rules)]
    apart: set[int] = set()  # rules whose sites are partitions of their own
    while True:
        cuts = [one for rule, sites in enumerate(found) for one in sites(rule in apart)]
        cuts = _in_order(_completed([dataclasses.replace(one, whole=trunk) for one in cuts], gm))
        wrong = next((pair for pair in itertools.combinations(cuts, 2) if _between(*pair) is None), None)
        if wrong is None:
            return tuple(cuts)
        several = {one.rule for one in wrong if len(one.carried) > 1 and one.in_turns} - apart
        if not several:
            first, second = (", ".join(map(str, asked.rules[one.rule].sites)) for one in wrong)
            advice = "give them one after the other, or one inside of a range of the other's"
            raise NothingToSkipError(f"sites: {first} and {second} of two rules overlap", advice=advice)
        apart |= several


def is_inside(second: Partition, first: Partition) -> bool:
    """Whether a partition is in the deep region of one that comes before it."""
    return _between(first, second) is Region.DEEP


def after_last(cut: Partition) -> set[fx.Node]:
    """What comes after the last site, of an epilogue that takes turns with sites."""
    order = {node: place for place, node in enumerate(cut.graph_module.graph.nodes)}
    end = max(order[value.y] for value in cut.carried)
    return {node for node in cut.nodes(Region.EPILOGUE) if order[node] > end}


def _between(first: Partition, second: Partition) -> Region | None:
    """In which region of the first one the second is as a whole; None: in none that it may be in."""
    nodes = second.nodes(Region.PROBE, Region.DEEP)
    regions = {first.regions.get(node) for node in nodes}
    if regions == {Region.EPILOGUE} and first.in_turns:
        return Region.EPILOGUE if after_last(first).issuperset(nodes) else None
    if regions == {Region.DEEP}:
        return None if first.in_turns else Region.DEEP
    return Region.EPILOGUE if regions == {Region.EPILOGUE} else None


def _sites(gm: fx.GraphModule, flow: Dataflow, trunk: Trunk, rule: AskedRule, number: int) -> Sites:
    """Cuts a graph at the sites of one rule."""
    if rule.sites[0].part == MODEL:
        one = dataclasses.replace(cut_model(gm, flow, trunk, rule.form, rule.measures), rule=number)
        return lambda apart: [one]
    if any(site.part for site in rule.sites):
        asked = [(site.part, _range(trunk, site, 0, 1)) for site in rule.sites]

        def parts(apart: bool) -> list[Partition]:
            return [dataclasses.replace(one, rule=number) for one in cut_sublayers(gm, trunk, asked, apart)]

        return parts
    found: list[Partition] = []
    for place, blocks in enumerate(_ranges(trunk, rule)):
        new = flow if not (number or place) else Dataflow(gm.graph)  # an earlier site may have added nodes
        of = rule if not place else dataclasses.replace(rule, probe_depth=0, measures=False)
        cut = partition(gm, new, blocks, of) if len(blocks.blocks) > 1 else _one_block(gm, new, trunk, blocks, of)
        found.append(dataclasses.replace(cut, rule=number))
    return lambda apart: found if apart or len(found) == 1 else [_joined(found)]


def _one_block(gm: fx.GraphModule, flow: Dataflow, trunk: Trunk, site: Trunk, rule: AskedRule) -> Partition:
    """The partition at one block, from that of a pair which it is in, with a probe of the pair's first block: what
    enters it is what leaves that probe, and what leaves the trunk's first block is what leaves its probe.
    """
    place = max(trunk.blocks.index(site.blocks[0]), 1)
    pair = Trunk(trunk.blocks[place - 1 : place + 1])
    cut = partition(gm, flow, pair, dataclasses.replace(rule, probe_depth=1, measures=True))
    regions, carried = dict(cut.regions), cut.carried
    if site.blocks[0] is pair.blocks[0]:
        moved = {Region.PROBE: Region.DEEP, Region.DEEP: Region.EPILOGUE}
        carried = tuple(dataclasses.replace(value, h=value.x, y=value.h) for value in carried)
    else:
        moved = {Region.PROBE: Region.PROLOGUE}
        carried = tuple(dataclasses.replace(value, x=value.h) for value in carried)
    regions = {node: moved.get(region, region) for node, region in regions.items()}
    regions.update({value.x: Region.PROLOGUE for value in carried if value.x in regions})
    check_effects(flow, regions, carried)
    crossing = find_crossing(gm, regions, carried)
    return dataclasses.replace(cut, trunk=site, probe_depth=0, regions=regions, carried=carried, crossing=crossing)


def _joined(found: Sequence[Partition]) -> Partition:
    """One partition of those at each site of a rule."""
    first, gm = found[0], found[0].graph_module
    carried = tuple(value for one in found for value in one.carried)
    regions = {node: _region([one.regions.get(node) for one in found]) for node in found[-1].regions}
    return dataclasses.replace(
        first,
        trunk=Trunk(tuple(block for one in found for block in one.trunk.blocks)),
        regions=regions,
        carried=carried,
        crossing=find_crossing(gm, regions, carried),
        autocast=found[-1].autocast,
        in_turns=True,
    )


def _region(regions: Sequence[Region | None]) -> Region:
    """Where a node runs, of its regions in the cuts at each site. None: it was added at a later one."""
    if Region.DEEP in regions:
        return Region.DEEP
    first = next(region for region in regions if region is not None)
    return first if first in ABOVE and regions[0] is not None else Region.EPILOGUE


def _in_order(cuts: Sequence[Partition]) -> list[Partition]:
    """As they run; of two that begin at one place the longer one is around the other."""
    order = {node: place for place, node in enumerate(cuts[0].graph_module.graph.nodes)}

    def span(cut: Partition) -> tuple[int, int]:
        # What only the sites need, as the keys of a prompt, may stand anywhere before them.
        return order[cut.carried[0].h], -max(order[value.y] for value in cut.carried)

    return sorted(cuts, key=span) if len(cuts) > 1 else list(cuts)


def _completed(cuts: Sequence[Partition], gm: fx.GraphModule) -> list[Partition]:
    """The partitions, with a region for what was added to the graph after they were made: that of what it is made of,
    but after what is carried.
    """
    found = []
    for cut in cuts if len(cuts) > 1 else ():
        regions, results = dict(cut.regions), {value.y for value in cut.carried}
        for node in gm.graph.nodes:
            if node in regions or not any(node in other.regions for other in cuts):
                continue
            of = [Region.EPILOGUE if n in results else regions[n] for n in node.all_input_nodes if n in regions]
            regions[node] = max(of, key=lambda region: region.value, default=Region.PROLOGUE)
        found.append(dataclasses.replace(cut, regions={n: regions[n] for n in gm.graph.nodes if n in regions}))
    return found or list(cuts)


def _ranges(trunk: Trunk, rule: AskedRule) -> list[Trunk]:
    if rule.sites == (AskedSite(),):
        return [trunk]
    end, found = 0, list[Trunk]()
    for site in rule.sites:
        found.append(_range(trunk, site, end, 1 + (0 if found else rule.probe_depth)))
        end = trunk.blocks.index(found[-1].blocks[-1]) + 1
    return found


def _range(trunk: Trunk, site: AskedSite, end: int, least: int) -> Trunk:
    """The blocks of a site: so many at least, none before `end`."""
    count = len(trunk.blocks)
    first, last = (place + count if place < 0 else place for place in site.blocks or (0, count))
    if not end <= first < last <= count or last - first < least:
        blocks = "one block" if least == 1 else f"{least} blocks"
        reason = f"sites: {site} is no such range of the trunk's {count} blocks"
        raise NothingToSkipError(
            reason, advice=f"give ranges in order of at least {blocks}, in the first of them the probe's"
        )
    return Trunk(trunk.blocks[first:last])
