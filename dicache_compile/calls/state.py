"""The tensors of one stream, which all graphs of its model share."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..program import Slot, of_rules
from ..write.control import ANCHORS, LIMITS, NO_LIMIT, NOW, RUN, SKIPPED, WHEN_SHARED
from .desk import Desk, home, is_large
from .layout import Form, Key, Layout
from .settings import Settings
from .shared import Shared
from .slot_values import allocate, write

KEPT = ("log", "logged")  # what a stream remembers past its state: the record of its steps


@dataclass(slots=True, eq=False)
class View:
    """A stream's tensors as one graph at one shape knows them."""

    layout: Layout
    tensors: Mapping[str, Tensor]  # by slot, in the slots' order
    carried: frozenset[Form]
    recording: Any = None  # what an engine has captured for these tensors
    values: tuple[Tensor, ...] = field(init=False)  # the tensors alone

    def __post_init__(self) -> None:
        self.values = tuple(self.tensors.values())


class StreamState:
    """One stream's state. `tensors`, `values` and `recording` are those of the graph that `use` was last told."""

    def __init__(self, layout: Layout, known: Mapping[str, Tensor], shared: Shared, desk: Desk | None = None) -> None:
        """`known`: tensors that it takes over, by slot. `shared`: those of its request. `desk`: where its large tensors
        are on the device for a step; None: they stay there.
        """
        self.told: dict[str, tuple[float, ...]] = {}  # what the slots hold that the host writes
        self.calls = 0  # of this generation, as far as the host can tell
        self.run: int | None = None  # the announced run that the last call was of
        self.index: int | None = None  # of the next step, where the host knows it
        self.place: float | None = None  # where the caller said that the last call stood
        self.way = 0.0  # in which direction that moves
        self.anchored = False  # whether there certainly is an anchor: after every step
        self._shared, self._desk = shared, desk
        self._homes: dict[Form, Tensor] = {}  # of the tensors that are on the desk for a step
        if desk is not None:
            desk.guests.add(self)
        self._pool = {layout.form(slot): known[slot.name] for slot in layout.slots if slot.name in known}
        self._views: dict[Key, View] = {}
        self._view = self._views[layout.key] = self._new(layout)

    @property
    def key(self) -> Key:
        return self._view.layout.key

    @property
    def arguments(self) -> frozenset[str]:
        return self._view.layout.arguments

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._view.tensors

    @property
    def values(self) -> tuple[Tensor, ...]:
        return self._view.values

    @property
    def recording(self) -> Any:
        return self._view.recording

    @recording.setter
    def recording(self, recording: Any) -> None:
        self._view.recording = recording

    def use(self, layout: Layout) -> bool:
        """Turns to a graph and a shape; whether what is carried is the same, so that anchors go on to serve.

        Of other forms only what was captured is kept, and what belongs to it.
        """
        before = self._view
        if layout.key == before.layout.key:
            return True
        view = self._views.get(layout.key)
        if view is None:
            view = self._views[layout.key] = self._new(layout)
        self._view = view
        # What it holds for other rows is not what the last one was told.
        for slot in [slot for slot in self.told if before.tensors.get(slot) is not view.tensors.get(slot)]:
            del self.told[slot]
        if view.carried == before.carried:
            return True
        self._keep(lambda other: other is view or other.recording is not None)
        return False

    def on_desk(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(where it is on the desk, its home) for each large tensor."""
        return ((self._pool[form], at_home) for form, at_home in self._homes.items())

    def bytes(self) -> int:
        """What its own tensors take on the device, also those of earlier shapes that captures keep."""
        return sum(tensor.nbytes for form, tensor in self._pool.items() if form not in self._homes)

    def missing(self, layout: Layout) -> int:
        """What more they take with this graph and shape."""
        return needed(layout, self._desk, self._pool)

    def resting(self) -> list[Key]:
        """The graphs and shapes for which captures are kept that cannot be used now, as others are carried."""
        return [key for key, view in self._views.items() if view.carried != self._view.carried]

    def forget(self, key: Key) -> None:
        self._keep(lambda view: view.layout.key != key)

    def has_captures(self, key: Key) -> bool:
        return key in self._views and self._views[key].recording is not None

    def order(self) -> None:
        """To be called before the host writes to the state: a captured step may still run on another CUDA stream."""
        for view in self._views.values():
            if view.recording is not None:
                view.recording.order()  # one waits for all of a device
                return

    def restart(self) -> None:
        """Asks for a new generation with the next step; waits for nothing."""
        self.order()
        self.tensors["restart"].fill_(True)
        self.calls, self.anchored = 0, False
        self.index = self.place = None
        self.way = 0.0

    def renew(self) -> None:
        """Has the next step find no anchor, and the count go on; waits for nothing.

        Where rows decide for themselves, these may be other rows: they begin, at the step that RUN tells.
        """
        self.order()
        self.anchored = False
        if self.tensors["restart"].dim():
            self.tensors["restart"].fill_(True)
        for slot in (*of_rules(ANCHORS, self.tensors), *of_rules(SKIPPED, self.tensors)):
            self.tensors[slot].zero_()

    def doubt_shared(self) -> None:
        """After a step that failed: what it decided, or gave, for the others of its request is not what it did."""
        shared = [slot for when in WHEN_SHARED for slot in of_rules(when, self.tensors)]
        if shared:
            self.order()
            for slot in shared:
                self.tensors[slot].fill_(math.nan)

    def force_deep(self) -> None:
        """Has the next step run deep, whatever is told of its generation."""
        self.order()
        for slot in (*of_rules(LIMITS, self.tensors), *of_rules(LIMITS + NOW, self.tensors)):
            self.tensors[slot][..., 0].fill_(NO_LIMIT)
        self.told = {slot: value for slot, value in self.told.items() if slot not in of_rules(LIMITS, self.tensors)}

    def move_to(self, index: int) -> None:
        """Says which step of its generation the next one is."""
        if self.index != index:
            self.order()
            self.tensors["index"].fill_(index)
            self.index = index

    def set_run(self, mode: int, start: int) -> None:
        """Says what starts generations, and the index of their first steps: see `write.control.RUN`."""
        self._write({RUN: (mode, start)})

    def tell(self, settings: Settings) -> None:
        """Has the next generation go by these settings; writes what differs, and waits for nothing."""
        self._write(settings.values)

    def take_roles(self, roles: Mapping[str, int]) -> None:
        """Says what the stream is to each rule that goes by another call, by the slot that holds it."""
        self._write({slot: (role,) for slot, role in roles.items()})

    def _write(self, values: Mapping[str, tuple[float, ...]]) -> None:
        changed = {slot: value for slot, value in values.items() if self.told.get(slot) != value}
        if not changed:
            return
        self.order()
        for slot, value in changed.items():
            write(self.tensors[slot], value)
        self.told.update(changed)

    def _new(self, layout: Layout) -> View:
        forms = {slot.name: layout.form(slot) for slot in layout.slots}
        for slot in layout.slots:
            form, shape = forms[slot.name], layout.shapes[slot.name]
            if form not in self._pool:
                self._pool[form] = self._tensor(form, slot, shape)
        return View(layout, {name: self._pool[form] for name, form in forms.items()}, layout.carried())

    def _tensor(self, form: Form, slot: Slot, shape: tuple[int, ...]) -> Tensor:
        if slot.of_request:
            return self._shared.tensor(form, slot, shape)
        if self._desk is None or not is_large(slot):
            return allocate(slot, shape)
        here, at_home = self._desk.tensor(form, slot, shape), home(slot, shape)
        if self._desk.has(self):  # where the last guest may have left what it had
            with torch.inference_mode(False), torch.no_grad():
                here.copy_(at_home, non_blocking=True)
        self._homes[form] = at_home
        return here

    def _keep(self, wanted: Any) -> None:
        self._views = {key: view for key, view in self._views.items() if wanted(view)}
        held = {id(tensor) for view in self._views.values() for tensor in view.values}
        self._pool = {form: tensor for form, tensor in self._pool.items() if id(tensor) in held}
        self._homes = {form: at_home for form, at_home in self._homes.items() if form in self._pool}


def needed(layout: Layout, desk: Desk | None = None, known: Container[Form] = ()) -> int:
    """How many bytes more a graph's tensors take on the device, where those of some forms are `known`."""
    found = 0
    for slot in layout.slots:
        form = layout.form(slot)
        if form not in known and not (desk is not None and is_large(slot) and desk.knows(form)):
            found += math.prod(layout.shapes[slot.name]) * slot.dtype.itemsize
    return found
