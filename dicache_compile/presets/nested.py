"""Methods with several sites that decide apart."""

from __future__ import annotations

from ..estimators import Reuse
from ..gates import ResidualChange
from ..site_rule import SiteRule
from .method import Fields, method


@method(
    "h2cache",
    "H2-Cache, arXiv 2510.27171",
    "averages over tokens, where it does over tokens and channels; compares with the last deep step",
)
def h2cache(double: int = 19, single: int = 38, first: float = 0.12, second: float = 0.09, pool: int = 2) -> Fields:
    """Two gates: the double blocks by their first one, the single blocks by theirs.

    After a hit of the first gate the first single block still runs, as in the published code, and the others are reused
    whatever the second gate would say. `double` and `single` are numbers of blocks; the defaults are FLUX's.
    """
    common: Fields = {"warmup_steps": 1, "max_consecutive_skips": None, "estimator": Reuse("h")}
    return {
        "joint": False,
        "rules": (
            SiteRule(sites=(0, double), gate=ResidualChange(first, pool=pool), **common),
            SiteRule(sites=(double, double + single), gate=ResidualChange(second, pool=pool, follows=True), **common),
        ),
    }
