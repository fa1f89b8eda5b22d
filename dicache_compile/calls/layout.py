"""Which tensors one compiled graph keeps of a stream at one shape, and which of two graphs serve each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..program import Slot
from ..write.control import PARTNER_MARK, TIMES

_OF_CONDITIONS = ("checksums", "stable")  # slots that mean the same in graphs with the same conditions only

Key = tuple[int, tuple[int, ...]]  # a graph, and a shape of it
Form = tuple[Any, ...]  # what two tensors have in common that can stand for each other


@dataclass(frozen=True, slots=True)
class Layout:
    """What one compiled graph keeps of a stream at one shape."""

    key: Key
    slots: Sequence[Slot]  # in the graph's order
    shapes: Mapping[str, tuple[int, ...]]  # by slot
    conditions: tuple[str, ...]  # the names of the graph's conditions, in order
    arguments: frozenset[str]  # the names of the tensors that the caller passes

    def form(self, slot: Slot) -> Form:
        of: tuple[Any, ...] = self.conditions if slot.name in _OF_CONDITIONS else ()
        if slot.name.startswith(PARTNER_MARK):  # it is of results of these shapes
            of = tuple(self.shapes[one.name] for one in self.slots if one.of_request and one.like is not None)
        return slot.name, self.shapes[slot.name], slot.dtype, slot.device, of

    @property
    def rows(self) -> int | None:
        """How many rows decide for themselves; None: all together."""
        restart = self.shapes["restart"]
        return restart[0] if restart else None

    def row_form(self, slot: Slot) -> Form:
        """Its form but for how many rows there are, of a slot that has a part of each."""
        name, shape, dtype, device, of = self.form(slot)
        rest = tuple(one[1:] for one in of) if slot.name.startswith(PARTNER_MARK) else of
        return name, shape[1:], dtype, device, rest

    def carried(self) -> frozenset[Form]:
        """The forms of what anchors are made of; those of two graphs serve each other where all are alike."""
        return frozenset(self.form(slot) for slot in self.slots if slot.like is not None and slot.name != TIMES)
