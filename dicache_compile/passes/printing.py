"""The text of a plan, as a person would want to read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from torch import fx

from ..graph import operators, values
from ..graph.input_names import input_name
from ..plan import Plan, Region
from .pipeline import Passed


def did(passed: Passed) -> str:
    """What a pass did to a graph, in a line: 'found 57 blocks; deep 4210, epilogue 12 operations'."""
    before, after = passed.before, passed.after
    told = []
    if changed := len(after.graph_module.graph.nodes) - len(before.graph_module.graph.nodes):
        told.append(f"{changed:+d} operations")
    if after.found is not None and (before.found is None or before.found.regions != after.found.regions):
        if before.found is None:
            told.append(f"{len(after.found.trunk.blocks)} blocks of {', '.join(after.found.trunk.owners)}")
        told.append(_regions(after))
    if after.told is not None and before.told is None:
        told.append(_inputs(after))
    return "; ".join(told) or "nothing to do"


def plan_text(plan: Plan) -> str:
    """Every operation with its region, its block and its line in the user's code; then what is known of all."""
    found = plan.found
    paths = {node: block.path for block in found.trunk.blocks for node in block.nodes} if found is not None else {}
    regions = {node: region.name.lower() for node, region in found.regions.items()} if found is not None else {}
    lines = []
    for (region, path), nodes in groupby(_operations(plan), lambda node: (regions.get(node, ""), paths.get(node, ""))):
        if region or path:
            lines.append(" ".join(filter(None, (region, path))))
        lines += [f"    {line(node)}" for node in nodes]
    if found is not None:
        lines += [f"carried   x={c.x.name} h={c.h.name} y={c.y.name} {_shape(c.y)}" for c in found.carried]
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


def _regions(plan: Plan) -> str:
    assert plan.found is not None
    counted = Counter(plan.found.regions[node] for node in _operations(plan) if node in plan.found.regions)
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
