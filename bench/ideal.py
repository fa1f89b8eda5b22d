"""How near a generation comes to the ideal: a deep step that costs what the plain model does, a reused one what the
model does that is cut to its probe.

    python -m bench.ideal                   # the small FLUX's form, 1024 tokens x 384
    python -m bench.ideal --tokens 4096 --width 768 --rounds 5

12 of 30 steps run deep, decided on the device by the default gate with an endless threshold. The three models, all
compiled, generate in turn; figures are medians of the ratios of one round.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from bench.schedule import call, flux, timed
from dicache_compile import DiCacheConfig, enable_cache, generation

STEPS = 30
DEEP = tuple(step for step in range(STEPS) if step < 3 or step % 3 == 2)


def truncated(width: int) -> FluxTransformer2DModel:
    """The model without its deep blocks."""
    model = flux(width)
    model.transformer_blocks, model.single_transformer_blocks = model.transformer_blocks[:1], nn.ModuleList()
    return model


def generate(model: Any, arguments: dict[str, Any]) -> list[float]:
    """Seconds of each step."""
    found = []
    with torch.no_grad(), generation(num_steps=STEPS):
        for step in range(STEPS):
            arguments["timestep"] = torch.full((1,), 1 - step / STEPS)
            found.append(timed(lambda: model(**arguments)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 1024), ("width", 384), ("rounds", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    plain, cut, ours = flux(given.width), truncated(given.width), flux(given.width)
    plain.compile(fullgraph=True)
    cut.compile(fullgraph=True)
    config = DiCacheConfig(deep_steps=DEEP, threshold=math.inf, warmup_steps=0, max_consecutive_skips=None, streams=1)
    enable_cache(ours, config, fullgraph=True)
    arguments = call(given.tokens)
    rounds = [[generate(model, arguments) for model in (plain, cut, ours)] for _ in range(given.rounds + 1)][1:]
    deep, reused, share = [], [], []
    for whole, probe, mine in rounds:
        step, short = statistics.median(whole), statistics.median(probe)
        deep.append(statistics.median(mine[place] for place in DEEP) / step)
        reused.append(statistics.median(mine[place] for place in range(STEPS) if place not in DEEP) / short)
        share.append((len(DEEP) * step + (STEPS - len(DEEP)) * short) / sum(mine))
    print(f"{given.tokens} tokens x {given.width}: deep {statistics.median(deep):.3f} of plain, ", end="")
    print(f"reused {statistics.median(reused):.3f} of truncated, {statistics.median(share):.3f} of the ideal")


if __name__ == "__main__":
    main()
