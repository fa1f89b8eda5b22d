"""Methods with several sites that decide apart."""

from __future__ import annotations

from ..estimators import GuidanceDifference, Reuse
from ..gates import ResidualChange
from ..schedules import Schedule
from ..site_rule import SiteRule
from .method import Fields, method


@method(
    "h2cache",
    "H2-Cache, arXiv 2510.27171",
    "the second gate measures the picture's tokens alone, where it does all that the single blocks have",
)
def h2cache(
    double: int = 19, single: int = 38, first: float = 0.12, second: float = 0.09, pools: tuple[int, int] = (2, 12)
) -> Fields:
    """Two gates: the double blocks by their first one, the single blocks by theirs.

    After a hit of the first gate the first single block still runs, as in the published code, and the others are reused
    whatever the second gate would say. Each averages over squares of so many tokens and channels as `pools` says: the
    published code makes 2048 and 384 groups of all tokens. `double` and `single` are numbers of blocks. The defaults
    are FLUX's at 1024 x 1024.
    """
    common: Fields = {"warmup_steps": 1, "max_consecutive_skips": None, "estimator": Reuse("h")}
    return {
        "joint": False,
        "rules": (
            SiteRule(sites=(0, double), gate=ResidualChange(first, pool=(pools[0],) * 2, first_alone=True), **common),
            SiteRule(
                sites=(double, double + single),
                gate=ResidualChange(second, pool=(pools[1],) * 2, follows=True),
                **common,
            ),
        ),
    }


@method(
    "mixcache",
    "MixCache, arXiv 2508.12691",
    "no code is published: guidance, then steps, then blocks are asked in this order, and the first that may reuse "
    "does, where the paper chooses for each step; a warm-up and the gate say when to begin",
)
def mixcache(
    blocks: tuple[int, int],
    threshold: float = 0.05,
    guidance: int | None = 2,
    every: int = 2,
    warmup_steps: int = 5,
    stream: str = "uncond",
    partner: str = "cond",
) -> Fields:
    """Reuses one of guidance's calls, whole steps, or a range of blocks, in one generation.

    The call of `stream` is estimated from that of `partner` but on each so manyth step (`guidance`; None: never).
    Whole steps are reused while the first block's residual is near to that of the last deep step (`threshold`). On
    the steps that are left the `blocks`, as (4, 8) for blocks 4 to 7, are reused but on each so manyth (`every`).
    """
    warm: Fields = {"warmup_steps": warmup_steps, "max_consecutive_skips": None}
    steps = SiteRule(gate=ResidualChange(threshold), estimator=Reuse("h"), **warm)
    ranges = SiteRule(sites=blocks, schedule=Schedule.every(every, after=warmup_steps), estimator=Reuse())
    if guidance is None:
        return {"joint": False, "rules": (steps, ranges)}
    schedule = Schedule.every(guidance, after=warmup_steps)
    calls = SiteRule(sites="model", schedule=schedule, estimator=GuidanceDifference(stream, partner))
    return {"joint": False, "rules": (calls, steps, ranges)}
