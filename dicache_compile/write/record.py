"""The record that a stream keeps of its steps: a table on the device, a row for each step.

Plain torch functions, traced into the pieces that decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

LOG_ROWS = 1024  # steps that a stream remembers
OF_RECORD = ("log", "logged")  # its slots
# Of a step, and then of each rule: NaN where that was not asked, as of one inside of a region that is reused.
STEP_COLUMNS = ("index", "timestep")
ROW = "row"  # the column before them in a record of rows that decide for themselves, one after the other for each step
RULE_COLUMNS = ("deep", "forced", "error", "accumulated", "gamma")


def width(rules: int, by_rows: bool = False) -> int:
    """The columns of a record of so many rules."""
    return by_rows + len(STEP_COLUMNS) + rules * len(RULE_COLUMNS)


def names(columns: int) -> tuple[list[str], int]:
    """(what a record of so many columns has of a step, of how many rules it is)."""
    rules, rest = divmod(columns - len(STEP_COLUMNS), len(RULE_COLUMNS))
    return [*[ROW] * rest, *STEP_COLUMNS], rules


def columns(
    now: Mapping[str, Tensor],
    reuse: Tensor,
    forced: Tensor,
    first: Tensor,
    error: Tensor | None,
    compared: Tensor | None,
    gamma: Tensor | None,
) -> tuple[Tensor, ...]:
    """The values of RULE_COLUMNS; NaN where a step has none. `gamma`: the estimator's aid, if it is one number."""
    nothing = torch.full_like(now["time"], float("nan"))
    return (
        ~reuse,
        forced,
        nothing if error is None else torch.where(first, nothing, error),
        nothing if compared is None else torch.where(first, nothing, compared),
        nothing if gamma is None else torch.where(reuse, gamma, nothing),
    )


def record(
    now: Mapping[str, Tensor], values: tuple[Tensor, ...], state: Mapping[str, Tensor], rule: int, rules: int
) -> dict[str, Tensor]:
    """The log with one more row, of which one rule's columns are known; the oldest one is overwritten when it is
    full.
    """
    nothing = [torch.full_like(now["time"], math.nan)] * len(RULE_COLUMNS)
    columns = (now["index"], now["time"], *nothing * rule, *values, *nothing * (rules - 1 - rule))
    row = torch.stack([column.to(torch.float32) for column in columns])
    place = state["logged"] % LOG_ROWS
    return {
        "log": state["log"].index_copy(0, place.reshape(1), row.reshape(1, -1)),
        "logged": state["logged"] + 1,
    }


def record_more(values: tuple[Tensor, ...], log: Tensor, logged: Tensor, rule: int) -> Tensor:
    """The log with the columns of a rule that is asked later in its last row."""
    place, start = ((logged - 1) % LOG_ROWS).reshape(1), width(rule)
    row, own = log.index_select(0, place), torch.stack([column.to(torch.float32) for column in values]).reshape(1, -1)
    row = torch.cat((row[:, :start], own, row[:, start + len(RULE_COLUMNS) :]), dim=1)
    return log.index_copy(0, place, row)


def record_rows(
    now: Mapping[str, Tensor],
    values: tuple[Tensor, ...],
    state: Mapping[str, Tensor],
    rule: int,
    rules: int,
    count: int,
) -> dict[str, Tensor]:
    """As `record`, with one more row of the log for each of the batch's `count`; all is of shape (count,)."""
    nothing = [torch.full_like(now["time"], math.nan)] * len(RULE_COLUMNS)
    number = torch.arange(count)
    columns = (number, now["index"], now["time"], *nothing * rule, *values, *nothing * (rules - 1 - rule))
    places = (state["logged"] + number) % LOG_ROWS
    entries = torch.stack([column.to(torch.float32) for column in columns], dim=1)
    return {"log": state["log"].index_copy(0, places, entries), "logged": state["logged"] + count}


def record_more_rows(
    values: tuple[Tensor, ...], asked: Tensor | None, log: Tensor, logged: Tensor, rule: int, count: int
) -> Tensor:
    """As `record_more`; NaN where a row has not `asked` the rule."""
    own = torch.stack([column.to(torch.float32) for column in values], dim=1)
    if asked is not None:
        own = torch.where(asked.unsqueeze(1), own, torch.full_like(own, math.nan))
    start = width(rule, by_rows=True)
    places = (logged - count + torch.arange(count)) % LOG_ROWS
    found = log.index_select(0, places)
    found = torch.cat((found[:, :start], own, found[:, start + len(RULE_COLUMNS) :]), dim=1)
    return log.index_copy(0, places, found)
