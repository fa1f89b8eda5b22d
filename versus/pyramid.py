"""diffusers' Pyramid Attention Broadcast: attentions run on every few steps, and their outputs are reused in between.

Its hooks keep one state for all streams, so that with guidance in calls of its own the unconditional call would be
given the conditional one's attentions; here each stream has its state, as diffusers' documentation of its main branch
says of a context's name. There is no step that is deep or not, and so no schedule.

Its documentation does not say how to compile it. Its count of calls is a constant of the graph, so each of a
generation's steps is compiled for itself, in the first generation: whole by `torch.compile(model)`, which is the faster
of what runs, as `compile_repeated_blocks(fullgraph=True)` has to find each block's graph among those of all steps.
Dynamo's default limit of 8 graphs would leave the other steps eager.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook, PyramidAttentionBroadcastState

from .isolate import Held, compile_alone, hooks
from .system import Installed
from .workload import STEPS, Workload

TIMESTEP = {"flux": 1000.0, "wan": 1.0}  # a pipeline's timestep, of 1000, by what the model is given


@dataclass(frozen=True, slots=True)
class PyramidAttentionBroadcast:
    """The range that it falls back to, and the timesteps that it is used in."""

    name: ClassVar[str] = "PyramidAttentionBroadcast"
    source: ClassVar[str] = f"diffusers {diffusers.__version__}"
    recipe: ClassVar[str] = "torch.compile(model), the faster of what runs; diffusers recommends nothing for it"
    dial: ClassVar[str | None] = None
    spatial_attention_block_skip_range: int = 2
    cross_attention_block_skip_range: int | None = None
    timesteps: tuple[int, int] = (100, 800)
    compiled: bool = True

    @property
    def label(self) -> str:
        cross = self.cross_attention_block_skip_range
        return f"range {self.spatial_attention_block_skip_range}" + ("" if cross is None else f", cross {cross}")

    def why_not(self, workload: Workload) -> None:
        return None

    def install(self, model: Any, workload: Workload) -> Installed:
        now = [0.0]
        config = diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=self.spatial_attention_block_skip_range,
            cross_attention_block_skip_range=self.cross_attention_block_skip_range,
            spatial_attention_timestep_skip_range=self.timesteps,
            cross_attention_timestep_skip_range=self.timesteps,
            current_timestep_callback=lambda: now[0],  # type: ignore[arg-type, return-value]
        )
        model.enable_cache(config)
        broadcast = hooks(model, PyramidAttentionBroadcastHook)
        own = {stream: [PyramidAttentionBroadcastState() for _ in broadcast] for stream in workload.streams}
        run = compile_alone(model) if self.compiled else model
        held = Held(lambda: [state for states in own.values() for state in states], STEPS - 1)

        def call(stream: str, step: int, inputs: dict[str, Any]) -> Any:
            held.before(step)
            now[0] = float(inputs["timestep"][0]) * TIMESTEP[workload.family]
            for hook, state in zip(broadcast, own[stream], strict=True):
                hook.state = state
            with model.cache_context(stream):
                return run(**inputs)

        def begin() -> None:
            for states in own.values():
                for state in states:
                    state.reset()

        return Installed(call, begin, state=lambda: held.bytes)
