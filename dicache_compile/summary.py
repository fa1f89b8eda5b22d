"""What a compiled model did, step by step: read from the records that the steps left on the device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import nn

from .calls.session import Session
from .config import DiCacheConfig
from .program import of_rule
from .subject import subject, why_nothing_ran
from .write.control import of_rules

MAX_GENERATIONS = 16


@dataclass(frozen=True, slots=True)
class Decision:
    """What one rule decided on one step."""

    deep: bool  # whether its sites ran
    forced: bool  # whether they had to, whatever the error
    error: float | None  # of this step; None on the first
    accumulated: float | None  # what was compared with the threshold; None on the first
    gamma: float | None  # of the estimate; None where the sites ran, or there was one anchor only

    def __str__(self) -> str:
        return ("d" if self.forced else "D") if self.deep else "."


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of one stream; of several rules what the first one decided, and then what `others` did."""

    index: int  # in its generation, from 0
    timestep: float  # as the model got it; of several the largest
    deep: bool  # whether the deep blocks ran
    forced: bool  # whether they had to, whatever the error
    error: float | None  # of this step; None on the first
    accumulated: float | None  # what was compared with the threshold; None on the first
    gamma: float | None  # of the estimate; None where the deep blocks ran, or there was one anchor only
    others: tuple[Decision | None, ...] = ()  # of the config's later rules; None where one was not asked

    @property
    def decisions(self) -> tuple[Decision | None, ...]:
        """Of all rules."""
        return Decision(self.deep, self.forced, self.error, self.accumulated, self.gamma), *self.others


@dataclass(frozen=True, slots=True)
class Generation:
    """One denoising run of a stream, with the runs of other streams that began before the next one of any of them."""

    streams: Mapping[str, list[StepRecord]]
    config: DiCacheConfig  # that it went by


@dataclass(frozen=True, slots=True)
class Summary:
    """The last generations of a model, the newest last; `str()` gives a table."""

    generations: list[Generation]
    config: DiCacheConfig | None = None  # that the next one goes by; None where there is none
    reason: str | None = None  # why none is recorded; None where one is

    def __str__(self) -> str:
        if not self.generations:
            return f"no generation recorded: {self.reason}"
        lines = ["generation  stream        steps  deep  share  decisions (D deep, d deep and forced, . reused)"]
        for number, generation in enumerate(self.generations):
            for name, steps in generation.streams.items():
                for rule, decisions in enumerate(zip(*(step.decisions for step in steps), strict=True)):
                    deep = sum(decision is not None and decision.deep for decision in decisions)
                    marks = "".join("-" if decision is None else str(decision) for decision in decisions)
                    whose = name if not rule else f"  rule {rule + 1}"
                    lines.append(
                        f"{number:>10}  {whose:<12}  {len(steps):>5}  {deep:>4}  {deep / len(steps):>5.0%}  {marks}"
                    )
        for config, numbers in itertools.groupby(enumerate(self.generations), key=lambda one: one[1].config):
            first, *_, last = [number for number, _ in numbers] * 2
            lines.append(f"{first if first == last else f'{first}-{last}':>10}  config  {config.brief()}")
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """The steps that a compiled model (or its original) has done, up to the last 16 generations.

    Of a compiled model those under its own config. `model` may be a pipeline with one compiled model.
    Reading waits for the device; recording did not. Raises TypeError if `model` is neither.
    """
    one = subject(model)
    generations = _generations(one.sessions[-1]) if one.sessions else []
    return Summary(generations, one.config, None if generations else why_nothing_ran(one))


def _generations(session: Session) -> list[Generation]:
    runs = [
        (run[0][1].number, run[0][1].config, name, [_record(row) for row, _ in run])
        for name, history in session.history.items()
        for run in history.generations()
    ]
    generations: list[tuple[dict[str, list[StepRecord]], DiCacheConfig]] = []
    for _, config, name, steps in sorted(runs, key=lambda run: run[0]):
        # A stream that starts again starts a generation; one that has no part in the newest joins it.
        if not generations or name in generations[-1][0]:
            generations.append(({}, config))
        generations[-1][0][name] = steps
    return [Generation(streams, config) for streams, config in generations[-MAX_GENERATIONS:]]


def _record(row: Mapping[str, float]) -> StepRecord:
    first, *others = (_decision(row, rule) for rule in range(len(of_rules("deep", row))))
    first = first or Decision(False, False, None, None, None)  # it was not asked: what it is in was reused
    decided = {field.name: getattr(first, field.name) for field in fields(Decision)}
    return StepRecord(index=int(row["index"]), timestep=row["timestep"], **decided, others=tuple(others))


def _decision(row: Mapping[str, float], rule: int) -> Decision | None:
    def number(name: str) -> float | None:
        found = row[of_rule(name, rule)]
        return None if math.isnan(found) else found

    if number("deep") is None:
        return None
    return Decision(bool(number("deep")), bool(number("forced")), *map(number, ("error", "accumulated", "gamma")))
