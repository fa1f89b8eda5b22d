"""The rows as a table to read: the systems of each case side by side, then every bar and check with its outcome."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Row
from .systems import ORDER

COLUMNS = (  # figure, heading, format
    ("seconds a generation", "s/gen", "8.3f"),
    ("speed-up", "speed-up", "8.2f"),
    ("deep step", "deep ms", "8.2f"),
    ("reused step", "reused ms", "9.3f"),
    ("host time of a deep step", "host us", "8.0f"),
    ("host time of a reused step", "reused us", "9.0f"),
    ("host waits a step", "waits", "6.2f"),
    ("first call", "first s", "8.1f"),
    ("reserved over the weights, later generation", "MiB", "8.0f"),
)


def table(rows: Sequence[Row]) -> str:
    lines: list[str] = []
    for case in dict.fromkeys(row.case for row in rows if row.case != "checks"):
        lines += ["", case, *_systems([row for row in rows if row.case == case])]
    lines += ["", "bars", *(_bar(row) for row in rows if row.bar)]
    lines += ["", "checks", *(_check(row) for row in rows if row.case == "checks")]
    others = [row for row in rows if row.case != "checks" and not row.bar and row.passed is False]
    lines += [f"  FAILED  {row.case} {row.system}: {row.figure} {row.detail}" for row in others]
    outcomes = [row.passed for row in rows if row.passed is not None]
    lines += ["", f"{sum(outcomes)} of {len(outcomes)} bars and checks passed"]
    return "\n".join(lines)


def _systems(rows: Sequence[Row]) -> list[str]:
    # The last of each: a figure that was measured again stands for the one before.
    found = {(row.system, row.figure): row.value for row in rows}
    names = [name for name in ORDER if any(row.system == name for row in rows)]
    width = max(map(len, ORDER))
    lines = ["  " + " " * width + "".join(f"{heading:>11}" for _, heading, _ in COLUMNS)]
    for name in names:
        cells = [found.get((name, figure)) for figure, _, _ in COLUMNS]
        shown = (
            "-" if cell is None else format(cell, form).strip()
            for cell, (_, _, form) in zip(cells, COLUMNS, strict=True)
        )
        lines.append(f"  {name:{width}}" + "".join(f"{cell:>11}" for cell in shown))
    return lines


def _outcome(row: Row) -> str:
    return {True: "passed", False: "FAILED", None: "noted "}[row.passed]


def _bar(row: Row) -> str:
    value = "not measured" if row.value is None else f"{row.value:.4g} {row.unit}".strip()
    against = f" against {row.baseline}" if row.baseline else ""
    return f"  {_outcome(row)}  {row.case} {row.system}: {row.figure}{against}: {value}, must be {row.bar}"


def _check(row: Row) -> str:
    return f"  {_outcome(row)}  {row.system}: {row.figure}: {row.detail[:120]}"
