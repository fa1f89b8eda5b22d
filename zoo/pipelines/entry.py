"""One pipeline of diffusers with tiny random parts, and what a person who read its source knows of its loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

STEPS = 8  # that a run is asked for


@dataclass(frozen=True, slots=True)
class PipelineEntry:
    """A pipeline that needs no hub: prompts come as embeddings, and the result is latents."""

    name: str  # "flux_kontext"
    build: Callable[[], tuple[Any, dict[str, Any]]]  # the pipeline and the arguments of its call, the same every time
    streams: tuple[str, ...] = ("cond", "uncond")  # the calls of a step: as the pipeline names them, or numbers
    steps: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"transformer": tuple(range(STEPS))})
    # The steps of a run that each denoiser makes
    callback: str = "callback_on_step_end"  # "callback": of the old kind, which cannot interrupt
    interrupts: bool = True  # whether its loop looks at `_interrupt`

    def make(self) -> tuple[Any, dict[str, Any]]:
        """The pipeline and the arguments of a call, without a progress bar on the screen."""
        pipe, arguments = self.build()
        pipe.set_progress_bar_config(disable=True)
        return pipe, {"output_type": "latent", **arguments}


def generate(pipe: Any, arguments: dict[str, Any], seed: int = 0, **more: Any) -> Tensor:
    """The latents that a pipeline gives for a seed."""
    generator = torch.Generator().manual_seed(seed)
    result = pipe(**{"num_inference_steps": STEPS, **arguments, **more}, generator=generator)
    latents: Tensor = result[0] if isinstance(result, tuple) else next(iter(result.values()))
    return torch.stack(latents) if isinstance(latents, list) else latents
