"""Finds the streams of a cut: where each value that leaves the deep region enters the trunk and leaves the probe.

Requires: a region for every node. Ensures: x, h and y of one shape each, x from before the trunk, h from the probe, or
x itself where there is no probe.
Where a value is a part of a sequence that is never apart from its neighbour, x and h are slices of that sequence.
Not handled: a value whose residual path leads nowhere, unless only one value of its shape goes from probe to deep;
parts of sequences whose length is not fixed (the whole is taken).
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
from .residual_path import Step, residual_steps


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
    from_latents = flow.downstream(_latents(flow))
    # All are found before the graph is touched.
    found = [(_places(result, flow, regions, from_latents), result) for result in results]
    streams = [Stream(x=_part(x, regions), h=_part(h, regions), y=y) for (x, h), y in found]
    denoised = {y for (x, _), y in found if x[0] in from_latents}

    def rank(stream: Stream) -> tuple[bool, int]:
        """What is made from the latents is denoised; of several the largest is first."""
        recorded = values.tensor(stream.x)
        size = torch.Size(values.shape_hint(recorded)).numel() if recorded is not None else 0
        return stream.y not in denoised, -size

    return tuple(sorted(streams, key=rank))


def _latents(flow: Dataflow) -> list[fx.Node]:
    """The inputs that look like what is denoised: for each output those of its shape, or of the same but for one
    dimension (more channels go in than come out, say); where there are none, the largest input.
    """
    passed = {
        node: recorded
        for node in flow.order
        if node.op == "placeholder"
        and not values.is_weight(node)
        and (recorded := values.tensor(node)) is not None
        and recorded.is_floating_point()
    }
    alike: list[fx.Node] = []
    for output in flow.needs(flow.order[-1]):
        differing = {node: _differing(node, output) for node in passed}
        least = min((count for count in differing.values() if count is not None), default=2)
        alike += [node for node in passed if differing[node] == least < 2]
    return alike or sorted(passed, key=lambda node: torch.Size(values.shape_hint(passed[node])).numel())[-1:]


def _differing(node: fx.Node, other: fx.Node) -> int | None:
    """In how many dimensions two tensors of one rank differ; None where the rank differs."""
    mine, theirs = values.size_text(node), values.size_text(other)
    if mine is None or theirs is None or len(mine) != len(theirs):
        return None
    return sum(a != b for a, b in zip(mine, theirs, strict=True))


def _places(
    y: fx.Node, flow: Dataflow, regions: dict[fx.Node, Region], from_latents: set[fx.Node]
) -> tuple[Step, Step]:
    """Where y's values stand when they enter the trunk and when they leave the probe: (x, h).

    Each is a value of y's size, or the part of one: of text and image in one sequence the image, if y is that.
    """

    def leaves_probe(step: Step) -> bool:
        return regions.get(step[0]) is Region.PROBE and _is_like(step, y)

    def before_trunk(step: Step) -> bool:
        above = step[0].op in ("placeholder", "get_attr") or regions.get(step[0]) is Region.PROLOGUE
        return above and _is_like(step, y)

    def denoised(step: Step) -> bool:
        # A block may add a condition as it is: `x + project(pose)`.
        return before_trunk(step) and step[0] in from_latents

    if Region.PROBE in regions.values():
        down = residual_steps((y, None), leaves_probe) or _only_candidate(y, flow, regions)
        up = residual_steps(down[-1], before_trunk, denoised) if down is not None else None
    else:  # no block is a probe: what enters the trunk is all that is known of a step
        down = up = residual_steps((y, None), before_trunk, denoised)
    if down is None or up is None:
        in_probe = down is None and Region.PROBE in regions.values()
        missing = "in the probe's results" if in_probe else "where the trunk starts"
        shape = tuple(values.size_text(y) or ())
        raise UnsupportedGraphError(
            "partition",
            f"the deep region's result `{y.name}` of shape ({', '.join(shape)}) has no counterpart {missing} "
            f"({values.source_line(y)})",
        )
    return up[-1], down[-1]


def _is_like(step: Step, y: fx.Node) -> bool:
    """Whether a value, or the part of it that is followed, has y's size. A part is known in numbers only."""
    node, window = step
    if window is None:
        return values.same_size(node, y)
    recorded = values.tensor(node)
    if recorded is None or not isinstance(recorded.shape[window.dim], int):
        return False  # under another size the part would stand elsewhere
    size = list(values.size_text(node) or ())
    size[window.dim] = str(window.length)
    return tuple(size) == values.size_text(y)


def _part(step: Step, regions: dict[fx.Node, Region]) -> fx.Node:
    """The value of a step: the node, or a slice of it that is added to the graph."""
    node, window = step
    if window is None:
        return node
    recorded = values.tensor(node)
    assert isinstance(recorded, FakeTensor)
    assert window.length is not None
    part = (*[slice(None)] * window.dim, slice(window.start, window.start + window.length))
    last = node if node.op != "placeholder" else node.graph.find_nodes(op="placeholder")[-1]
    with node.graph.inserting_after(last), recorded.fake_mode:
        sliced = node.graph.call_function(operator.getitem, (node, part))
        sliced.meta = {"example_value": recorded[part], "stack_trace": node.stack_trace}
    regions[sliced] = regions.get(node, Region.PROLOGUE)
    return sliced


def _only_candidate(y: fx.Node, flow: Dataflow, regions: dict[fx.Node, Region]) -> tuple[Step, ...] | None:
    """The only value of y's shape that goes from the probe to the deep blocks: for trunks with no residual path."""
    found = [
        node
        for node in flow.order
        if regions.get(node) is Region.PROBE
        and values.same_size(node, y)
        and any(regions.get(user) is Region.DEEP for user in node.users)
    ]
    return ((found[0], None),) if len(found) == 1 else None
