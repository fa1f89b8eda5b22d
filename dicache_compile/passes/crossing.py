"""What has to be handed from the probe's piece to the ones below the cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from ..graph import symbols, values
from ..plan import Carried, Region

ABOVE = (Region.PROLOGUE, Region.PROBE)  # the cut
_BELOW = (Region.DEEP, Region.EPILOGUE)


def find_crossing(
    gm: fx.GraphModule, regions: Mapping[fx.Node, Region], streams: Sequence[Carried]
) -> tuple[fx.Node, ...]:
    """The values computed in prologue or probe that are read below, in graph order."""
    read_below = {node for stream in streams for node in (stream.x, stream.h)} | {
        needed
        for node in gm.graph.nodes
        if regions.get(node) in _BELOW or node.op == "output"
        for argument in node.all_input_nodes
        for needed in _behind_numbers(argument)
    }
    above = [node for node in gm.graph.nodes if regions.get(node) in ABOVE]
    # A size that depends on data has to cross where a shape below needs it.
    needed = symbols.missing(values.value(node) for node in read_below)
    counted = symbols.definers(above)
    read_below |= {counted[symbol] for symbol in needed if symbol in counted}
    return tuple(node for node in above if node in read_below)


def not_passable(crossing: Sequence[fx.Node]) -> fx.Node | None:
    """The first of these values that cannot cross, or None."""
    passable = (torch.Tensor, torch.SymInt, int)
    return next((node for node in crossing if not isinstance(values.value(node), passable)), None)


def _behind_numbers(node: fx.Node) -> Iterator[fx.Node]:
    """What has to cross the cut where `node` is read: the node, or what it is computed from again."""
    if not values.is_recomputed(node):
        yield node
    else:
        for needed in node.all_input_nodes:
            yield from _behind_numbers(needed)
