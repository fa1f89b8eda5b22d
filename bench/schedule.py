"""What a schedule's reused step costs beside a function written by hand that does the same.

    python -m bench.schedule

Ours: `Schedule` with `Reuse()`, so that a reused step runs prologue, x + r and epilogue. By hand: the same model
without its blocks, whose embedder adds r, under plain torch.compile. Both on the small FLUX's form at several sizes.
Steps alternate; the figures are medians and the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from bench.shapes.model import CONFIG
from dicache_compile import DiCacheConfig, Schedule, enable_cache, generation
from dicache_compile.estimators import Reuse

SIZES = ((256, 128), (1024, 384), (4096, 768))  # tokens, width
TEXT, WARM = 64, 5


class Adding(nn.Module):
    """An embedder that adds what the blocks would."""

    def __init__(self, embed: nn.Module, residual: Tensor) -> None:
        super().__init__()
        self.embed = embed
        self.register_buffer("residual", residual)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x) + self.residual


def flux(width: int) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    heads = {"attention_head_dim": 32, "num_attention_heads": width // 32, "joint_attention_dim": 256}
    return FluxTransformer2DModel(**{**CONFIG, **heads, "pooled_projection_dim": 256}).eval().requires_grad_(False)


def call(tokens: int) -> dict[str, Any]:
    side = round(tokens**0.5)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return {
        "hidden_states": torch.randn(1, tokens, 12),
        "encoder_hidden_states": torch.randn(1, TEXT, 256),
        "pooled_projections": torch.randn(1, 256),
        "timestep": torch.ones(1),
        "img_ids": torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(-1, 3).float(),
        "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(tokens: int, width: int, rounds: int) -> tuple[float, float, float]:
    """(milliseconds of ours, of what is written by hand, the ratio)."""
    arguments = call(tokens)
    by_hand = flux(width)
    by_hand.transformer_blocks, by_hand.single_transformer_blocks = nn.ModuleList(), nn.ModuleList()
    by_hand.x_embedder = Adding(by_hand.x_embedder, torch.randn(1, tokens, width))
    by_hand.compile(fullgraph=True)
    ours = flux(width)
    config = DiCacheConfig(schedule=Schedule.steps(0), estimator=Reuse(), streams=1)
    enable_cache(ours, config, fullgraph=True)
    samples: list[tuple[float, float]] = []
    with torch.no_grad(), generation(num_steps=WARM + rounds + 1):
        for step in range(WARM + rounds + 1):
            arguments["timestep"] = torch.full((1,), 1 - step / 1000)
            pair = timed(lambda: ours(**arguments)), timed(lambda: by_hand(**arguments))
            if step > WARM:  # the first is deep
                samples.append(pair)
    mine, theirs = (statistics.median(times) * 1000 for times in zip(*samples, strict=True))
    return mine, theirs, statistics.median(a / b for a, b in samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("tokens  width      ours   by hand  ratio")
    for tokens, width in SIZES:
        mine, theirs, ratio = measure(tokens, width, rounds)
        print(f"{tokens:6}  {width:5}  {mine:5.2f} ms  {theirs:5.2f} ms  {ratio:5.3f}", flush=True)


if __name__ == "__main__":
    main()
