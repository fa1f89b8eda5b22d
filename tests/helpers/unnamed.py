"""Blocks of a traced model without their names: whether their form alone leads to the same cut."""

from __future__ import annotations

from torch import fx

from dicache_compile.errors import UnsupportedGraphError
from dicache_compile.graph.copying import copy_module
from dicache_compile.graph.dataflow import Dataflow
from dicache_compile.passes.out_of_place import out_of_place
from dicache_compile.passes.partition import partition
from dicache_compile.passes.trunk import find_trunk
from dicache_compile.plan import AskedRule, Plan, Region

ADAPTERS = "something is added after every block, and nothing but its name tells it from a part of the block"
APART = {
    "consisid": ADAPTERS,
    "flux_controlnet": ADAPTERS,
    "sd3_controlnet": ADAPTERS,
    "sana_wm": "the last block is less than half of the others, so the epilogue begins before it",
    "rfd4_proteina": "the last block ends otherwise than the others",
    "motif_video_decoder": "without the last blocks, which have another form, the result has no counterpart",
    "hunyuan_video_framepack": "sizes that depend on data leave the blocks as numbers",
}


def form(gm: fx.GraphModule, named: bool) -> tuple[list[tuple[str, ...]], set[str]]:
    """The streams and the deep nodes of a graph, by the names of its modules or without them."""
    copy = out_of_place(Plan(copy_module(gm))).graph_module
    if not named:
        for node in copy.graph.nodes:
            node.meta.pop("nn_module_stack", None)
    flow = Dataflow(copy.graph)
    found = partition(copy, flow, find_trunk(copy, flow), AskedRule(1))
    streams = [(stream.x.name, stream.h.name, stream.y.name) for stream in found.carried]
    return streams, {node.name for node in found.nodes(Region.DEEP)}


def form_agrees(gm: fx.GraphModule) -> bool:
    """Whether the form of a graph's blocks leads to what their names do."""
    named = form(gm, named=True)
    try:
        return form(gm, named=False) == named
    except UnsupportedGraphError:
        return False
