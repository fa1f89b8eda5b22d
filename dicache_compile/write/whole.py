"""A cut graph with all of its rules, from which the pieces of a step are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx

from ..graph import symbols, values
from ..in_force import Rule
from ..passes.rows import count_rows
from ..plan import Group, Inputs, Partition, Region
from ..program import Slot
from . import control
from .agree import Agreeing
from .emit import Emitter
from .parts import Parts, tensor
from .record import width
from .row_emitter import RowEmitter
from .rows import Rows, rows_of


@dataclass(frozen=True)
class Whole:
    """A cut graph with its rules, each with its parts."""

    cuts: tuple[Partition, ...]  # in the order in which they run; one inside of another comes later
    inputs: Inputs
    parts: tuple[Parts, ...]  # by rule
    slots: tuple[Slot, ...] = field(init=False)  # the tensors of a stream's state

    def __post_init__(self) -> None:
        timestep, device = self.inputs.timestep, self.parts[0].device
        shaped = timestep if timestep is not None and values.tensor(timestep) is not None else None
        columns = width(len(self.parts), self.rows is not None)
        own = control.step_slots(len(self.inputs.conditions), columns)
        found = control.as_slots(own, device, rows=self.parts[0].row_like)
        found.append(self._times(shaped, device))
        found += [slot for parts in self.parts for slot in parts.slots]
        names = [slot.name for slot in found]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two slots are named {name!r}: the gate and the estimator need names of their own")
        object.__setattr__(self, "slots", tuple(found))

    @property
    def rows(self) -> Rows | None:
        return self.parts[0].rows

    def _times(self, timestep: fx.Node | None, device: torch.device) -> Slot:
        """The slot of the last step's timestep."""
        if self.rows is None:
            return Slot(control.TIMES, timestep, (), torch.float32, device, math.nan)
        shape = tuple(tensor(timestep).shape) if timestep is not None else ()
        of_row = shape[1:] if timestep is not None and self.rows.have(timestep) else shape
        return Slot(control.TIMES, self.parts[0].row_like, of_row, torch.float32, device, math.nan, of_rows=True)

    @property
    def graph_module(self) -> fx.GraphModule:
        return self.cuts[0].graph_module

    def emitter(self, name: str, ranks: Group | None = None) -> Emitter:
        """`ranks`: which agree on what is measured in this piece."""
        emitter = self._emitter(name)
        if ranks is not None:
            emitter.agreeing = Agreeing(emitter, ranks)
        return emitter

    def _emitter(self, name: str) -> Emitter:
        shaped_like = {slot.value: slot.like for slot in self.slots if slot.like is not None}
        autocast, device = self.cuts[-1].autocast, self.parts[0].device
        given = (name, self.graph_module, autocast, shaped_like, self._sizes, device, self._blocks)
        if self.rows is None:
            return Emitter(*given)
        return RowEmitter(*given, rows=self.rows, slots={slot.name: slot for slot in self.slots})

    @cached_property
    def _blocks(self) -> Mapping[fx.Node, int]:
        blocks = self.cuts[0].all_blocks
        return {node: place for place, block in enumerate(blocks) for node in block.nodes}

    @cached_property
    def _sizes(self) -> Mapping[Any, fx.Node]:
        """The nodes that give the symbols of shapes; of those of a deep region nobody else knows."""
        nodes = self.graph_module.graph.nodes
        deep = {node for cut in self.cuts for node in cut.nodes(Region.DEEP)}
        return symbols.definers(node for node in nodes if node not in deep)


def whole(cuts: Sequence[Partition], inputs: Inputs, rules: Sequence[Rule], ranks: Group | None) -> Whole:
    """Raises TypeError or ValueError where the rules' methods give what they may not, RowsError where rows are to
    decide for themselves and it is not known what they are.
    """
    parts: list[Parts] = []
    rows = rows_of(cuts[0].carried[0].x, count_rows(cuts, inputs)) if rules[0].by_rows else None
    for number, rule in enumerate(rules):
        own = tuple(cut for cut in cuts if cut.rule == number)
        first = sum(len(before.carried) for before in parts)
        parts.append(Parts(number, rule, own, first, rows, ranks if rule.gate is not None else None))
    return Whole(tuple(cuts), inputs, tuple(parts))
