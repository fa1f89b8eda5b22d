"""Methods with several sites that decide apart."""

from __future__ import annotations

from ..estimators import Reuse
from ..gates import ResidualChange
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
