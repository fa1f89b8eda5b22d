"""Changing what a compiled model goes by, without compiling it anew."""

from __future__ import annotations

from typing import Any

from .calls.adjustments import adjust
from .config import DiCacheConfig
from .subject import Subject, subjects


def configure(model: object, **fields: Any) -> DiCacheConfig:
    """Changes fields of a compiled model's config from the next generation of each stream on; compiles nothing.

    `fields` are those that are no part of the compiled graph: quality, threshold, gamma_range, warmup_steps,
    warmup_ratio, warmup_inclusive, final_steps, deep_steps, schedule, max_consecutive_skips, num_steps and rules; and
    the estimator, where another one differs in numbers alone (`LearnedTable`). Those that are not named stay as they
    are. `model` may be a pipeline: then all of its compiled models change. Returns the config that is then in force (of
    several models that of the last); without fields, the one that is.

    Raises TypeError or ValueError, as DiCacheConfig does, for a bad value, TypeError for another field, and ValueError
    for a model that is not compiled with this backend. Then nothing is changed.
    """
    found = subjects(model)
    changed = [_changed(one, fields) for one in found]  # all checks, before anything is changed
    for one, configs in zip(found, changed, strict=True):
        if fields:
            adjust(one.model, one.compiled, dict(fields))
        for session, config in zip(one.sessions, configs, strict=False):
            session.tell(config)
    return changed[-1][-1]


def _changed(one: Subject, fields: dict[str, Any]) -> list[DiCacheConfig]:
    """The configs of a model's sessions, with these fields, and of the one to come."""
    if one.config is None:
        raise ValueError(
            "this model is not compiled with dicache_backend, or by a function that hides it: compile it, or call it "
            f"once, before it is told {', '.join(fields) or 'anything'}"
        )
    configs = [session.told.config for session in one.sessions] or [one.config]
    return [config.adjusted(**fields) for config in configs]
