"""The drawings: a model's parts by their work, and what was decided, measured and timed on each step.

A drawing is as wide as the screen has room: SVG that is stretched in one direction, with its words beside it in HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from ..cost import Part
from .amounts import milliseconds, number, percent
from .markup import Markup, join, tag
from .tracks import Kind, Mark, Track

HEIGHT = 100.0  # of each drawing, in its own units
REUSED = 30.0  # the height of a reused step beside a deep one's
_BEYOND = 3.0  # times the threshold: errors above are cut off
_MANY = 120  # steps: more are drawn without gaps
_LONG = 2.5  # times the median: times above are cut off
_ORDER: tuple[Kind, ...] = ("forced", "limited", "deep", "reused", "unasked")
_Bar = tuple[int, float, float]  # step, lower and upper end


def stretched(width: float, *content: str, class_: str) -> Markup:
    """A drawing that fills its place. Its content is told in words beside it, so readers of screens pass over it."""
    box = f"0 0 {width:g} {HEIGHT:g}"
    return tag("svg", *content, viewBox=box, preserveAspectRatio="none", aria_hidden="true", class_=class_)


def decisions(marks: Sequence[Mark], class_: str = "strip") -> Markup:
    """A tall bar for each deep step, a low one for each reused one."""
    tall = {"deep": HEIGHT, "forced": HEIGHT, "limited": HEIGHT, "reused": REUSED, "unasked": 0.06 * HEIGHT}
    return stretched(len(marks), *_by_kind(marks, lambda place, mark: (place, 0, tall[mark.kind])), class_=class_)


def errors(track: Track) -> tuple[Markup, float, bool]:
    """(columns of what was compared with the threshold, with a tick at each step's own error; top of the scale; whether
    some are above it).
    """
    marks, limit = track.marks, track.threshold
    numbers = [n for mark in marks for n in (mark.accumulated, mark.error) if n is not None and math.isfinite(n)]
    top = max(numbers, default=0.0)
    if limit is not None and math.isfinite(limit) and limit > 0:
        top = min(max(top, 1.25 * limit), _BEYOND * limit)
    top = top or 1.0

    def column(place: int, mark: Mark) -> _Bar | None:
        return None if mark.accumulated is None else (place, 0, _scaled(mark.accumulated, top))

    ticks = [(place, _scaled(mark.error, top)) for place, mark in enumerate(marks) if mark.error is not None]
    above = [
        place for place, mark in enumerate(marks) if any(_is_above(n, top) for n in (mark.error, mark.accumulated))
    ]
    lost = [place for place, mark in enumerate(marks) if mark.is_nan]
    drawn = [
        *_by_kind(marks, column),
        _path("tick", (f"M{x + 0.12:g} {HEIGHT - y:.5g}h.76" for x, y in ticks)),
        _breaks(above),
        _path("nan", (f"M{x + 0.2:g} 30L{x + 0.8:g} 60M{x + 0.8:g} 30L{x + 0.2:g} 60" for x in lost)),
    ]
    if limit is not None and 0 <= limit <= top:
        y = HEIGHT - _scaled(limit, top)
        drawn.append(tag("path", class_="limit", d=f"M0 {y:.5g}H{len(marks)}"))
    return stretched(len(marks), *drawn, class_="errors"), top, bool(above)


def gammas(track: Track) -> tuple[Markup, float, float] | None:
    """(a pin for each reused step, the lower and the upper end of the scale); None where there is no gamma."""
    found = [(place, mark.gamma) for place, mark in enumerate(track.marks) if mark.gamma is not None]
    finite = [gamma for _, gamma in found if math.isfinite(gamma)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    if track.gamma_range is not None and all(map(math.isfinite, track.gamma_range)):
        low, high = min(low, track.gamma_range[0]), max(high, track.gamma_range[1])
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    # Room above and below, where the heads of the pins at both ends have their halves.
    places = [(x, 8 + 0.84 * _scaled(gamma - low, high - low)) for x, gamma in found if math.isfinite(gamma)]
    drawn = (
        _path("pin", (f"M{x + 0.5:g} {HEIGHT}V{HEIGHT - y:.5g}" for x, y in places)),
        _path(
            "head" if len(track.marks) <= _MANY else "head small",
            (f"M{x + 0.5:g} {HEIGHT - y:.5g}h0" for x, y in places),
        ),
    )
    return stretched(len(track.marks), *drawn, class_="gammas"), low, high


def times(marks: Sequence[Mark], seconds: Sequence[float | None]) -> tuple[Markup, float, bool] | None:
    """(a bar for each step, top of the scale, whether some are above it); None where there is no time."""
    known = sorted(time for time in seconds if time is not None)
    if not known:
        return None
    # The first steps of a process are slow: they must not press all others to the ground.
    usual = known[int(0.9 * (len(known) - 1))]
    top = known[-1] if known[-1] <= _LONG * usual else 1.2 * usual
    bars = _by_kind(marks, lambda x, _: None if (time := seconds[x]) is None else (x, 0, _scaled(time, top)))
    above = [x for x, time in enumerate(seconds) if time is not None and time > top]
    return stretched(len(marks), *bars, _breaks(above), class_="times"), top, bool(above)


def model(parts: Sequence[Part], rule: int | None) -> Markup:
    """The parts as wide as their work. With a rule: a step that it has reused, whose sites are open boxes."""
    total = sum(part.share for part in parts) or 1.0
    runs: list[Markup] = []
    left: list[Markup] = []
    kind, at = ("site" if rule is None else "stood-in"), 0.0
    for part in parts:
        wide = 1000 * part.share / total
        sites = part.skippable if rule is None else part.by_rule[rule]
        split = at + wide * (1 - sites / part.share if part.share else 1)
        said = f"{part.name}: {percent(part.share)} of the operations"
        runs.append(_box(at, split, said, "always"))
        left.append(_box(split, at + wide, said, kind))
        at += wide
    return stretched(1000, *runs, *left, class_="model")


def scale(*ends: tuple[float, str, str]) -> Markup:
    """The words beside a drawing: (height from 0 to 1, text, class)."""
    words = (tag("span", text, style=f"bottom:{100 * y:.4g}%", class_=class_) for y, text, class_ in ends)
    return tag("div", *words, class_="scale", aria_hidden="true")


def axis(indices: Sequence[int]) -> Markup:
    """The numbers of some steps under a drawing."""
    every = next(step for step in _round_numbers() if len(indices) / step <= 7)
    shown = [(place, index) for place, index in enumerate(indices) if index % every == 0]
    at = (tag("span", str(i), style=f"left:{100 * (x + 0.5) / len(indices):.4g}%") for x, i in shown)
    return tag("div", *at, class_="axis", aria_hidden="true")


def error_scale(top: float, threshold: float | None) -> Markup:
    ends = [(0.0, "0", ""), (1.0, number(top, 3), "")]
    if threshold is not None and 0 < threshold <= top:
        height = threshold / top
        # Two words need room for both.
        ends = [end for end in ends if abs(end[0] - height) > 0.2]
        ends.append((height, number(threshold, 3), "limit"))
    return scale(*ends)


def time_scale(top: float) -> Markup:
    return scale((0.0, "0", ""), (1.0, milliseconds(top), ""))


def _round_numbers() -> Iterable[int]:
    return (number * 10**power for power in range(9) for number in (1, 2, 5))


def _is_above(value: float | None, top: float) -> bool:
    return value is not None and value > top * 1.0001


def _scaled(value: float, top: float) -> float:
    if math.isnan(value):
        return 0.0
    return HEIGHT * min(max(value / top, 0.0), 1.0)


def _by_kind(marks: Sequence[Mark], bar: Callable[[int, Mark], _Bar | None]) -> list[Markup]:
    """The bars in one path for each kind of decision, which keeps a page of a thousand steps small."""
    wide = 0.8 if len(marks) <= _MANY else 1.0
    found: dict[Kind, list[_Bar]] = {kind: [] for kind in _ORDER}
    for place, mark in enumerate(marks):
        one = bar(place, mark)
        if one is not None:
            found[mark.kind].append(one)
    off = (1 - wide) / 2
    return [
        _path(
            kind,
            (
                f"M{x + off:g} {HEIGHT - low:.5g}V{HEIGHT - high:.5g}h{wide:g}V{HEIGHT - low:.5g}z"
                for x, low, high in bars
            ),
        )
        for kind, bars in found.items()
        if bars
    ]


def _breaks(places: Iterable[int]) -> Markup:
    """Cuts through bars that are too long for the scale."""
    return _path("above", (f"M{x} 17L{x + 1} 8" for x in places))


def _path(class_: str, parts: Iterable[str]) -> Markup:
    line = "".join(parts)
    return tag("path", class_=class_, d=line) if line else join(())


def _box(start: float, end: float, said: str, class_: str) -> Markup:
    if end - start < 0.05:
        return join(())
    title = tag("title", said)
    return tag("g", title, tag("path", class_=class_, d=f"M{start:.5g} 0H{end:.5g}V{HEIGHT:g}H{start:.5g}z"))
