"""Renders the training pictures: one coloured shape on a muted background, from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.25),
    "blue": (0.15, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "violet": (0.65, 0.20, 0.85),
}

# A regular polygon or star is one straight edge, folded over `points` times: (points, inner radius / outer radius).
_EDGES = {"square": (4, math.cos(math.pi / 4)), "triangle": (3, math.cos(math.pi / 3)), "star": (5, 0.45)}
# Where a tip of the upright shape points: y counts downwards.
_UPRIGHT = {"square": math.pi / 4, "triangle": -math.pi / 2, "star": -math.pi / 2}
# Outer radii that give the shapes about the same area.
_SCALE = {"circle": 0.80, "square": 1.0, "triangle": 1.2, "star": 1.2}


@dataclass(frozen=True, slots=True)
class Scenes:
    """What is on a batch of pictures. Lengths are in halves of the picture's side, from its centre."""

    shape: Tensor  # [B] int64, index into SHAPES
    colour: Tensor  # [B] int64, index into COLOURS
    radius: Tensor  # [B] of the outline, before the shape's own scale
    centre: Tensor  # [B, 2] as (x, y), y counting downwards
    tilt: Tensor  # [B] in radians
    background: Tensor  # [B, 3] in [0, 1], at the centre
    slope: Tensor  # [B, 2] by which the background changes from the centre to an edge, as (down, right)


@dataclass(frozen=True, slots=True)
class Pictures:
    """A batch of pictures and what is on them."""

    pixels: Tensor  # [B, 3, size, size] float32 in [-1, 1]
    shape: Tensor  # [B] int64, index into SHAPES
    colour: Tensor  # [B] int64, index into COLOURS


def render(count: int, size: int, generator: torch.Generator) -> Pictures:
    """`count` random pictures of `size` x `size` pixels; position, size, rotation and background vary."""
    scenes = imagine(count, generator)
    return Pictures(draw(scenes, size), scenes.shape, scenes.colour)


def imagine(
    count: int, generator: torch.Generator, radius: tuple[float, float] = (0.48, 0.66), off: float = 0.2
) -> Scenes:
    """Random scenes, with radii in a range and centres at most `off` from the middle."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    return Scenes(
        shape=torch.randint(len(SHAPES), (count,), generator=generator),
        colour=torch.randint(len(COLOURS), (count,), generator=generator),
        radius=uniform(*radius),
        centre=uniform(-off, off, 2),
        tilt=uniform(-0.3, 0.3),
        # Muted: the channels of a background differ little, so that only the shape is colourful.
        background=uniform(0.1, 0.9, 1) + uniform(-0.08, 0.08, 3),
        slope=uniform(-0.1, 0.1, 2),
    )


def draw(scenes: Scenes, size: int) -> Tensor:
    """[B, 3, size, size] float32 in [-1, 1]."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    x = columns - scenes.centre[:, 0, None, None]
    y = rows - scenes.centre[:, 1, None, None]
    radius, tilt = scenes.radius[:, None, None], scenes.tilt[:, None, None]
    coverage = torch.zeros_like(x)
    for index, name in enumerate(SHAPES):
        chosen = scenes.shape == index
        angle = _UPRIGHT.get(name, 0.0) + tilt[chosen]
        distance = _distance(name, x[chosen], y[chosen], radius[chosen] * _SCALE[name], angle)
        # One pixel of linear ramp across the outline is the anti-aliasing.
        coverage[chosen] = (0.5 - distance * size / 2).clamp(0, 1)

    ink = torch.tensor(list(COLOURS.values()))[scenes.colour][:, :, None, None]
    slope = scenes.slope[:, :, None, None]
    ground = (scenes.background[:, :, None, None] + slope[:, :1] * rows + slope[:, 1:] * columns).clamp(0, 1)
    pixels = ground + coverage[:, None] * (ink - ground)
    return pixels * 2 - 1


def _distance(name: str, x: Tensor, y: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    """Signed distance to the outline, negative inside; exact for the circle, along the edges for the others."""
    r = torch.sqrt(x * x + y * y)
    if name == "circle":
        return r - radius
    points, inner = _EDGES[name]
    half = math.pi / points
    folded = torch.remainder(torch.atan2(y, x) - angle, 2 * half)
    folded = torch.minimum(folded, 2 * half - folded)
    tip = torch.stack((radius, torch.zeros_like(radius)))
    notch = torch.stack((radius * inner * math.cos(half), radius * inner * math.sin(half)))
    along = notch - tip
    px, py = r * torch.cos(folded) - tip[0], r * torch.sin(folded) - tip[1]
    return (px * along[1] - py * along[0]) / torch.sqrt((along * along).sum(0))
