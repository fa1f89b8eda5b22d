"""From the generations of all systems to the figures of the comparison, beside their bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from .cases import DEEP, STEPS, Case
from .rows import Bar, Writer
from .systems import GRAPHED, OURS, PEERS, PLAIN, TRUNCATED, TRUNCATED_GRAPHED

BEST = OURS[0]  # the engine that the bars are for
OVER_THE_FLOOR = Bar("<=", 50)  # microseconds of a reused step
DEEP_STEP = Bar("<=", 1.01)

Samples = Mapping[str, Sequence[Mapping[str, Any]]]  # a system's generations, by its name


def write_figures(case: Case, samples: Sequence[Mapping[str, Any]], writer: Writer, best: str = BEST) -> None:
    """Medians over the rounds; what compares two systems is made in each round first, so that both were as warm."""
    by_system: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_system.setdefault(sample["system"], []).append(sample)
    for name, own in by_system.items():
        detail = f"{len(own)} rounds"
        writer.row(case.name, name, "seconds a generation", _median(own, "seconds"), "s", detail=detail)
        for kind in ("deep", "reused"):
            if (value := _median(own, kind)) is not None:
                writer.row(case.name, name, f"{kind} step", value, "ms", detail=detail)
    if PLAIN not in by_system:
        writer.row(case.name, best, "speed-up", None, detail=f"{PLAIN} was not measured")
        return
    for name in (GRAPHED, *OURS, *PEERS):
        if name in by_system:
            speed_up = _ratio(by_system, PLAIN, name, "seconds")
            writer.row(case.name, name, "speed-up", speed_up, baseline=PLAIN)
    for name in OURS:
        if name in by_system:
            _write_ours(case, by_system, name, writer, bars=name == best)


def _write_ours(case: Case, samples: Samples, name: str, writer: Writer, bars: bool) -> None:
    deep = _ratio(samples, name, PLAIN, "deep")
    bar = DEEP_STEP if bars else None
    writer.row(case.name, name, "deep step over a plain one's", deep, baseline=PLAIN, bar=bar)
    floors = {kind: value for kind in (TRUNCATED, TRUNCATED_GRAPHED) if (value := _of(samples, kind, "reused"))}
    if floors:
        floor = min(floors, key=lambda kind: floors[kind])
        ideal = ideal_speed_up(_of(samples, PLAIN, "deep"), floors[floor])
        writer.row(case.name, name, "ideal speed-up", ideal, baseline=floor)
        share = _ratio(samples, PLAIN, name, "seconds") / ideal
        bar = case.ideal if bars else None
        writer.row(case.name, name, "speed-up over the ideal", share, baseline=floor, bar=bar)
    if TRUNCATED_GRAPHED in samples:
        pairs = _pairs(samples, name, TRUNCATED_GRAPHED, "reused")
        over = 1000 * median(ours - floor for ours, floor in pairs)
        bar = OVER_THE_FLOOR if bars else None
        writer.row(case.name, name, "reused step over the floor", over, "us", baseline=TRUNCATED_GRAPHED, bar=bar)
    for peer in PEERS:
        if peer in samples:
            times = _ratio(samples, peer, name, "seconds")
            bar = case.peers if bars else None
            writer.row(case.name, name, "times as fast as a peer", times, baseline=peer, bar=bar)


def ideal_speed_up(plain: float, floor: float) -> float:
    """Where a deep step costs what a plain one does, and a reused one what the model costs without its deep blocks."""
    deep = sum(DEEP)
    return STEPS * plain / (deep * plain + (STEPS - deep) * floor)


def _pairs(samples: Samples, one: str, other: str, figure: str) -> list[tuple[float, float]]:
    """A figure of two systems in the rounds that both took part in."""
    rounds = [{own["round"]: own[figure] for own in samples[name]} for name in (one, other)]
    return [(rounds[0][number], rounds[1][number]) for number in rounds[0] if number in rounds[1]]


def _ratio(samples: Samples, one: str, other: str, figure: str) -> float:
    return median(first / second for first, second in _pairs(samples, one, other, figure))


def _of(samples: Samples, name: str, figure: str) -> float:
    return _median(samples.get(name, ()), figure) or 0.0


def _median(own: Sequence[Mapping[str, Any]], figure: str) -> float | None:
    values = [sample[figure] for sample in own if sample.get(figure) is not None]
    return median(values) if values else None
