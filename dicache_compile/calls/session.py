"""One model at run time: the streams of all graphs that Dynamo makes of it; which call is of which model."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..config import DiCacheConfig
from .adjustments import adjusted, adjusted_models, tell_of_configure
from .advice import Advice
from .ahead import Ahead
from .findings import MAX_ALIKE
from .marks import Mark, mark_of, marks_of
from .numbering import Numbering
from .record import Call, Calls
from .runs import Run
from .settings import Told
from .state import StreamState
from .store import Store

_numbers = itertools.count(1)
_clock = itertools.count(1)  # numbers the calls of all models


class Session(Store):
    """The streams of one model under one config, for whoever holds its `lock`."""

    def __init__(self, config: DiCacheConfig) -> None:
        super().__init__(config.max_streams, config.max_state_bytes, config.device_streams)
        self.config = config  # that of the compiled graphs
        self.told = Told(config)  # what its next generations go by, which may differ at run time
        self.lock = threading.RLock()  # that a step holds, so that calls from several threads take turns
        self.numbering = Numbering()  # of calls that are of no announced run
        self.last_call, self.calls = 0, Calls()
        self.last_cut: Any = None  # what was cut, for `explain`,
        self.last_engine: Any = None  # and what it runs on
        # The announced runs that last, and what keeps the streams of those apart that have the same names.
        self._lanes: weakref.WeakKeyDictionary[Run, _Lane] = weakref.WeakKeyDictionary()
        self._overridden: tuple[Told, dict[str, Any], Told] | None = None  # the last run's that overrides fields
        self.number = next(_numbers)
        self.advice = Advice()
        self._ahead: weakref.WeakKeyDictionary[StreamState, Ahead] = weakref.WeakKeyDictionary()
        self._marks: weakref.WeakSet[Mark] = weakref.WeakSet()  # of the weights by which calls found it
        self._blocks: weakref.WeakSet[Mark] = weakref.WeakSet()  # of one weight of each of its deep blocks

    def is_of(self, marks: set[Mark]) -> bool:
        """Whether this session's model has one of the weights with these marks."""
        return not marks.isdisjoint(self._marks)

    def serves(self, marks: Sequence[Mark]) -> bool:
        """Whether a call is of this session's model: it has these weights, and is known by the first of them.

        Another graph of the model may have other deep blocks, as where a call leaves some of its layers out.
        """
        return marks[0] in self._blocks or any(mark in self._marks for mark in marks)

    def note(self, marks: Sequence[Mark]) -> None:
        """A call with these weights is of this session's model."""
        self._marks.add(marks[0])
        self._blocks.update(marks)

    def lane(self, run: Run) -> _Lane:
        """What this model has of a run."""
        found = self._lanes.get(run)
        if found is None:
            lasting = [(other, lane) for other, lane in self._lanes.items() if not other.ended]
            taken = {lane.number for other, lane in lasting if other.request == run.request}
            number = next(number for number in itertools.count(1) if number not in taken)
            found = self._lanes[run] = _Lane(number)
        return found

    def name(self, run: Run, name: str) -> str:
        """What a stream of a run is called: of those that last at the same time the first has the plain name."""
        lane = self.lane(run)
        if name not in lane.names:
            lasting = {other.number for other in self._lanes if not other.ended and other is not run}
            names = (name if n == 1 else f"#{n}/{name}" for n in itertools.count(lane.number))
            lane.names[name] = next(n for n in names if n not in self.streams or self.streams[n].run not in lasting)
        return lane.names[name]

    def telling(self, run: Run | None) -> Told:
        """What the generations of a run go by."""
        if run is None or not run.fields:
            return self.told
        known = self._overridden
        if known is None or known[0] is not self.told or known[1] != run.fields:
            told = Told(self.told.config.adjusted(**run.fields))
            known = self._overridden = (self.told, dict(run.fields), told)
        return known[2]

    def length(self, run: Run | None, told: int | None) -> int | None:
        """How many steps a run has: what is known of this one counts before what the config says of all."""
        said = run.steps if run is not None and run.steps is not None else told
        own = self.telling(run).config.num_steps
        if said is None or own is None or said == own:
            return own if said is None else said
        self.advice.contradicted(self.telling(run).config, own, said)
        return said

    def tell(self, config: DiCacheConfig) -> None:
        """From the next generation of each stream on, this config counts; it differs in run-time fields only."""
        self.told = Told(config)

    def ahead_of(self, state: StreamState) -> Ahead:
        """What the host knows of a stream."""
        return self._ahead.setdefault(state, Ahead())

    def begin_call(
        self, name: str, run: Run | None, config: DiCacheConfig, rows: tuple[str, ...] | None = None
    ) -> Call:
        """A step of a stream begins; `config` is the one that it was told, `rows` what its rows are called."""
        self.last_call = next(_clock)
        self.calls.number += 1
        call = Call(self.last_call, run.number if run is not None else None, config, rows)
        self.history[name].calls.append(call)
        return call

    def forget_ended(self) -> None:
        """The next call of every stream starts a generation, but for those of runs that last."""
        lasting = {run.number for run in self._lanes if not run.ended}
        for state in self.streams.values():
            if state.run not in lasting:
                state.restart()
        self.pools.end_all()
        self.numbering.reset()

    def reset(self) -> None:
        """Forgets the state of every stream, and frees it and what was captured for it."""
        self.clear()
        self.pools.clear()
        for numbering in (self.numbering, *(lane.numbering for lane in self._lanes.values())):
            numbering.reset()

    def end(self, request: str) -> None:
        """Forgets a request, or a stream, of that name; what the place of a row held is kept for the next one."""
        self.pools.end(request)
        for name in [name for name in self.streams if name == request or name.startswith(f"{request}/")]:
            self.drop(name)

    def failed(self, run: Run | None) -> None:
        """An unnamed call of a run has failed, which may have got a number. Those of other runs go on."""
        numbering = self.numbering if run is None else self.lane(run).numbering
        numbering.failed = True


@dataclasses.dataclass(frozen=True, slots=True)
class _Lane:
    """What a model has of one run."""

    number: int  # among the runs that last at the same time, from 1
    numbering: Numbering = dataclasses.field(default_factory=Numbering)
    names: dict[str, str] = dataclasses.field(default_factory=dict)  # what its streams are called here


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_finding = threading.RLock()  # held where sessions are looked for: two threads that begin at once have one


def release() -> None:
    """Frees the state of all models, and what was captured for it."""
    with _finding:
        known = list(_sessions)
    for session in known:
        with session.lock:
            session.reset()


def session_for(marks: Sequence[Mark], config: DiCacheConfig) -> Session:
    """The session of the model whose weights have these marks, under this config; a new one if there is none."""
    if marks:
        for session in _sessions:
            if session.config == config and session.serves(marks):
                session.note(marks)
                return session
    session = Session(config)
    if marks:
        mark = marks[0]
        session.note(marks)
        for model in adjusted_models():
            if mark in _marks(model):
                session.tell(adjusted(model, config))
        tell_of_configure(mark, config, [other.config for other in _sessions if other.is_of({mark})])
    _sessions.add(session)
    return session


def sessions_of(model: nn.Module) -> list[Session]:
    """The sessions of a model, the compiled or the original one; the one that was called last comes last."""
    with _finding:
        if not _sessions:
            return []
        marks = _marks(model)
        return sorted((session for session in _sessions if session.is_of(marks)), key=lambda session: session.last_call)


def _marks(model: nn.Module) -> set[Mark]:
    return marks_of((*model.parameters(), *model.buffers()))


class SessionFinder:
    """Finds the session of a call by a weight among its inputs.

    Dynamo takes weights as inputs and runs one compiled graph for every model of the same form, so a graph does not
    know its model before it is called. A session lives as long as its weight.
    """

    def __init__(self, config: DiCacheConfig, cut: object, engine: object) -> None:
        self._config, self._cut, self._engine = config, cut, engine
        self._found: weakref.WeakKeyDictionary[Mark, Session] = weakref.WeakKeyDictionary()
        self._nameless: Session | None = None  # where the graph has no weight
        self._calls: deque[Calls] = deque(maxlen=MAX_ALIKE)  # of the sessions found last
        self._advice = Advice()

    def __call__(self, inputs: Sequence[Any], weights: Sequence[int]) -> Session:
        """`weights`: where the inputs are by which the model is known, the best first."""
        if not weights:
            with _finding:
                self._nameless = self._nameless or self._session(())
                return self._nameless
        mark = mark_of(inputs[weights[0]])
        with _finding:
            session = self._found.get(mark)
            if session is None:
                session = self._found[mark] = self._session([mark_of(inputs[place]) for place in weights])
            return session

    def _session(self, marks: Sequence[Mark]) -> Session:
        session = session_for(marks, self._config)
        self._advice.new_session([calls.number for calls in self._calls])
        self._calls.append(session.calls)
        session.last_cut, session.last_engine = self._cut, self._engine
        return session


def forget_ended(model: nn.Module) -> None:
    """The next call of every stream of a model starts a generation, but for those of runs that last."""
    for session in sessions_of(model):
        with session.lock:
            session.forget_ended()
