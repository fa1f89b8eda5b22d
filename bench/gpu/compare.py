"""The stage of one case: builds its systems on shared weights, looks at each alone, then lets them take turns."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from dicache_compile import explain, reset

from .cases import DEEP, STEPS, Case, Run, build, case_named
from .device import MIB, Device
from .host import host_parts
from .measure import by_kind, count_syncs, generate, steps_for
from .profiles import profile
from .quiet import building, timing
from .rows import Bar, Writer
from .systems import EAGER, ORDER, OURS, PLAIN, TRUNCATED_GRAPHED, System, make

ROUNDS = 5  # at most
TURNS_SHARE = 0.3  # of a stage's seconds, kept for the rounds while systems are still being built
FOR_A_PROFILE = 5  # seconds without which none is begun
HOST = Bar("<=", 100)  # microseconds
SYNCS = Bar("<=", 0)
MEMORY = Bar("<=", 0.03)


class Comparison:
    """One case on one device, until a moment given by `time.time()`."""

    def __init__(self, name: str, writer: Writer, device: Device, until: float, systems: Sequence[str] = ORDER) -> None:
        self.case: Case = case_named(name, device.tiny)
        self.writer, self.device, self.until, self.names = writer, device, until, systems
        self.turns_from = until - TURNS_SHARE * (until - time.time())
        self.best = device.best
        device.settle()
        before = device.memory()
        self.model: nn.Module = build(self.case, device)
        self.run = Run(self.case, device)
        device.settle()
        self.weights = {kind: value - before[kind] for kind, value in device.memory().items()}
        self.plain: dict[str, dict[str, int]] = {}  # the memory of torch.compile, for each moment, by kind
        self.systems: dict[str, System] = {}
        self.expected: dict[str, float] = {}  # seconds of a generation

    def build(self) -> None:
        """Builds and looks at all systems, as far as time allows."""
        for name in self.names:
            if name in OURS and name not in self.device.engines:
                continue
            if time.time() > self.turns_from:
                self._row(name, "left out", None, detail="no time left to build it")
                continue
            try:
                self._look_at(name)
            except Exception as error:
                traceback.print_exc()
                self._row(name, "failed", None, passed=False, detail=_line(error))
                self.systems.pop(name, None)
                self.device.settle()

    def _look_at(self, name: str) -> None:
        """What is known of a system by itself: its first calls, its memory, the host's time and waits."""
        device = self.device
        device.settle()
        base = device.memory()
        device.forget_peak()
        system = make(name, self.model, self.case, device)
        steps = steps_for(system)
        first = generate(system, self.run, device, steps, idle=True)
        self._row(name, "first call", first.first, "s", detail="compiled then, or found in the compiler's cache")
        self._memory(system, "first generation", base)
        if system.kind == "cached":
            deep = system.deep()
            self._row(name, "deep steps", deep, passed=deep == sum(DEEP), detail=f"of {STEPS}")
        if not first.finite:
            self._row(name, "finite", 0, passed=False)
        device.settle()
        device.forget_peak()
        later = generate(system, self.run, device, steps, idle=True)
        self._memory(system, "later generation", base)
        for kind, value in by_kind(later.host, system).items():
            bar = HOST if name == self.best else None
            self._row(name, f"host time of a {kind} step", value, "us", bar=bar)
        bar = SYNCS if name == self.best else None
        self._row(name, "host waits a step", count_syncs(system, self.run, device), bar=bar)
        if name == self.best:
            self._host_parts(system)
        if name in OURS:
            reset(system.model)
            again = generate(system, self.run, device, 1, idle=True)
            capture = again.first - by_kind(later.steps, system)["deep"] / 1000
            self._row(name, "first call after reset", capture, "s", detail="less a deep step: capturing, if it does")
            generate(system, self.run, device, steps)
        self.systems[name] = system
        self.expected[name] = later.seconds * STEPS / steps

    def _host_parts(self, system: System) -> None:
        try:
            parts = host_parts(system, self.run, self.device)
        except Exception as error:  # of a look at the engine's own objects, which the comparison does not depend on
            traceback.print_exc()
            self._row(system.name, "parts of the host's time", None, detail=_line(error))
            return
        for part, kinds in parts.items():
            for kind, value in kinds.items():
                self._row(system.name, f"host time of a {kind} step, {part}", value, "us")

    def _memory(self, system: System, moment: str, base: Mapping[str, int]) -> None:
        """The peak over what was there before the system, and for ours beside that of torch.compile and the state."""
        needed = {kind: peak - base[kind] for kind, peak in self.device.peak().items()}
        for kind, value in needed.items():
            self._row(system.name, f"{kind} over the weights, {moment}", value / MIB, "MiB")
        if system.name == PLAIN:
            self.plain[moment] = needed
        if system.name not in OURS or moment not in self.plain or not self.weights["allocated"]:
            return
        state = explain(system.model).state_bytes
        if moment == "first generation":
            self._row(system.name, "state", state / MIB, "MiB")
        for kind, value in needed.items():
            ours, theirs = (self.weights[kind] + part for part in (value, self.plain[moment][kind] + state))
            bar = MEMORY if system.name == self.best else None
            figure = f"{kind} over torch.compile and the state, {moment}"
            self._row(system.name, figure, ours / theirs - 1, baseline=PLAIN, bar=bar)

    def take_turns(self) -> None:
        """In every round each system generates once, beginning with another one each time."""
        for number in range(ROUNDS):
            names = [name for name in self.systems if name != EAGER or number == 0]
            first = number % max(1, len(names))
            for name in (*names[first:], *names[:first]):
                if time.time() + self._seconds(name) > self.until:
                    continue
                try:
                    self._turn(name, number)
                except Exception as error:
                    traceback.print_exc()
                    self._row(name, "failed", None, passed=False, detail=_line(error))
                    del self.systems[name]

    def _seconds(self, name: str) -> float:
        """What a turn takes, the deep steps of another system in it included."""
        borrowed = self.expected.get(PLAIN, 0.0) * sum(DEEP) / STEPS if self.systems[name].kind == "truncated" else 0.0
        return self.expected[name] + borrowed

    def _turn(self, name: str, number: int) -> None:
        system = self.systems[name]
        # What a reused step cannot do without, after the deep steps that plain torch.compile runs: the ideal.
        deep = self.systems.get(PLAIN) if system.kind == "truncated" else None
        found = generate(system, self.run, self.device, deep=deep)
        kinds = by_kind(found.steps, system)
        self.writer.sample(case=self.case.name, system=name, round=number, seconds=found.seconds, **kinds)

    def profile(self) -> None:
        """Writes where a reused step's time goes, of ours and of the floor; the last thing that a process does."""
        for name in (self.best, TRUNCATED_GRAPHED):
            if name in self.systems and time.time() + FOR_A_PROFILE < self.until:
                self.writer.text(f"{self.case.name}, {name}", profile(self.systems[name], self.run, self.device))

    def _row(self, system: str, figure: str, value: float | None, unit: str = "", **more: object) -> None:
        self.writer.row(self.case.name, system, figure, value, unit, **more)  # type: ignore[arg-type]


def compare(
    name: str, writer: Writer, device: Device, until: float, folder: Path, systems: Sequence[str] = ORDER
) -> None:
    """Other cases may be built at the same time; only one is timed at a time, when all are built."""
    with building(folder):
        comparison = Comparison(name, writer, device, until, systems)
        comparison.build()
    with timing(folder):
        comparison.take_turns()
        comparison.profile()


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300]
