"""The clips Wan: its configuration, its weights, its prompts and one guided generation with a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from ..shapes.pictures import COLOURS, SHAPES
from .clips import FRAMES, MOTIONS, SIZE

WEIGHTS = Path(__file__).with_name("weights") / "wan.safetensors"
VOCABULARY = 16  # one-hot words: the shapes, then the colours, then the motions, the rest unused
GUIDANCE = 2.0
SHIFT = 2.0  # of the scheduler's sigmas towards noise, as Wan samples
CONFIG = {
    "patch_size": (2, 4, 4),  # 4 x 8 x 8 tokens
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": VOCABULARY,
    "freq_dim": 128,
    "ffn_dim": 640,
    "num_layers": 10,
}


class Prompt(NamedTuple):
    """What a clip shall show."""

    shape: str
    colour: str
    motion: str


def load() -> WanTransformer3DModel:
    """The trained model in float32, in eval mode, without gradients."""
    model = WanTransformer3DModel(**CONFIG)
    model.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return model.eval().requires_grad_(False)


def words(shape: Tensor, colour: Tensor, motion: Tensor) -> Tensor:
    """Indices [B] to the prompts [B, 3, VOCABULARY]. The empty prompt, for guidance, is all zeros."""
    places = (shape, len(SHAPES) + colour, len(SHAPES) + len(COLOURS) + motion)
    return torch.nn.functional.one_hot(torch.stack(places, dim=1), VOCABULARY).float()


def encode(prompts: Sequence[Prompt]) -> Tensor:
    """[B, 3, VOCABULARY]."""
    vocabularies = (list(SHAPES), list(COLOURS), list(MOTIONS))
    indices = [[known.index(word) for known, word in zip(vocabularies, prompt, strict=True)] for prompt in prompts]
    return words(*torch.tensor(indices).unbind(1))


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    seed: int,
    steps: int = 30,
    after_step: Callable[[], object] = lambda: None,
    frames: int = FRAMES,
) -> Tensor:
    """Samples one clip for each prompt: [B, 3, frames, SIZE, SIZE] float32 in [-1, 1]; two calls a step."""
    prompt = encode(prompts)
    empty = torch.zeros_like(prompt)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(prompts), 3, frames, SIZE, SIZE, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        batched = timestep.expand(len(prompts))
        asked = model(hidden_states=latents, timestep=batched, encoder_hidden_states=prompt, return_dict=False)[0]
        free = model(hidden_states=latents, timestep=batched, encoder_hidden_states=empty, return_dict=False)[0]
        latents = scheduler.step(free + GUIDANCE * (asked - free), timestep, latents, return_dict=False)[0]
        after_step()
    return latents.clamp(-1, 1)
