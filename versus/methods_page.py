"""The part of docs/benchmarks.md on the published methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .levels import EXPERIMENT, OWN, SAME, role
from .methods import LEVELS, METHODS, OUTSIDE, PREFIX
from .peers import LIMIT, NOTES
from .rows import Row
from .tables import NOT_MEASURED, markdown

ABOUT = """\
Each published method as a preset of this package, so on the same cut, with about the same numbers of deep steps of 30:
mean PSNR in dB, best first at 10. Run uncompiled, against uncompiled pictures. A schedule has exactly that number: the
method's own form where that gives it, else the method's first steps and then equal gaps. Of a gate the threshold is
searched for on two other seeds, and what it gave here stands in brackets where it is more than a quarter of a step off.
Settings are the methods' defaults but for this, and nothing else is tuned, so a method may do better than here.

**expected speed-up** is no measurement: it is that of a model whose time is its floating-point operations, from the
share that was left out. What an estimate, a gate and the host cost is not in it.
"""
PEERS = f"""\
Whether ours is theirs: the method's own code, where it is installed, beside our preset, both on the schedule of Same
schedule below. Up to {LIMIT} dB apart they count as the same.
"""
_OFF = 0.25  # deep steps


def section(rows: Iterable[Row]) -> list[str]:
    """Paragraphs; none where nothing was measured."""
    here = [row for row in rows if row.experiment == EXPERIMENT]
    if not here:
        return [NOT_MEASURED]
    notes = [f"- {name}: {method.note}\n" for name, method in METHODS.items() if method.note]
    notes += [f"- {name}: no row. {why[0].upper() + why[1:]}\n" for name, why in OUTSIDE.items()]
    return [
        ABOUT,
        _levels(here),
        "".join(notes),
        "#### Their settings",
        _settings(here),
        "#### Peers",
        PEERS,
        _peers(here),
    ]


def _levels(rows: Sequence[Row]) -> str:
    by_method = _by_method(rows)
    at = {name: [found.get(role(level)) for level in LEVELS] for name, found in by_method.items()}
    ranked = sorted((name for name in at if any(at[name])), key=lambda name: -_psnr(at[name][1]))
    lines = [(name, *map(_cell, at[name]), " / ".join(filter(None, map(_speed_up, at[name])))) for name in ranked]
    columns = ("preset", *(f"{level} deep" for level in LEVELS), "expected speed-up")
    own = [(name, found[OWN]) for name, found in by_method.items() if OWN in found]
    alone = [(name, one.label, _cell(one), _speed_up(one)) for name, one in own]
    text = markdown(columns, lines)
    return text + "\n" + markdown(("preset", "its own setting", "PSNR", "expected speed-up"), alone) if alone else text


def _settings(rows: Sequence[Row]) -> str:
    """What made each number of deep steps; what did not run says why."""
    found = _by_method(rows).items()
    lines = [(name, *(_setting(of.get(role(level))) for level in LEVELS)) for name, of in found if OWN not in of]
    return markdown(("preset", *(f"{level} deep" for level in LEVELS)), lines)


def _peers(rows: Sequence[Row]) -> str:
    same = [row for row in rows if row.role == SAME and row.figures]
    ours = {row.family: row for row in same if row.system.startswith(PREFIX)}
    lines = []
    for theirs in same:
        if theirs.system.startswith(PREFIX) or theirs.family not in ours:
            continue
        one = ours[theirs.family]
        apart = one.figures["PSNR mean"] - theirs.figures["PSNR mean"]
        verdict = "the same" if abs(apart) <= LIMIT else "**apart**"
        psnrs = (f"{row.figures['PSNR mean']:.2f}" for row in (one, theirs))
        who = f"{theirs.system}, {theirs.label}"
        lines.append((theirs.family, who, *psnrs, f"{apart:+.2f}", verdict, NOTES.get(theirs.family, "")))
    return markdown(("preset", "peer", "ours, dB", "theirs, dB", "apart", "", "note"), lines) if lines else NOT_MEASURED


def _by_method(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.role != SAME:
            found.setdefault(row.system.removeprefix(PREFIX), {})[row.role] = row
    return found


def _psnr(row: Row | None) -> float:
    return row.figures.get("PSNR mean", 0.0) if row is not None else 0.0


def _cell(row: Row | None) -> str:
    if row is None or not row.figures:
        return ""
    text, asked = f"{_psnr(row):.1f}", row.role.removesuffix(" deep")
    reached = _reached(row)
    return text if not asked.isdigit() or abs(reached - int(asked)) <= _OFF else f"{text} ({reached:.1f})"


def _reached(row: Row) -> float:
    """Of a method whose unit is no step, as many deep steps as have its work."""
    method = METHODS.get(row.system.removeprefix(PREFIX))
    name = "work of deep steps" if method is not None and method.by == "work" else "deep steps"
    return row.figures[name]


def _speed_up(row: Row | None) -> str:
    return f"{row.figures['expected speed-up']:.2f}x" if row is not None and row.figures else ""


def _setting(row: Row | None) -> str:
    if row is None:
        return ""
    return row.label.replace("Schedule.", "") if row.figures else f"did not run: {row.why}"
