"""diffusers' TaylorSeerCache: runs modules on every few steps and continues their outputs as Taylor series in between.

By default it continues the attentions' outputs alone: the blocks around them, and so their MLPs, run on every step.
`lite` skips all blocks and continues what the model ends in. `deep` is when the modules are run. Its default patterns
end in "attn" and so match nothing in Wan, whose attentions are called attn1 and attn2: there they are named to it.

Its documentation does not say how to compile it. `torch.compile(model)` is what runs, with a break of the graph at each
module that it continues; `compile_repeated_blocks(fullgraph=True)` is an error, and without `fullgraph` no faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook
from torch import nn

from .isolate import Held, compile_alone, hooks, states
from .system import Installed, Schedule
from .workload import STEPS, Workload

ATTENTIONS_OF_WAN = [r"blocks\.\d+\.attn[12]"]
NEVER = 1 << 30


@dataclass(frozen=True, slots=True)
class TaylorSeer:
    """Interval and first steps decide, or the schedule does: by an interval of 1 or NEVER, set before each step."""

    name: ClassVar[str] = "TaylorSeerCache"
    source: ClassVar[str] = f"diffusers {diffusers.__version__}"
    recipe: ClassVar[str] = "torch.compile(model), the faster of what runs; diffusers recommends nothing for it"
    dial: ClassVar[str | None] = None
    cache_interval: int = 5
    disable_cache_before_step: int = 3
    max_order: int = 1
    taylor_factors_dtype: str = "bfloat16"  # the library's default
    lite: bool = False
    schedule: Schedule | None = None
    compiled: bool = True

    @classmethod
    def pairs(cls, deep: int, steps: int = STEPS) -> list[tuple[int, int]]:
        """(interval, first steps) that make so many deep steps."""
        pairs = [(interval, before) for interval in range(2, 11) for before in range(2, 11)]
        return [pair for pair in pairs if sum(map(cls(*pair).computes, range(steps))) == deep]

    def computes(self, step: int) -> bool:
        """Whether a step is computed. It is the second after the first steps, so no setting gives a `Schedule`."""
        before = self.disable_cache_before_step
        return step < before or (step - before - 1) % self.cache_interval == 0

    @property
    def label(self) -> str:
        words = ["lite"] if self.lite else []
        if self.schedule is None:
            words.append(f"interval {self.cache_interval} after {self.disable_cache_before_step}")
        else:
            words.append("schedule")
        words.append(f"order {self.max_order}")
        return ", ".join(words + [self.taylor_factors_dtype] * (self.taylor_factors_dtype != "bfloat16"))

    def why_not(self, workload: Workload) -> None:
        return None

    def install(self, model: Any, workload: Workload) -> Installed:
        patterns = ATTENTIONS_OF_WAN if isinstance(model, diffusers.WanTransformer3DModel) and not self.lite else None
        config = diffusers.TaylorSeerCacheConfig(
            cache_interval=self.cache_interval,
            disable_cache_before_step=self.disable_cache_before_step if self.schedule is None else -2,
            max_order=self.max_order,
            taylor_factors_dtype=getattr(torch, self.taylor_factors_dtype),
            cache_identifiers=patterns,
            use_lite_mode=self.lite,
        )
        model.enable_cache(config)
        continued = hooks(model, TaylorSeerCacheHook)
        run: nn.Module = compile_alone(model) if self.compiled else model
        held = Held(lambda: states(continued), STEPS - 1)
        deep: list[bool] = []

        def call(stream: str, step: int, inputs: dict[str, Any]) -> Any:
            held.before(step)
            if self.schedule is not None:
                interval = 1 if self.schedule.deep(step) else NEVER
                for hook in continued:
                    hook.cache_interval = interval
            with model.cache_context(stream):
                result = run(**inputs)
            state = continued[0].state_manager._state_cache[stream]
            deep.append(state.last_update_step == state.current_step)
            return result

        def begin() -> None:
            deep.clear()
            model._reset_stateful_cache()

        return Installed(call, begin, lambda: deep, state=lambda: held.bytes)
