"""Finds the carried of a cut: where each value that leaves the deep region enters the trunk and leaves the probe.

Requires: a region for every node. Ensures: x, h and y of one shape each, with every element at the same place; x from
before the trunk, h from the probe, or x itself where there is no probe.
Where a value is a part of a sequence that is never apart from its neighbour, x and h are slices of that sequence; where
it was joined of several, each of them is a stream; where the blocks change layout or order, x and h are brought into
that of y.
"""

from __future__ import annotations

import torch
from torch import fx

from ..errors import NoCounterpartError, NotCarriedError, TokenOrderError, UnsupportedGraphError
from ..graph import values
from ..graph.dataflow import Dataflow
from ..graph.latents import latents
from ..graph.links import links
from ..plan import AskedRule, Carried, Region, Trunk
from .counterparts import Found, Search
from .parts import joined_again, part_of, real


def find_carried(flow: Dataflow, trunk: Trunk, rule: AskedRule, regions: dict[fx.Node, Region]) -> tuple[Carried, ...]:
    """One for each value that leaves the deep region, the denoised one first; may add nodes to the graph.

    Raises NotCarriedError for a value that has no counterpart in the probe or before the trunk. Where the value itself
    is kept it needs none, if nothing is measured or another value has one.
    """
    results = [
        node
        for node in flow.order
        if regions.get(node) is Region.DEEP and any(regions.get(user) is not Region.DEEP for user in node.users)
    ]
    if not results:
        last, advice = trunk.blocks[-1].nodes[-1], "name the blocks that lead to the output with trunk="
        raise NotCarriedError("nothing after the trunk reads the deep blocks' result", last, advice)
    search = Search(flow, trunk, rule.probe_depth, regions, flow.downstream(latents(flow)), links(trunk))
    # All are found before the graph is touched.
    found: dict[fx.Node, list[Found]] = {}
    refusals: list[UnsupportedGraphError] = []
    for y in results:
        try:
            found[y] = search.counterparts(y)
        except (NoCounterpartError, TokenOrderError) as error:
            if rule.form == "residual":
                raise
            found[y] = []
            refusals.append(error)
    if rule.measures and not any(found.values()):
        raise refusals[0]
    carried: list[tuple[bool, Carried]] = []
    for y, parts in found.items():
        if not parts:
            carried.append((y in search.from_latents, Carried(y, y, y, rule.form)))
        nodes = [part_of(y, part.part, regions) for part in parts]
        if len(parts) > 1:
            first = parts[0].part
            assert first is not None
            joined_again(y, nodes, first.dim, regions)
        for part, node in zip(parts, nodes, strict=True):
            x, h = search.emitted(part.x), search.emitted(part.h)
            value = Carried(x=real(x, regions), h=real(h, regions), y=real(node, regions), form=rule.form)
            carried.append((part.x.node in search.from_latents, value))

    def rank(item: tuple[bool, Carried]) -> tuple[bool, int]:
        """What is made from the latents is denoised; of several the largest is first."""
        recorded = values.tensor(item[1].x)
        size = torch.Size(values.shape_hint(recorded)).numel() if recorded is not None else 0
        return not item[0], -size

    return tuple(value for _, value in sorted(carried, key=rank))
