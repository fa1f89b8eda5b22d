"""A peer beside our preset of its method, both on the same schedule: whether ours is theirs.

Where a peer leaves out something else than the preset does by default, ours is told to leave out that.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from dicache_compile import Schedule

from .calibrated import Calibrated
from .dbcache import DBCache
from .first_block import FirstBlock
from .mag import Mag
from .methods import METHODS, Preset, preset
from .published import PublishedDiCache
from .pyramid import PyramidAttentionBroadcast
from .roster import SCHEDULE
from .sea import Sea
from .system import Schedule as Steps
from .system import System
from .taylorseer import TaylorSeer
from .workload import STEPS

# For a series of cache-dit, which has no slope before its fourth deep step: with three first steps ours begins earlier.
LATER = dataclasses.replace(SCHEDULE, warmup=5)
LIMIT = 0.5  # dB of mean PSNR between ours and theirs
NOTES = {
    "taylorseer model": "as theirs in its `lite` form, ours continues the model's result",
    "taylorseer modules": "attentions alone, and FLUX's single blocks add attention and MLP in one product, which ours "
    "takes as one part: it leaves out more there",
    "pab": "FLUX's single blocks likewise",
    "dbcache order 1": "with 5 first steps: with 3, cache-dit has no slope on the first reused steps, and ours has one",
}
"""By ours: what differs."""


def pairs(known: Calibrated) -> list[tuple[Preset, System]]:
    """(ours, theirs). Pyramid Attention Broadcast has no schedule: both have its own setting."""

    def ours(name: str, label: str = "", on: Steps = SCHEDULE, **given: Any) -> Preset:
        made = preset(name, label=label, schedule=Schedule.steps(*filter(on.deep, range(STEPS))), **given)
        return dataclasses.replace(made, call="schedule" + "".join(f", {key}={one!r}" for key, one in given.items()))

    def theirs(system: Any, on: Steps = SCHEDULE) -> System:
        return dataclasses.replace(system, schedule=on)

    family = known.workload.family
    attentions = tuple(kind for kind in known.kinds if kind != "mlp")
    # Those of MagCache decide nothing here. Factors are kept in the model's dtype, as ours are.
    ratios, kept = (1.0,) * STEPS, "float32"
    return [
        (ours("fbcache"), theirs(FirstBlock(compiled=False))),
        (ours("magcache"), theirs(Mag(ratios, compiled=False))),
        (ours("seacache", grid=known.grid), theirs(Sea(compiled=False))),
        (
            ours("taylorseer", "taylorseer model", sites="model", probe_depth=0),
            theirs(TaylorSeer(lite=True, taylor_factors_dtype=kept, compiled=False)),
        ),
        (
            ours("taylorseer", "taylorseer modules", sites=attentions),
            theirs(TaylorSeer(taylor_factors_dtype=kept, compiled=False)),
        ),
        (ours("dbcache", first_blocks=1), theirs(DBCache(compiled=False))),
        (
            ours("dbcache", "dbcache order 1", LATER, first_blocks=1, order=1),
            theirs(DBCache(taylorseer=True, compiled=False), LATER),
        ),
        (ours(family, "dicache"), theirs(PublishedDiCache(family, threshold=math.inf))),
        (
            METHODS["pab"].make(known, None),
            PyramidAttentionBroadcast(
                cross_attention_block_skip_range=5 if "cross_attention" in known.kinds else None, compiled=False
            ),
        ),
    ]
