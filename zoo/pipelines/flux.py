"""FLUX, FLUX.2 and Chroma."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from .entry import STEPS, PipelineEntry
from .parts import MASK, denoiser, guided, image_vae, no_text, picture, prompts, vae

Built = tuple[Any, dict[str, Any]]
TEXT = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
SIZE = {"height": 16, "width": 16}
CHANNELS = 16  # of packed latents


def _parts(channels: int = CHANNELS, **config: Any) -> dict[str, Any]:
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": image_vae(),
        "transformer": denoiser("flux", in_channels=channels, **config),
        **no_text(*TEXT),
    }


def _guided() -> dict[str, Any]:
    return {**guided(32, pooled=32), "true_cfg_scale": 2.0, **SIZE}


def _unguided() -> dict[str, Any]:
    return {name: value for name, value in _guided().items() if "negative" not in name and name != "true_cfg_scale"}


def _flux() -> Built:
    return diffusers.FluxPipeline(**_parts()), _guided()


def _flux_image() -> Built:
    return diffusers.FluxImg2ImgPipeline(**_parts()), {**_guided(), "image": picture(16, 16), "strength": 0.75}


def _mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    return mask


def _flux_inpaint() -> Built:
    arguments = {**_guided(), "image": picture(16, 16), "mask_image": _mask(), "strength": 0.75}
    return diffusers.FluxInpaintPipeline(**_parts()), arguments


def _flux_kontext() -> Built:
    arguments = {**_guided(), "image": picture(16, 16), "_auto_resize": False, "max_area": 16 * 16}
    return diffusers.FluxKontextPipeline(**_parts()), arguments


def _flux_fill() -> Built:
    # Beside the latents it is given those of the picture, and the mask: one number for each of 2 x 2 pixels.
    parts = _parts(channels=CHANNELS + CHANNELS + 4, out_channels=CHANNELS, guidance_embeds=True)
    return diffusers.FluxFillPipeline(**parts), {**_unguided(), "image": picture(16, 16), "mask_image": _mask()}


def _flux_controlnet() -> Built:
    torch.manual_seed(3)
    config = {"in_channels": CHANNELS, "num_layers": 1, "num_single_layers": 1, "axes_dims_rope": [4, 4, 8]}
    widths = {
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
    }
    controlnet = diffusers.FluxControlNetModel(**config, **widths).eval().requires_grad_(False)
    for parameter in controlnet.parameters():  # its last layers start at zero
        if not parameter.any():
            parameter.normal_(std=0.1)
    pipe = diffusers.FluxControlNetPipeline(**_parts(), controlnet=controlnet)
    return pipe, {**_guided(), "control_image": picture(16, 16)}


def _flux2_parts() -> dict[str, Any]:
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": vae(
            "AutoencoderKLFlux2",
            latent_channels=4,
            block_out_channels=(4,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            layers_per_block=1,
            norm_num_groups=1,
        ),
        "transformer": denoiser("flux2", in_channels=CHANNELS),
        **no_text(),
    }


def _flux2() -> Built:
    (prompt,) = prompts((1, 6, 32))
    return diffusers.Flux2Pipeline(**_flux2_parts()), {"prompt_embeds": prompt, **SIZE}


def _flux2_klein() -> Built:
    return diffusers.Flux2KleinPipeline(**_flux2_parts()), {**guided(32), "guidance_scale": 2.0, **SIZE}


def _chroma() -> Built:
    parts = _parts()
    parts = {name: part for name, part in parts.items() if not name.endswith("_2")}
    parts["transformer"] = denoiser("chroma", in_channels=CHANNELS)
    return diffusers.ChromaPipeline(**parts), {**guided(32, mask=MASK), "guidance_scale": 2.0, **SIZE}


_THREE_QUARTERS = {"transformer": tuple(range(STEPS * 3 // 4))}  # of the steps, as `strength` says

ENTRIES: tuple[PipelineEntry, ...] = (
    PipelineEntry("flux", _flux),
    PipelineEntry("flux_image", _flux_image, streams=("0", "1"), steps=_THREE_QUARTERS),
    PipelineEntry("flux_inpaint", _flux_inpaint, streams=("0", "1"), steps=_THREE_QUARTERS),
    PipelineEntry("flux_kontext", _flux_kontext, streams=("0", "1")),
    PipelineEntry("flux_fill", _flux_fill, streams=("0",)),
    PipelineEntry("flux_controlnet", _flux_controlnet, streams=("0", "1")),
    PipelineEntry("flux2", _flux2, streams=("0",)),
    PipelineEntry("flux2_klein", _flux2_klein),
    PipelineEntry("chroma", _chroma, streams=("0", "1")),
)
