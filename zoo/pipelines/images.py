"""Other pipelines that make pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor, nn

from .entry import PipelineEntry
from .parts import MASK, denoiser, guided, no_text, prompts

Built = tuple[Any, dict[str, Any]]
FLOW = diffusers.FlowMatchEulerDiscreteScheduler


def _size(pixels: int) -> dict[str, int]:
    return {"height": pixels, "width": pixels}


def _sd3() -> Built:
    names = [f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
    transformer = denoiser("sd3", sample_size=8, pos_embed_max_size=8)
    pipe = diffusers.StableDiffusion3Pipeline(scheduler=FLOW(), vae=None, transformer=transformer, **no_text(*names))
    return pipe, {**guided(32, pooled=64), "guidance_scale": 2.0, **_size(32)}


class _Means(nn.Module):
    """Stands for an autoencoder: latents of four channels are the means of 2^levels pixels a side."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.temperal_downsample = [False] * levels
        self.config = SimpleNamespace(z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)

    def encode(self, video: Tensor) -> SimpleNamespace:
        side = 2 ** len(self.temperal_downsample)
        means = nn.functional.avg_pool3d(video, (1, side, side))
        return SimpleNamespace(latents=torch.cat([means, means.mean(1, keepdim=True)], dim=1))


def _qwen(kind: Any, levels: int, **more: Any) -> Built:
    transformer = denoiser("qwenimage")
    pipe = kind(scheduler=FLOW(), vae=_Means(levels), transformer=transformer, **no_text(), **more)
    return pipe, {**guided(16, mask="prompt_embeds_mask"), "true_cfg_scale": 2.0}


def _qwenimage() -> Built:
    pipe, arguments = _qwen(diffusers.QwenImagePipeline, levels=3)
    return pipe, {**arguments, **_size(32)}


def _qwenimage_edit() -> Built:
    # The picture is made 1024 x 1024, whatever it was.
    pipe, arguments = _qwen(diffusers.QwenImageEditPipeline, levels=7, processor=None)
    return pipe, {**arguments, "image": Image.new("RGB", (32, 32), "red"), **_size(512)}


def _qwenimage_edit_plus() -> Built:
    pipe, arguments = _qwen(diffusers.QwenImageEditPlusPipeline, levels=7, processor=None)
    return pipe, {**arguments, "image": [Image.new("RGB", (32, 32), "red")], **_size(512)}


def _sana() -> Built:
    transformer = denoiser("sana", sample_size=8)
    pipe = diffusers.SanaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        vae=None,
        transformer=transformer,
        **no_text(),
    )
    more = {
        "guidance_scale": 2.0,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "negative_prompt": None,
    }
    return pipe, {**guided(8, mask=MASK), **more, **_size(128)}


def _pixart(kind: Any) -> Built:
    transformer = denoiser("pixart_transformer2d", caption_channels=8, attention_head_dim=4)
    pipe = kind(scheduler=diffusers.DPMSolverMultistepScheduler(), vae=None, transformer=transformer, **no_text())
    more = {"negative_prompt": None, "guidance_scale": 2.0, "use_resolution_binning": False}
    return pipe, {**guided(8, mask=MASK), **more, **_size(64)}


def _pixart_alpha() -> Built:
    return _pixart(diffusers.PixArtAlphaPipeline)


def _pixart_sigma() -> Built:
    return _pixart(diffusers.PixArtSigmaPipeline)


def _lumina2() -> Built:
    pipe = diffusers.Lumina2Pipeline(scheduler=FLOW(), vae=None, transformer=denoiser("lumina2"), **no_text())
    return pipe, {**guided(32, mask=MASK), "guidance_scale": 2.0, **_size(64)}


def _z_image() -> Built:
    pipe = diffusers.ZImagePipeline(scheduler=FLOW(), vae=None, transformer=denoiser("z_image"), **no_text())
    prompt, negative = prompts((6, 16), (6, 16))
    embeds = {"prompt_embeds": [prompt], "negative_prompt_embeds": [negative]}
    return pipe, {**embeds, "guidance_scale": 2.0, **_size(64)}


ONE = {"streams": ("0",)}  # both halves of guidance in one batch

ENTRIES: tuple[PipelineEntry, ...] = (
    PipelineEntry("sd3", _sd3, **ONE),
    PipelineEntry("qwenimage", _qwenimage),
    PipelineEntry("qwenimage_edit", _qwenimage_edit),
    PipelineEntry("qwenimage_edit_plus", _qwenimage_edit_plus),
    PipelineEntry("sana", _sana, **ONE),
    PipelineEntry("pixart_alpha", _pixart_alpha, **ONE, callback="callback", interrupts=False),
    PipelineEntry("pixart_sigma", _pixart_sigma, **ONE, callback="callback", interrupts=False),
    PipelineEntry("lumina2", _lumina2, streams=("0", "1"), interrupts=False),
    PipelineEntry("z_image", _z_image, **ONE),
)
