"""Finds what the first block of a trunk gives to its first linear: its input, normalised and modulated.

That is what TeaCache (arXiv 2411.19108) compares. Requires: blocks whose first linear on the denoised stream takes it
in the stream's own shape. Ensures: a value inside the first block that depends on what enters it.
"""

from __future__ import annotations

from torch import fx

from ..errors import NothingToSkipError
from ..graph import operators, values
from ..graph.dataflow import Dataflow
from ..plan import Trunk


def modulated_input(flow: Dataflow, trunk: Trunk, x: fx.Node) -> fx.Node:
    """The value of the first block that is made of x. Raises NothingToSkipError where no linear of it takes any."""
    block = trunk.blocks[0]
    # An x that was added to the graph, as a slice, is known by what it is made of.
    of_x = flow.downstream([x] if x in set(flow.order) else x.all_input_nodes) & set(block.nodes)
    for node in block.nodes:
        if not operators.is_heavy(node):
            continue
        for given in node.all_input_nodes:
            # Of several streams that one attention takes joined: the one, or all where x has them joined, too.
            parts = given.all_input_nodes if operators.joins(given) else []
            for one in (given, *parts):
                if one in of_x and values.size_text(one) == values.size_text(x):
                    return one
    found = f"no linear of {block.path} takes what the block makes of the denoised stream, in its shape"
    raise NothingToSkipError(found, advice="use a gate that looks at the probe")
