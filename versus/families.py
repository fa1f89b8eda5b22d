"""The systems as families: one line of a plot each, with what may be tuned besides the threshold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from .dbcache import DBCache
from .first_block import FirstBlock
from .mag import Mag
from .ours import ESTIMATE, FEEDBACK, UNPROBED, Ours
from .published import PublishedDiCache
from .sea import Sea
from .system import System
from .taylorseer import TaylorSeer
from .workload import STEPS, Workload

FEW = 7  # deep steps
Variants = Callable[[Workload, int, tuple[float, ...]], Sequence[System]]
"""(workload, deep steps to reach, MagCache's ratios) to the settings whose dial is worth turning."""


def _ours(workload: Workload, deep: int, ratios: tuple[float, ...]) -> Sequence[System]:
    longest = _longest_run(3, deep) + 1
    rules = [(3, None, 1.7), (5, None, 1.7), (5, None, 2), (3, None, 3), (5, None, 3), (3, longest, 3)]
    return [
        Ours(
            threshold=0.1,
            changed={**ESTIMATE, "gamma_range": (1, gamma), "warmup_steps": warmup, "max_consecutive_skips": skips},
        )
        for warmup, skips, gamma in rules
    ]


def _unprobed(workload: Workload, deep: int, ratios: tuple[float, ...]) -> Sequence[System]:
    free = {"warmup_steps": 0, "max_consecutive_skips": None}
    forms = [{**UNPROBED, "gamma_range": (1, gamma)} for gamma in (2, 3)]
    forms += [{**UNPROBED, "order": 1, "gamma_range": (1, 2)}]
    forms += [{**FEEDBACK, "feedback": share} for share in (1.0, 0.5)]
    return [
        Ours(threshold=math.inf, changed={**form, **free, "deep_steps": mask})
        for mask, form in itertools.product(_masks(deep), forms)
    ]


def moved(system: System) -> list[System]:
    """The same setting with one of its deep steps a step earlier or later, if it says which those are."""
    match system:
        case DBCache(deep_steps=(_, *_) as mask):
            return [replace(system, deep_steps=near) for near in _near(mask)]
        case Ours(changed={"deep_steps": mask}):
            return [replace(system, changed={**system.changed, "deep_steps": near}) for near in _near(tuple(mask))]
        case _:
            return []


def _near(mask: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The schedules of which one deep step differs by one; the first step stays, as there is nothing to reuse yet."""
    for place, by in itertools.product(range(1, len(mask)), (-1, 1)):
        step = mask[place] + by
        if step < STEPS and step not in mask:
            yield (*mask[:place], step, *mask[place + 1 :])


def _masks(deep: int) -> list[tuple[int, ...]]:
    """The deep steps of all schedules that are tried with so many."""
    even = itertools.starmap(_even, itertools.product(range(3, 9), range(1, 8), (0, 1)))
    return list(dict.fromkeys((*(mask for mask in even if len(mask) == deep), *_growing(deep))))


def _even(warmup: int, skips: int, final: int) -> tuple[int, ...]:
    """The deep steps after so many of warm-up where reused ones come in runs of `skips`, and `final` last ones."""
    return tuple(
        step for step in range(STEPS)
        if step < warmup or step >= STEPS - final or (step - warmup) % (skips + 1) == skips
    )  # fmt: skip


def _growing(deep: int) -> list[tuple[int, ...]]:
    """The deep steps of schedules that make so many: gaps that grow up to the last step but one or two.

    An estimate reaches about as far as the last gap was long, so a gap that is much longer than the one before it costs
    most; and the last step of all, which no other follows, need not be deep. What is tried is the first gap, and
    whether gaps grow evenly or, as a square root does, early. Where there are few deep steps, gaps may grow more, and
    the last estimates reach further: errors there have no steps left to grow in.
    """
    found: list[tuple[int, ...]] = []
    last_deep, most = (2, 3), 3
    if deep <= FEW:
        last_deep, most = (2, 3, 5, 7), 5
    ends_at = [STEPS - back for back in last_deep]
    ways = itertools.product((1, 2, 3, 4, 6, 8), range(1, 7), (1.0, 0.5), ends_at)
    for warmup, first, power, last in ways:
        count = deep - warmup
        if count < 2:
            continue
        shares = [(gap / (count - 1)) ** power for gap in range(count)]
        growth = (last + 1 - warmup - first * count) / sum(shares)
        ends = itertools.accumulate((first + growth * share for share in shares), initial=0.0)
        lengths = sorted(after - before for before, after in itertools.pairwise(map(round, ends)))  # rounding disorders
        if growth >= 0 and lengths[0] > 0 and lengths[-1] <= most * lengths[0]:
            found.append((*range(warmup), *(warmup - 1 + end for end in itertools.accumulate(lengths))))
    return list(dict.fromkeys(found))


def _longest_run(warmup: int, deep: int) -> int:
    """Reused steps in a row that are needed if all runs are as long as another."""
    return math.ceil((STEPS - warmup) / (deep - warmup)) - 1


def _mag(workload: Workload, deep: int, ratios: tuple[float, ...]) -> Sequence[System]:
    runs = {3, _longest_run(3, deep)}
    return [Mag(ratios, max_skip_steps=skips, retention_ratio=share) for skips in sorted(runs) for share in (0.1, 0.2)]


def _taylorseer(workload: Workload, deep: int, ratios: tuple[float, ...], lite: bool) -> Sequence[System]:
    # Kept in the model's dtype, as all other systems do, and not in the library's default, bfloat16.
    options: dict[str, Any] = {"lite": lite, "taylor_factors_dtype": "float32"}
    return [TaylorSeer(*pair, max_order=order, **options) for pair in TaylorSeer.pairs(deep) for order in (1, 2)]


def _sea(workload: Workload, deep: int, ratios: tuple[float, ...]) -> Sequence[System]:
    return [Sea(max_consecutive_cached=skips) for skips in sorted({2, _longest_run(2, deep)})]


def _dbcache(workload: Workload, deep: int, ratios: tuple[float, ...], taylorseer: bool) -> Sequence[System]:
    rules = [(warmup, _longest_run(warmup, deep)) for warmup in (3, 4, 8) if warmup < deep]
    forms = [DBCache(taylorseer=taylorseer, order=order) for order in ((1, 2) if taylorseer else (1,))]
    deciding = [replace(form, warmup=w, max_continuous=skips) for form in forms for w, skips in rules]
    return [*deciding, *(replace(form, threshold=math.inf, deep_steps=mask) for form in forms for mask in _masks(deep))]


def _published(workload: Workload, deep: int, ratios: tuple[float, ...]) -> Sequence[System]:
    return [PublishedDiCache(workload.family)]


FAMILIES: dict[str, Variants] = {
    "dicache_compile": _ours,
    "dicache_compile unprobed": _unprobed,
    "FirstBlockCache": lambda workload, deep, ratios: [FirstBlock()],
    "MagCache": _mag,
    "TaylorSeerCache": partial(_taylorseer, lite=False),
    "TaylorSeerCache lite": partial(_taylorseer, lite=True),
    "SeaCache": _sea,
    "DBCache": partial(_dbcache, taylorseer=False),
    "DBCache TaylorSeer": partial(_dbcache, taylorseer=True),
    "DiCache, published": _published,
}
