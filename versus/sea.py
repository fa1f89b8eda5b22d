"""diffusers' SeaCache: reuses the blocks' residual while the latents, filtered by frequency, have changed little.

Its documentation says that Wan takes "the generic repeated-block path in eager mode", and nothing on compiling it.
`torch.compile(model)` runs, but compiles anew on every step, as sigma is a constant of its graphs, and leaves the first
block eager. With the blocks compiled before the cache is put in, as for MagCache, it is as fast and compiles once.

FLUX, which it has no adapter for, it takes with a callback that gives its latents as [C, T, H, W]: as here, a picture
is a clip of one frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
from diffusers.hooks.sea_cache import SeaCacheRootHook
from torch import Tensor, nn

from .isolate import Held, compile_blocks_alone, hooks, states
from .system import Installed, Schedule, others
from .workload import STEPS, Workload

SIGMA = {"flux": 1.0, "wan": 1000.0}  # what the models are given as their timestep, for sigma = 1


@dataclass(frozen=True, slots=True)
class Sea:
    """The threshold decides, or the schedule does: then the accumulated distance is compared with 0 or infinity."""

    name: ClassVar[str] = "SeaCache"
    source: ClassVar[str] = f"diffusers {diffusers.__version__}"
    recipe: ClassVar[str] = "blocks compiled, then the cache put in; diffusers recommends nothing for it"
    dial: ClassVar[str | None] = "threshold"
    threshold: float = 0.25
    residual_order: int = 1
    retention_steps: int = 1
    cache_end_steps: int = 1
    max_consecutive_cached: int = 2
    power_exp: float = 3.0
    schedule: Schedule | None = None
    compiled: bool = True

    @property
    def label(self) -> str:
        if self.schedule is not None:
            return "schedule"
        return ", ".join((f"threshold {self.threshold:.4g}", *others(self, "max_consecutive_cached")))

    def why_not(self, workload: Workload) -> None:
        return None

    def install(self, model: Any, workload: Workload) -> Installed:
        if self.compiled:
            compile_blocks_alone(model, fullgraph=True)
        scheduled = self.schedule is not None
        config = diffusers.SeaCacheConfig(
            threshold=self.threshold,
            residual_order=self.residual_order,
            retention_steps=0 if scheduled else self.retention_steps,
            cache_end_steps=0 if scheduled else self.cache_end_steps,
            max_consecutive_cached=0 if scheduled else self.max_consecutive_cached,
            power_exp=self.power_exp,
            raw_vision_callback=_picture if workload.family == "flux" else None,
        )
        model.enable_cache(config)
        (root,) = hooks(model, SeaCacheRootHook)
        held = Held(lambda: states([root]), STEPS - 1)
        deep: list[bool] = []

        def call(stream: str, step: int, inputs: dict[str, Any]) -> Any:
            held.before(step)
            if self.schedule is not None:
                config.threshold = 0.0 if self.schedule.deep(step) else math.inf
            sigma = float(inputs["timestep"][0]) / SIGMA[workload.family]
            with model.cache_context(stream, step_index=step, sigma=sigma, num_inference_steps=STEPS):
                result = model(**inputs)
            deep.append(root.state_manager._state_cache[stream].consecutive_cached == 0)
            return result

        def begin() -> None:
            deep.clear()
            model._reset_stateful_cache()

        return Installed(call, begin, lambda: deep, state=lambda: held.bytes)


def _picture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """FLUX's tokens [B, H * W, C] as one [C, 1, H, W] for each picture."""
    tokens: Tensor = kwargs["hidden_states"]
    side = round(tokens.shape[1] ** 0.5)
    return list(tokens.transpose(1, 2).unflatten(2, (1, side, side)).unbind(0))
