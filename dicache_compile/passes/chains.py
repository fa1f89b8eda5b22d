"""Joins stacks of blocks that carry on each other into chains, each of which may be a trunk."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ..graph import operators, values
from ..graph.dataflow import Dataflow
from ..graph.residual_path import residual_path
from .stacks import Stack

Chain = tuple[Stack, ...]


def chains(stacks: Sequence[Stack], flow: Dataflow) -> list[Chain]:
    """Stacks joined where one carries on all that the one before gives; the nearest one before comes first."""
    position = {node: i for i, node in enumerate(flow.order)}
    found: list[list[Stack]] = []
    for stack in sorted(stacks, key=lambda stack: position[stack.blocks[0].nodes[0]]):
        joined = next((chain for chain in reversed(found) if _carries_on(chain, stack, flow)), None)
        if joined is not None:
            joined.append(stack)
        else:
            found.append([stack])
    return [tuple(chain) for chain in found]


def _carries_on(chain: list[Stack], after: Stack, flow: Dataflow) -> bool:
    """Whether every stream that enters `after` comes out of the chain's last block, joined with nothing else.

    FLUX's single blocks carry on its double blocks. The main layers of a model with refiners do not carry on the
    refiner: they join its result with another one's, or take the image from elsewhere. What comes out of an earlier
    block of the chain is a skip connection, and no stream.
    """
    first, last = set(after.blocks[0].nodes), set(chain[-1].blocks[-1].nodes)
    earlier = {node for stack in chain for block in stack.blocks for node in block.nodes}
    later = flow.downstream(earlier)
    streams = [
        node for node in first if any(user not in first for user in node.users) and values.tensor(node) is not None
    ]
    found = False
    for stream in streams:
        path = residual_path(stream, lambda node: node not in first)
        if path is None:
            continue
        onward = _onward(path[-1], last)
        if onward is None:
            if _onward(path[-1], earlier) is not None:
                continue
            return False
        joined = [node for node in (*path, *onward) if operators.joins(node)]
        if any(part not in later for node in joined for part in node.all_input_nodes):
            return False
        found = True
    return found


def _onward(node: fx.Node, ends: set[fx.Node]) -> tuple[fx.Node, ...] | None:
    return residual_path(node, lambda here: here in ends)
