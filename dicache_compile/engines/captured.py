"""The engine that captures a step once for each stream and shape, and launches what it captured from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CaptureError, StepError
from .base import CallsEngine, State, Watch
from .recording import Captures, Key, Recorded, Recording, shape_key

_log = logging.getLogger("dicache_compile")
_SHORT_LIVED = 3  # captures in a row that served one step only, after which no more are made


@dataclass(frozen=True, slots=True)
class Rung:
    """How steps of one shape take their branch."""

    name: str  # "conditional", "graphs" or "calls"
    reason: str | None  # why it is not a higher one


class CapturedEngine:
    """Steps down from one launch a step, to two with a look in between, to calls, once for each shape."""

    def __init__(
        self,
        recorded: Recorded,
        calls: CallsEngine,
        first: str,
        forced: bool,
        captures: Callable[[], Captures],
        names: Sequence[str],
    ) -> None:
        """`first`: the rung to begin on; `forced`: to stay on it or fail. `names` are those of the inputs."""
        self._recorded, self._calls, self._captures, self._names = recorded, calls, captures, names
        self._first, self._forced = Rung(first, None), forced
        self._last = self._first  # the rung of the last step
        self._rungs: dict[Key, Rung] = {}
        self._short_lived = 0  # captures in a row that served one step

    @property
    def name(self) -> str:
        return self._last.name

    @property
    def reason(self) -> str | None:
        return self._last.reason

    def step(
        self,
        inputs: Sequence[Any],
        state: State,
        reused: bool = False,
        watch: Watch | None = None,
        held: object = None,
    ) -> Sequence[Any]:
        recording: Recording | None = state.recording
        if recording is None or not recording.fits(inputs, held):
            if recording is not None:
                self._count(recording, inputs)
            # Before the next one is made, so that there is room for it.
            state.recording = recording = None
            recording = state.recording = self._record(inputs, state)
            if recording is None:
                return self._calls.step(inputs, state, reused, watch)
        if watch is not None:
            recording.order()
            self._show(inputs, state, watch)
        self._last = recording.rung
        return recording.run(inputs)

    def _show(self, inputs: Sequence[Any], state: State, watch: Watch) -> None:
        """The registers of a step that is called on a copy of the state: what is captured may take their memory."""
        registers = self._calls.program.registers(inputs, [tensor.clone() for tensor in state.values])
        for op in self._calls.program.ops:
            op(registers)
        watch(registers)

    def _record(self, inputs: Sequence[Any], state: State) -> Recording | None:
        """A recording on the highest rung that these inputs can have; None: there is none, they are to be called."""
        key = shape_key(self._recorded, inputs)
        before = self._rungs.get(key, self._first)
        self._last = before
        if before.name == "calls":
            return None
        reasons = [] if before.reason is None else [before.reason]
        recording = self._launchable(before.name, inputs, state, reasons)
        after = Rung(recording[1] if recording is not None else "calls", "; ".join(reasons) or None)
        if after != before:
            _log.warning("a step runs on the engine %r, not %r: %s", after.name, before.name, after.reason)
            self._last = self._rungs[key] = after
        if recording is None:
            return None
        recording[0].rung = self._last
        return recording[0]

    def _launchable(
        self, rung: str, inputs: Sequence[Any], state: State, reasons: list[str]
    ) -> tuple[Recording, str] | None:
        """(a recording, the highest rung from this one on that has a launch for it), and why not a higher one."""
        try:
            captures = self._captures()
            recording = _recorded(self._recorded, captures, inputs, state)
        except StepError:
            raise
        except Exception as error:  # whatever a piece does that a capture cannot have
            reasons.append(self._reason(error))
            return None
        if rung == "conditional":
            try:
                recording.launch = captures.branch_on_device(recording.parts)
                return recording, "conditional"
            except Exception as error:  # whatever the driver, its bindings or the captured nodes cannot do
                reasons.append(self._reason(error))
        try:
            recording.launch = captures.branch_on_host(recording.parts)
            return recording, "graphs"
        except Exception as error:
            reasons.append(self._reason(error))
            return None

    def _count(self, recording: Recording, inputs: Sequence[Any]) -> None:
        """Gives up where each call needs another capture."""
        self._short_lived = self._short_lived + 1 if recording.runs == 1 else 0
        if self._short_lived >= _SHORT_LIVED:
            moved = [self._names[place] for place in recording.addresses.moved(inputs)]
            what = (
                f"weights that move, {', '.join(moved[:3])}: keep them on the device between calls"
                if moved
                else "other sizes or numbers: pass numbers that change as tensors on the device"
            )
            reason = self._reason(CaptureError(f"every call comes with {what}"))
            _log.warning("a step runs on the engine 'calls', not %r: %s", self._first.name, reason)
            self._first = Rung("calls", reason)
            self._rungs.clear()

    def _reason(self, error: Exception) -> str:
        """What went wrong, in one line. Raises StepError where another rung is not wanted."""
        # A capture that was spoilt raises once more when it ends: what spoilt it is the first.
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        reason = " ".join(f"{type(first).__name__}: {first}".split())
        if self._forced:
            raise StepError(f"engine={self._first.name!r} cannot run this model: {reason}") from error
        return reason


def _recorded(recorded: Recorded, captures: Captures, inputs: Sequence[Any], state: State) -> Recording:
    try:
        return Recording(recorded, captures, inputs, state.values)
    except BaseException:  # an interrupt leaves a capture as spoilt as an error does
        captures.abandon()
        raise
