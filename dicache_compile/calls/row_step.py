"""What a step needs of a batch whose rows are requests, each with a state of its own in the model's pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..config import DiCacheConfig
from ..errors import StepError
from ..rules import GuidedEstimator
from ..write.control import ANNOUNCED, CLOCK, UNANNOUNCED
from ..write.guidance import role_of
from .layout import Layout
from .pool import LaneState
from .record import History
from .runs import Run, current_position
from .seats import Progress
from .session import Session
from .settings import Settings
from .state import KEPT
from .streams import RowNames, current_name

OF_ROWS = "rows"  # what the record of all requests' calls of one kind is kept under


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that have the first places of their pool, with their slots ready for the next step."""

    state: LaneState
    rows: Sequence[Progress]
    names: tuple[str, ...]  # of the rows, in the record
    key: str  # that the record is kept under
    history: History
    config: DiCacheConfig  # that they were told
    since: int  # the number of the model's last call before,
    entries: int  # and the length of the record then

    def failed(self) -> None:
        """The step may have written half of their state: they go on without what they had kept, and it is not in the
        record.
        """
        for row in self.rows:
            row.begins = True
        calls = self.history.calls
        while calls and calls[-1].number > self.since:
            calls.pop()
        self.history.entries = self.entries
        # The device itself may have failed.
        with suppress(Exception):
            self.state.order()
            self.state.tensors["logged"].fill_(self.history.entries)
            self.state.doubt_shared()

    def made(self) -> None:
        self.history.entries += len(self.rows)
        for row in self.rows:
            row.calls += 1


def batch_of(
    session: Session,
    layout: Layout,
    names: RowNames,
    run: Run | None,
    guided: Mapping[str, GuidedEstimator],
    is_counted: bool,
) -> Batch:
    """Seats the requests, and tells their slots. `is_counted`: whether the model has no timestep.

    Raises StepError where the rows of this graph cannot be these requests; then nothing has changed.
    """
    _check(layout, names)
    told, position = session.telling(run), current_position()
    lengths = [session.length(run, position.steps if steps is None else steps) for steps in names.steps]
    if is_counted and None in lengths:
        raise StepError("a model without a timestep counts its steps: say how many by stream([...], num_steps=...)")
    settings = [told.settings(steps) for steps in lengths]
    lane = current_name() or ""
    pool = session.pools.pool(layout)
    session.afford_rows(pool, lane, layout)
    requests = pool.seat(names.names)
    key = f"{OF_ROWS}/{lane}" if lane else OF_ROWS
    history = session.history_of(key, layout)
    state = pool.lane(lane).state(layout, history.tensors)
    history.tensors = {kept: state.tensors[kept] for kept in KEPT}
    state.order()
    session.pools.bring(pool, lane, requests)
    state.tell(settings[0])
    state.take_roles({slot: role_of(estimator, lane) for slot, estimator in guided.items()})
    rows = [request.lane(lane) for request in requests]
    for place, (row, steps, own) in enumerate(zip(rows, lengths, settings, strict=True)):
        if row.is_done or row.run is not run:
            row.run, row.begins = run, True
            row.calls = run.index(session.number, lane) if run is not None else 0
        row.steps = steps
        _tell(state, place, row, own, layout.arguments, row.steps is not None or run is not None)
        if is_counted:
            state.tensors[CLOCK][place].fill_(-row.calls)
    full = tuple(f"{name}/{lane}" if lane else name for name in names.names)
    return Batch(state, rows, full, key, history, told.config, session.last_call, history.entries)


def _tell(
    state: LaneState, place: int, row: Progress, settings: Settings, arguments: frozenset[str], is_known: bool
) -> None:
    """Prepares one row; `is_known`: whether the host knows where its generation begins."""
    if row.settings is not settings:
        state.tell_row(place, settings)
        row.settings = settings
    if row.begins or row.arguments != arguments:
        state.begin_row(place, ANNOUNCED if is_known else UNANNOUNCED, row.calls if is_known else 0)
        row.begins, row.arguments = False, arguments


def _check(layout: Layout, names: RowNames) -> None:
    if layout.rows is None:
        raise StepError(
            f"stream({list(names.names)!r}) names the rows of a batch, and this model decides for all rows together: "
            "set rows='independent'"
        )
    if layout.rows != len(names.names):
        raise StepError(
            f"the batch has {layout.rows} rows, and stream({list(names.names)!r}) names {len(names.names)}: name each, "
            "those of guidance that is folded into the batch, too"
        )
