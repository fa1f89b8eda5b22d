"""Whether a picture shows what was asked for; the rules know how the training pictures are drawn, and no model.

Analysis by synthesis: how much of its ink each pixel holds is a mask, and the shape is the one that,
drawn with the mask's centre and area, agrees with it best. Grey flaws of the background are not looked for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from bench.clips.clips import MOTIONS
from bench.shapes.pictures import COLOURS, SHAPES, Scenes, draw

# Overlap of mask and rendering, from 0 to 1, that counts as the shape.
AGREEMENT = 0.85
# From the mean colour to the ink, in RGB of [0, 1]: half of what is between the two nearest, blue and violet.
COLOUR_ERROR = 0.26
MOST_FRAMES = 0.75  # of a clip's frames have to show shape and colour
TRAVEL = 0.25  # of a clip's shape at least, in half sides: half of what the slowest drawn one does
BACKWARDS = 0.5  # pixels that a step may go against the motion: the mask's centre is not known better
LEAP = 0.3  # of the travel at most in one step, of which seven even ones do 0.14 each

# A square looks the same after pi / 2, and drawn ones tilt by up to 0.3: the rest is for models that overdo it.
_TILTS = torch.linspace(-0.4, 0.4, 9)
_GROWTHS = torch.tensor([0.94, 1.0, 1.06])  # of the radius that the area gives, which noise and blur put off


class Look(NamedTuple):
    """What a picture shows most likely."""

    shape: str  # "star"
    colour: str  # "red"
    agreement: float  # of the picture's mask with the drawn shape: 1 is the same, 0 nothing in common
    colour_error: float  # from the mean colour to the ink of `colour`, in RGB of [0, 1]
    centre: tuple[float, float]  # of the mask as (x, y), in half sides from the middle, y downwards

    def is_a(self, shape: str, colour: str) -> bool:
        """Whether it is that, and plainly."""
        plain = self.agreement >= AGREEMENT and self.colour_error <= COLOUR_ERROR
        return plain and (self.shape, self.colour) == (shape, colour)


def picture_shows(pixels: Tensor, prompt: tuple[str, str]) -> bool:
    """Whether one picture [3, size, size] in [-1, 1] shows a (shape, colour)."""
    return look_at(pixels[None])[0].is_a(*prompt)


def clip_shows(pixels: Tensor, prompt: tuple[str, str, str]) -> bool:
    """Whether one clip [3, frames, size, size] in [-1, 1] shows a (shape, colour) that moves as asked, evenly."""
    shape, colour, motion = prompt
    looks = look_at(pixels.transpose(0, 1))
    if sum(look.is_a(shape, colour) for look in looks) < MOST_FRAMES * len(looks):
        return False
    steps = torch.tensor([look.centre for look in looks]).diff(dim=0)
    x, y = MOTIONS[motion]
    along, across = steps @ torch.tensor([x, y]), steps @ torch.tensor([y, x])
    travel, pixel = float(along.sum()), 2 / pixels.shape[-1]
    straight = travel >= TRAVEL and abs(float(across.sum())) <= travel / 2
    return straight and float(along.min()) >= -BACKWARDS * pixel and float(along.max()) <= LEAP * travel


def look_at(pixels: Tensor) -> list[Look]:
    """What each of some pictures [B, 3, size, size] in [-1, 1] shows."""
    pixels = pixels.float().cpu()
    mask, energy, colour, error = _ink(_smooth(pixels))
    size = mask.shape[-1]
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    # What is less than a third of ink is noise, which would pull the centre to the middle.
    solid = torch.where(mask > 0.3, mask, 0.0)
    weight = solid.sum((1, 2)).clamp(min=1.0)
    centre = torch.stack((solid.sum(1) @ axis, solid.sum(2) @ axis), dim=1) / weight[:, None]
    area = (mask > 0.5).sum((1, 2)).clamp(min=1) * (4 / size**2)
    drawn = _drawings(centre, area, size).flatten(3)
    seen = mask.flatten(1)[:, None, None]
    common = (drawn * seen).sum(3)
    # Intersection over union of soft masks; noise and other colours are in the energy, but in nothing common.
    agreement = common / ((drawn * drawn).sum(3) + energy[:, None, None] - common)
    best, shape = agreement.amax(2).max(1)
    return [
        Look(SHAPES[s], list(COLOURS)[c], a, e, (x, y))
        for s, c, a, e, (x, y) in zip(
            shape.tolist(), colour.tolist(), best.tolist(), error.tolist(), centre.tolist(), strict=True
        )
    ]


def _ink(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How much ink each pixel holds [B, size, size], all colour in units of it [B], which ink [B], how far off [B]."""
    inks = torch.tensor(list(COLOURS.values()))
    rgb = pixels.flatten(2) / 2 + 0.5
    # A background has one tint from edge to edge, and more than half of the pixels: what differs from it is ink.
    tint = rgb - rgb.mean(1, keepdim=True)
    ground = tint.median(2, keepdim=True).values
    strength = (tint - ground).norm(dim=1)
    # The smallest shapes of a clip are 9 % of a frame, and their smooth edge is most of that: hence the top 2 %.
    core = strength > 0.7 * strength.quantile(0.98, dim=1, keepdim=True)
    mean = (rgb * core[:, None]).sum(2) / core.sum(1, keepdim=True).clamp(min=1)
    error, colour = torch.cdist(mean, inks).min(1)
    ink = (inks - inks.mean(1, keepdim=True))[colour][:, :, None] - ground
    full = (ink * ink).sum(1)
    mask = ((tint - ground) * ink).sum(1) / full
    energy = strength.square().sum(1) / full[:, 0]
    return mask.unflatten(1, pixels.shape[2:]), energy, colour, error


def _drawings(centre: Tensor, area: Tensor, size: int) -> Tensor:
    """Masks [B, shapes, poses, size, size] of every shape in some poses, for centres [B, 2] and areas [B]."""
    growth, tilt = torch.cartesian_prod(_GROWTHS, _TILTS).unbind(1)
    radius = (area[:, None] / _unit_areas()).sqrt()[:, :, None] * growth
    shape = torch.arange(len(SHAPES))[:, None].expand_as(radius)
    centres = centre[:, None, None].expand(*radius.shape, 2)
    masks = _masks(shape.flatten(), radius.flatten(), centres.flatten(0, 2), tilt.expand_as(radius).flatten(), size)
    return _smooth(masks[None])[0].unflatten(0, radius.shape)


def _smooth(pixels: Tensor) -> Tensor:
    """The pictures [B, C, size, size] weighted 1 2 1 both ways, which takes most of the noise and little else."""
    return avg_pool2d(avg_pool2d(pad(pixels, (1, 1, 1, 1), mode="replicate"), 2, stride=1), 2, stride=1)


@lru_cache
def _unit_areas() -> Tensor:
    """The area of each shape of radius 1, in squares of a half side: [shapes]."""
    count, radius, size = len(SHAPES), 0.7, 256
    masks = _masks(torch.arange(count), torch.full((count,), radius), torch.zeros(count, 2), torch.zeros(count), size)
    return masks.sum((1, 2)) * (4 / size**2 / radius**2)


def _masks(shape: Tensor, radius: Tensor, centre: Tensor, tilt: Tensor, size: int) -> Tensor:
    """The coverage [B, size, size] in [0, 1] of shapes, as the training pictures have it."""
    count = len(shape)
    colour = torch.zeros(count, dtype=torch.int64)
    black = torch.zeros(count, 3)
    pixels = draw(Scenes(shape, colour, radius, centre, tilt, black, black[:, :2]), size)
    # On black, a channel of the ink is the coverage.
    return (pixels[:, 0] / 2 + 0.5) / next(iter(COLOURS.values()))[0]
