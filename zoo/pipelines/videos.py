"""Pipelines that make videos, and Cosmos."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from .entry import PipelineEntry
from .parts import MASK, denoiser, guided, no_text, picture, video_vae

Built = tuple[Any, dict[str, Any]]
FLOW = diffusers.FlowMatchEulerDiscreteScheduler
SIZE = {"height": 16, "width": 16, "num_frames": 5}
WAN = {"in_channels": 16, "out_channels": 16, "freq_dim": 32}


def _wan_parts(**config: Any) -> dict[str, Any]:
    transformer = denoiser("wan", **{**WAN, **config})
    return {"scheduler": FLOW(shift=3.0), "vae": video_vae(), "transformer": transformer, **no_text()}


def _wan() -> Built:
    return diffusers.WanPipeline(**_wan_parts()), {**guided(16), "guidance_scale": 2.0, **SIZE}


def _wan22() -> Built:
    second = denoiser("wan", seed=1, **WAN)
    pipe = diffusers.WanPipeline(**_wan_parts(), transformer_2=second, boundary_ratio=0.8)
    return pipe, {**guided(16), "guidance_scale": 2.0, **SIZE}


def _wan_image() -> Built:
    # Beside the latents it is given those of the picture, and which frames it is of.
    parts = _wan_parts(in_channels=16 + 16 + 4, image_dim=8, added_kv_proj_dim=24)
    torch.manual_seed(0)
    sees = transformers.CLIPVisionConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    pipe = diffusers.WanImageToVideoPipeline(
        **parts,
        image_encoder=transformers.CLIPVisionModel(sees).eval(),
        image_processor=transformers.CLIPImageProcessorPil(crop_size=16, size=16),
    )
    return pipe, {**guided(16), "image": picture(16, 16), "guidance_scale": 2.0, **SIZE}


def _wan22_image() -> Built:
    channels = {**WAN, "in_channels": 16 + 16 + 4}
    parts = _wan_parts(in_channels=16 + 16 + 4)
    pipe = diffusers.WanImageToVideoPipeline(
        **parts, transformer_2=denoiser("wan", seed=1, **channels), boundary_ratio=0.8
    )
    return pipe, {**guided(16), "image": picture(16, 16), "guidance_scale": 2.0, **SIZE}


def _wan_vace() -> Built:
    # Conditions: latents of what is kept and of what is not, and a mask of 8 x 8 pixels each.
    parts = _wan_parts()
    parts["transformer"] = denoiser("wan_vace", text_dim=16, freq_dim=32, vace_in_channels=16 + 16 + 64, num_layers=4)
    return diffusers.WanVACEPipeline(**parts), {**guided(16), "guidance_scale": 2.0, **SIZE}


def _hunyuan_video() -> Built:
    transformer = denoiser("hunyuan_video")
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.HunyuanVideoPipeline(scheduler=FLOW(), vae=None, transformer=transformer, **no_text(*names))
    return pipe, {**guided(16, pooled=8, mask=MASK), "true_cfg_scale": 2.0, "height": 16, "width": 16, "num_frames": 5}


def _ltx() -> Built:
    pipe = diffusers.LTXPipeline(scheduler=FLOW(), vae=None, transformer=denoiser("ltx"), **no_text())
    return pipe, {**guided(16, mask=MASK), "guidance_scale": 2.0, "height": 64, "width": 64, "num_frames": 9}


def _cogvideox() -> Built:
    transformer = denoiser("cogvideox", max_text_seq_length=6)
    scheduler = diffusers.CogVideoXDDIMScheduler()
    pipe = diffusers.CogVideoXPipeline(scheduler=scheduler, vae=None, transformer=transformer, **no_text())
    return pipe, {**guided(8), "guidance_scale": 2.0, "height": 64, "width": 64, "num_frames": 29}


def _mochi() -> Built:
    pipe = diffusers.MochiPipeline(scheduler=FLOW(), vae=None, transformer=denoiser("mochi"), **no_text())
    return pipe, {**guided(16, mask=MASK), "guidance_scale": 2.0, "height": 32, "width": 32, "num_frames": 7}


class _Safe:
    """A safety checker that finds nothing."""

    def to(self, device: object) -> None:
        pass

    def check_text_safety(self, prompt: str) -> bool:
        return True


def _cosmos_transformer() -> Any:
    from ..more_a import _cosmos

    return _cosmos()


def _cosmos() -> Built:
    pipe = diffusers.CosmosTextToWorldPipeline(
        scheduler=diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5),
        vae=None,
        transformer=_cosmos_transformer(),
        safety_checker=_Safe(),
        **no_text(),
    )
    return pipe, {**guided(16), "guidance_scale": 2.0, "height": 32, "width": 32, "num_frames": 9}


def _cosmos2() -> Built:
    pipe = diffusers.Cosmos2TextToImagePipeline(
        scheduler=FLOW(use_karras_sigmas=True),
        vae=None,
        transformer=_cosmos_transformer(),
        safety_checker=_Safe(),
        **no_text(),
    )
    return pipe, {**guided(16), "guidance_scale": 2.0, "height": 32, "width": 32}


_TAKES_OVER = {"transformer": (0, 1, 2, 3), "transformer_2": (4, 5, 6, 7)}

ENTRIES: tuple[PipelineEntry, ...] = (
    PipelineEntry("wan", _wan),
    PipelineEntry("wan22", _wan22, steps=_TAKES_OVER),
    PipelineEntry("wan_image", _wan_image),
    PipelineEntry("wan22_image", _wan22_image, steps=_TAKES_OVER),
    PipelineEntry("wan_vace", _wan_vace),
    PipelineEntry("hunyuan_video", _hunyuan_video),
    PipelineEntry("ltx", _ltx, streams=("cond_uncond",)),
    PipelineEntry("cogvideox", _cogvideox, streams=("cond_uncond",)),
    PipelineEntry("mochi", _mochi, streams=("cond_uncond",)),
    PipelineEntry("cosmos", _cosmos, streams=("0", "1")),
    PipelineEntry("cosmos2", _cosmos2, streams=("0", "1")),
)
