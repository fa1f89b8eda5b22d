"""Takes a piece apart where its blocks begin and end, so that equal ones can be compiled once.

A stretch is what stands between two such places, in the order of the graph: a block, or what runs between blocks.
Blocks that overlap are one stretch. Requires: a fake value for every node that another stretch reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import fx

from ..graph import effects, operators, symbols, values
from ..program import BLOCK, Kind, Piece, Value
from ..write.emit import Emitter


def stretches(gm: fx.GraphModule) -> tuple[Piece, ...]:
    """The stretches of a piece's graph, in order; none where it has fewer than two, or cannot be taken apart.

    What they read and give are values named after the nodes of `gm`: INPUT is a placeholder of it, CROSSING another.
    """
    nodes = [node for node in gm.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    spans = _spans(nodes)
    if len(spans) < 2:
        return ()
    parts = [nodes[start:end] for start, end in spans]
    autocast, sizes = effects.autocast_scopes(gm.graph), symbols.definers(gm.graph.nodes)
    emitters = [Emitter(f"{place}", gm, autocast, {}, sizes, torch.device("cpu")) for place in range(len(parts))]
    for emitter, part in zip(emitters, parts, strict=True):
        emitter.copy(node for node in part if not _switches_autocast(node))
    order = {node.name: place for place, node in enumerate(gm.graph.nodes)}
    (returned,) = gm.graph.find_nodes(op="output")
    wanted = {Value(Kind.CROSSING, node.name) for node in returned.all_input_nodes}
    found: list[Piece] = []
    for emitter in reversed(emitters):
        # In the graph's order, whoever reads them: blocks that differ in nothing else are then of one form.
        found.append(emitter.piece(sorted(wanted, key=lambda value: order[value.name])))
        wanted |= set(found[-1].reads)
    found.reverse()
    if not _fit(gm, parts, found):
        return ()
    return tuple(piece for piece, part in zip(found, parts, strict=True) if piece.gives or any(map(_acts, part)))


def _spans(nodes: Sequence[fx.Node]) -> list[tuple[int, int]]:
    """From where to where stretches go, all of them together."""
    of_block: dict[int, tuple[int, int]] = {}
    for place, node in enumerate(nodes):
        if (block := node.meta.get(BLOCK)) is not None:
            of_block[block] = (of_block.get(block, (place, place))[0], place + 1)
    joined: list[tuple[int, int]] = []
    for start, end in sorted(of_block.values()):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    places = sorted({0, len(nodes), *(place for span in joined for place in span)})
    return list(pairwise(places))


def _acts(node: fx.Node) -> bool:
    """Whether a node is of use though nothing reads it."""
    return bool(effects.written(node)) or effects.is_opaque(node)


def _switches_autocast(node: fx.Node) -> bool:
    return operators.enters_autocast(node) or operators.exits_autocast(node)


def _fit(gm: fx.GraphModule, parts: Sequence[Sequence[fx.Node]], found: Sequence[Piece]) -> bool:
    """Whether each stretch can be compiled by itself: it reads tensors and sizes that are there by then, and no mode
    reaches from one to the next.
    """
    recorded = {node.name: values.value(node) for node in gm.graph.nodes}
    known = {node.name for node in gm.graph.find_nodes(op="placeholder")}
    for piece in found:
        reads = {value.name for value in piece.reads}
        if not reads <= known or not all(isinstance(recorded[name], (torch.Tensor, torch.SymInt)) for name in reads):
            return False
        known |= {value.name for value in piece.gives}
    switching = [any(effects.switches(node) and not _switches_autocast(node) for node in part) for part in parts]
    return sum(switching) < 2
