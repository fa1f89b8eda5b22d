"""What diffusers pipelines say while they run: the name of a call and where it stands, the start and end of a run.

Pipelines call `model.cache_context("cond")` around the model, `self.progress_bar(total=steps)` around the loop, and
`self.maybe_free_model_hooks()` at the end, by way of which `model._reset_stateful_cache()`. Each is wrapped, once, to
tell `calls/`; what they did they still do. `compile_repeated_blocks` with our backend is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ..calls.runs import Position, at, end_runs_of
from ..calls.session import forget_ended
from ..calls.streams import pipeline_stream
from ..compiled import is_ours
from .bars import announce
from .imports import when_imported
from .schedulers import calls_of, place_of

_MARK = "_dicache_wrapped"


def install() -> None:
    """Wraps diffusers' methods once it is imported. Does nothing the second time."""
    when_imported("diffusers.models.cache_utils", _wrap_models)
    when_imported("diffusers.models.modeling_utils", _wrap_blocks)
    when_imported("diffusers.pipelines.pipeline_utils", _wrap_pipelines)


def _wrap_models(module: ModuleType) -> None:
    mixin = getattr(module, "CacheMixin", None)
    if mixin is None or getattr(mixin, _MARK, False):
        return
    cache_context, reset = mixin.cache_context, mixin._reset_stateful_cache

    @functools.wraps(cache_context)
    @contextmanager
    def named(self: Any, name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        with cache_context(self, name, *args, **kwargs), pipeline_stream(name), at(_position(kwargs)):
            yield

    @functools.wraps(reset)
    def forgotten(self: Any, *args: Any, **kwargs: Any) -> None:
        reset(self, *args, **kwargs)
        forget_ended(self)

    mixin.cache_context, mixin._reset_stateful_cache = named, forgotten
    setattr(mixin, _MARK, True)


def _position(told: dict[str, Any]) -> Position:
    """What `cache_context` was told, as far as it is numbers of the host: no tensor is read."""
    index, steps, sigma = (told.get(name) for name in ("step_index", "num_inference_steps", "sigma"))
    return Position(
        index if isinstance(index, int) else None,
        steps if isinstance(steps, int) and steps > 0 else None,
        float(sigma) if isinstance(sigma, (int, float)) else None,
    )


def _wrap_blocks(module: ModuleType) -> None:
    mixin = getattr(module, "ModelMixin", None)
    compile_blocks = getattr(mixin, "compile_repeated_blocks", None)
    if mixin is None or compile_blocks is None or _MARK in vars(mixin):
        return

    @functools.wraps(compile_blocks)
    def refused(self: Any, *args: Any, **kwargs: Any) -> None:
        if is_ours(kwargs.get("backend")):
            raise ValueError(
                "compile_repeated_blocks compiles each block of the model alone, and of a block alone nothing can be "
                'left out: compile the whole model, by enable_cache(model) or model.compile(backend="dicache")'
            )
        compile_blocks(self, *args, **kwargs)

    mixin.compile_repeated_blocks = refused
    setattr(mixin, _MARK, True)


def _wrap_pipelines(module: ModuleType) -> None:
    pipeline = getattr(module, "DiffusionPipeline", None)
    if pipeline is None or getattr(pipeline, _MARK, False):
        return
    progress_bar, free = pipeline.progress_bar, pipeline.maybe_free_model_hooks

    @functools.wraps(progress_bar)
    def begun(self: Any, iterable: Any = None, total: int | None = None) -> Any:
        bar = progress_bar(self, iterable=iterable, total=total)
        steps = getattr(self, "_num_timesteps", None) or (len(iterable) if hasattr(iterable, "__len__") else None)
        if steps is None and total is not None:
            steps = calls_of(self, total)
        announce(bar, steps, by=self, place=place_of(self, steps))
        return bar

    @functools.wraps(free)
    def done(self: Any) -> None:
        end_runs_of(self)  # of a loop that left its bar open
        free(self)

    pipeline.progress_bar, pipeline.maybe_free_model_hooks = begun, done
    setattr(pipeline, _MARK, True)
