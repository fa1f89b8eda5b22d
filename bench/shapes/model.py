"""The shapes FLUX: its configuration, its weights, its prompts and one generation with a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from .pictures import COLOURS, SHAPES

WEIGHTS = Path(__file__).with_name("weights") / "flux.safetensors"
SIZE = 32  # pixels a side; 2 x 2 patches make 16 x 16 tokens
PATCH = 2
VOCABULARY = 16  # one-hot words: the shapes, then the colours, the rest unused
CONFIG = {
    "patch_size": 1,
    "in_channels": 3 * PATCH * PATCH,
    "num_layers": 3,
    "num_single_layers": 9,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": VOCABULARY,
    "pooled_projection_dim": VOCABULARY,
    "axes_dims_rope": (8, 12, 12),
    "guidance_embeds": False,
}


def load() -> FluxTransformer2DModel:
    """The trained model in float32, in eval mode, without gradients."""
    model = FluxTransformer2DModel(**CONFIG)
    model.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return model.eval().requires_grad_(False)


def conditioning(shape: Tensor, colour: Tensor, size: int = SIZE) -> dict[str, Tensor]:
    """What the model is called with besides latents and timestep, for shapes [B] and colours [B] (indices)."""
    words = torch.stack((shape, len(SHAPES) + colour), dim=1)
    hot = torch.nn.functional.one_hot(words, VOCABULARY).float()
    side = size // PATCH
    # Ids in units of the full-size picture, so that a coarser one covers the same positions.
    axis = (torch.arange(side) + 0.5) * (SIZE / size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return {
        "encoder_hidden_states": hot,
        "pooled_projections": hot.sum(1),
        "img_ids": torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(-1, 3),
        "txt_ids": torch.zeros(words.shape[1], 3),
    }


def pack(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] to tokens [B, H/2 * W/2, 12]."""
    patches = torch.nn.functional.pixel_unshuffle(pixels, PATCH)
    return patches.flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor) -> Tensor:
    """Tokens [B, N, 12] of a square picture to [B, 3, H, W]."""
    side = round(tokens.shape[1] ** 0.5)
    return torch.nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), PATCH)


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    prompts: Sequence[tuple[str, str]],
    seed: int,
    steps: int = 30,
    after_step: Callable[[], object] = lambda: None,
    size: int = SIZE,
) -> Tensor:
    """Samples one picture for each (shape, colour) prompt: [B, 3, size, size] float32 in [-1, 1]."""
    shape = torch.tensor([SHAPES.index(name) for name, _ in prompts])
    colour = torch.tensor([list(COLOURS).index(name) for _, name in prompts])
    inputs = conditioning(shape, colour, size)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(prompts), (size // PATCH) ** 2, CONFIG["in_channels"], generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        batched = (timestep / scheduler.config.num_train_timesteps).expand(len(prompts))
        velocity = model(hidden_states=latents, timestep=batched, return_dict=False, **inputs)[0]
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        after_step()
    return unpack(latents).clamp(-1, 1)
