"""What a page says first of a model: a sentence, and the figures to see at once."""

from __future__ import annotations

from .amounts import both_times, counted, percent, size
from .data import Section
from .markup import Markup, join, tag
from .tracks import DEEP, Kind, Past, median, times_of


def sentence(one: Section) -> str:
    """What the newest generation did, or why there is none."""
    if one.cut is not None and not one.cut.cached:
        return f"Not cached: {one.cut.reason}."
    if not one.past:
        return f"Nothing is recorded: {one.why_nothing}."
    newest = one.past[0]
    steps = newest.steps
    if newest.rules > 1:
        told = ", ".join(f"rule {rule + 1} reused {newest.count(rule, 'reused')}" for rule in range(newest.rules))
        return f"Of the {counted(steps, 'step')} of the newest generation {told}{_work(newest)}."
    deep = newest.count(0, *DEEP)
    return f"In the newest generation {deep} of {counted(steps, 'step')} ran deep{_work(newest)}."


def tiles(one: Section) -> Markup:
    """The figures, with what they are."""
    found = [*(_of_newest(one.past[0], one.on_host) if one.past else []), *_of_cut(one)]
    if not found:
        return join(())
    return tag("dl", *(tag("div", tag("dd", value), tag("dt", what)) for value, what in found), class_="tiles")


def _work(one: Past) -> str:
    return "" if one.work is None else f". That took {percent(one.work)} of the operations of an uncached run"


def _of_newest(newest: Past, on_host: bool) -> list[tuple[str, str]]:
    found = [(f"{newest.count(0, *DEEP)} / {newest.steps}", "steps ran deep")] if newest.rules == 1 else []
    if newest.work is not None:
        found.append((percent(newest.work), "of the operations done"))
    deep, reused = (_median(newest, *kinds) for kinds in (DEEP, ("reused",)))
    if newest.rules == 1 and deep is not None and reused is not None:
        what = "a deep step, a reused one" if on_host else "after a deep step, a reused one: between calls (host)"
        found.append((both_times(deep, reused), f"median time, {what}"))
    return found


def _median(one: Past, *kinds: Kind) -> float | None:
    return median(time for course in one.courses for time in times_of(course, *kinds))


def _of_cut(one: Section) -> list[tuple[str, str]]:
    if one.cut is None or not one.cut.cached:
        return []
    return [
        (percent(one.cut.skippable), "of a step's operations can be left out"),
        (size(one.cut.state_bytes), "of state a stream"),
    ]
