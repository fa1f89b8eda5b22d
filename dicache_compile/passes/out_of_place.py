"""Pass: out of place. Rewrites `a += b` as `a = a + b` and `f(b, out=a)` as `a = f(b)`, where nothing else can see it.

A residual trunk that adds in place (`x += attn(x)`) keeps x, h and y in one memory; a cut needs all three.

Requires: a Dynamo graph. Ensures: the same values for the output and for everything outside.
Not handled: a value of which a view was taken before the write and is read after it; a graph input (writing to one
is an effect on the outside); in-place operations other than those of `operators.out_of_place`. They stay, and the
partition refuses them where it must.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import torch
from torch import fx

from ..graph import operators, values
from ..graph.copying import copy_module
from ..plan import Plan


def out_of_place(plan: Plan) -> Plan:
    """A graph in which every write that can be rewritten is; the same one if it has none."""
    if not any(map(_is_rewritable, plan.graph_module.graph.nodes)):
        return plan
    copy = copy_module(plan.graph_module)
    order = {node: position for position, node in enumerate(copy.graph.nodes)}
    sharers: dict[int, list[fx.Node]] = defaultdict(list)
    for node in order:
        for memory in values.storages(node):
            sharers[memory].append(node)
    for node in order:
        if _is_rewritable(node) and _why_not(node, order, sharers) is None:
            _rewrite(node, order)
    copy.recompile()
    return dataclasses.replace(plan, graph_module=copy)


def _is_rewritable(node: fx.Node) -> bool:
    if node.op == "call_function" and isinstance(out := node.kwargs.get("out"), fx.Node):
        return _is_alike(node, out)
    return operators.out_of_place(node) is not None and not node.kwargs


def _is_alike(node: fx.Node, out: fx.Node) -> bool:
    """Whether a result would be the same if it were not written to `out`."""
    mine, theirs = values.tensor(node), values.tensor(out)
    return (
        mine is not None
        and theirs is not None
        and values.size_text(node) == values.size_text(out)
        and theirs.dtype == _promoted(node)
    )


def _promoted(node: fx.Node) -> torch.dtype | None:
    """The dtype that an operation's result has by itself, of those whose operands say it."""
    dtypes = [recorded.dtype for n in node.all_input_nodes if (recorded := values.tensor(n)) is not None]
    return dtypes[0] if len(set(dtypes)) == 1 and dtypes[0].is_floating_point else None


def _target(node: fx.Node) -> object:
    """What a node writes to."""
    return node.kwargs["out"] if "out" in node.kwargs else node.args[0]


def _why_not(node: fx.Node, order: dict[fx.Node, int], sharers: dict[int, list[fx.Node]]) -> str | None:
    target = _target(node)
    if not isinstance(target, fx.Node) or values.tensor(target) is None or values.tensor(node) is None:
        return "it does not write to a tensor"
    for memory in values.storages(target):
        for other in sharers[memory]:
            if other.op == "placeholder":
                return "it writes to an input"
            read_later = any(order.get(user, -1) > order[node] for user in other.users)
            if other is not target and order[other] < order[node] and read_later:
                return f"{other.name} shares its memory and is read later"
    return None


def _rewrite(node: fx.Node, order: dict[fx.Node, int]) -> None:
    target = _target(node)
    assert isinstance(target, fx.Node)
    if "out" in node.kwargs:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
        target.replace_all_uses_with(node, delete_user_cb=lambda user: order.get(user, -1) > order[node])
        return
    kept = values.tensor(target)
    assert kept is not None
    plain = operators.out_of_place(node)
    assert plain is not None
    node.target = plain
    result = node
    dtypes = {other.dtype for n in node.all_input_nodes if (other := values.tensor(n)) is not None}
    if not dtypes <= {kept.dtype, torch.bool}:
        # The in-place operation keeps its target's dtype, whatever the other operand's. A mask's changes no result's.
        with node.graph.inserting_after(node):
            result = node.graph.call_method("to", (node, kept.dtype))
        result.meta = dict(node.meta)
        node.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)
    target.replace_all_uses_with(result, delete_user_cb=lambda user: order.get(user, -1) > order[node])
