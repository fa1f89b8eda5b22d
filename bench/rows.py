"""What batches of unlike prompts gain where each row decides for itself: prints a table.

    python -m bench.rows                # 16 batches of 4 of the small FLUX, at 10 deep steps of 30 a row on average
    python -m bench.rows --batches 2

The truth of each picture is the same model without a cache. The threshold of each way is the one that gives the asked
number of deep steps, found by bisection on other batches. A row that decides for itself decides as it would alone, so
its picture is that of a batch of one, to rounding.
"""

from __future__ import annotations

import argparse
import itertools
import random
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from dicache_compile import DiCacheConfig, configure, reset, summary

from .quality import psnr
from .shapes.model import generate, load
from .shapes.pictures import COLOURS, SHAPES
from .systems import STEPS

ROWS = 4
TRIED = 4  # batches by which a threshold is found
PROMPTS = list(itertools.product(SHAPES, COLOURS))


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one way did with some batches."""

    quality: list[float]  # of each picture
    deep: list[int]  # steps of each row on which it needed the deep blocks
    ran: list[int]  # steps of each batch on which they ran


def prompts_of(seed: int) -> list[Any]:
    return random.Random(seed).sample(PROMPTS, ROWS)


def sampled(call: Any, seeds: range, truth: dict[int, torch.Tensor]) -> Sampled:
    quality, deep, ran = list[float](), list[int](), list[int]()
    for seed in seeds:
        reset(call)
        pictures = generate(call, prompts_of(seed), seed, STEPS)
        quality += [psnr(one, other) for one, other in zip(pictures, truth[seed], strict=True)]
        rows = list(summary(call).generations[-1].streams.values())
        needs = [[step.deep for step in row] for row in rows] * (1 if len(rows) > 1 else ROWS)
        deep += [sum(row) for row in needs]
        ran.append(sum(any(step) for step in zip(*needs, strict=True)))
    return Sampled(quality, deep, ran)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--deep", type=float, default=10.0, help="steps of a row that are to be deep, on average")
    arguments = parser.parse_args()
    plain = load()
    seeds, tried = range(1000, 1000 + arguments.batches), range(500, 500 + TRIED)
    truth = {seed: generate(plain, prompts_of(seed), seed, STEPS) for seed in (*seeds, *tried)}
    print("rows         threshold  deep of 30, a row (least, most)  steps on which the batch ran deep  PSNR  worst")
    for rows in ("together", "independent"):
        call = load()
        config = DiCacheConfig(rows=rows, lowering="eager", num_steps=STEPS, max_consecutive_skips=5)
        call.compile(backend="dicache", options=config.options(), fullgraph=True)
        low, high = 0.0, 4.0
        for _ in range(8):
            threshold = (low + high) / 2
            configure(call, threshold=threshold)
            if mean(sampled(call, tried, truth).deep) > arguments.deep:
                low = threshold
            else:
                high = threshold
        did = sampled(call, seeds, truth)
        counts = f"{mean(did.deep):.1f} ({min(did.deep)}, {max(did.deep)})"
        quality = f"{mean(did.quality):.1f}  {min(did.quality):.1f}"
        print(f"{rows:<12} {threshold:>9.3f}  {counts:>31}  {mean(did.ran):>33.1f}  {quality}")


if __name__ == "__main__":
    main()
