"""What a compiled model did, step by step: read from the records that the steps left on the device."""

from __future__ import annotations

import csv
import importlib
import io
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .calls.record import Call, Row, of_row
from .calls.session import Session
from .config import DiCacheConfig
from .plain import plain
from .program import of_rule, of_rules
from .subject import subjects, why_nothing_ran

MAX_GENERATIONS = 16
COLUMNS = (
    "generation",
    "stream",
    "rule",
    "index",
    "timestep",
    "deep",
    "forced",
    "error",
    "accumulated",
    "gamma",
    "began",
    "seconds",
)


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
    # By the host's clock, in seconds. On a GPU the host may run ahead of the work: then these are no times of steps.
    began: float | None = field(default=None, compare=False)  # the call, after the generation's first one began
    seconds: float | None = field(default=None, compare=False)  # until it returned

    @property
    def decisions(self) -> tuple[Decision | None, ...]:
        """Of all rules."""
        return Decision(self.deep, self.forced, self.error, self.accumulated, self.gamma), *self.others


@dataclass(frozen=True, slots=True)
class Generation:
    """One denoising run of a stream, with the runs of other streams that began before the next one of any of them."""

    streams: Mapping[str, list[StepRecord]]  # by name; of rows that decide for themselves by "name[row]"
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
        width = max(12, *(len(name) for generation in self.generations for name in generation.streams))
        told = "decisions (D deep, d deep and forced, . reused)"
        lines = [f"generation  {'stream':<{width}}  steps  deep  share  {told}"]
        for number, generation in enumerate(self.generations):
            for name, steps in generation.streams.items():
                for rule, decisions in enumerate(zip(*(step.decisions for step in steps), strict=True)):
                    deep = sum(decision is not None and decision.deep for decision in decisions)
                    marks = "".join("-" if decision is None else str(decision) for decision in decisions)
                    whose = name if not rule else f"  rule {rule + 1}"
                    counts = f"{len(steps):>5}  {deep:>4}  {deep / len(steps):>5.0%}"
                    lines.append(f"{number:>10}  {whose:<{width}}  {counts}  {marks}")
        for config, numbers in itertools.groupby(enumerate(self.generations), key=lambda one: one[1].config):
            first, *_, last = [number for number, _ in numbers] * 2
            lines.append(f"{first if first == last else f'{first}-{last}':>10}  config  {config.brief()}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it, by field, in what JSON can hold: `plain` says how."""
        found: dict[str, Any] = plain(self)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A dict by column (`COLUMNS`) for every decision: each rule's, on each step of each stream.

        The newest generation comes last. `rule` counts from 1. A rule that was not asked has no row.
        """
        return [
            _row(number, name, rule, step, decision)
            for number, generation in enumerate(self.generations)
            for name, steps in generation.streams.items()
            for step in steps
            for rule, decision in enumerate(step.decisions, start=1)
            if decision is not None
        ]

    def to_csv(self) -> str:
        """The `rows` as comma-separated values, with a line of headings; what a step has not is empty."""
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows())
        return text.getvalue()

    def to_dataframe(self) -> Any:
        """The `rows` as a `pandas.DataFrame`. Raises ImportError where pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError(
                "to_dataframe() needs pandas, which is not installed: `pip install pandas`, or take to_csv() or rows()"
            ) from error
        return pandas.DataFrame(self.rows(), columns=list(COLUMNS))


def summary(model: object) -> Summary:
    """The steps that a compiled model (or its original) has done, up to the last 16 generations.

    Of a compiled model those under its own config. `model` may be a pipeline; of several compiled models the streams
    are called after them, as in "transformer_2/cond", and `config` is that of the last one.
    Reading waits for the device; recording did not. Raises TypeError if `model` is neither.
    """
    found = subjects(model)
    ran = {one.name + "/" if len(found) > 1 else "": one.sessions[-1] for one in found if one.sessions}
    generations = _generations(ran)
    return Summary(generations, found[-1].config, None if generations else why_nothing_ran(found[-1]))


def _generations(sessions: Mapping[str, Session]) -> list[Generation]:
    """`sessions`: by what stands before the names of their streams."""
    runs = []
    for before, session in sessions.items():
        with session.lock:  # another thread may be at a step
            by_row = [(before + name, history.by_row()) for name, history in session.history.items()]
        runs += [(of_row(name, row), run) for name, rows in by_row for row, own in rows.items() for run in own]
    generations: list[dict[str, list[tuple[Row, Call]]]] = []
    for name, run in sorted(runs, key=lambda one: one[1][0][1].number):
        # A stream that starts again starts a generation; one that has no part in the newest joins it. Of several models
        # those that go by one config.
        newest = generations[-1] if generations else {}
        other = len(sessions) > 1 and any(run[0][1].config != steps[0][1].config for steps in newest.values())
        if not newest or name in newest or other:
            generations.append({})
        generations[-1][name] = run
    return [_generation(streams) for streams in generations[-MAX_GENERATIONS:]]


def _generation(streams: Mapping[str, list[tuple[Row, Call]]]) -> Generation:
    first = next(iter(streams.values()))[0][1]  # the stream that began first
    steps = {name: [_record(row, call, first.began) for row, call in run] for name, run in streams.items()}
    return Generation(steps, first.config)


def _record(row: Row, call: Call, start: float) -> StepRecord:
    first, *others = (_decision(row, rule) for rule in range(len(of_rules("deep", row))))
    first = first or Decision(False, False, None, None, None)  # it was not asked: what it is in was reused
    decided = {one.name: getattr(first, one.name) for one in fields(Decision)}
    return StepRecord(
        index=int(row["index"]),
        timestep=row["timestep"],
        **decided,
        others=tuple(others),
        began=call.began - start,
        seconds=None if math.isnan(call.returned) else call.returned - call.began,
    )


def _row(generation: int, stream: str, rule: int, step: StepRecord, decision: Decision) -> dict[str, Any]:
    where = {"generation": generation, "stream": stream, "rule": rule}
    return {
        name: where[name] if name in where else getattr(decision, name, getattr(step, name, None)) for name in COLUMNS
    }


def _decision(row: Row, rule: int) -> Decision | None:
    def number(name: str) -> float | None:
        found = row[of_rule(name, rule)]
        return None if math.isnan(found) else found

    if number("deep") is None:
        return None
    return Decision(bool(number("deep")), bool(number("forced")), *map(number, ("error", "accumulated", "gamma")))
