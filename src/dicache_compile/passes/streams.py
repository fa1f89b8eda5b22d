"""Finds the streams of a cut: where each value that leaves the deep region enters the trunk and leaves the probe.

Requires: a region for every node. Ensures: x, h and y of one shape each, x from before the trunk, h from the probe.
Not handled: a value whose residual path leads nowhere, unless only one value of its shape goes from probe to deep.
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import UnsupportedGraphError
from ..plan import Region, Stream
from . import values
from .dataflow import Dataflow
from .residual_path import Step, residual_path, residual_steps


def find_streams(flow: Dataflow, regions: dict[fx.Node, Region]) -> tuple[Stream, ...]:
    """One stream for each value that leaves the deep region, the denoised one first; may add slices to the graph.

    Raises UnsupportedGraphError for a value that has no counterpart in the probe or before the trunk.
    """
    results = [
        node
        for node in flow.order
        if regions.get(node) is Region.DEEP and any(regions.get(user) is not Region.DEEP for user in node.users)
    ]
    if not results:
        raise UnsupportedGraphError("partition", "nothing after the trunk reads the deep blocks' result")
    streams = [_stream(result, flow, regions) for result in results]
    outputs = {values.size_text(node) for node in flow.needs(flow.order[-1])}

    def rank(stream: Stream) -> tuple[bool, int]:
        """The denoised stream is made from an input of an output's shape; of several the largest is first."""
        inputs = [node for node in flow.upstream([stream.x]) if node.op == "placeholder" and not values.is_weight(node)]
        recorded = values.tensor(stream.x)
        size = torch.Size(values.shape_hint(recorded)).numel() if recorded is not None else 0
        return not any(values.size_text(node) in outputs for node in inputs), -size

    return tuple(sorted(streams, key=rank))


def _stream(y: fx.Node, flow: Dataflow, regions: dict[fx.Node, Region]) -> Stream:
    size = values.size_text(y)

    def leaves_probe(node: fx.Node) -> bool:
        return regions.get(node) is Region.PROBE and values.size_text(node) == size

    def before_trunk(node: fx.Node) -> bool:
        above = node.op in ("placeholder", "get_attr") or regions.get(node) is Region.PROLOGUE
        return above and values.size_text(node) == size

    down = residual_steps(y, leaves_probe) or _only_candidate(y, flow, regions)
    up = residual_path(down[-1][0], before_trunk) if down is not None else None
    if down is None or up is None:
        missing = "in the probe's results" if down is None else "where the trunk starts"
        shape = tuple(values.size_text(y) or ())
        raise UnsupportedGraphError(
            "partition",
            f"the deep region's result `{y.name}` of shape ({', '.join(shape)}) has no counterpart {missing} "
            f"({values.source_line(y)})",
        )
    return Stream(x=up[-1], h=_end_of_probe(y, down, regions), y=y)


def _end_of_probe(y: fx.Node, steps: tuple[Step, ...], regions: dict[fx.Node, Region]) -> fx.Node:
    """H on the way back from y: where the probe ends inside of blocks over text and image, the image's part there.

    The last value of y's own shape where that part is not known, or not by numbers.
    """
    end, window = next((node, window) for node, window in steps if regions.get(node) is Region.PROBE)
    recorded = values.tensor(end)
    if end is steps[-1][0] or window is None or not isinstance(recorded, FakeTensor):
        return steps[-1][0]
    part = (*[slice(None)] * window.dim, slice(window.start, window.start + window.length))
    with recorded.fake_mode:
        sliced = recorded[part]
    static = all(isinstance(size, int) for size in recorded.shape)
    if not static or tuple(map(str, sliced.shape)) != values.size_text(y):
        return steps[-1][0]
    with end.graph.inserting_after(end):
        h = end.graph.call_function(operator.getitem, (end, part))
    h.meta = {"example_value": sliced, "stack_trace": end.meta.get("stack_trace")}
    regions[h] = Region.PROBE
    return h


def _only_candidate(y: fx.Node, flow: Dataflow, regions: dict[fx.Node, Region]) -> tuple[Step, ...] | None:
    """The only value of y's shape that goes from the probe to the deep blocks: for trunks with no residual path."""
    size = values.size_text(y)
    found = [
        node
        for node in flow.order
        if regions.get(node) is Region.PROBE
        and values.size_text(node) == size
        and any(regions.get(user) is Region.DEEP for user in node.users)
    ]
    return ((y, None), (found[0], None)) if len(found) == 1 else None
