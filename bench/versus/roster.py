"""Which systems, with which settings, take part in which comparison; and `tuned.json`, where tuned settings stand."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .bars import DEEP_STEPS
from .compare import Entrant
from .dbcache import DBCache
from .families import FAMILIES
from .first_block import FirstBlock
from .mag import Mag, calibrate
from .ours import ESTIMATE, FIRST_ORDER, STATIC, UNPROBED, Ours
from .published import PublishedDiCache
from .pyramid import PyramidAttentionBroadcast
from .sea import Sea
from .system import Schedule, System, setting
from .taylorseer import TaylorSeer
from .tune import SEEDS, Tuner
from .uncached import FewerSteps, Uncached
from .workload import STEPS, WORKLOADS, Workload

TUNED = Path(__file__).with_name("tuned.json")
KINDS = {kind.__name__: kind for kind in (DBCache, FirstBlock, Mag, Ours, PublishedDiCache, Sea, TaylorSeer)}
FOUND = ("deep", "psnr", "seeds")  # beside a tuned setting: what it gave, and on how many seeds that was
SCHEDULE = Schedule(warmup=3, interval=3)  # 12 of 30 steps are deep


def own(workload: Workload, quick: bool = False) -> list[Entrant]:
    """Each system with its own defaults.

    If it need not be quick: ours with each preset too, no compiler, and PyramidAttentionBroadcast, which compiles each
    step of a generation by itself, for minutes.
    """
    slow = [
        Uncached(compiled=False),
        Ours(threshold=0.1, changed=FIRST_ORDER),
        *(Ours(threshold=threshold, changed=ESTIMATE) for threshold in (0.05, 0.2)),
        *(Ours(preset=name) for name in ("flux", "hunyuan", "wan")),
        PyramidAttentionBroadcast(cross_attention_block_skip_range=_cross_range(workload)),
        DBCache(regional=False),
    ]
    systems: list[System] = [
        Ours(),
        Ours(threshold=0.1, changed=ESTIMATE),
        *([] if quick else slow),
        *_peers(workload),
        PublishedDiCache(workload.family),
    ]
    return [Entrant(system, "own") for system in systems]


def equal(workload: Workload, targets: Sequence[int] = DEEP_STEPS) -> list[Entrant]:
    """Each family at the same numbers of deep steps, and the uncached model with as many steps in all."""
    if workload.key not in _tuned():
        raise ValueError(
            f"{TUNED.name} has no settings for the {workload.name}: find them with "
            f"`python -m bench.versus --tune --workload {workload.key}`"
        )
    found = _tuned()[workload.key]["settings"]
    uncached = [Entrant(FewerSteps(target), f"{target} deep") for target in targets]
    return uncached + [_equal(workload, family, target, found[family]) for family in FAMILIES for target in targets]


def _equal(workload: Workload, family: str, target: int, found: dict[str, Any]) -> Entrant:
    role, fields = f"{target} deep", found[str(target)]
    if fields is None:
        some, *_ = FAMILIES[family](workload, target, _ratios(workload))
        return Entrant(some, role, family, why_not=f"no setting that was tried has {target} deep steps")
    return Entrant(_system(fields), role, family, fields["seeds"])


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


def costed(workload: Workload) -> list[Entrant]:
    """One setting of each system: what it costs besides time depends little on the setting."""
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
    known = _tuned().get(workload.key)
    return tuple(known["ratios"]) if known else calibrate(workload, SEEDS)


def tune(workload: Workload, families: Sequence[str] | None = None) -> None:
    """Finds tuned settings, of all families or of some, and puts them in the place of what the file had for them.

    A family's are in the file as soon as it is done.
    """
    ratios = calibrate(workload, SEEDS)
    tuner = Tuner(workload)
    chosen = {family: FAMILIES[family] for family in families or FAMILIES}
    for family, variants in (bar := tqdm(chosen.items(), desc=f"tuning: {workload.name}", unit="family")):
        settings: dict[str, Any] = {}
        for target in DEEP_STEPS:
            bar.set_postfix_str(f"{family}, {target} deep")
            best = tuner.best(variants(workload, target, ratios), target)
            settings[str(target)] = None if best is None else {
                "kind": type(best.system).__name__, **setting(best.system), "deep": best.deep, "psnr": best.psnr,
                "seeds": len(best.psnrs),
            }  # fmt: skip
        everything = json.loads(TUNED.read_text()) if TUNED.exists() else {}  # only now: others may tune meanwhile
        before = everything.get(workload.key, {"settings": {}})
        everything[workload.key] = {"ratios": ratios, "settings": before["settings"] | {family: settings}}
        TUNED.write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n")


@functools.cache
def _tuned() -> dict[str, Any]:
    return json.loads(TUNED.read_text())


def _system(fields: dict[str, Any]) -> System:
    """The inverse of `setting`."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    values = {name: math.inf if value == "inf" else value for name, value in values.items()}
    kind = KINDS[values.pop("kind")]
    for found in FOUND:
        del values[found]
    return kind(**values)
