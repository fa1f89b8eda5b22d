"""Program pass: tail. Puts what comes after a choice into both of its ways, so that nothing has to be merged.

Requires: nothing. Ensures: no piece runs after a choice; the program computes what it did. Where a way does nothing, or
ends with a choice of its own, the tail is a piece of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..program import Choose, Op, Piece, Program, Run, pieces_of
from .inlining import Inlined


def duplicate_tail(program: Program) -> Program:
    """The program with what comes after its last choice in both ways of that."""
    last = max((place for place, op in enumerate(program.ops) if isinstance(op, Choose)), default=None)
    if last is None or last == len(program.ops) - 1:
        return program
    choice = program.ops[last]
    assert isinstance(choice, Choose)
    tail = program.ops[last + 1 :]
    both = replace(choice, deep=_followed(choice.deep, tail), reused=_followed(choice.reused, tail))
    return replace(program, ops=(*program.ops[:last], both))


def _followed(ops: Sequence[Op], tail: Sequence[Op]) -> tuple[Op, ...]:
    if not ops or isinstance(ops[-1], Choose):
        return (*ops, *tail)
    piece = ops[-1].piece
    for after in pieces_of(tail):
        piece = joined(piece, after)
    return (*ops[:-1], Run(piece))


def joined(first: Piece, second: Piece) -> Piece:
    """One piece of two, the second of which is all that reads what the first gives."""
    both = Inlined()
    both.add(first)
    both.add(second)
    return both.piece(first.name + second.name, second.gives, first.graph_module)
