"""Brings a value of an earlier region into the layout and order of a later one that it becomes.

Where blocks hand on their tokens in another order or shape than they got them (rows for columns, sorted, rolled), the
value that enters the trunk cannot be compared with the one that leaves it, element by element, though their sizes may
agree. What the path between them does to places is done to the earlier value too, and nothing else that it does.

Requires: a path from the later value back to the earlier one. Not handled: operations whose other operands are computed
in a later region from what the trunk carries; parts joined on the way of sizes that are no numbers.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import place
from ..graph import effects, operators, values
from ..graph.dataflow import Dataflow
from ..graph.layout import Window, concatenated_dim, is_unmoved, keeps_places, points_back, traced_back
from ..plan import Region
from .crossing import ABOVE

Pairs = list[tuple[fx.Node, fx.Node]]  # (node, its operand on the path)


def _moving(path: Sequence[fx.Node], window: Window | None) -> tuple[Pairs, Window | None]:
    """The steps of a path that change places, from the source on, and the part that is to be taken in the end.

    What joins the value with others and takes it apart again is left out, where that leaves it as it was.
    """
    left = [True] * (len(path) - 1)
    place = len(path) - 2
    while place >= 0:
        if operators.joins(path[place]):
            if window is not None and traced_back(path[: place + 2], window) is True:
                left[: place + 1], window = [False] * (place + 1), None
                break
            alike = [i for i in range(place) if values.same_size(path[i], path[place + 1])]
            same = next((i for i in alike if traced_back(path[i : place + 2]) is True), None)
            if same is not None:
                left[same : place + 1] = [False] * (place + 1 - same)
                place = same
        place -= 1
    pairs = [pair for pair, stays in zip(itertools.pairwise(path), left, strict=True) if stays]
    moving = [(n, o) for n, o in pairs if not _keeps(n, o)]
    return moving[::-1], window


def _keeps(node: fx.Node, operand: fx.Node) -> bool:
    if operators.is_view(node) and is_unmoved(node, operand):
        return True
    return (keeps_places(node) or operators.is_linear(node)) and values.same_size(node, operand)


def why_not_replayable(
    path: Sequence[fx.Node], window: Window | None, flow: Dataflow, regions: dict[fx.Node, Region]
) -> str | None:
    """The reason why the value at the path's end cannot be brought to where the one at its start stands, or None."""
    pairs, _ = _moving(path, window)
    joins = [node for node, _ in pairs if operators.joins(node)]
    for node, operand in pairs:
        where = place(node)
        if node in joins:
            if any(not isinstance(size, int) for part in _parts(node) for size in _shape(part)):
                return f"what {where} joins has a size that is no number"
        elif not operators.is_layout(node):
            return f"what {where} does to the order of tokens is not known"
        elif any(effects.written(node)):
            return f"{where} writes in place"
        late = [n for n in _others(node, operand) if regions.get(n, Region.PROLOGUE) not in ABOVE]
        carried = flow.downstream([path[-1]])
        if any(needed in carried for n in late for needed in flow.upstream([n]) if needed in regions):
            return f"{where} puts tokens into an order that the blocks themselves compute"
    # Of what was joined with the value nothing may be left: it is not known where the value stands.
    if joins and points_back(path, window) is None:
        return f"what {place(joins[0])} joins is not taken apart again"
    return None


def replay(path: Sequence[fx.Node], window: Window | None, flow: Dataflow, regions: dict[fx.Node, Region]) -> fx.Node:
    """A value above the cut with the elements of the path's end at the places that they have at its start.

    Adds nodes to the graph, with their regions.
    """
    source = path[-1]
    recorded = values.tensor(source)
    assert isinstance(recorded, FakeTensor)
    graph, here = source.graph, source
    pairs, window = _moving(path, window)
    for node, operand in pairs:
        for late in _others(node, operand):
            for needed in flow.upstream([late]):
                if regions.get(needed, Region.PROLOGUE) not in ABOVE:
                    regions[needed] = Region.PROLOGUE
    needs = [other for node, operand in pairs for other in _others(node, operand)]
    region = max((regions.get(n, Region.PROLOGUE) for n in (source, *needs)), key=lambda r: r.value)
    order = {node: place for place, node in enumerate(graph.nodes)}
    inputs = graph.find_nodes(op="placeholder")
    after = max((source, *needs, inputs[-1]), key=lambda node: order[node])

    def added(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], method: bool = False) -> fx.Node:
        nonlocal after
        with graph.inserting_after(after):
            new = graph.call_method(target, args, kwargs) if method else graph.call_function(target, args, kwargs)
        with recorded.fake_mode, torch.no_grad():
            known_args, known = fx.map_arg(args, _fake), fx.map_arg(kwargs, _fake)
            new.meta["example_value"] = (
                getattr(known_args[0], target)(*known_args[1:], **known) if method else target(*known_args, **known)
            )
        new.meta["stack_trace"] = source.stack_trace
        regions[new] = region
        after = new
        return new

    for node, operand in pairs:
        if operators.joins(node):
            here = added(torch.cat, (_joined(node, operand, here, added),), {"dim": concatenated_dim(node)})
            continue
        copies = {operand: here}
        for step in _steps(node, operand):
            args, kwargs = (_with(copies, given) for given in (step.args, step.kwargs))
            copies[step] = added(step.target, args, kwargs, step.op == "call_method")
        here = copies[node]
    if window is not None:
        assert window.length is not None
        part = (*[slice(None)] * window.dim, slice(window.start, window.start + window.length))
        here = added(operator.getitem, (here, part), {})
    return here


def _with(copies: Mapping[fx.Node, fx.Node], given: Any) -> Any:
    return fx.map_arg(given, lambda node: copies.get(node, node))


def _steps(node: fx.Node, operand: fx.Node) -> tuple[fx.Node, ...]:
    """What leads from an operand to a node of a path: the node, or a split and the node that takes its part."""
    if operand in node.all_input_nodes:
        return (node,)
    return next(n for n in node.all_input_nodes if operand in n.all_input_nodes), node


def _others(node: fx.Node, operand: fx.Node) -> list[fx.Node]:
    """What else is needed to do again what a node does, all of it computed somewhere."""
    if operators.joins(node):
        return []
    steps = _steps(node, operand)
    return [n for step in steps for n in step.all_input_nodes if n is not operand and n not in steps]


def _parts(node: fx.Node) -> tuple[fx.Node, ...]:
    parts = node.args[0] if node.args else node.kwargs.get("tensors", ())
    assert isinstance(parts, (tuple, list))
    return tuple(part for part in parts if isinstance(part, fx.Node))


def _shape(node: fx.Node) -> tuple[Any, ...]:
    recorded = values.tensor(node)
    return tuple(recorded.shape) if recorded is not None else ()


def _joined(node: fx.Node, operand: fx.Node, here: fx.Node, added: Any) -> list[fx.Node]:
    """The operands of a concatenation with zeros for what is not followed: its elements are taken away again."""
    return [here if part is operand else added("new_zeros", (here, _shape(part)), {}, True) for part in _parts(node)]


def _fake(node: fx.Node) -> Any:
    return values.value(node)
