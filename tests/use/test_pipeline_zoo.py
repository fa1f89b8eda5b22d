"""Every pipeline of `zoo.pipelines` with `enable_cache`: exact where nothing is reused, and no run leaves a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dicache_compile import configure, disable_cache, enable_cache, summary
from dicache_compile.calls.runs import current_run
from zoo.pipelines import pipelines
from zoo.pipelines.entry import PipelineEntry, generate

ENTRIES = pipelines()
# One for each kind of loop and of guidance; `test_enable.py` has FLUX and Wan, and `make test-all` has all.
TYPICAL = {"flux_image", "sd3", "pixart_sigma", "wan22", "cogvideox", "mochi"}
CASES = [
    pytest.param(entry, id=name, marks=[] if name in TYPICAL else [pytest.mark.exhaustive])
    for name, entry in ENTRIES.items()
]
AFTER = 4  # the step after which a run is broken off


class MistakeError(Exception):
    """What a user's callback raises."""


def callback(entry: PipelineEntry, does: Callable[[Any], None], pipe: Any) -> dict[str, Any]:
    """The argument that has `does(pipe)` called once, after a step in the middle."""

    def new(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == AFTER:
            does(pipe)
        return {}

    def old(step: int, *_: Any) -> None:
        if step == AFTER:
            does(pipe)

    return {entry.callback: new if entry.callback == "callback_on_step_end" else old}


def fails(_: Any) -> None:
    raise MistakeError


def stops(_: Any) -> None:
    raise KeyboardInterrupt


def interrupts(pipe: Any) -> None:
    pipe._interrupt = True


def recorded(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The steps of the last generation, by stream."""
    streams = summary(model).generations[-1].streams
    return {name: tuple(step.index for step in steps) for name, steps in streams.items()}


def reused(model: nn.Module) -> int:
    streams = summary(model).generations[-1].streams
    return sum(not step.deep for steps in streams.values() for step in steps)


@torch.no_grad()
@pytest.mark.parametrize("entry", CASES)
def test_a_pipeline_is_cached_and_what_breaks_a_run_off_leaves_nothing_behind(entry: PipelineEntry) -> None:
    pipe, arguments = entry.make()
    plain = generate(pipe, arguments)
    enabled = enable_cache(pipe, threshold=0.0, compile=False)
    assert list(enabled.models) == list(entry.steps)
    assert torch.equal(generate(pipe, arguments), plain)
    for name, model in enabled.models.items():
        assert recorded(model) == dict.fromkeys(entry.streams, entry.steps[name])
    configure(enabled, threshold=10.0)
    cached = generate(pipe, arguments)
    assert cached.isfinite().all()
    assert not torch.equal(cached, plain)
    assert all(reused(model) for model in enabled.models.values())
    other = generate(pipe, arguments, seed=1)
    assert not torch.equal(other, cached)
    for does, error in ((fails, MistakeError), (stops, KeyboardInterrupt)):
        with pytest.raises(error):
            generate(pipe, arguments, seed=1, **callback(entry, does, pipe))
        assert current_run() is None
        assert torch.equal(generate(pipe, arguments), cached)
    runs = 6
    if entry.interrupts:
        generate(pipe, arguments, seed=1, **callback(entry, interrupts, pipe))
        assert torch.equal(generate(pipe, arguments), cached)
        runs += 2
    for name, model in enabled.models.items():
        assert recorded(model) == dict.fromkeys(entry.streams, entry.steps[name])
    assert len(summary(next(iter(enabled.models.values()))).generations) == runs + 1
    disable_cache(pipe)
    assert torch.equal(generate(pipe, arguments), plain)
