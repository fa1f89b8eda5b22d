"""Draws what too much reuse looks like: docs/too-much.png.

python -m bench.too_much
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from dicache_compile import configure, summary

from .quality import psnr
from .shapes.model import generate, load
from .systems import STEPS, prompts

PAGE = Path(__file__).parents[1] / "docs" / "too-much.png"
SEED = 3
# Told at run time: nothing is compiled between them. The last ones nobody should use.
SETTINGS: dict[str, dict[str, Any]] = {
    'quality="high"': {"quality": "high"},
    'quality="balanced"': {"quality": "balanced"},
    'quality="fast"': {"quality": "fast"},
    "threshold=0.6,\n6 in a row": {"threshold": 0.6, "max_consecutive_skips": 6},
    "threshold=inf,\n9 in a row": {"threshold": math.inf, "max_consecutive_skips": 9},
    "threshold=inf,\n14 in a row": {"threshold": math.inf, "max_consecutive_skips": 14},
}


def main() -> None:
    model = load()
    wanted = prompts(SEED)
    uncached = generate(model, wanted, SEED, STEPS)
    model.compile(backend="dicache", fullgraph=True, options={"lowering": "eager"})
    rows = [("uncached", f"{STEPS} of {STEPS} deep", uncached)]
    for name, fields in SETTINGS.items():
        configure(model, **{"threshold": None, "max_consecutive_skips": "auto", **fields})
        pictures = generate(model, wanted, SEED, STEPS)
        (steps,) = summary(model).generations[-1].streams.values()
        deep = sum(step.deep for step in steps)
        rows.append((name, f"{deep} of {STEPS} deep, {psnr(pictures, uncached):.0f} dB", pictures))
    draw(rows)


def draw(rows: list[tuple[str, str, torch.Tensor]]) -> None:
    figure = Figure(figsize=(8, 1.08 * len(rows)), dpi=110, layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0][2]), squeeze=False)
    for (name, note, pictures), line in zip(rows, grid, strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(((picture + 1) / 2).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(f"{name}\n{note}", rotation="horizontal", ha="right", va="center", fontsize=8, labelpad=8)
    figure.savefig(PAGE)


if __name__ == "__main__":
    main()
