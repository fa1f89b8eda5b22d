"""What the demo does: every system samples the same pictures in turn; then a table and a picture."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from dicache_compile.plain import plain

from . import picture, systems
from .results import Result, results
from .systems import CACHED, STEPS, Run

LEGEND = f"""
deep steps  of {STEPS}, how many ran the deep blocks, on average; on the others the cache stood in for them
speed-up    over torch.compile(model) in the same round, median of the rounds: on a machine with other work to do it
            is steadier than the first column, the median of each system's seconds by itself
ideal       the speed-up if a deep step cost what a plain one costs, and a reused one what the model costs when it is
            cut to its first block, which is the probe: so the difference is the price of deciding and estimating
PSNR, SSIM  of the pictures against those of torch.compile(model), which starts from the same noise
"""


def demonstrate(rounds: int, path: Path, as_json: bool = False) -> None:
    """Samples, prints the table, or its rows as JSON, and draws the picture."""
    runs = sample(rounds, path, quiet=as_json)
    rows = results(runs)
    if as_json:
        print(json.dumps({"torch": torch.__version__, "machine": platform.machine(), "rows": plain(rows)}, indent=2))
    else:
        report(rows, runs)
    picture.draw(rows, runs, path)
    if not as_json:
        print(f"\nThe pictures, and each step's error and decision: {path}")


def sample(rounds: int, path: Path, quiet: bool) -> dict[str, list[Run]]:
    """In every round each system generates the same prompts from the same noise, one system after the other.

    What the uncached model draws while it compiles is at `path` until there is more to show.
    """
    models = systems.build()
    for name, model in (bar := tqdm(models.items(), unit="model")):
        bar.set_description(f"compiling {name}")
        run = systems.run(name, model, seed=0, steps=STEPS // 3)
        if name == systems.PLAIN:
            picture.draw_first(run, path)
            if not quiet:
                bar.write(f"The first pictures, uncached and of {STEPS // 3} steps: {path}")
    runs: dict[str, list[Run]] = {name: [] for name in models}
    for seed in tqdm(range(rounds), desc="sampling", unit="round"):
        for name, model in models.items():
            runs[name].append(systems.run(name, model, seed))
    return runs


def report(rows: Sequence[Result], runs: Mapping[str, Sequence[Run]]) -> None:
    batches = [run.pixels for run in runs[rows[0].name]]
    print(f"\nEach system: {len(batches)} generations after a short one, {len(batches[0])} pictures, {STEPS} steps")
    print(f"PyTorch {torch.__version__} on {platform.machine()}, {torch.get_num_threads()} threads\n")
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}  seconds a                             PSNR in dB          SSIM")
    print(f"{'':{width}}  generation  deep steps  speed-up  ideal   mean  worst    mean  worst")
    for row in rows:
        print(f"{row.name:{width}}  {row.seconds:>10.2f}  {row.deep:>10.1f}", end="")
        print(f"  {row.speed_up:>7.2f}x  {row.ideal:>4.2f}x  {_quality(row)}")
    print(LEGEND)
    print("Decisions in the last generation (D deep, d deep and forced, . reused)")
    for name in CACHED:
        marks = "".join(("d" if step.forced else "D") if step.deep else "." for step in runs[name][-1].steps)
        print(f"{name:{width}}  {marks}")


def _quality(row: Result) -> str:
    if not row.quality:
        return "   -      -       -      -"
    psnr, ssim = [q.psnr for q in row.quality], [q.ssim for q in row.quality]
    return f"{mean(psnr):>5.1f}  {min(psnr):>5.1f}  {mean(ssim):>6.4f}  {min(ssim):>5.3f}"
