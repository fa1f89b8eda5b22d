"""The test of what was drawn: it knows each rendered picture and clip, and nothing else passes for one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bench.clips import clips
from bench.clips.clips import FRAMES, MOTIONS
from bench.shapes import pictures
from bench.shapes.pictures import COLOURS, SHAPES
from versus.content import clip_shows, look_at, picture_shows

PROMPTS = list(itertools.product(SHAPES, COLOURS))
Picture = tuple[Tensor, tuple[str, str]]
Clip = tuple[Tensor, tuple[str, str, str]]


def some_pictures() -> list[Picture]:
    """Random pictures with their prompts, until each prompt is there."""
    drawn = pictures.render(100, 32, torch.Generator().manual_seed(0))
    prompts = [(SHAPES[shape], list(COLOURS)[colour]) for shape, colour in zip(drawn.shape, drawn.colour, strict=True)]
    return list(zip(drawn.pixels, prompts, strict=True))


def some_clips() -> list[Clip]:
    """Random clips with their prompts."""
    drawn = clips.render(12, torch.Generator().manual_seed(0))
    prompts = [
        (SHAPES[shape], list(COLOURS)[colour], list(MOTIONS)[motion])
        for shape, colour, motion in zip(drawn.shape, drawn.colour, drawn.motion, strict=True)
    ]
    return list(zip(drawn.pixels, prompts, strict=True))


def test_a_rendered_picture_shows_its_own_prompt_and_no_other() -> None:
    drawn = some_pictures()
    assert {prompt for _, prompt in drawn} == set(PROMPTS)
    looks = look_at(torch.stack([pixels for pixels, _ in drawn]))
    for look, (_, prompt) in zip(looks, drawn, strict=True):
        assert [other for other in PROMPTS if look.is_a(*other)] == [prompt], look


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_a_little_noise_hides_nothing(noise: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for pixels, prompt in some_pictures()[:20]:
        assert picture_shows(pixels + noise * torch.randn(pixels.shape, generator=generator), prompt)


def test_an_empty_picture_noise_and_a_half_denoised_one_show_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    for pixels, prompt in some_pictures()[:20]:
        noise = torch.randn(pixels.shape, generator=generator)
        empty = pixels[:, :1, :1].expand_as(pixels)
        for bad in (empty, empty + 0.1 * noise, noise, torch.lerp(pixels, noise, 0.5), pixels * torch.nan):
            assert not picture_shows(bad, prompt)


def test_a_rendered_clip_shows_its_own_prompt() -> None:
    drawn = some_clips()
    assert {motion for _, (_, _, motion) in drawn} == set(MOTIONS)
    for pixels, prompt in drawn:
        assert clip_shows(pixels, prompt), prompt


def test_a_clip_shows_no_other_shape_colour_or_motion() -> None:
    for pixels, (shape, colour, motion) in some_clips()[:2]:
        assert not any(clip_shows(pixels, (other, colour, motion)) for other in SHAPES if other != shape)
        assert not any(clip_shows(pixels, (shape, other, motion)) for other in COLOURS if other != colour)
        assert not any(clip_shows(pixels, (shape, colour, other)) for other in MOTIONS if other != motion)


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(range(FRAMES)[::-1], id="reversed"),
        pytest.param((0, 3, 1, 5, 2, 6, 4, 7), id="shuffled"),
        pytest.param((0, 1, 2, 4, 3, 5, 6, 7), id="two frames swapped"),
        pytest.param((4,) * FRAMES, id="still"),
        pytest.param((0,) * 4 + (7,) * 4, id="one leap"),
    ],
)
def test_a_clip_in_another_order_shows_no_motion(order: tuple[int, ...]) -> None:
    for pixels, prompt in some_clips()[:4]:
        assert not clip_shows(pixels[:, list(order)], prompt)
