"""diffusers' FirstBlockCache: reuses while the first block's residual differs little from that of the last deep step.

Its documentation does not say how to compile it. `torch.compile(model)` is what runs: it breaks the graph at the
comparison, and each kind of block becomes a graph. The guide's `compile_repeated_blocks(fullgraph=True)` is an error
with this cache ("Skip inlining torch.compiler.disable()d function"), and without `fullgraph` as fast at best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from torch import nn

from .isolate import Held, compile_alone, hooks, states
from .system import Installed, Schedule
from .workload import STEPS, Workload


@dataclass(frozen=True, slots=True)
class FirstBlock:
    """The threshold decides, or the schedule does: then the measured difference is compared with -1 or infinity."""

    name: ClassVar[str] = "FirstBlockCache"
    source: ClassVar[str] = f"diffusers {diffusers.__version__}"
    recipe: ClassVar[str] = "torch.compile(model), the faster of what runs; diffusers recommends nothing for it"
    dial: ClassVar[str | None] = "threshold"
    threshold: float = 0.05
    schedule: Schedule | None = None
    compiled: bool = True

    @property
    def label(self) -> str:
        return f"threshold {self.threshold:.4g}" if self.schedule is None else "schedule"

    def why_not(self, workload: Workload) -> None:
        return None

    def install(self, model: Any, workload: Workload) -> Installed:
        model.enable_cache(diffusers.FirstBlockCacheConfig(self.threshold))
        (head,) = hooks(model, FBCHeadBlockHook)
        run: nn.Module = compile_alone(model) if self.compiled else model
        held = Held(lambda: states([head]), STEPS - 1)
        deep: list[bool] = []

        def call(stream: str, step: int, inputs: dict[str, Any]) -> Any:
            held.before(step)
            if self.schedule is not None:
                head.threshold = -1.0 if self.schedule.deep(step) else math.inf
            with model.cache_context(stream):
                result = run(**inputs)
            deep.append(head.state_manager._state_cache[stream].should_compute)
            return result

        def begin() -> None:
            deep.clear()
            model._reset_stateful_cache()

        return Installed(call, begin, lambda: deep, state=lambda: held.bytes)
