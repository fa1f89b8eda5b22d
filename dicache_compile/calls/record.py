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
from ..write.record import LOG_ROWS, RULE_COLUMNS, STEP_COLUMNS

Row = Mapping[str, float]  # by column; of later rules by `of_rule`


@dataclass(slots=True)
class Call:
    """A call that a stream made. The clock is the host's, in seconds: a device may still be at work when it returns."""

    number: int  # among the calls of all models
    run: int | None  # the announced run that it was of
    config: DiCacheConfig  # that it was told
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

    def generations(self) -> list[list[tuple[Row, Call]]]:
        """The rows with their calls, split where a generation starts; waits for the device."""
        if not self.tensors:
            return []
        logged = int(self.tensors["logged"])
        table = self.tensors["log"].tolist()
        rules = (len(table[0]) - len(STEP_COLUMNS)) // len(RULE_COLUMNS)
        names = [*STEP_COLUMNS, *(of_rule(name, rule) for rule in range(rules) for name in RULE_COLUMNS)]
        numbers = range(max(0, logged - LOG_ROWS), logged)
        rows = [dict(zip(names, table[number % LOG_ROWS], strict=True)) for number in numbers]
        # A step that failed before it was recorded is a call without a row.
        found: list[list[tuple[Row, Call]]] = []
        for row, call in zip(rows, list(self.calls)[-len(rows) :] if rows else [], strict=False):
            # Where the index is known, a stream may begin half way.
            if not found or _starts(row, call, *found[-1][-1]):
                found.append([])
            found[-1].append((row, call))
        return found


def _starts(row: Row, call: Call, before: Row, call_before: Call) -> bool:
    return row["index"] == 0 or row["index"] < before["index"] or call.run != call_before.run
