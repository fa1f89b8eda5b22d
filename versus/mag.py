"""diffusers' MagCache: reuses the blocks' residual while calibrated ratios of its size say that it changes little.

Its documentation does not say how to compile it, and `torch.compile` is told to leave its hooks alone: compiled after
the cache is put in, whether as a whole or by blocks, all blocks run eagerly. So the blocks are compiled first, which
is the library's regional compilation below of the hooks, and the fastest of what runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.hooks.mag_cache import MagCacheHeadHook

from .generation import generate
from .isolate import Held, compile_blocks_alone, hooks, states
from .system import Installed, Schedule, others
from .workload import STEPS, Workload


@dataclass(frozen=True, slots=True)
class Mag:
    """The ratios and the threshold decide, or the schedule does: then the error is compared with -1 or infinity."""

    name: ClassVar[str] = "MagCache"
    source: ClassVar[str] = f"diffusers {diffusers.__version__}"
    recipe: ClassVar[str] = "blocks compiled, then the cache put in; diffusers recommends nothing for it"
    dial: ClassVar[str | None] = "threshold"
    mag_ratios: tuple[float, ...]  # of each step, from `calibrate`
    threshold: float = 0.06
    max_skip_steps: int = 3
    retention_ratio: float = 0.2
    schedule: Schedule | None = None
    compiled: bool = True

    @property
    def label(self) -> str:
        if self.schedule is not None:
            return "schedule"
        return ", ".join((f"threshold {self.threshold:.4g}", *others(self, "max_skip_steps", "retention_ratio")))

    def why_not(self, workload: Workload) -> None:
        return None

    def install(self, model: Any, workload: Workload) -> Installed:
        if self.compiled:
            compile_blocks_alone(model, fullgraph=True)
        scheduled = self.schedule is not None
        config = diffusers.MagCacheConfig(
            threshold=self.threshold,
            max_skip_steps=STEPS if scheduled else self.max_skip_steps,
            retention_ratio=0.0 if scheduled else self.retention_ratio,
            num_inference_steps=STEPS,
            mag_ratios=list(self.mag_ratios),
        )
        model.enable_cache(config)
        (head,) = hooks(model, MagCacheHeadHook)
        held = Held(lambda: states([head]), STEPS - 1)
        deep: list[bool] = []

        def call(stream: str, step: int, inputs: dict[str, Any]) -> Any:
            held.before(step)
            if self.schedule is not None:
                config.threshold = -1.0 if self.schedule.deep(step) else math.inf
            with model.cache_context(stream):
                result = model(**inputs)
            deep.append(head.state_manager._state_cache[stream].should_compute)
            return result

        def begin() -> None:
            deep.clear()
            model._reset_stateful_cache()

        return Installed(call, begin, lambda: deep, state=lambda: held.bytes)


def calibrate(workload: Workload, seeds: Sequence[int], steps: int = STEPS) -> tuple[float, ...]:
    """The ratios as the library's own calibration measures them, of the first stream as its guide says; a mean."""
    model: Any = workload.load()
    # One step more than there are: at the last one the hook would print its ratios and forget them.
    model.enable_cache(diffusers.MagCacheConfig(calibrate=True, num_inference_steps=steps + 1))
    (head,) = hooks(model, MagCacheHeadHook)

    def call(stream: str, step: int, inputs: dict[str, Any]) -> Any:
        with model.cache_context(stream):
            return model(**inputs)

    ratios = []
    for seed in seeds:
        generate(Installed(call, model._reset_stateful_cache, steps=steps), workload, seed)
        ratios.append(head.state_manager._state_cache[workload.streams[0]].calibration_ratios)
    return tuple(torch.tensor(ratios).mean(0).tolist())
