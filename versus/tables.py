"""The tables of docs/benchmarks.md: each takes rows and gives Markdown, or says that nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from . import sweep
from .bars import DEEP_STEPS, GUARDS_ONCE, OURS, UNCACHED, Bar, deep_steps
from .found import EXPECTED, EXPECTED_SPEED_UP, EXPERIMENT
from .rows import Row

NOT_MEASURED = "Not measured.\n"
NOTES: dict[str, str] = {
    "TaylorSeerCache": "but for `lite`, a step that is not deep still runs what is around the attentions",
    "PyramidAttentionBroadcast": "reuses attentions alone, so no step is wholly deep, and it takes no schedule",
}
"""By a system's name: what a reader has to know to compare its figures with the others'."""

Column = Callable[[Row], str]


def bars(found: Sequence[Bar]) -> str:
    lines = [(bar.text, bar.ours, bar.peer, bar.margin, bar.verdict) for bar in found]
    return markdown(("bar", "ours", "best peer", "ours over the peer", ""), lines)


def own(rows: Iterable[Row]) -> str:
    chosen = [row for row in rows if row.experiment == "own"]
    return _table({**_NAMES, **_SPEED, **_QUALITY}, sorted(chosen, key=_fastest_first))


def equal(rows: Sequence[Row]) -> str:
    """Best PSNR first, for each number of deep steps."""
    roles = [f"{deep} deep" for deep in DEEP_STEPS]
    chosen = [row for row in rows if row.experiment == "equal" and row.role in roles]
    chosen.sort(key=lambda row: (roles.index(row.role), -row.figures.get("PSNR mean", 0)))
    asked: dict[str, Column] = {"asked": lambda row: row.role.removesuffix(" deep")}
    return _table({**asked, **_NAMES, "deep steps": _deep, **_QUALITY, "speed-up": speed_up}, chosen)


def quality(rows: Iterable[Row]) -> str:
    """Fastest first, those that missed the quality on these seeds too: it shows in their PSNR."""
    chosen = [row for row in rows if row.experiment == "quality" and row.role != "baseline"]
    return _table({**_NAMES, "speed-up": speed_up, "deep steps": _deep, **_QUALITY}, sorted(chosen, key=_fastest_first))


def found(rows: Iterable[Row]) -> str:
    """What `tune` found, most deep steps first, and what it told to expect."""
    chosen = [row for row in rows if row.experiment == EXPERIMENT and row.role != "baseline"]
    chosen.sort(key=lambda row: -row.setting["deep"])
    columns: dict[str, Column] = {
        "asked": lambda row: str(row.setting["deep"]),
        "deep steps": _deep,
        "PSNR dB: mean / p5 / worst": _spread("PSNR", 1),
        "expected": _figure(EXPECTED),
        **{name: column for name, column in _QUALITY.items() if not name.startswith("PSNR")},
        "speed-up": speed_up,
        "expected speed-up": _figure(EXPECTED_SPEED_UP),
    }
    return _table(columns, chosen)


def schedule(rows: Iterable[Row]) -> str:
    chosen = [row for row in rows if row.experiment == "schedule"]
    return _table({**_NAMES, **_SPEED}, sorted(chosen, key=_fastest_first))


def costs(rows: Iterable[Row]) -> str:
    chosen = [row for row in rows if row.experiment == "costs"]
    return _table({**_NAMES, **_COSTS}, sorted(chosen, key=lambda row: row.system != OURS))


def refused(rows: Sequence[Row]) -> str:
    """Which settings did not run, where, and why."""
    if not rows:
        return NOT_MEASURED
    where: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        if not row.figures:
            place = f"equal, {row.role}" if row.experiment == "equal" else row.experiment
            place += ", guards once" if row.role == GUARDS_ONCE else ""
            where.setdefault((row.system, row.label, row.why or "no reason given"), {})[place] = None
    lines = [(system, label, "; ".join(places), why) for (system, label, why), places in where.items()]
    return markdown(("system", "setting", "in", "why"), lines) if lines else "None.\n"


def sizes(rows: Sequence[Row], column: Column) -> str:
    """A line for each system, a column for each size of the sweep that was measured."""
    ran = [row for row in rows if row.experiment == "sweep" and row.figures]
    measured = {row.workload for row in ran}
    of_size = {name: size for size in sweep.SIZES if (name := sweep.workload(*size).name) in measured}
    names = list(of_size)
    ran = [row for row in ran if row.workload in of_size]
    if not ran:
        return NOT_MEASURED
    found: dict[tuple[str, str], dict[str, Row]] = {}
    # So the first row of each system is the smallest size's, by which the lines are sorted.
    for row in sorted(ran, key=lambda row: (names.index(row.workload), *_fastest_first(row))):
        found.setdefault((row.system, row.label), {})[row.workload] = row
    lines = [
        [
            *(cell(next(iter(at.values()))) for cell in _NAMES.values()),
            *(column(at[n]) if n in at else "" for n in names),
        ]
        for at in found.values()
    ]
    threads = {row.workload: int(row.figures["threads"]) for row in ran if "threads" in row.figures}
    titles = [
        f"{tokens} x {width}" + (f", {threads[name]} thread{'s' * (threads[name] > 1)}" if name in threads else "")
        for name, (tokens, width) in of_size.items()
    ]
    return markdown([*_NAMES, *titles], lines)


def systems(rows: Iterable[Row]) -> str:
    """How each was compiled and where it is from."""
    lines = dict.fromkeys((row.system, row.source, row.recipe, NOTES.get(row.system, "")) for row in rows)
    return markdown(("system", "source", "how it was compiled", "note"), list(lines)) if lines else NOT_MEASURED


def speed_up(row: Row) -> str:
    figures = row.figures
    text = f"{figures['speed-up']:.2f}x" if "speed-up" in figures else ""
    if "speed-up p10" not in figures or row.role == "baseline":
        return text
    return f"{text} ({figures['speed-up p10']:.2f}-{figures['speed-up p90']:.2f})"


def reused_ms(row: Row) -> str:
    """Of a reused call; of any call where nothing is reused."""
    return _figure("deep call ms" if row.system == UNCACHED else "reused call ms")(row)


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    cells = (columns, ["---"] * len(columns), *([_escaped(cell) for cell in line] for line in lines))
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _table(columns: Mapping[str, Column], rows: Sequence[Row]) -> str:
    """One line for each row that ran; a column that all leave empty is left out."""
    ran = [row for row in rows if row.figures]
    if not ran:
        return NOT_MEASURED
    kept = {title: cell for title, cell in columns.items() if any(map(cell, ran))}
    text = markdown(list(kept), [[cell(row) for cell in kept.values()] for row in ran])
    notes = [f"- {system}: {note}\n" for system, note in NOTES.items() if any(row.system == system for row in ran)]
    return text + "\n" * bool(notes) + "".join(notes)


def _fastest_first(row: Row) -> tuple[bool, float]:
    return row.role != "baseline", -row.figures.get("speed-up", 0)


def _figure(name: str) -> Column:
    return lambda row: _three(row.figures[name]) if name in row.figures else ""


def _spread(name: str, digits: int) -> Column:
    """Mean, 5th percentile and worst in one cell."""

    def cell(row: Row) -> str:
        values = [row.figures.get(f"{name} {of}") for of in ("mean", "p5", "worst")]
        return "" if None in values else " / ".join(f"{value:.{digits}f}" for value in values)

    return cell


def _three(value: float) -> str:
    """Three digits that count, and all in front of the point."""
    if value == int(value):
        return str(int(value))
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _system(row: Row) -> str:
    return f"**{row.system}**" if row.system == OURS else row.system


def _deep(row: Row) -> str:
    taken = deep_steps(row)
    return "" if taken is None else f"{taken:.1f}"


def _shows(row: Row) -> str:
    return f"{row.figures['shows its prompt']:.0%}" if "shows its prompt" in row.figures else ""


def _escaped(text: str) -> str:
    """As a table's cell needs it: messages of errors have all sorts of signs."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


_NAMES: dict[str, Column] = {"system": _system, "setting": lambda row: row.label}
_SPEED: dict[str, Column] = {
    "speed-up": speed_up,
    "s median": _figure("seconds median"),
    "s p95": _figure("seconds p95"),
    "deep steps": _deep,
    "deep call ms": _figure("deep call ms"),
    "reused call ms": _figure("reused call ms"),
}
_QUALITY: dict[str, Column] = {
    "PSNR dB: mean / p5 / worst": _spread("PSNR", 1),
    "SSIM: mean / p5 / worst": _spread("SSIM", 3),
    "shows its prompt": _shows,
}
_COSTS: dict[str, Column] = {
    "compile s, cold": _figure("compile s cold"),
    "compile s, warm": _figure("compile s warm"),
    "graph launches a call": _figure("graph launches a call"),
    "graph breaks": _figure("graph breaks"),
    "recompiles": _figure("recompiles"),
    "peak MiB": _figure("peak MiB"),
    "state KiB": _figure("state KiB"),
}
