"""Which systems, with which settings, take part in which comparison."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from . import tuned
from .bars import DEEP_STEPS, GUARDS_ONCE
from .compare import Entrant
from .dbcache import DBCache
from .families import FAMILIES
from .first_block import FirstBlock
from .mag import Mag, calibrate
from .ours import ESTIMATE, STATIC, UNPROBED, Ours
from .published import PublishedDiCache
from .pyramid import PyramidAttentionBroadcast
from .sea import Sea
from .system import Schedule, System
from .taylorseer import TaylorSeer
from .tune import SEEDS
from .uncached import FewerSteps, Uncached
from .workload import STEPS, WORKLOADS, Workload

SCHEDULE = Schedule(warmup=3, interval=3)  # 12 of 30 steps are deep


def own(workload: Workload, quick: bool = False) -> list[Entrant]:
    """Each system with its own defaults.

    If it need not be quick: ours with each preset too, no compiler, and PyramidAttentionBroadcast, which compiles each
    step of a generation by itself, for minutes.
    """
    slow = [
        Uncached(compiled=False),
        *(Ours(quality=name) for name in ("high", "fast")),
        *(Ours(preset=name) for name in ("flux", "hunyuan", "wan")),
        PyramidAttentionBroadcast(cross_attention_block_skip_range=_cross_range(workload)),
        DBCache(regional=False),
    ]
    systems: list[System] = [
        Ours(quality="balanced"),
        *([] if quick else slow),
        *_peers(workload),
        PublishedDiCache(workload.family),
    ]
    return [Entrant(system, "own") for system in systems]


def equal(workload: Workload) -> list[Entrant]:
    """Each family at the same numbers of deep steps, and the uncached model with as many steps in all."""
    uncached = [Entrant(FewerSteps(target), tuned.deep(target)) for target in DEEP_STEPS]
    return uncached + [_best(workload, family, tuned.deep(target)) for family in FAMILIES for target in DEEP_STEPS]


def quality(workload: Workload) -> list[Entrant]:
    """Each family with as few deep steps as leave it the same quality."""
    return [_best(workload, family, tuned.SAME) for family in FAMILIES]


def _best(workload: Workload, family: str, role: str) -> Entrant:
    """What was tuned; if that is nothing, an entrant that says so."""
    why_not = f"no setting that was tried has {role}"
    try:
        found = tuned.best(workload, family, role)
    except ValueError as error:  # the others can be compared all the same
        found, why_not = None, str(error)
    if found is None:
        some, *_ = FAMILIES[family](workload, max(DEEP_STEPS), _ratios(workload))
        return Entrant(some, role, family, why_not=why_not)
    return Entrant(found.system, role, family, found.seeds)


def scheduled(workload: Workload) -> list[Entrant]:
    """Every system that can be given a schedule, with the same one. It decides all the same, where it can."""
    systems: list[Any] = [
        Ours(),
        Ours(changed=STATIC),
        Ours(changed=UNPROBED),
        *_peers(workload),
        PublishedDiCache(workload.family),
    ]
    return [Entrant(replace(system, schedule=SCHEDULE), "schedule") for system in systems]


def guarded_once(workload: Workload) -> list[Entrant]:
    """The same, and the uncached model, each with its guards checked once a generation."""
    entrants = [Entrant(Uncached(), "schedule"), *scheduled(workload)]
    return [replace(entrant, role=GUARDS_ONCE, guards_once=True) for entrant in entrants]


def costed(workload: Workload, quick: bool = False) -> list[Entrant]:
    """One setting of each system: what it costs besides time depends little on the setting.

    `quick`: only what is compiled whole without a cache, ours, and cache-dit's recipe, which compiles block by block.
    """
    if quick:
        return [Entrant(system, "own") for system in (Uncached(), Ours(), DBCache())]
    systems: list[System] = [
        Uncached(),
        Uncached(compiled=False),
        Ours(),
        Ours(threshold=0.1, changed=ESTIMATE),
        *_peers(workload),
        DBCache(regional=False),
        PyramidAttentionBroadcast(cross_attention_block_skip_range=_cross_range(workload)),
        PublishedDiCache(workload.family),
    ]
    return [Entrant(system, "own") for system in systems]


def _cross_range(workload: Workload) -> int | None:
    """PyramidAttentionBroadcast's of cross-attentions, which FLUX has none of."""
    return 5 if workload.family == "wan" else None


def _peers(workload: Workload) -> list[System]:
    return [
        FirstBlock(),
        Mag(_ratios(workload)),
        TaylorSeer(),
        TaylorSeer(lite=True),
        Sea(),
        DBCache(),
        DBCache(taylorseer=True),
    ]


@functools.cache
def _ratios(workload: Workload) -> tuple[float, ...]:
    """MagCache's, which its own calibration measures; the sweep's models only follow a schedule, and need none."""
    if workload not in WORKLOADS:
        return (1.0,) * STEPS
    return tuned.ratios(workload) or calibrate(workload, SEEDS)
