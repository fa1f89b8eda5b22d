"""Pass: collectives. Which nodes have the ranks of a process group work together, and so which ranks decide as one.

Where one rank runs the deep blocks and another does not, a collective in them waits for ever, or meets another one. So
the ranks of a group whose collectives the blocks run decide as one. A schedule is the same on all of them.
Not handled: collectives that an operator of somebody's own hides. They are not seen.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import CollectiveError
from ..graph import operators, values
from ..graph.observed import Called, called, subgraphs
from ..plan import Group, Plan, Region

_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "c10d", "c10d_functional", "symm_mem", "_dtensor")
_WAITING = "wait_tensor"  # for one that has begun
_GROUP = ("group_name", "tag", "process_group")  # what schemas call a collective's group


def find_ranks(plan: Plan) -> Plan:
    """The plan with the ranks that decide as one. Raises CollectiveError if it is not known which have to."""
    asked = plan.asked
    if asked.ranks_agree or not any(rule.gated for rule in asked.rules):
        return plan
    owners = {node: block.path for one in plan.found for block in one.trunk.blocks for node in block.nodes}
    inside = [node for one in plan.found for node in one.nodes(Region.PROBE, Region.DEEP)]
    for node in inside:
        if (name := collective(node)) is not None:
            where = f" ({owners[node]})" if node in owners else ""
            found = f"the blocks run the collective `{name}`{where}"
            return dataclasses.replace(plan, ranks=_agreeing(plan, inside, node, found))
    given = asked.agree if isinstance(asked.agree, Group) else None
    return dataclasses.replace(plan, ranks=given)


def _agreeing(plan: Plan, inside: Iterable[fx.Node], node: fx.Node, found: str) -> Group:
    """The ranks that the blocks need together. `node`: the first collective of theirs, of which `found` tells."""
    agree = plan.asked.agree
    if agree is None:
        raise CollectiveError(f"{found}, but each rank decides for itself whether to run them (agree=None)", node)
    needed = _groups(inside)
    if isinstance(agree, Group):
        ranks = _ranks(agree.name)
        for name in needed:
            if not _ranks(name) <= ranks:
                of = f"ranks {sorted(_ranks(name))}, and agree= has {sorted(ranks)}"
                raise CollectiveError(f"{found} of {of}", node, "give agree= a group with all ranks that work together")
        return agree
    everywhere = [*needed, *_groups(plan.graph_module.graph.nodes)]
    wide = [name for name in everywhere if all(_ranks(other) <= _ranks(name) for other in needed)]
    if not needed or not wide:
        what = (
            f"of {len(needed)} groups, none of which has all ranks of the others" if needed else "of an unknown group"
        )
        raise CollectiveError(
            f"{found} {what}", node, "give agree= the group of all ranks that make one picture together"
        )
    best = min(wide, key=lambda name: len(_ranks(name)))
    return Group(best, len(_ranks(best)), "copies" if _has_spread_weights(plan) else "parts")


def _groups(nodes: Iterable[fx.Node]) -> list[str]:
    """The groups whose collectives nodes run, by name, each once."""
    return list(dict.fromkeys(name for node in nodes for name in _groups_of(node)))


def _groups_of(node: fx.Node) -> Iterator[str]:
    for part in subgraphs(node):
        yield from _groups(part.graph.nodes)
    for overload in operators.overloads(node.target)[:1]:
        if _named(overload):
            yield from _group(overload, node.args, node.kwargs)
    if node.op in ("call_function", "call_method") and not operators.overloads(node.target) and _may_hide_one(node):
        for call in _called(node):
            if _named(call.operator):
                yield from _group(call.operator, call.args, dict(call.kwargs))


def _group(operator: Any, args: Iterable[Any], kwargs: dict[str, Any]) -> Iterator[str]:
    """The name of the group that a collective is given."""
    given = dict(zip((argument.name for argument in operator._schema.arguments), args, strict=False)) | kwargs
    group = next((given[name] for name in _GROUP if name in given), None)
    if isinstance(group, fx.Node):
        group = values.value(group)
    name = group if isinstance(group, str) else getattr(group, "group_name", None)
    if isinstance(name, str):
        yield name


def _ranks(group: str) -> frozenset[int]:
    resolve = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009 - which it does not export
    return frozenset(dist.get_process_group_ranks(resolve(group)))


def _has_spread_weights(plan: Plan) -> bool:
    """Whether weights are spread over ranks, as in tensor parallelism, and not what they are multiplied with."""
    inputs = plan.graph_module.graph.find_nodes(op="placeholder")
    return any(hasattr(values.value(node), "device_mesh") for node in inputs if values.is_of_module(node))


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
    return next(filter(None, (_named(call.operator) for call in _called(node))), None)


def _called(node: fx.Node) -> list[Called]:
    try:
        return called(node)
    except Exception:  # of what cannot be run once more nothing is known
        return []


def _named(operator: object) -> str | None:
    namespace, _, name = str(operator).partition(".")
    name = name.partition(".")[0]
    return name if namespace in _NAMESPACES and name != _WAITING else None


def _may_hide_one(node: fx.Node) -> bool:
    """Whether a node computes with tensors that are spread over ranks, or is a function that may make such."""
    if isinstance(node.target, types.FunctionType) and node.target.__module__.startswith("torch.distributed"):
        return True
    return any(is_traceable_wrapper_subclass(values.value(n)) for n in (node, *node.all_input_nodes))
