"""The engine that captures a step once for each stream and shape, and launches what it captured from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CaptureError, StepError
from .engines import CallsEngine
from .recording import Captures, Key, Program, Recording, shape_key
from .state import StreamState

_log = logging.getLogger("dicache_compile")
_SHORT_LIVED = 3  # captures in a row that served one step only, after which no more are made


class CapturedEngine:
    """Steps down from one launch a step, to two with a look in between, to calls, once for each shape."""

    def __init__(
        self,
        program: Program,
        calls: CallsEngine,
        first: str,
        forced: bool,
        captures: Callable[[], Captures],
        names: Sequence[str],
    ) -> None:
        """`first`: the rung to begin on; `forced`: to stay on it or fail. `names` are those of the inputs."""
        self.name = first  # what the last step ran on
        self.reason: str | None = None  # why it was not the first rung
        self._program, self._calls, self._captures, self._names = program, calls, captures, names
        self._first, self._forced = first, forced
        self._rungs: dict[Key, str] = {}
        self._short_lived = 0  # captures in a row that served one step

    def step(self, inputs: Sequence[Any], state: StreamState) -> Sequence[Any]:
        recording: Recording | None = state.recording
        if recording is None or not recording.fits(inputs):
            if recording is not None:
                self._count(recording, inputs)
            # Before the next one is made, so that there is room for it.
            state.recording = recording = None
            recording = self._record(inputs, state)
            if recording is None:
                return self._calls.step(inputs, state)
            state.recording = recording
        return recording.run(inputs)

    def _record(self, inputs: Sequence[Any], state: StreamState) -> Recording | None:
        """A recording on the highest rung that these inputs can have; None: there is none, they are to be called."""
        key = shape_key(self._program, inputs)
        self.name = self._rungs.get(key, self._first)
        if self.name == "calls":
            return None
        try:
            captures = self._captures()
            recording = _recorded(self._program, captures, inputs, state)
        except StepError:
            raise
        except Exception as error:  # whatever a piece does that a capture cannot have
            self._step_down(key, "calls", error)
            return None
        if self.name == "conditional":
            try:
                recording.launch = captures.branch_on_device(recording.captured)
                return recording
            except Exception as error:  # whatever the driver, its bindings or the captured nodes cannot do
                self._step_down(key, "graphs", error)
        try:
            recording.launch = captures.branch_on_host(recording.captured)
            return recording
        except Exception as error:
            self._step_down(key, "calls", error)
            return None

    def _count(self, recording: Recording, inputs: Sequence[Any]) -> None:
        """Gives up where each call needs another capture."""
        self._short_lived = self._short_lived + 1 if recording.runs == 1 else 0
        if self._short_lived >= _SHORT_LIVED:
            moved = [self._names[place] for place in recording.addresses.moved(inputs)]
            why = f"weights that move, {', '.join(moved[:3])}" if moved else "other sizes or numbers"
            self._first = "calls"
            self._rungs.clear()
            self._step_down(recording.key, "calls", CaptureError(f"every call comes with {why}"))

    def _step_down(self, key: Key, rung: str, error: Exception) -> None:
        # A capture that was spoilt raises once more when it ends: what spoilt it is the first.
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        reason = " ".join(f"{type(first).__name__}: {first}".split())
        if self._forced:
            raise StepError(f"engine={self.name!r} cannot run this model: {reason}") from error
        _log.warning("a step runs on the engine %r, not %r: %s", rung, self.name, reason)
        self.name = self._rungs[key] = rung
        self.reason = reason


def _recorded(program: Program, captures: Captures, inputs: Sequence[Any], state: StreamState) -> Recording:
    try:
        return Recording(program, captures, inputs, state.values)
    except BaseException:  # an interrupt leaves a capture as spoilt as an error does
        captures.abandon()
        raise
