"""What the systems are run on: a trained model, its prompts, its sampler, and a test of what it drew."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.clips import model as clips
from bench.clips.clips import MOTIONS
from bench.shapes import model as shapes
from bench.shapes.pictures import COLOURS, SHAPES

from .content import clip_shows, picture_shows

STEPS = 30
HELD_OUT = 1000  # seeds from here on are measured on; those below calibrate and tune, and none was trained on


@dataclass(frozen=True, slots=True)
class Workload:
    """A model and everything that a generation with it needs."""

    name: str  # "shapes FLUX"
    key: str  # "flux", for file names and the command line
    family: Literal["flux", "wan"]  # whose class the model is of
    streams: tuple[str, ...]  # the calls of a step, in order, by the names that diffusers' pipelines give them
    load: Callable[[], nn.Module]
    prompts: tuple[Any, ...]
    sample: Callable[..., Tensor]  # (model, prompts, seed, steps) to pictures [B, 3, (frames,) H, W] in [-1, 1]
    shows: Callable[[Tensor, Any], bool]  # whether one picture or clip [3, (frames,) H, W] shows its prompt

    def prompt(self, seed: int) -> Any:
        """The prompt that goes with a seed; neighbouring seeds have different ones."""
        return self.prompts[seed * 7 % len(self.prompts)]

    def title(self, prompt: Sequence[str]) -> str:
        """Such as "red circle right"."""
        shape, colour, *rest = prompt
        return " ".join((colour, shape, *rest))

    def strip(self, pixels: Tensor) -> Tensor:
        """A picture, or a clip's first, middle and last frame side by side, [3, H, W]."""
        frames = self.frames(pixels)
        return torch.cat([frames[place] for place in dict.fromkeys((0, len(frames) // 2, len(frames) - 1))], dim=-1)

    def frames(self, pixels: Tensor) -> Sequence[Tensor]:
        """A picture, or a clip's frames, each [3, H, W]."""
        return [pixels] if pixels.ndim == 3 else list(pixels.unbind(1))


FLUX = Workload(
    "shapes FLUX",
    "flux",
    "flux",
    ("cond",),
    shapes.load,
    tuple(itertools.product(SHAPES, COLOURS)),
    shapes.generate,
    picture_shows,
)
WAN = Workload(
    "clips Wan",
    "wan",
    "wan",
    ("cond", "uncond"),
    clips.load,
    tuple(itertools.starmap(clips.Prompt, itertools.product(SHAPES, COLOURS, MOTIONS))),
    clips.generate,
    clip_shows,
)
WORKLOADS = (FLUX, WAN)
