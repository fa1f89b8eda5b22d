"""The published rule, which the oracle follows, as fields of a config."""

from __future__ import annotations

from typing import Any

from dicache_compile import DiCacheConfig, SiteRule
from dicache_compile.fields import REPLACES

# But for the last, which the paper has not.
PUBLISHED = {"error": "probe", "threshold": 0.05, "order": 1, "gamma_range": (1.0, 1.5), "max_consecutive_skips": 3}


def published(**fields: Any) -> DiCacheConfig:
    """A config of the published rule, but for these fields and what nothing reads beside them."""
    return DiCacheConfig(**{"joint": False, **({} if fields.get("rules") else _kept(fields)), **fields})


def published_rule(**fields: Any) -> SiteRule:
    """The same of one rule among several."""
    return SiteRule(**{**_kept(fields), **fields})


def _kept(fields: dict[str, Any]) -> dict[str, Any]:
    given = [by for by in REPLACES if fields.get(by) is not None]
    unread = {name for by in given for name in REPLACES[by]}
    return {name: value for name, value in PUBLISHED.items() if name not in unread}
