"""Where the host's work shows: one FLUX of random weights, from few tokens and little width to many and much.

Each size runs on as many threads as are fastest for the uncached model: below some size they wait for each other for
longer than they compute, and that would hide what a cache costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn

from .generation import generate
from .uncached import Uncached
from .workload import Workload

SIZES = ((64, 128), (256, 128), (256, 384), (1024, 384), (1024, 768))  # (tokens, width)
HEAD = 64
CHANNELS = 16
TEXT = 16  # tokens of the prompt
BLOCKS = {"num_layers": 2, "num_single_layers": 6}
GUARDS_TELL = SIZES[:2]  # where checking the guards takes a share of a generation that can be told from noise
SEEDS = {(64, 128): 24, (256, 128): 16, (256, 384): 24, (1024, 384): 8, (1024, 768): 6}  # generations of each system


def workload(tokens: int, width: int) -> Workload:
    """A FLUX of these sizes. Its outputs mean nothing, so only schedules that do not depend on them are run on it."""
    return Workload(
        f"{tokens} tokens x width {width}",
        f"{tokens}x{width}",
        "flux",
        ("cond",),
        partial(_load, width),
        (None,),
        partial(_sample, tokens, width),
        lambda pixels, prompt: False,
    )


def fastest_threads(workload: Workload, most: int, tries: int) -> int:
    """How many threads, from one to `most`, the uncached, compiled model is fastest on; sets that number.

    `tries` generations on each are compared by their median; the larger a model, the fewer tell it.

    It has to be set before a model is compiled: Inductor's code holds it.
    """
    counts = list(range(1, most + 1))
    installed = []
    for count in counts:
        torch.set_num_threads(count)
        installed.append(Uncached().install(workload.load(), workload))
        generate(installed[-1], workload, 0)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for seed in range(tries):
        for count, model in zip(counts, installed, strict=True):
            torch.set_num_threads(count)
            seconds[count].append(generate(model, workload, seed).seconds)
    best = min(counts, key=lambda count: median(seconds[count]))
    torch.set_num_threads(best)
    return best


def _load(width: int) -> nn.Module:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        attention_head_dim=HEAD,
        num_attention_heads=width // HEAD,
        joint_attention_dim=width,
        pooled_projection_dim=width,
        axes_dims_rope=(16, 24, 24),
        guidance_embeds=False,
        **BLOCKS,
    )
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _sample(
    tokens: int, width: int, model: Callable[..., Any], prompts: Sequence[Any], seed: int, steps: int
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    side = round(tokens**0.5)
    rows, columns = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    inputs = {
        "encoder_hidden_states": torch.randn(1, TEXT, width, generator=generator),
        "pooled_projections": torch.randn(1, width, generator=generator),
        "img_ids": torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(-1, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    latents = torch.randn(1, tokens, CHANNELS, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        batched = (timestep / scheduler.config.num_train_timesteps).expand(1)
        velocity = model(hidden_states=latents, timestep=batched, return_dict=False, **inputs)[0]
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
