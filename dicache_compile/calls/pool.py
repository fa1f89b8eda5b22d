"""The state of requests that are rows of batches.

A pool has places for a fixed number of requests. What is kept of each is one row of its tensors, [places, ...]. A batch
of B requests has the first B places: a compiled step for that size reads and writes the first B rows, where they lie.
Nothing is copied from step to step; where a batch has other requests than the one before, rows change their places.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels.float8 import FLOAT8
from ..program import Slot
from ..write.control import RUN
from .layout import Form, Key, Layout
from .seats import Progress, Request, seated
from .settings import Settings
from .shared import Shared
from .slot_values import allocate, write
from .state import StreamState

MAX_BATCHES = 16  # sizes of a batch, or graphs, for which a lane keeps what is captured


@dataclass(frozen=True, slots=True)
class _Kept:
    """One row for each place."""

    rows: Tensor
    initial: float
    is_small: bool  # whether a new request finds the initial value; the others are not read before they are written


class Pool:
    """Places for requests of one size, whatever the size of their batch."""

    def __init__(self, capacity: int) -> None:
        self._places: tuple[Request | None, ...] = (None,) * capacity
        self._lanes: dict[str, Lane] = {}
        self._kept: dict[tuple[str | None, Form], _Kept] = {}  # by lane, None for what those of a request share
        self._common: dict[tuple[str, Form], Tensor] = {}  # what all requests have together, by lane

    @property
    def is_unused(self) -> bool:
        return all(one is None or one.is_done for one in self._places)

    def lane(self, name: str) -> Lane:
        """What requests have of calls of one kind, such as "cond"."""
        return self._lanes.setdefault(name, Lane(name, self))

    def seat(self, names: Sequence[str]) -> list[Request]:
        """Requests of these names, which now have the first places in this order. Waits for nothing.

        Raises StepError where there is no place for all; then nothing has changed.
        """
        seating = seated(self._places, names)
        if seating.moves or seating.new:
            self.order()
            try:
                self._move(seating.moves)
                for place in seating.new:
                    self._renew(place)
            except BaseException:
                self.end_all()  # rows may be half-way
                raise
        self._places = seating.places
        return [one for one in seating.places[: len(names)] if one is not None]

    def end(self, name: str) -> None:
        """A request is given up: its place is free, and those of its rows that are called "name/cond"."""
        self._free([one for one in self._seated() if one.name == name or one.name.startswith(f"{name}/")])

    def end_all(self) -> None:
        self._places = (None,) * len(self._places)

    def find(self, name: str) -> Request | None:
        """The request of that name, if it has a place here."""
        return next((one for one in self._seated() if one.name == name), None)

    def place_of(self, request: Request) -> int:
        return self._places.index(request)

    def give(self, name: str, lane: str) -> Progress | None:
        """Where a request stands in calls of one kind, which go on in another pool. Who has no others leaves."""
        request = self.find(name)
        found = request.lanes.pop(lane, None) if request is not None else None
        if request is not None and not request.lanes:
            self._free([request])
        return found

    def order(self) -> None:
        """To be called before the host writes to rows: a captured step may still run on another CUDA stream."""
        for state in (state for lane in self._lanes.values() for state in lane.states.values()):
            if state.recording is not None:
                state.recording.order()  # one waits for all of a device
                return

    def rows(self, lane: str | None, form: Form, slot: Slot) -> Tensor:
        """A slot of which each request has a part, [places, ...]."""
        found = self._kept.get((lane, form))
        if found is None:
            rows = allocate(slot, (len(self._places), *form[1]))
            found = self._kept[lane, form] = _Kept(rows, slot.initial, slot.of_rows)
        return found.rows

    def common(self, lane: str, form: Form, slot: Slot) -> Tensor:
        """A slot that all requests have together."""
        if (lane, form) not in self._common:
            self._common[lane, form] = allocate(slot, form[1])
        return self._common[lane, form]

    def missing(self, lane: str, layout: Layout) -> int:
        """How many bytes more are kept once a lane has this graph."""
        found = 0
        for slot in layout.slots:
            if slot.like is None:
                of, known = layout.shapes[slot.name], (lane, layout.form(slot)) in self._common
            else:
                of = (len(self._places), *layout.shapes[slot.name][1:])
                known = (None if slot.of_request else lane, layout.row_form(slot)) in self._kept
            found += 0 if known else math.prod(of) * slot.dtype.itemsize
        return found

    def take_shared(self, other: Pool, places: Sequence[tuple[int, int]]) -> None:
        """Copies what the calls of a request have together from another pool. `places`: (here, there). Waits for
        nothing.
        """
        other.order()
        shared = [key for key in self._kept if key[0] is None and key in other._kept]
        _copy([(self._kept[key].rows, other._kept[key].rows) for key in shared], places)

    def tensors(self) -> list[Tensor]:
        return [*(one.rows for one in self._kept.values()), *self._common.values()]

    def _seated(self) -> list[Request]:
        return [one for one in self._places if one is not None]

    def _free(self, given_up: Sequence[Request]) -> None:
        self._places = tuple(None if one in given_up else one for one in self._places)

    def _move(self, moves: Sequence[tuple[int, int]]) -> None:
        _copy([(one.rows, one.rows) for one in self._kept.values()], moves)

    def _renew(self, place: int) -> None:
        """A new request finds nothing of the one that had its place."""
        for one in self._kept.values():
            if one.is_small:
                one.rows[place].fill_(one.initial)


def _copy(pairs: Sequence[tuple[Tensor, Tensor]], places: Sequence[tuple[int, int]]) -> None:
    """Copies rows of tensors (to, from) on one device, all of which are read before one is written. `places` are like
    them. The host waits for nothing.
    """
    if not places:
        return
    devices = {of.device for _, of in pairs}
    to, of = ({device: _on(device, ends) for device in devices} for ends in zip(*places, strict=True))
    with torch.inference_mode(False), torch.no_grad():
        for pair in pairs:
            here, there = (rows.view(torch.uint8) if rows.dtype in FLOAT8 else rows for rows in pair)
            here.index_copy_(0, to[here.device], there.index_select(0, of[here.device]))


def _on(device: torch.device, places: Sequence[int]) -> Tensor:
    """Places as a tensor on a device, which the host does not wait for."""
    on_host = torch.tensor(places, dtype=torch.int64, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


@dataclass(eq=False)
class Lane:
    """What the requests of a pool have of calls of one kind."""

    name: str
    pool: Pool
    told: dict[str, tuple[float, ...]] = field(default_factory=dict)  # what the slots hold that they have together
    states: OrderedDict[Key, LaneState] = field(default_factory=OrderedDict)

    def state(self, layout: Layout, known: Mapping[str, Tensor]) -> LaneState:
        """The first places as one graph knows them. `known`: tensors that it takes over, by slot."""
        found = self.states.get(layout.key)
        if found is None:
            found = self.states[layout.key] = LaneState(layout, known, self)
            while len(self.states) > MAX_BATCHES:
                self.states.popitem(last=False)
        self.states.move_to_end(layout.key)
        return found


class LaneState(StreamState):
    """The first places of a lane, as a batch of that size."""

    def __init__(self, layout: Layout, known: Mapping[str, Tensor], lane: Lane) -> None:
        self._lane, self._layout = lane, layout
        super().__init__(layout, known, Shared())
        self.told = lane.told  # graphs of other sizes have these slots, too
        self._of_rows = frozenset(slot.name for slot in layout.slots if slot.like is not None)

    def order(self) -> None:
        # What is captured for a batch of another size writes to the same rows.
        self._lane.pool.order()

    def tell(self, settings: Settings) -> None:
        """What all requests go by together."""
        self._write({slot: value for slot, value in settings.values.items() if slot not in self._of_rows})

    def tell_row(self, place: int, settings: Settings) -> None:
        """What the request at a place goes by alone."""
        for slot, value in settings.values.items():
            if slot in self._of_rows:
                write(self.tensors[slot][place : place + 1], value)

    def begin_row(self, place: int, mode: int, start: int) -> None:
        """The request at a place begins at that step: see `write.control.RUN`."""
        self.tensors["restart"][place].fill_(True)
        write(self.tensors[RUN][place : place + 1], (mode, start))

    def _tensor(self, form: Form, slot: Slot, shape: tuple[int, ...]) -> Tensor:
        pool, lane = self._lane.pool, self._lane.name
        if slot.like is None:
            return pool.common(lane, form, slot)
        return pool.rows(None if slot.of_request else lane, self._layout.row_form(slot), slot)[: shape[0]]
