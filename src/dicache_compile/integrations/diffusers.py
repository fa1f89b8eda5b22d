"""What diffusers pipelines say while they run: the name of a call, the start of a generation and its steps, its end.

Pipelines call `model.cache_context("cond")` around the model, `self.progress_bar(total=steps)` around the loop, and
`model._reset_stateful_cache()` at the end. Each is wrapped, once, to tell the runtime; what they did they still do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from ..runtime.session import announce_generation, end_generation
from ..runtime.streams import pipeline_stream
from .imports import when_imported

_MARK = "_dicache_wrapped"


def install() -> None:
    """Wraps diffusers' methods once it is imported. Does nothing the second time."""
    when_imported("diffusers.models.cache_utils", _wrap_models)
    when_imported("diffusers.pipelines.pipeline_utils", _wrap_pipelines)


def _wrap_models(module: ModuleType) -> None:
    mixin = getattr(module, "CacheMixin", None)
    if mixin is None or getattr(mixin, _MARK, False):
        return
    cache_context, reset = mixin.cache_context, mixin._reset_stateful_cache

    @functools.wraps(cache_context)
    @contextmanager
    def named(self: Any, name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        with cache_context(self, name, *args, **kwargs), pipeline_stream(name):
            yield

    @functools.wraps(reset)
    def ended(self: Any, *args: Any, **kwargs: Any) -> None:
        reset(self, *args, **kwargs)
        end_generation(self)

    mixin.cache_context, mixin._reset_stateful_cache = named, ended
    setattr(mixin, _MARK, True)


def _wrap_pipelines(module: ModuleType) -> None:
    pipeline = getattr(module, "DiffusionPipeline", None)
    if pipeline is None or getattr(pipeline, _MARK, False):
        return
    progress_bar = pipeline.progress_bar

    @functools.wraps(progress_bar)
    def begun(self: Any, iterable: Any = None, total: int | None = None) -> Any:
        # The length of the scheduler's own list, which counts the extra calls of second-order samplers.
        steps = (
            getattr(self, "_num_timesteps", None) or total or (len(iterable) if hasattr(iterable, "__len__") else None)
        )
        for component in self.components.values():
            if isinstance(component, nn.Module):
                announce_generation(getattr(component, "_orig_mod", component), steps)
        return progress_bar(self, iterable=iterable, total=total)

    pipeline.progress_bar = begun
    setattr(pipeline, _MARK, True)
