"""What diffusers' modular pipelines say while they run: the start of a run, its steps, its end.

Their loops are blocks. Most open a `progress_bar` of their own; some call `loop_step(..., i=...)` on every step, some
tell a guider where they stand (`set_state`), and a pipeline's `__call__` is around all. Each is wrapped, once, to tell
`calls/`; what they did they still do. Not heard: a loop that does none of these.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from ..calls.runs import begin_run, current_run, end_runs_of
from ..calls.streams import current_request
from .bars import announce
from .imports import when_imported

_MARK = "_dicache_wrapped"
_CALLS_A_STEP = 2  # at most, of second-order samplers: a bar counts their steps, their timesteps are the calls


def install() -> None:
    """Wraps diffusers' methods once it is imported. Does nothing the second time."""
    when_imported("diffusers.modular_pipelines.modular_pipeline", _wrap_blocks)
    when_imported("diffusers.guiders.guider_utils", _wrap_guiders)


def _wrap_blocks(module: ModuleType) -> None:
    loop, pipeline = (getattr(module, name, None) for name in ("LoopSequentialPipelineBlocks", "ModularPipeline"))
    if loop is None or pipeline is None or getattr(loop, _MARK, False):
        return
    progress_bar, loop_step, call = loop.progress_bar, loop.loop_step, pipeline.__call__

    @functools.wraps(progress_bar)
    def begun(self: Any, iterable: Any = None, total: int | None = None) -> Any:
        bar = progress_bar(self, iterable=iterable, total=total)
        announce(bar, total or _length(iterable), by=self)
        return bar

    @functools.wraps(loop_step)
    def stepped(self: Any, components: Any, state: Any, **kwargs: Any) -> Any:
        steps, run = _length(getattr(state, "timesteps", None)), current_run()
        if run is not None and run.by is self and not run.done:
            run.steps = max(run.steps or 0, steps or 0) or None
        elif kwargs.get("i") == 0:
            _begin_another(steps, by=self)
        return loop_step(self, components, state, **kwargs)

    @functools.wraps(call)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = current_run()
        try:
            return call(self, *args, **kwargs)
        finally:  # what began in it and was not ended
            while (run := current_run()) is not None and run is not before:
                run.end()

    loop.progress_bar, loop.loop_step, pipeline.__call__ = begun, stepped, called
    setattr(loop, _MARK, True)


def _wrap_guiders(module: ModuleType) -> None:
    guider = getattr(module, "BaseGuidance", None)
    if guider is None or getattr(guider, _MARK, False):
        return
    set_state = guider.set_state

    @functools.wraps(set_state)
    def told(self: Any, step: int, num_inference_steps: int, *args: Any, **kwargs: Any) -> None:
        set_state(self, step, num_inference_steps, *args, **kwargs)
        if step == 0 and not _is_begun(num_inference_steps):
            _begin_another(num_inference_steps, by=self)

    guider.set_state = told
    setattr(guider, _MARK, True)


def _is_begun(steps: int) -> bool:
    """Whether the run that lasts is one of that many steps, and none of them is done."""
    run = current_run()
    if run is None or run.steps is None or run.done:
        return False
    return run.steps <= _CALLS_A_STEP * steps  # else its bar is one over all chunks of a long result


def _begin_another(steps: int | None, by: object) -> None:
    end_runs_of(by)
    begin_run(steps, current_request(), by=by)


def _length(items: Any) -> int | None:
    return len(items) if hasattr(items, "__len__") else None
