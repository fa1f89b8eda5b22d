"""Renders the training clips: one coloured shape that moves straight across a muted background, from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..shapes.pictures import draw, imagine

FRAMES = 8
SIZE = 32  # pixels a side
MOTIONS = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "down": (0.0, 1.0), "up": (0.0, -1.0)}  # (x, y), y downwards


@dataclass(frozen=True, slots=True)
class Clips:
    """A batch of clips and what is on them."""

    pixels: Tensor  # [B, 3, frames, SIZE, SIZE] float32 in [-1, 1]
    shape: Tensor  # [B] int64, index into SHAPES
    colour: Tensor  # [B] int64, index into COLOURS
    motion: Tensor  # [B] int64, index into MOTIONS


def render(count: int, generator: torch.Generator, frames: int = FRAMES) -> Clips:
    """`count` random clips, or their first frames. The shape keeps its size, its tilt and its speed."""
    scenes = imagine(count, generator, radius=(0.44, 0.56), off=0.08)
    motion = torch.randint(len(MOTIONS), (count,), generator=generator)
    travel = 0.5 + 0.15 * torch.rand(count, 1, generator=generator)  # from the first frame to the last, in half sides
    path = travel * torch.tensor(list(MOTIONS.values()))[motion]
    moments = [scenes.centre + path * (frame / (FRAMES - 1) - 0.5) for frame in range(frames)]
    pixels = torch.stack([draw(replace(scenes, centre=centre), SIZE) for centre in moments], dim=2)
    return Clips(pixels, scenes.shape, scenes.colour, motion)
