"""What the field `sites` says, read."""

from __future__ import annotations

from typing import Any

from .passes.sublayers import KINDS
from .passes.whole_model import MODEL
from .plan import AskedSite


def asked_sites(sites: object) -> tuple[AskedSite, ...]:
    """What the field `sites` says. Raises TypeError if that is none of what it may be."""
    if sites == "trunk":
        return (AskedSite(),)
    if sites == MODEL:
        return (AskedSite(None, MODEL),)
    found = [one] if (one := _asked_site(sites)) else [*map(_asked_site, sites)] if isinstance(sites, tuple) else []
    asked = tuple(one for one in found if one is not None)
    kinds = {bool(one.part) for one in asked}
    if len(kinds) != 1 or len(asked) < len(found) or len(set(asked)) < len(asked):
        parts = ", ".join(map(repr, KINDS))
        expected = f"'trunk', 'model', two whole numbers or several such pairs, or of {parts} one or several"
        raise TypeError(f"sites: expected {expected}, got {sites!r}")
    return asked


def _asked_site(site: Any) -> AskedSite | None:
    """Of 'mlp', ('mlp', 0, 8) or (0, 8)."""
    part = site if isinstance(site, str) else site[0] if isinstance(site, tuple) and len(site) == 3 else ""
    blocks = None if isinstance(site, str) else site[1:] if part else site
    numbers = isinstance(blocks, tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in blocks)
    if part not in ("", *KINDS) or not (blocks is None or (numbers and len(blocks) == 2)):
        return None
    return AskedSite(blocks, part)
