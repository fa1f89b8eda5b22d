"""The bars of the benchmark, each judged from the rows alone. Peers get their best setting, and so do we."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.stats import wilcoxon

from . import sweep
from .rows import Row
from .workload import STEPS, WORKLOADS

OURS = "dicache_compile"
UNCACHED = "uncached"
FEWER_STEPS = "fewer steps"
FORMS = {"lite": "lite", "taylorseer": "+ TaylorSeer"}  # by the field that asks for it
DEEP_STEPS = (15, 10, 7)  # of the comparison of quality alone
QUALITY = ("own", "equal", "quality")  # the experiments whose pictures are compared
SLACK = 0.5  # deep steps that our setting may have above the asked ones and still count as equal
SAME_QUALITY = 35.0  # dB of PSNR, mean
LEAD = 1.3  # over the best peer at the smallest size
GUARDS_ONCE = "schedule, guards once"  # the role of those that follow the schedule with guards.once
SIGNIFICANCE = 0.05  # below which a ratio of speeds is told from the one that is asked for


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar and how far we got."""

    text: str  # "same schedule, shapes FLUX: the fastest"
    reached: bool | None = None  # None: not measured
    ours: str = ""  # "2.31x (default)"
    peer: str = ""  # the best one: "2.06x (DBCache, F1B0)"
    margin: str = ""  # between the two: "1.12x (1.09-1.15)"
    level: bool = False  # whether the two cannot be told apart, so that neither is the faster

    @property
    def verdict(self) -> str:
        if self.level:
            return "level"
        return {True: "reached", False: "**MISSED**", None: "not measured"}[self.reached]


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Every bar, in the order of the page; those without rows are there too."""
    sizes = [sweep.workload(*size).name for size in sweep.SIZES]
    found = [_fastest("schedule", workload.name, rows) for workload in WORKLOADS]
    found += [_fastest("sweep", name, rows) for name in sizes]
    found += [_fastest("sweep", sizes[0], rows, LEAD, once) for once in (False, True)]
    found += [_best_quality(deep, workload.name, rows) for workload in WORKLOADS for deep in DEEP_STEPS]
    return found + [_most_at_same_quality(workload.name, rows) for workload in WORKLOADS]


def ratios(ours: Row, peer: Row) -> list[float]:
    """How many times faster ours is than a peer, for each seed; empty if they were not measured in one run."""
    pair = ours.samples.get("speed-up", ()), peer.samples.get("speed-up", ())
    return [a / b for a, b in zip(*pair, strict=True)] if ours.run and ours.run == peer.run else []


def most_over_the_best_peer(workload: str, rows: Iterable[Row]) -> float | None:
    """How many times faster than the best peer of the sweep ours would be if its reused calls cost nothing at all.

    The median of the seeds' ratios. None where a figure for it is missing, or the two were not measured in one run.
    """
    here = [row for row in rows if (row.experiment, row.workload, row.role) == ("sweep", workload, "schedule")]
    ours, peers = _split(here)
    if not ours or not peers:
        return None
    best, peer = max(ours, key=_speed_up), max(peers, key=_speed_up)
    reused_ms, deep = best.figures.get("reused call ms"), best.figures.get("deep steps")
    if reused_ms is None or deep is None or not ratios(best, peer):
        return None
    reused = (STEPS - deep) * reused_ms / 1000
    pairs = zip(best.samples["seconds"], peer.samples["seconds"], strict=True)
    return median(theirs / (seconds - reused) for seconds, theirs in pairs)


def deep_steps(row: Row) -> float | None:
    """Deep steps of a generation, for systems without a cache too."""
    if row.system == UNCACHED:
        return float(STEPS)
    # All steps of a shorter schedule are deep, and it says how many in its setting.
    return row.figures.get("deep steps", row.setting.get("steps") if row.system == FEWER_STEPS else None)


def family(row: Row) -> str:
    """The name of its line in a plot: some systems come in two forms that nobody would call settings of one."""
    words = [word for field, word in FORMS.items() if row.setting.get(field) is True]
    unprobed = row.setting.get("changed", {}).get("probe_depth") == 0
    return " ".join((row.system, *words, *["without a probe"] * unprobed))


def name(row: Row) -> str:
    return f"{row.system}, {row.label}"


def _fastest(experiment: str, workload: str, rows: Iterable[Row], lead: float = 1.0, once: bool = False) -> Bar:
    """With `once` each system counts in the faster of its two ways, guards once being the other."""
    where = f"{workload}, guards checked once a generation" if once else workload
    text = f"same schedule, {where}: " + ("the fastest" if lead == 1 else f"at least {lead}x over the best peer")
    roles = ("schedule", GUARDS_ONCE) if once else ("schedule",)
    here = [row for row in rows if (row.experiment, row.workload) == (experiment, workload) and row.role in roles]
    if once and not _alike(here):
        return Bar(text)
    ours, peers = _split(row for row in here if row.system != FEWER_STEPS)  # which has a schedule of its own
    if failure := _failure(text, here, ours, peers):
        return failure
    return _against(text, max(ours, key=_speed_up), max(peers, key=_speed_up), lead)


def _alike(rows: Iterable[Row]) -> bool:
    """Whether all that follow the schedule were tried with guards once too, those that do not run so among them."""
    of = {role: {(row.system, row.label) for row in rows if row.role == role} for role in ("schedule", GUARDS_ONCE)}
    return of["schedule"] == {(system, label) for system, label in of[GUARDS_ONCE] if system != UNCACHED}


def _best_quality(deep: int, workload: str, rows: Iterable[Row]) -> Bar:
    text = f"{deep} deep steps, {workload}: best mean and worst PSNR"
    here = [row for row in rows if _is_generation(row, workload) and row.role == f"{deep} deep"]
    ours, peers = _split(row for row in here if not row.figures or "PSNR mean" in row.figures)
    if failure := _failure(text, here, ours, peers):
        return failure

    def is_equal(row: Row) -> bool:
        return (deep_steps(row) or STEPS) <= deep + SLACK

    peer_of = {figure: max(peers, key=lambda row: row.figures[figure]) for figure in ("PSNR mean", "PSNR worst")}

    def margins(row: Row) -> list[float]:
        return [row.figures[figure] - peer.figures[figure] for figure, peer in peer_of.items()]

    best = max(ours, key=lambda row: (is_equal(row), min(margins(row))))  # one setting has to be ahead in both
    margin = margins(best)
    quoted = {
        figure: f"{peer.figures[figure]:.1f} dB ({name(peer)}; {_deep(peer)})" for figure, peer in peer_of.items()
    }
    return Bar(
        text,
        is_equal(best) and min(margin) >= 0,
        f"{best.figures['PSNR mean']:.1f} and {best.figures['PSNR worst']:.1f} dB ({best.label}; {_deep(best)})",
        " and ".join(quoted.values()),
        " and ".join(f"{value:+.1f}" for value in margin) + " dB",
    )


def _most_at_same_quality(workload: str, rows: Iterable[Row]) -> Bar:
    text = f"mean PSNR of at least {SAME_QUALITY:.0f} dB, {workload}: the largest speed-up"
    here = [row for row in rows if _is_generation(row, workload)]
    ours, peers = _split(row for row in here if not row.figures or "PSNR mean" in row.figures)
    if failure := _failure(text, here, ours, peers):
        return failure
    good, others = ([row for row in some if row.figures["PSNR mean"] >= SAME_QUALITY] for some in (ours, peers))
    best, peer = max(good, key=_speed_up, default=None), max(others, key=_speed_up, default=None)
    if best is None:
        return Bar(text, False, "no setting of ours", "none" if peer is None else _quoted(peer))
    if peer is None:
        return Bar(text, True, _quoted(best), "none")
    return _against(text, best, peer, 1.0)


def _is_generation(row: Row, workload: str) -> bool:
    return row.experiment in QUALITY and row.workload == workload and row.role != "baseline"


def _split(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Ours and the peers', of those that ran."""
    ran = [row for row in rows if row.figures and row.system != UNCACHED]
    return [row for row in ran if row.system == OURS], [row for row in ran if row.system != OURS]


def _failure(text: str, here: Iterable[Row], ours: Sequence[Row], peers: Sequence[Row]) -> Bar | None:
    """What is to say where there is nothing to compare."""
    if ours and peers:
        return None
    if ours:
        return Bar(text, peer="no peer was measured")
    reasons = {row.why for row in here if row.system == OURS and not row.figures}
    return Bar(text, False, f"did not run: {'; '.join(sorted(reasons))}") if reasons else Bar(text)


def _against(text: str, ours: Row, peer: Row, lead: float) -> Bar:
    each = ratios(ours, peer)
    if not each:
        apart = _speed_up(ours) / _speed_up(peer)
        return Bar(text, apart >= lead, _quoted(ours), _quoted(peer), f"{apart:.2f}x (measured apart)")
    low, middle, high = np.percentile(each, (10, 50, 90))
    away = [math.log(value / lead) for value in each]
    level = not any(away) or float(wilcoxon(away).pvalue) >= SIGNIFICANCE
    margin = f"{middle:.2f}x ({low:.2f}-{high:.2f})"
    return Bar(text, bool(middle >= lead), _quoted(ours), _quoted(peer), margin, level)


def _quoted(row: Row) -> str:
    label = row.label if row.system == OURS else name(row)
    return f"{_speed_up(row):.2f}x ({label}{', guards once' * (row.role == GUARDS_ONCE)})"


def _speed_up(row: Row) -> float:
    return row.figures["speed-up"]


def _deep(row: Row) -> str:
    taken = deep_steps(row)
    return "deep steps unknown" if taken is None else f"{taken:.1f} deep"
