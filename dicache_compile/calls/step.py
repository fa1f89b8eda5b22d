"""The callable that Dynamo gets: one step of the model for the stream that the call belongs to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor

from ..config import DiCacheConfig
from ..engines.base import Engine
from ..graph.fragment import Function
from ..program import Slot
from ..rules import GuidedEstimator
from ..write.guidance import role_of
from .clock import Clock
from .cut_check import Course, CutCheck
from .fragments import note_run
from .layout import Layout
from .overheard import note_graph
from .progress import follow, follow_count, follow_position, follow_times
from .record import Call
from .row_step import batch_of
from .runs import Run, current_position, current_run
from .session import Session, SessionFinder
from .sizes import Sizes
from .state import StreamState
from .streams import SINGLE, RowNames, current_name, current_rows, in_request

_numbers = itertools.count()
MAX_LAYOUTS = 64  # shapes that a graph remembers
ANCHORS_OF_ITS_OWN = 3  # deep steps after which a stream in doubt holds nothing but its own


@dataclass(frozen=True, slots=True)
class Places:
    """Where a graph's inputs are."""

    conditions: tuple[int, ...]
    names: tuple[str, ...]  # of the conditions
    arguments: frozenset[str]  # the names of all tensors that the caller passes
    latents: int | None  # what is denoised
    weights: tuple[int, ...]  # by which a call's model is known: one of each deep block


@dataclass(slots=True)
class CompiledStep:
    """Runs a cut graph. Called with the graph's inputs, returns its outputs."""

    config: DiCacheConfig
    find_session: SessionFinder
    engine: Engine
    slots: tuple[Slot, ...]
    sizes: Sizes
    places: Places
    clock: Clock
    function: Function | None  # that the graph is of
    work: int  # of the trunk, in multiplications
    guided: Mapping[str, GuidedEstimator]  # the estimators that go by another call, by the slot of a stream's role
    told_ahead: bool  # whether a step may be known to be reused before it runs
    check: CutCheck | None  # until it is done
    stays: frozenset[int] | None  # places of inputs that no call brings along; None: a call is more than this graph
    is_wrong: bool = False  # whether every step has to be deep, as the estimates turned out to be none
    number: int = field(default_factory=lambda: next(_numbers))
    layouts: dict[tuple[int, ...], Layout] = field(default_factory=dict)  # by what the shapes depend on

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        outputs = self.run(inputs)
        note_graph(self, inputs, outputs)
        return outputs

    def run(self, inputs: Sequence[Any], held: object = None) -> Sequence[Any]:
        """A step. While `held` is the same object, all that no call brings along lies where it did."""
        session = self.find_session(inputs, self.places.weights)
        rows = current_rows()
        try:
            with session.lock:
                if rows is not None:
                    return self._step_of_rows(session, inputs, held, rows)
                return self._step(session, inputs, held)
        except BaseException:
            if rows is None and current_name() is None:
                with session.lock:
                    session.failed(current_run())
            raise

    def _step(self, session: Session, inputs: Sequence[Any], held: object) -> Sequence[Any]:
        run = current_run()
        told, steps = session.telling(run), session.length(run, current_position().steps)
        settings = told.settings(steps)  # first, as it may refuse the call
        time = self.clock.time(inputs)
        plain, warmup = self._name(session, run, inputs, time)
        if warmup:
            settings = told.settings(steps, warmup)
        if steps == 1:
            plain = SINGLE  # nothing to reuse: no state of its own is kept
        name = plain if run is None else session.name(run, plain)
        if name in session.lost:
            number = run.number if run is not None else None
            session.advice.came_back(name, session.lost.pop(name), number, time)
        is_new = not self.layouts
        state, serves = session.state(name, self._layout(inputs))
        if steps == 1:
            state.restart()
        else:
            self._follow(session, state, run, plain, serves)
            if is_new:
                session.advice.compiled_again(name, state)
        state.tell(settings)
        state.take_roles({slot: role_of(estimator, plain) for slot, estimator in self.guided.items()})
        self.clock.write(state, time)
        reused = self.told_ahead and not self.is_wrong and self._is_reused(session, state, inputs)
        call = session.begin_call(name, run, told.config)
        try:
            outputs = self._run(session, inputs, state, state, call, reused, held)
        except BaseException:
            # The step may have written half of its state.
            session.drop(name)
            raise
        state.calls += 1
        state.anchored = True
        self._judge(session)
        if state.index is not None:
            state.index += 1
            if run is not None:
                run.done[session.number, plain] = state.index
        if steps != 1:
            session.advice.stepped(name, session.history[name], state)
        return outputs

    def _step_of_rows(self, session: Session, inputs: Sequence[Any], held: object, rows: RowNames) -> Sequence[Any]:
        time, run = self.clock.time(inputs), current_run()
        batch = batch_of(session, self._layout(inputs), rows, run, self.guided, self.clock.counts)
        try:
            if not self.clock.counts:
                self.clock.write(batch.state, time)
            call = session.begin_call(batch.key, run, batch.config, batch.names)
            outputs = self._run(session, inputs, batch.state, batch.rows[0], call, False, held)
            batch.made()
        except BaseException:
            batch.failed()
            raise
        self._judge(session)
        return outputs

    def _run(
        self,
        session: Session,
        inputs: Sequence[Any],
        state: StreamState,
        course: Course,
        call: Call,
        reused: bool,
        held: object,
    ) -> Sequence[Any]:
        """Has the engine make a step, of which all is prepared."""
        if self.is_wrong:
            state.force_deep()
        note_run(self.function, self.work)
        watch = self.check.watch(course) if self.check is not None and not reused else None
        with session.on_device(state):
            outputs = self.engine.step(inputs, state, reused, watch, held)
        call.returned = perf_counter()
        return outputs

    def _is_reused(self, session: Session, state: StreamState, inputs: Sequence[Any]) -> bool:
        """Whether the host knows that the next step is reused."""
        conditions = [inputs[place] for place in self.places.conditions]
        return session.ahead_of(state).reuses(state, conditions)

    def _judge(self, session: Session) -> None:
        """Says what the check of the cut has found, once it is done."""
        if self.check is None or not self.check.is_done:
            return
        worse = [verdict for verdict in self.check.verdicts if verdict.is_worse]
        self.check = None
        if worse:
            self.is_wrong = self.config.strict
            session.advice.misled(worse, uncached=self.is_wrong)

    def _follow(self, session: Session, state: StreamState, run: Run | None, name: str, serves: bool) -> None:
        """Tells a stream's state which step the next one is, of which run."""
        position = current_position()
        if run is not None:
            index = position.index if position.index is not None else run.index(session.number, name)
            follow(state, run, index, serves)
        elif position.place is not None:
            follow_position(state, position, serves)
        elif self.clock.counts:
            follow_count(state, session.told.config.num_steps, serves)
        else:
            follow_times(state, session.told.config.num_steps, serves)

    def _name(self, session: Session, run: Run | None, inputs: Sequence[Any], time: Tensor | None) -> tuple[str, int]:
        """(the call's stream, steps of it that have to be deep besides those of the config)."""
        name = current_name()
        if name is not None:
            return name, 0
        if self.config.streams == 1 or time is None:
            return in_request(SINGLE), 0
        prompts = tuple(inputs[place] for place in self.places.conditions)
        if run is not None:
            latents = inputs[self.places.latents] if self.places.latents is not None else None
            return in_request(session.lane(run).numbering.next_of_run(time, prompts, latents)), 0
        name = session.numbering.next(time, prompts, lambda: _at_start(session))
        return name, ANCHORS_OF_ITS_OWN if session.numbering.doubt else 0

    def _layout(self, inputs: Sequence[Any]) -> Layout:
        key = self.sizes.key(inputs)
        found = self.layouts.get(key)
        if found is None:
            if len(self.layouts) >= MAX_LAYOUTS:
                self.layouts.clear()
            shapes = self.sizes.shapes(inputs)
            found = Layout((self.number, key), self.slots, shapes, self.places.names, self.places.arguments)
            self.layouts[key] = found
        return found


def _at_start(session: Session) -> bool:
    first = session.streams.get("0")
    return first is not None and first.tensors["index"].amax().item() <= 1
