"""Writes the program of a step from a cut graph and a rule.

Requires: a partition whose regions never read backwards. Ensures: every piece gives what later ones read of it, and no
more.
"""

from __future__ import annotations

from ..plan import Inputs, Partition
from ..program import DECISION, Choose, Kind, Program, Run, Value
from ..rules import Rule
from .parts import Parts
from .probe import write_probe
from .tail import duplicate_tail
from .ways import write_deep, write_epilogue, write_stand_in


def write_program(partition: Partition, inputs: Inputs, rule: Rule) -> Program:
    """The program of a partition. Raises TypeError or ValueError where the rule's methods give what they may not."""
    parts = Parts(partition, inputs, rule)
    probe, deep, reused, tail = (parts.emitter(name) for name in "PDRE")
    write_probe(parts, probe)
    write_deep(parts, deep)
    write_stand_in(parts, reused)
    outputs = write_epilogue(parts, tail)
    # The last one first: then it is known what those before it have to give.
    e = tail.piece(outputs)
    d, r = deep.piece(e.reads), reused.piece(e.reads)
    p = probe.piece((DECISION, *d.reads, *r.reads, *e.reads))
    placeholders = partition.graph_module.graph.find_nodes(op="placeholder")
    program = Program(
        ops=(Run(p), Choose(DECISION, deep=(Run(d),), reused=(Run(r),)), Run(e)),
        inputs=tuple(Value(Kind.INPUT, node.name) for node in placeholders),
        slots=parts.slots,
        outputs=outputs,
    )
    return duplicate_tail(program)
