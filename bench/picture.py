"""The demo's picture: the generated shapes above, the cache's error and decision on every step below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from dicache_compile.summary import StepRecord

from .results import Result, qualities
from .systems import CACHED, PLAIN, STEPS, Run, prompts

SHOWN = 2  # rounds whose pictures are drawn
# Of Okabe and Ito's palette, which colour-blind people can tell apart.
KINDS = {"deep": "#0072B2", "forced to be deep": "#56B4E9", "reused": "#E69F00"}
INK = "#333333"
ALONE = {"color": INK, "marker": "o", "markersize": 4.5, "markeredgecolor": "white", "linewidth": 0.8}


def draw(rows: Sequence[Result], runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Writes the picture, a PNG by `path`'s name."""
    # A figure of its own and no pyplot: nothing global changes, and no display is needed.
    with matplotlib.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=(9, 9.4), dpi=130, layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(4.7, 4.7), hspace=0.03)
        _draw_pictures(above, rows, runs)
        _draw_timelines(below, runs)
        figure.savefig(path)


def draw_first(run: Run, path: Path) -> None:
    """Writes the pictures of one uncached run."""
    with matplotlib.rc_context({"font.size": 9, "text.color": INK}):
        figure = Figure(figsize=(9, 2.6), dpi=130, layout="constrained")
        for axes, pixels, (shape, colour) in zip(
            figure.subplots(1, len(run.pixels)), run.pixels, prompts(0), strict=True
        ):
            _show(axes, pixels)
            axes.set_title(f"{colour} {shape}", fontsize=9)
        figure.savefig(path)


def _show(axes: Axes, pixels: Tensor) -> None:
    axes.imshow(((pixels + 1) / 2).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_pictures(figure: SubFigure, rows: Sequence[Result], runs: Mapping[str, Sequence[Run]]) -> None:
    figure.suptitle("The same prompts and noise: uncached above, cached below", fontsize=12, weight="bold")
    columns = sum(len(run.pixels) for run in runs[PLAIN][:SHOWN])
    grid = figure.subplots(len(rows), columns, squeeze=False)
    names = [f"{colour} {shape}" for seed in range(SHOWN) for shape, colour in prompts(seed)]
    for axes, name in zip(grid[0], names, strict=False):  # fewer where only one round was run
        axes.set_title(name, fontsize=9)
    for row, line in zip(rows, grid, strict=True):
        pixels = [picture for run in runs[row.name][:SHOWN] for picture in run.pixels]
        pairs = zip(runs[row.name][:SHOWN], runs[PLAIN][:SHOWN], strict=True)
        notes = [f"{q.psnr:.1f} dB" for pair in pairs for q in qualities(*pair)] if row.quality else [""] * columns
        for axes, picture, note in zip(line, pixels, notes, strict=True):
            _show(axes, picture)
            axes.set_xlabel(note, fontsize=8, labelpad=2)
        line[0].set_ylabel(
            f"{row.name}\n{row.deep:.0f} of {STEPS}\nsteps deep",
            rotation="horizontal", ha="right", va="center", labelpad=8,
        )  # fmt: skip


def _draw_timelines(figure: SubFigure, runs: Mapping[str, Sequence[Run]]) -> None:
    figure.suptitle("What the cache saw and decided on each step of the last generation", fontsize=12, weight="bold")
    panels = figure.subplots(len(CACHED), 1, sharex=True)
    for axes, (name, config) in zip(panels, CACHED.items(), strict=True):
        (rule,) = config.all_rules()
        _draw_timeline(axes, runs[name][-1].steps, rule.threshold or 0.0)
        axes.set_title(name, loc="left", fontsize=9, weight="bold")
        axes.set_ylabel("error")
    panels[-1].set_xlabel("step")
    figure.legend(
        handles=[
            *(Patch(color=colour, label=f"error so far, step {kind}") for kind, colour in KINDS.items()),
            Line2D([], [], **ALONE, label="error of the step itself"),
            Line2D([], [], color=INK, linestyle="--", linewidth=1, label="threshold"),
        ],
        loc="outside lower center", ncols=3, frameon=False,
    )  # fmt: skip


def _draw_timeline(axes: Axes, steps: Sequence[StepRecord], threshold: float) -> None:
    """A bar of the error that was compared for each step, in the colour of its decision, on a tile of that colour."""
    places = [step.index for step in steps]
    colours = [KINDS[_kind(step)] for step in steps]
    # The first step has no error yet, but a decision all the same: so the tiles.
    top = 1.1 * max(threshold, *(step.accumulated or 0.0 for step in steps))
    axes.bar(places, -0.09 * top, width=1.0, color=colours, edgecolor="white", linewidth=0.8)
    axes.bar(places, [step.accumulated or 0.0 for step in steps], width=0.7, color=colours)
    measured = [step for step in steps if step.error is not None]
    axes.plot([s.index for s in measured], [s.error for s in measured], **ALONE)
    axes.axhline(threshold, color=INK, linestyle="--", linewidth=1)
    axes.axhline(0, color=INK, linewidth=0.5)
    axes.set(xlim=(-0.6, len(steps) - 0.4), ylim=(-0.09 * top, top), xticks=range(0, len(steps), 5))
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(length=2, color=INK, labelcolor=INK)


def _kind(step: StepRecord) -> str:
    if not step.deep:
        return "reused"
    return "forced to be deep" if step.forced else "deep"
