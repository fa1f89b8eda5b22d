"""Pass: inline. Puts what runs under `torch.utils.checkpoint`, or in a region that is compiled once, into the graph.

Dynamo makes one node of each such call, with a graph of its own inside. Without gradients a checkpoint does nothing
but call its function, and in the model's own graph its blocks can be told apart and cut.

Requires: a graph for inference. Ensures: the same operations on the same values in the same order, with their
metadata. Not handled: the inside of a condition, a loop or a custom function, which stays what it is.
"""

from __future__ import annotations

import dataclasses
import operator

from torch import fx

from ..graph import operators
from ..graph.copying import copy_module
from ..plan import Plan


def inline(plan: Plan) -> Plan:
    """A graph with these graphs in it; the same one if it has none."""
    if not any(map(operators.calls_graph, plan.graph_module.graph.nodes)):
        return plan
    copy = copy_module(plan.graph_module)
    while calls := [node for node in copy.graph.nodes if operators.calls_graph(node)]:  # one may be inside of another
        for node in calls:
            _inline(copy, node)
    copy.graph.eliminate_dead_code(lambda node: node.op != "get_attr")
    copy.recompile()
    return dataclasses.replace(plan, graph_module=copy)


def has_checkpoints(gm: fx.GraphModule) -> bool:
    """Whether a part of the graph is to run again for its gradients."""
    return any(operators.is_checkpoint(node) for node in gm.graph.nodes if node.op.startswith("call_"))


def _inline(gm: fx.GraphModule, call: fx.Node) -> None:
    body = getattr(gm, str(call.args[0].target))  # type: ignore[union-attr]
    given = iter(call.args[1 if operators.is_checkpoint(call) else 2 :])  # after the graph, or its name too
    copies: dict[fx.Node, object] = {}
    results: object = None
    with gm.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(given)
            elif node.op == "output":
                results = fx.node.map_arg(node.args[0], lambda inner: copies[inner])  # type: ignore[arg-type, return-value]
            elif node.op == "get_attr":
                copies[node] = _attribute(gm, body, node)
            else:
                copies[node] = gm.graph.node_copy(node, lambda inner: copies[inner])  # type: ignore[arg-type, return-value]
    assert isinstance(results, (tuple, list))
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
        gm.graph.erase_node(user)
    gm.graph.erase_node(call)


def _attribute(gm: fx.GraphModule, body: fx.GraphModule, node: fx.Node) -> fx.Node:
    """What the inner graph reads of its module, read of the outer one."""
    name = str(node.target).replace(".", "_")
    while hasattr(gm, name):
        name = f"{name}_"
    setattr(gm, name, getattr(body, str(node.target)))
    copy = gm.graph.get_attr(name)
    copy.meta = dict(node.meta)
    return copy
