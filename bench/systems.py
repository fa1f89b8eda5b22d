"""What the demo compares: the shapes model compiled plain, and compiled with a cache."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from dicache_compile import DiCacheConfig, dicache_backend, summary
from dicache_compile.qualities import THRESHOLDS
from dicache_compile.summary import StepRecord

from .shapes.model import CONFIG, generate, load
from .shapes.pictures import COLOURS, SHAPES

STEPS = 30
PLAIN = "torch.compile(model)"
PROBE_ONLY = "probe only"
CACHED = {quality: DiCacheConfig(quality=quality) for quality in THRESHOLDS}


@dataclass(frozen=True, slots=True)
class Run:
    """One generation of a batch of pictures."""

    seconds: float
    pixels: Tensor  # [B, 3, H, W] in [-1, 1]
    steps: tuple[StepRecord, ...]  # what the cache did; empty without one


def build() -> dict[str, torch.nn.Module]:
    """The systems by name. Each has a model of its own, so that none meets what another compiled or remembers."""
    plain: dict[str, torch.nn.Module] = {PLAIN: torch.compile(load()), PROBE_ONLY: torch.compile(_probe_only())}
    return plain | {
        name: torch.compile(load(), backend=dicache_backend, fullgraph=True, options=config.options())
        for name, config in CACHED.items()
    }


def prompts(seed: int) -> list[tuple[str, str]]:
    """Every shape once, in colours that move on with the seed: five seeds show all pairs."""
    colours = list(COLOURS)
    return [(shape, colours[(place + seed) % len(colours)]) for place, shape in enumerate(SHAPES)]


def run(name: str, model: torch.nn.Module, seed: int, steps: int = STEPS) -> Run:
    start = time.perf_counter()
    pixels = generate(model, prompts(seed), seed, steps)
    seconds = time.perf_counter() - start
    if name not in CACHED:
        return Run(seconds, pixels, ())
    (did,) = summary(model).generations[-1].streams.values()
    return Run(seconds, pixels, tuple(did))


def _probe_only() -> FluxTransformer2DModel:
    """The model without its deep blocks: all that a reused step would cost if its bookkeeping were free."""
    model = FluxTransformer2DModel(**{**CONFIG, "num_layers": 1, "num_single_layers": 0})
    model.load_state_dict(load().state_dict(), strict=False)  # not strict: the deep blocks' weights have no place
    return model.eval().requires_grad_(False)
