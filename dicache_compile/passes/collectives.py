"""Pass: collectives. Which nodes have the ranks of a process group work together.

Each rank decides for itself. Where one runs the deep blocks and another does not, a collective in them waits for ever,
or meets another one.
"""

from __future__ import annotations

import types

import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import CollectiveError
from ..graph import values
from ..graph.observed import called, subgraphs
from ..plan import Plan, Region

_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "c10d", "c10d_functional", "symm_mem", "_dtensor")
_WAITING = "wait_tensor"  # for one that has begun


def check_collectives(plan: Plan) -> Plan:
    """The same graph. Raises CollectiveError if ranks would have to decide together, and nothing says that they do."""
    if plan.asked.ranks_agree:
        return plan
    owners = {node: block.path for one in plan.found for block in one.trunk.blocks for node in block.nodes}
    for node in (node for one in plan.found for node in one.nodes(Region.PROBE, Region.DEEP)):
        if name := collective(node):
            where = f" ({owners[node]})" if node in owners else ""
            found = f"the blocks run the collective `{name}`{where}"
            raise CollectiveError(f"{found}, but each rank decides for itself whether to run them", node)
    return plan


def collective(node: fx.Node) -> str | None:
    """The collective that a node runs, by name; None if it runs none."""
    if node.op not in ("call_function", "call_method"):
        return None
    if isinstance(node.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _named(node.target)
    if graphs := subgraphs(node):
        found = (collective(inner) for part in graphs for inner in part.graph.nodes)
        return next(filter(None, found), None)
    if not _may_hide_one(node):
        return None
    try:
        return next(filter(None, (_named(call.operator) for call in called(node))), None)
    except Exception:  # of what cannot be run once more nothing is known
        return None


def _named(operator: object) -> str | None:
    namespace, _, name = str(operator).partition(".")
    name = name.partition(".")[0]
    return name if namespace in _NAMESPACES and name != _WAITING else None


def _may_hide_one(node: fx.Node) -> bool:
    """Whether a node computes with tensors that are spread over ranks, or is a function that may make such."""
    if isinstance(node.target, types.FunctionType) and node.target.__module__.startswith("torch.distributed"):
        return True
    return any(is_traceable_wrapper_subclass(values.value(n)) for n in (node, *node.all_input_nodes))
