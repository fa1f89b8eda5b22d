"""What `configure` changed of models' configs, for their sessions and for those to come."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..config import DiCacheConfig
from .marks import Mark

_log = logging.getLogger("dicache_compile")
_told: weakref.WeakSet[Mark] = weakref.WeakSet()  # models that were told of `configure`
# By model; (the config it was compiled with, None for any; the fields), in the order in which they were given.
_adjustments: weakref.WeakKeyDictionary[nn.Module, list[tuple[DiCacheConfig | None, dict[str, Any]]]] = (
    weakref.WeakKeyDictionary()
)


def adjust(model: nn.Module, compiled: DiCacheConfig | None, fields: dict[str, Any]) -> None:
    """Remembers fields for the sessions of a model under this config (None: any)."""
    _adjustments.setdefault(model, []).append((compiled, fields))


def forget(model: nn.Module) -> None:
    """What was changed of a model's config counts no more."""
    _adjustments.pop(model, None)


def adjusted(model: nn.Module, compiled: DiCacheConfig) -> DiCacheConfig:
    """A model's config with what was changed since it was compiled."""
    fields: dict[str, Any] = {}
    for config, changed in _adjustments.get(model, ()):
        if config is None or config == compiled:
            fields |= changed
    return compiled.adjusted(**fields)


def adjusted_models() -> list[nn.Module]:
    return list(_adjustments)


def tell_of_configure(mark: Mark, config: DiCacheConfig, others: Sequence[DiCacheConfig]) -> None:
    """Says, once for a model, that it is compiled again for what need not be compiled."""
    other = next((other for other in others if other.alike(config)), None)
    if other is not None and mark not in _told:
        _told.add(mark)
        _log.warning(
            "a model was compiled with %s and again with %s; configure() changes one to the other without compiling",
            other.brief(),
            config.brief(),
        )
