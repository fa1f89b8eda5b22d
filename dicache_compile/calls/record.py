"""What the streams of a model did: the log on the device, and which calls its rows were."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter

from torch import Tensor

from ..config import DiCacheConfig
from ..program import of_rule
from ..write.record import LOG_ROWS, ROW, RULE_COLUMNS, names

Row = Mapping[str, float]  # by column; of later rules by `of_rule`


@dataclass(slots=True)
class Call:
    """A call that a stream made. The clock is the host's, in seconds: a device may still be at work when it returns."""

    number: int  # among the calls of all models
    run: int | None  # the announced run that it was of
    config: DiCacheConfig  # that it was told
    rows: tuple[str, ...] | None = None  # what its rows are called, where they are requests
    began: float = field(default_factory=perf_counter)
    returned: float = math.nan  # NaN while it runs, and of one that failed


@dataclass(slots=True)
class Calls:
    """How often a model was called; outlives it, where somebody keeps count."""

    number: int = 0


@dataclass(slots=True)
class History:
    """What a stream's record needs."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # the slots `state.KEPT`
    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=LOG_ROWS))
    entries: int = 0  # of the log, that calls have made whose rows are requests

    def by_row(self) -> dict[int | str | None, list[list[tuple[Row, Call]]]]:
        """What was recorded with its calls, split where a generation starts: of each row of the batch that decides for
        itself, by its number, or by its name where it is a request; else under None. Waits for the device.
        """
        steps = self._steps()
        # A step that failed before it was recorded is a call without a row.
        found: dict[int | str | None, list[list[tuple[Row, Call]]]] = {}
        for step, call in zip(steps, list(self.calls)[-len(steps) :] if steps else [], strict=False):
            for number, row in step.items():
                who = call.rows[number] if call.rows is not None and number is not None else number
                generations = found.setdefault(who, [])
                # Where the index is known, a stream may begin half way.
                if not generations or _starts(row, call, *generations[-1][-1]):
                    generations.append([])
                generations[-1].append((row, call))
        return found

    def _steps(self) -> list[dict[int | None, Row]]:
        """What is recorded of each step, by the row of the batch."""
        if not self.tensors:
            return []
        logged = int(self.tensors["logged"])
        table = self.tensors["log"].tolist()
        of_step, rules = names(len(table[0]))
        columns = [*of_step, *(of_rule(name, rule) for rule in range(rules) for name in RULE_COLUMNS)]
        steps: list[dict[int | None, Row]] = []
        for place in range(max(0, logged - LOG_ROWS), logged):
            row = dict(zip(columns, table[place % LOG_ROWS], strict=True))
            number = int(row.pop(ROW)) if ROW in row else None
            if not steps or not number:
                steps.append({})
            steps[-1][number] = row
        # Of a batch the first rows may have been overwritten.
        return steps[1:] if steps and not steps[0].keys() & {0, None} else steps


def of_row(name: str, row: int | str | None) -> str:
    """What a stream is called in reports: "cond", or "cond[2]" for a row of its batch that decides for itself. A row
    that is a request has a name of its own.
    """
    if isinstance(row, str):
        return row
    return name if row is None else f"{name}[{row}]"


def _starts(row: Row, call: Call, before: Row, call_before: Call) -> bool:
    return row["index"] == 0 or row["index"] < before["index"] or call.run != call_before.run
