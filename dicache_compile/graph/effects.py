"""What a node does besides giving a value: writes in place, modes that it switches. (`randomness`: random numbers.)

Dataflow alone does not order these, so `dataflow` adds the edges that `ordering` gives.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from . import operators, values


def written(node: fx.Node) -> tuple[fx.Node, ...]:
    """The arguments that a node changes in place, those in lists among them."""
    if node.op == "call_function":
        if called := operators.overloads(node.target):
            return tuple(dict.fromkeys(changed for each in called for changed in _written_by(each._schema, node)))
        out = node.kwargs.get("out")
        if out is not None:
            return _tensors(out)
    elif node.op != "call_method":
        return ()
    in_place = operators.writes(node) or _is_told_to_write(node)
    return _tensors(node.args[0]) if in_place and node.args else ()


def _written_by(schema: Any, node: fx.Node) -> tuple[fx.Node, ...]:
    in_order = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    passed = dict(zip(in_order, node.args, strict=False)) | dict(node.kwargs)
    changed = [passed.get(a.name) for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    return _tensors(tuple(changed))


def _tensors(argument: Any) -> tuple[fx.Node, ...]:
    """The tensors of an argument: itself, or the ones in a list."""
    if isinstance(argument, (tuple, list)):
        return tuple(tensor for part in argument for tensor in _tensors(part))
    if isinstance(argument, fx.Node) and isinstance(values.value(argument), (torch.Tensor, tuple, list)):
        return (argument,)
    return ()


def is_opaque(node: fx.Node) -> bool:
    """Whether a node gets tensors and gives nothing, so that it is there for an effect, and what it writes to cannot be
    told: a Triton kernel of the model, or an operator that does not say.
    """
    nothing = node.op.startswith("call_") and values.value(node) is None and not written(node)
    return nothing and any(map(_tensors, node.all_input_nodes))


def is_part(node: fx.Node) -> bool:
    """Whether a node is one of a tuple's values. No tuple can cross a cut: its parts are taken where it is made."""
    source = node.args[0] if node.args else None
    is_taken = operators.is_item(node) and isinstance(source, fx.Node)
    return is_taken and isinstance(values.value(source), (tuple, list))  # type: ignore[arg-type]


def is_mode(node: fx.Node) -> bool:
    """Whether a node switches autocast or gradients for the nodes after it."""
    return node.op == "call_function" and operators.switches_mode(node)


def switches(node: fx.Node) -> bool:
    """Whether running a node changes how others run after it, by its name: a mode, a level of `torch.vmap`."""
    called = operators.name(node)
    return is_mode(node) or called.startswith(("_enter_", "_exit_", "_set_", "set_")) or "_nesting" in called


def autocast_scopes(graph: fx.Graph) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """For each node inside an autocast scope, the nodes that entered it, outermost first."""
    scopes: dict[fx.Node, tuple[fx.Node, ...]] = {}
    current: tuple[fx.Node, ...] = ()
    for node in graph.nodes:
        if operators.enters_autocast(node):
            current = (*current, node)
        elif operators.exits_autocast(node):
            current = tuple(entered for entered in current if entered is not node.args[0])
        elif current and node.op not in ("placeholder", "output"):
            scopes[node] = current
    return scopes


def vmap_scopes(nodes: Iterable[fx.Node]) -> list[tuple[fx.Node, ...]]:
    """The outermost stretches that run under `torch.vmap`; values inside of one mean nothing outside of it."""
    scopes: list[tuple[fx.Node, ...]] = []
    inside: list[fx.Node] = []
    depth = 0
    for node in nodes:
        depth += operators.enters_vmap(node)
        if depth:
            inside.append(node)
        depth -= operators.exits_vmap(node)
        if inside and not depth:
            scopes.append(tuple(inside))
            inside = []
    return scopes


def ordering(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Edges that in-place writes add to the dataflow: node -> the nodes that must have run before it.

    A write comes after all earlier uses of that memory, and before all later ones.
    """
    memories = {node: values.storages(node) for node in graph.nodes}
    touched = {memory for node in graph.nodes for target in written(node) for memory in memories[target]}
    users: dict[int, list[fx.Node]] = defaultdict(list)
    before: dict[fx.Node, set[fx.Node]] = defaultdict(set)
    last_write: dict[int, fx.Node] = {}
    for node in graph.nodes:
        used = {m for value in (node, *node.all_input_nodes) for m in memories[value] if m in touched}
        writes = {m for target in written(node) for m in memories[target]}
        for memory in used:
            if memory in last_write:
                before[node].add(last_write[memory])
            if memory in writes:
                before[node].update(users[memory])
                last_write[memory], users[memory] = node, []
            else:
                users[memory].append(node)
        before[node].discard(node)
    return before


def _is_told_to_write(node: fx.Node) -> bool:
    """Whether `inplace=True` is among the arguments, by name or by place: functional.leaky_relu(x, 0.1, True)."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is True
    if not getattr(node.target, "__module__", "").startswith("torch.nn.functional"):
        return False
    names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return place < len(node.args) and node.args[place] is True
