"""What moved between two result files beyond noise: `python -m versus.regress OLD NEW`; exits 1 if any got worse.

Judged are the speed-ups, by their samples, and the figures that should not vary at all. Not judged: seconds, which
change with the machine's mood and are in the speed-up as a ratio, compile seconds and peak memory, measured once each,
and speed-ups on different numbers of threads. A tuned setting is compared with the one that was its family's best
before. A row that only the old file has is for the worse if the new one has others of its experiment and workload.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from scipy.stats import mannwhitneyu

from .rows import Row, read

SIGNIFICANCE = 0.01  # of all comparisons of speed-ups together
LEAST = 0.03  # relative change of a median speed-up that matters
# By figure: a change that is none, and the sign of a better one (0: neither is better).
TOLERANCES: dict[str, tuple[float, int]] = {
    "deep steps": (0.05, 0),
    "PSNR mean": (0.05, 1),  # dB
    "PSNR worst": (0.05, 1),
    "shows its prompt": (0.005, 1),
    "graph launches a call": (0.01, -1),
    "graph breaks": (0, -1),
    "recompiles": (0, -1),
    "state KiB": (0.5, -1),
}
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """Something that is no longer what it was."""

    verdict: Literal["worse", "better", "changed"]
    key: Key
    what: str  # "speed-up 2.10 -> 1.90 (-9.5 %, p = 1e-06)"

    def __str__(self) -> str:
        return f"{self.verdict:<8}{_words(self.key)}: {self.what}"


def differences(old: Sequence[Row], new: Sequence[Row]) -> list[str]:
    """What the files were not both made with: "torch 2.11.0 -> torch 2.12.0"."""
    before, after = _conditions(old), _conditions(new)
    return [
        f"{what} {' and '.join(sorted(before[what]))} -> {' and '.join(sorted(after[what]))}"
        for what in dict.fromkeys((*before, *after))
        if before[what] != after[what]
    ]


def moves(old: Mapping[Key, Row], new: Mapping[Key, Row]) -> list[Move]:
    """What moved in the rows that both have, the worse first."""
    both = [key for key in old if key in new]
    timed = [key for key in both if _is_timed(old[key], new[key])]
    found = [move for key in both for move in (*_running(old[key], new[key]), *_figures(old[key], new[key]))]
    found += [move for key in timed if (move := _speed_up(old[key], new[key], SIGNIFICANCE / len(timed)))]
    return sorted(found, key=lambda move: ("worse", "changed", "better").index(move.verdict))


def too_few(old: Mapping[Key, Row], new: Mapping[Key, Row]) -> list[Key]:
    """Rows whose speed-ups nobody can judge: even samples that do not overlap at all could be chance."""
    timed = [key for key in old if key in new and _is_timed(old[key], new[key])]
    return [key for key in timed if _least_p(_samples(old[key]), _samples(new[key])) >= SIGNIFICANCE / len(timed)]


def _running(old: Row, new: Row) -> list[Move]:
    """Whether a system that ran stopped running, or the other way round."""
    if bool(old.figures) == bool(new.figures):
        return []
    if new.figures:
        return [Move("better", new.key, f"runs now; before: {old.why}")]
    return [Move("worse", new.key, f"no longer runs: {new.why}")]


def _figures(old: Row, new: Row) -> list[Move]:
    found = []
    for figure, (tolerance, sign) in TOLERANCES.items():
        if figure not in old.figures or figure not in new.figures:
            continue
        before, after = old.figures[figure], new.figures[figure]
        if abs(after - before) > tolerance:
            gain = sign * (after - before)
            verdict = "changed" if not gain else "better" if gain > 0 else "worse"
            found.append(Move(verdict, new.key, f"{figure} {before:.5g} -> {after:.5g}"))
    return found


def _speed_up(old: Row, new: Row, significance: float) -> Move | None:
    before, after = _samples(old), _samples(new)
    change = median(after) / median(before) - 1
    p = float(mannwhitneyu(before, after).pvalue)
    if p >= significance or abs(change) <= LEAST:
        return None
    what = f"speed-up {median(before):.3f} -> {median(after):.3f} ({change:+.1%}, p = {p:.0e})"
    return Move("better" if change > 0 else "worse", new.key, what)


def _is_timed(old: Row, new: Row) -> bool:
    if old.role == "baseline" or _on_other_threads(old, new):  # the baseline's is 1 by definition
        return False
    return bool(_samples(old) and _samples(new))


def _on_other_threads(old: Row, new: Row) -> bool:
    """Whether the two ran on different numbers of threads, as far as the rows tell: older ones do not."""
    before, after = (row.figures.get("threads") for row in (old, new))
    return None not in (before, after) and before != after


def _samples(row: Row) -> list[float]:
    return row.samples.get("speed-up", [])


def _least_p(before: Sequence[float], after: Sequence[float]) -> float:
    """The smallest p value that samples of these sizes can have, without ties."""
    return 2 / math.comb(len(before) + len(after), len(before))


def _conditions(rows: Iterable[Row]) -> defaultdict[str, set[str]]:
    """The machine and each library's version: more than one where rows were measured apart."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        for what, value in {"machine:": row.machine, **row.versions}.items():
            found[what].add(value)
    return found


def _words(key: Key) -> str:
    experiment, workload, system, label, role = key
    return f"{experiment}, {workload}: {system}, {label} ({role})"


def report(old: Sequence[Row], new: Sequence[Row]) -> tuple[list[str], bool]:
    """The lines to print, and whether something got worse."""
    before, after = {row.key: row for row in old}, {row.key: row for row in new}
    lines = [f"WARNING: times are not comparable: {difference}" for difference in differences(old, new)]
    found = moves(before, after)
    lines += map(str, found)
    unjudged = Counter(f"{experiment}, {workload}" for experiment, workload, *_ in too_few(before, after))
    other = [key for key in before if key in after and _on_other_threads(before[key], after[key])]
    lines += [f"speed-up not judged, on another number of threads: {_words(key)}" for key in other]
    lines += [f"too few samples to judge speed-ups: {count} rows of {where}" for where, count in unjudged.items()]
    measured = {key[:2] for key in after}
    gone = [key for key in before if key not in after and key[:2] in measured]
    lines += [f"worse   {_words(key)}: no longer measured" for key in gone]
    lines += [f"only in the old file: {_words(key)}" for key in before if key not in after and key not in gone]
    lines += [f"only in the new file: {_words(key)}" for key in after if key not in before]
    worse = sum(move.verdict == "worse" for move in found) + len(gone)
    both = sum(key in after for key in before)
    moved = f"{len(found)} figures moved beyond noise, {len(gone)} rows gone"
    lines.append(f"{both} rows compared, {moved}; {worse} for the worse")
    return lines, worse > 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m versus.regress", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    try:
        old, new = read(arguments.old), read(arguments.new)
    except (OSError, ValueError, TypeError) as error:
        parser.error(f"no result file: {error}")  # and exit code 2: 1 says that something got worse
    lines, worse = report(old, new)
    print("\n".join(lines))
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
