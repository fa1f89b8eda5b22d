"""What the tiny pipelines are made of: denoisers, autoencoders, embeddings of prompts. All of it is random."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from .. import given
from ..more_a import _redrawn

TOKENS = 6  # of a prompt
MASK = "prompt_attention_mask"  # what most pipelines call it


def denoiser(name: str, seed: int = 0, **config: Any) -> nn.Module:
    """The model of that name in `given/`, two blocks of each kind deep or as `config` says."""
    found = given.description(name)
    fewer = {field: min(2, number) if len(found["deeper"]) > 1 else 3 for field, number in found["deeper"].items()}
    torch.manual_seed(seed)
    model: nn.Module = getattr(diffusers, found["model"])(**{**found["init"], **fewer, **config})
    return _redrawn(model).eval().requires_grad_(False)


def vae(name: str, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, name)(**config)
    return model.eval().requires_grad_(False)


def image_vae() -> nn.Module:
    """Of FLUX's kind: one latent of four channels a pixel, of which the pipeline packs 2 x 2."""
    return vae("AutoencoderKL", latent_channels=4, block_out_channels=(4,), norm_num_groups=1, shift_factor=0.0)


def video_vae() -> nn.Module:
    """Of Wan's kind: a latent for 4 frames of 8 x 8 pixels."""
    return vae("AutoencoderKLWan", base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def prompts(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal tensors of these shapes, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def guided(width: int, pooled: int | None = None, mask: str | None = None) -> dict[str, Tensor]:
    """The embeddings of a prompt and of a negative one, by the names that most pipelines have for them.

    `pooled`: the width of the one that stands for all of a prompt. `mask`: the name of the masks, if there are any.
    """
    wide = prompts((1, TOKENS, width), (1, TOKENS, width))
    found = {"prompt_embeds": wide[0], "negative_prompt_embeds": wide[1]}
    if pooled is not None:
        flat = prompts((1, pooled), (1, pooled))
        found |= {"pooled_prompt_embeds": flat[0], "negative_pooled_prompt_embeds": flat[1]}
    if mask is not None:
        found |= {name: torch.ones(1, TOKENS, dtype=torch.bool) for name in (mask, f"negative_{mask}")}
    return found


def picture(height: int, width: int) -> Tensor:
    """A picture to start from: (1, 3, height, width) float32 from 0 to 1."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(1, 3, height, width, generator=generator)


def no_text(*names: str) -> dict[str, None]:
    """Text encoders that are not there, as prompts come as embeddings."""
    return dict.fromkeys(names or ("text_encoder", "tokenizer"))
