"""Prints a program as one functional graph, with a `torch.ops.higher_order.cond` for each choice.

It takes the inputs and the state, and returns the outputs and the new state. The program equals it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._inductor import inductor_prims

from ..graph import values
from ..program import Choose, Kind, Op, Piece, Program, Run, Value, pieces_of
from .inlining import Inlined
from .strides import is_permuted


def single_graph(program: Program) -> Piece:
    """The graph of a program. Its outputs are followed by the slots that are written."""
    dtypes = {slot.value: slot.dtype for slot in program.slots}
    outer = Inlined(dtypes)
    _print(program.ops, outer, set(program.outputs), dtypes)
    written = [slot.value for slot in program.slots if slot.value in outer.written]
    return outer.piece("single", (*program.outputs, *written), next(program.pieces()).graph_module)


def _print(ops: Sequence[Op], outer: Inlined, wanted: set[Value], dtypes: dict[Value, torch.dtype]) -> None:
    """Adds operations to a graph, of which these values are read later on."""
    for place, op in enumerate(ops):
        if isinstance(op, Run):
            outer.add(op.piece)
        else:
            later = wanted | {value for piece in pieces_of(ops[place + 1 :]) for value in piece.reads}
            _print_choice(op, outer, later, dtypes)


def _print_choice(choice: Choose, outer: Inlined, wanted: set[Value], dtypes: dict[Value, torch.dtype]) -> None:
    """Adds a `cond`. Each branch takes the same operands, and returns fresh tensors of the same kind."""
    read = dict(_read((choice,)))
    operands = [_operand(outer, value, like) for value, like in read.items()]
    ways = {"reused": Inlined(dtypes), "deep": Inlined(dtypes)}
    for ops, way in zip((choice.reused, choice.deep), ways.values(), strict=True):
        for value, like in read.items():
            way.placeholder(value, like)
        _print(ops, way, wanted, dtypes)
    reused, deep = ways.values()
    written = [value for value in dtypes if value in reused.written | deep.written]
    given = [value for value in deep.known if value in wanted and value not in read and value not in written]
    # What does not depend on the branch stays outside of it: a branch must not return an operand.
    passed = {value: _passed(value, reused, deep) for value in given}
    chosen = [value for value in given if passed[value] is _CHOSEN]
    nodes = []
    for name, way in ways.items():
        for value in chosen:
            way.known[value] = way.contiguous(way.known[value])
        for value in written:
            if value not in way.written:
                way.known[value] = way.contiguous(way.known[value])
        name = f"{name}_branch"
        if name in outer.attributes:  # another choice's
            name += f"_{sum(one.startswith(name) for one in outer.attributes)}"
        outer.attributes[name] = way.piece(name, (*chosen, *written), _module(choice)).graph_module
        nodes.append(outer.graph.get_attr(name))
    result = outer.graph.call_function(torch.ops.higher_order.cond, (outer.known[choice.by], *nodes, tuple(operands)))
    for place, value in enumerate((*chosen, *written)):
        outer.known[value] = outer.graph.call_function(operator.getitem, (result, place))
    outer.written |= set(written)
    for value in given:
        if passed[value] is not _CHOSEN:
            source = passed[value]
            outer.known[value] = outer.known[source] if isinstance(source, Value) else source


_CHOSEN = object()


def _passed(value: Value, reused: Inlined, deep: Inlined) -> Any:
    """The operand that both branches hand on as this value, or the number that it is in both; else _CHOSEN."""
    ours, theirs = reused.known[value], deep.known[value]
    if not isinstance(theirs, fx.Node):
        return theirs
    operands = {node: read for read, node in deep.reads.items()}
    if theirs in operands and reused.reads[operands[theirs]] is ours:
        return operands[theirs]
    return _CHOSEN


def _read(ops: Sequence[Op]) -> Iterator[tuple[Value, fx.Node]]:
    """What operations read and none of them gives, each with a placeholder for it."""
    given = {value for piece in pieces_of(ops) for value in piece.gives}
    for piece in pieces_of(ops):
        placeholders = piece.graph_module.graph.find_nodes(op="placeholder")
        yield from ((v, node) for v, node in zip(piece.reads, placeholders, strict=True) if v not in given)


def _operand(outer: Inlined, value: Value, like: fx.Node) -> Any:
    """A value for a branch, lying in memory as it was recorded. Inductor may lay a value out as it likes, and does not
    see to what the branches of a `cond` were traced with.
    """
    known = outer.known[value] if value in outer.known else outer.placeholder(value, like)
    recorded = values.tensor(like) if value.kind is not Kind.STATE else None
    if recorded is None or not is_permuted(recorded):
        return known
    strides = outer.graph.call_method("stride", (known,))
    return outer.graph.call_function(inductor_prims.force_stride_order, (known, strides))


def _module(choice: Choose) -> fx.GraphModule:
    return next(pieces_of((choice,))).graph_module
