"""Holds a cut against the truth where that is known: on the first two deep steps of a graph, in one generation.

Where tokens change their order on the way, or another value is carried than the cut takes, all sizes may agree and the
estimate be wrong. Then x + (y - x of the step before) is further from y than y of the step before is. After those two
steps nothing is left of it on any step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..plan import Carried
from ..program import DECISION, Kind, Program, Value

# Times as far off as plain reuse. On all of diffusers' models but one the estimate of a right cut is closer than that
# (0.1 to 0.95). Where y has nothing to do with how x moves it is sqrt(1 + |x's change|^2 / |y's change|^2).
WORSE = 1.2
_LOOKS = 32  # at steps, after which it is given up: each waits for the device, and is run twice where it is captured


@dataclass(frozen=True, slots=True)
class Held:
    """A carried value whose estimate can be held against the truth, and the registers that tell."""

    name: str  # of y, in the model's graph
    x: int
    residuals: tuple[int, ...]  # the ring of y - x


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far off an estimate was."""

    name: str
    estimate: float  # the distance from y of x + the last residual, relative to y
    reuse: float  # and that of the last y

    @property
    def is_worse(self) -> bool:
        return self.estimate > WORSE * self.reuse

    def __str__(self) -> str:
        return f"{self.name}: {self.estimate:.3g} off with the residual, {self.reuse:.3g} without"


def held_of(program: Program, carried: Sequence[Carried], base: str) -> list[Held]:
    """What can be held against the truth of the first cut's carried values: those whose estimator keeps y - x under the
    name "r"; `base`: "h" where that is y - h.
    """
    registers = program.registers
    kept = {slot.name for slot in program.slots if slot.dtype.itemsize > 1}  # float8 has its scales elsewhere
    found = []
    for place, one in enumerate(carried):
        ring = [name for name in (f"r.{place}", *(f"r.{place}.{turn}" for turn in range(8))) if name in kept]
        name = getattr(one, base).name
        values = (Value(Kind.INPUT, name), Value(Kind.CROSSING, name))
        x = next((registers[value] for value in values if value in registers), None)
        if ring and x is not None and one.form == "residual":
            found.append(Held(one.y.name, x, tuple(registers[Value(Kind.STATE, name)] for name in ring)))
    return found


class Course(Protocol):
    """A stream, or a request."""

    @property
    def calls(self) -> int:
        """Steps of its generation that are done, as far as the host can tell."""
        ...


class CutCheck:
    """Looks at the steps of one stream, the first that comes, until two were deep. Of a batch the first row tells."""

    def __init__(self, program: Program, held: Sequence[Held]) -> None:
        self._registers = program.registers
        self._held = held
        self._state: weakref.ref[Course] | None = None
        self._before: list[tuple[Tensor, Tensor]] = []
        self._anchors = 0  # that there were
        self._looks = self._generations = 0  # of these: how often anchors began anew
        self.verdicts: list[Verdict] = []

    @property
    def is_done(self) -> bool:
        """Whether it is known, or will not be: a generation may have one deep step, and that is its first."""
        return bool(self.verdicts) or self._looks >= _LOOKS or self._generations > 1

    def watch(self, state: Course) -> Callable[[Sequence[Any]], None] | None:
        """What is to be told of a step's registers; None: nothing."""
        if self._state is None or self._state() is None:
            self._state, self._before, self._generations, self._anchors = weakref.ref(state), [], 0, 0
        if self.is_done or self._state() is not state:
            return None
        return self._look

    def _look(self, registers: Sequence[Any]) -> None:
        self._looks += 1
        if self.is_done or bool(registers[self._registers[DECISION]]):
            return
        number = registers[self._registers[Value(Kind.STATE, "anchors")]]
        rows = slice(0, 1) if number.dim() else slice(None)  # where each decides for itself, the first one tells
        anchors = int(number.reshape(-1)[0])
        if number.dim() and anchors == self._anchors:
            return  # it was reused
        self._anchors = anchors
        if anchors == 1:  # of another picture, prompt or size than what was seen before
            self._before, self._generations = [], self._generations + 1
        now = []
        for held in self._held:
            residual = registers[held.residuals[(anchors - 1) % len(held.residuals)]]
            now.append((registers[held.x][rows].float().clone(), residual[rows].float().clone()))
        if self._before:
            pairs = zip(self._held, self._before, now, strict=True)
            self.verdicts = [_verdict(held.name, before, after) for held, before, after in pairs]
        self._before = now


def _verdict(name: str, before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> Verdict:
    (x, residual), (x_now, residual_now) = before, now
    y, y_now = x + residual, x_now + residual_now
    change, moved = y_now - y, x_now - x
    distances = torch.stack(((change - moved).norm() / y_now.norm(), change.norm() / y_now.norm()))
    estimate, reuse = distances.tolist()
    return Verdict(name, estimate, reuse)
