"""Writes the program of a step from a cut graph and its rules.

A cut is a choice: what is above it runs before, what is deep in one way, and an estimate in the other. What comes after
is cut by the next one, what is deep by those inside of it.
Requires: partitions whose regions never read backwards, each after the ones before it or inside of them. Ensures: every
piece gives what later ones read of it, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx

from ..in_force import Rule
from ..passes.crossing import ABOVE
from ..passes.sites import after_last, is_inside
from ..plan import Group, Inputs, Partition, Region
from ..program import Choose, Kind, Op, Piece, Program, Run, Value, pieces_of
from .emit import Emitter
from .known import write_known
from .parts import Parts
from .probe import write_decision
from .tail import duplicate_tail, joined
from .ways import write_deep, write_outputs, write_stand_in
from .whole import Whole, whole


@dataclass(frozen=True)
class _Choice:
    """A choice whose pieces are not closed yet."""

    by: Value
    deep: list[Emitter | _Choice]
    reused: Emitter


def write_program(
    cuts: Sequence[Partition], inputs: Inputs, rules: Sequence[Rule], ranks: Group | None = None
) -> Program:
    """The program of a cut graph. `ranks`: which decide as one; None: each for itself.

    Raises TypeError or ValueError where the rules' methods give what they may not.
    """
    parts = whole(cuts, inputs, rules, ranks)
    graph_module, end = parts.graph_module, parts.emitter("E")
    nodes = [node for node in graph_module.graph.nodes if node in cuts[0].regions]
    opened, after = _Writer(parts).stretch(nodes, cuts)
    end.copy(after)
    outputs = write_outputs(graph_module, end)
    program = Program(
        ops=_closed([*opened, end], outputs),
        inputs=tuple(Value(Kind.INPUT, node.name) for node in graph_module.graph.find_nodes(op="placeholder")),
        slots=parts.slots,
        outputs=outputs,
    )
    program = duplicate_tail(program)
    first = parts.parts[0]
    if len(cuts) > 1 or first.rule.gate is not None or first.is_guided:
        return program  # the host does not know
    (estimate,) = pieces_of(next(op.reused for op in program.ops if isinstance(op, Choose)))
    above = parts.emitter("P")
    above.copy(node for node in nodes if cuts[0].regions[node] in ABOVE)
    return replace(program, reused=joined(write_known(parts, first, above, estimate), estimate))


class _Writer:
    def __init__(self, parts: Whole) -> None:
        self._whole = parts

    def stretch(
        self, nodes: Sequence[fx.Node], cuts: Sequence[Partition], around: Parts | None = None
    ) -> tuple[list[Emitter | _Choice], list[fx.Node]]:
        """Writes what runs of some nodes up to the last of the cuts in them; and the nodes that are left. `around`: the
        rule whose deep way they are of.
        """
        found: list[Emitter | _Choice] = []
        left, rest = list(cuts), list(nodes)
        before: Value | None = None
        while left:
            cut = left.pop(0)
            inner = [other for other in left if is_inside(other, cut)]
            left = [other for other in left if other not in inner]
            opened, rest = self._choice(cut, inner, rest, before, around)
            found += opened
            before = self._whole.parts[cut.rule].reuses
        return found, rest

    def _choice(
        self,
        cut: Partition,
        inner: Sequence[Partition],
        nodes: Sequence[fx.Node],
        before: Value | None,
        around: Parts | None,
    ) -> tuple[list[Emitter | _Choice], list[fx.Node]]:
        """Writes what runs before a choice, and the choice; and the nodes that come after it."""
        parts, number = self._whole.parts[cut.rule], self._whole.cuts.index(cut) + 1
        names = (f"{name}{number if number > 1 else ''}" for name in "PDR")
        probe, deep, reused = (self._whole.emitter(name, parts.ranks) for name in names)
        above = [node for node in nodes if cut.regions[node] in ABOVE]
        probe.copy(above)
        decides, last = cut is parts.cuts[0], cut is parts.cuts[-1]
        if decides:
            write_decision(self._whole, parts, probe, before, around)
        after = after_last(cut) if cut.in_turns else set(cut.nodes(Region.EPILOGUE))
        between = [node for node in nodes if cut.regions[node] is Region.EPILOGUE and node not in after]
        inside = set(between) | set(cut.nodes(Region.DEEP))
        way, rest = self.stretch([node for node in nodes if node in inside], inner, parts)
        write_deep(parts, cut, deep, rest, last, around is not None)
        write_stand_in(parts, cut, reused, between, around is not None)
        choice = _Choice(parts.decision, [*way, deep], reused)
        return [*([probe] if decides or above else []), choice], [node for node in nodes if node in after]


def _closed(opened: Sequence[Emitter | _Choice], outputs: Sequence[Value]) -> tuple[Op, ...]:
    """Ends the pieces, the last one first: then it is known what those before it have to give."""
    pieces: dict[Emitter, Piece] = {}
    reads: list[Value] = [*_decisions(opened), *outputs]
    for emitter in reversed(list(_emitters(opened))):
        pieces[emitter] = emitter.piece(reads)
        reads = [*pieces[emitter].reads, *reads]

    def closed(one: Emitter | _Choice) -> Op:
        if isinstance(one, Emitter):
            return Run(pieces[one])
        return Choose(one.by, tuple(map(closed, one.deep)), (Run(pieces[one.reused]),))

    return tuple(map(closed, opened))


def _decisions(opened: Sequence[Emitter | _Choice]) -> Iterator[Value]:
    for one in opened:
        if isinstance(one, _Choice):
            yield one.by
            yield from _decisions(one.deep)


def _emitters(opened: Sequence[Emitter | _Choice]) -> Iterator[Emitter]:
    """In the order in which they run, of a choice the deep ones first."""
    for one in opened:
        if isinstance(one, Emitter):
            yield one
        else:
            yield from (*_emitters(one.deep), one.reused)
