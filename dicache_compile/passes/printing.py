"""The text of a plan, as a person would want to read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from torch import fx

from ..graph import operators, values
from ..graph.input_names import input_name
from ..plan import Partition, Plan, Region, Trunk
from .pipeline import Passed


def did(passed: Passed) -> str:
    """What a pass did to a graph, in a line: 'found 57 blocks; deep 4210, epilogue 12 operations'."""
    before, after = passed.before, passed.after
    told = []
    if changed := len(after.graph_module.graph.nodes) - len(before.graph_module.graph.nodes):
        told.append(f"{changed:+d} operations")
    if after.found and [one.regions for one in before.found] != [one.regions for one in after.found]:
        if not before.found:
            trunk = Trunk(after.partition.all_blocks)
            told.append(f"{len(trunk.blocks)} blocks of {', '.join(trunk.owners)}")
        told += [_regions(after, one) for one in after.found]
    before_it, tokens = (sum(c.by_token is not None for p in plan.found for c in p.carried) for plan in (before, after))
    if tokens != before_it:
        told.append(f"{tokens} sites by token")
    if after.told is not None and before.told is None:
        told.append(_inputs(after))
    return "; ".join(told) or "nothing to do"


def plan_text(plan: Plan) -> str:
    """Every operation with its region, its block and its line in the user's code; then what is known of all."""
    paths = {node: block.path for one in plan.found[:1] for block in one.all_blocks for node in block.nodes}
    regions = {node: _region(node, plan) for node in plan.graph_module.graph.nodes}
    lines = []
    for (region, path), nodes in groupby(_operations(plan), lambda node: (regions.get(node, ""), paths.get(node, ""))):
        if region or path:
            lines.append(" ".join(filter(None, (region, path))))
        lines += [f"    {line(node)}" for node in nodes]
    for found in plan.found:
        lines += [f"carried   x={c.x.name} h={c.h.name} y={c.y.name} {_shape(c.y)}" for c in found.carried]
        lines += [f"by token  {c.y.name} from {c.by_token.entry.name} on" for c in found.carried if c.by_token]
        lines.append(f"crossing  {' '.join(node.name for node in found.crossing)}")
    if plan.told is not None:
        lines.append(f"inputs    {_inputs(plan)}")
    return "\n".join(lines)


def line(node: fx.Node) -> str:
    """`matmul_1 = matmul(x, getattr_1)  [2, 4, 4] float32`."""
    arguments = [*map(_text, node.args), *(f"{key}={_text(item)}" for key, item in node.kwargs.items())]
    return f"{node.name} = {operators.name(node)}({', '.join(arguments)})  {_shape(node)}".rstrip()


def _operations(plan: Plan) -> Iterator[fx.Node]:
    return (node for node in plan.graph_module.graph.nodes if node.op.startswith("call_"))


def _region(node: fx.Node, plan: Plan) -> str:
    """'deep'; where there are several cuts, its region in each: 'epilogue, deep'."""
    return ", ".join(one.regions[node].name.lower() for one in plan.found if node in one.regions)


def _regions(plan: Plan, found: Partition) -> str:
    counted = Counter(found.regions[node] for node in _operations(plan) if node in found.regions)
    return ", ".join(f"{region.name.lower()} {counted[region]}" for region in Region) + " operations"


def _inputs(plan: Plan) -> str:
    assert plan.told is not None
    named = {"timestep": (plan.told.timestep,), "latents": (plan.told.latents,), "conditions": plan.told.conditions}
    told = {what: [input_name(node) for node in nodes if node is not None] for what, nodes in named.items()}
    return ", ".join(f"{what}={' '.join(names)}" for what, names in told.items() if names)


def _shape(node: fx.Node) -> str:
    recorded = values.tensor(node)
    if recorded is None:
        return ""
    return f"[{', '.join(values.size_text(node) or ())}] {str(recorded.dtype).removeprefix('torch.')}"


def _text(argument: Any) -> str:
    if isinstance(argument, (tuple, list)):
        return "[" + ", ".join(map(_text, argument)) + "]"
    return argument.name if isinstance(argument, fx.Node) else str(argument)
