"""The pictures of docs/benchmarks.md: speed-up over quality, speed over size, and what each system draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from . import sweep
from .bars import FEWER_STEPS, GUARDS_ONCE, OURS, QUALITY, SAME_QUALITY, UNCACHED, family
from .rows import Row

INK = "#333333"
BLUE = "#0072B2"
# The rest of Okabe and Ito's palette, without the yellow, which is faint on white; a marker tells the others apart.
COLOURS = ("#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#666666")
MARKERS = "s^DvPX<>p*d"
LINES = ("-", "-.")  # the second for those whose colour is taken
TEXT = {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
DPI = 130


def pareto(rows: Sequence[Row], workload: str, path: Path) -> None:
    """Speed-up over mean PSNR: a point for each setting, a line a system through its best. No rows, no file."""
    here = [
        row for row in rows
        if row.experiment in QUALITY and row.workload == workload
        and row.system != UNCACHED and "PSNR mean" in row.figures
    ]  # fmt: skip
    if not here:
        return
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=(9, 5), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for system, style in _styles(rows).items():
            points = sorted(
                (row.figures["PSNR mean"], row.figures["speed-up"]) for row in here if family(row) == system
            )
            if points:
                axes.plot(*zip(*points, strict=True), **{**style, "linestyle": "", "alpha": 0.45})
                axes.plot(*zip(*_front(points), strict=True), label=system, **style)
        axes.axvline(SAME_QUALITY, color=INK, linewidth=0.8, linestyle=":")
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(f"{SAME_QUALITY:.0f} dB", (SAME_QUALITY, 1), (3, -3), ("data", "axes fraction"),
                      textcoords="offset points", va="top", fontsize=8)  # fmt: skip
        _tidy(axes, f"{workload}: speed-up over torch.compile", "mean PSNR against the uncached run, dB")
        axes.set_ylabel("speed-up")
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path)


def overhead(rows: Sequence[Row], path: Path) -> None:
    """Speed-up on the same schedule, and what a reused call still takes, over the sizes. No rows, no file."""
    places = {sweep.workload(*size).name: place for place, size in enumerate(sweep.SIZES)}
    here = [
        row for row in rows
        if row.experiment == "sweep" and row.workload in places and row.figures and row.role != GUARDS_ONCE
    ]  # fmt: skip
    if not here:
        return
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=(11, 4.6), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2)
        baseline = [row for row in here if row.role == "baseline"]
        uncached = dict(_by_place(baseline, places, UNCACHED, "deep call ms", min))
        for system, style in _styles(rows).items():
            if points := _by_place(here, places, system, "speed-up", max):
                left.plot(*zip(*points, strict=True), label=system, **style)
            calls = _by_place(here, places, system, "reused call ms", min)
            if points := [(place, 100 * ms / uncached[place]) for place, ms in calls if place in uncached]:
                right.plot(*zip(*points, strict=True), **style)
        left.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        right.set_ylim(bottom=0)
        _tidy(left, "Same schedule: speed-up over torch.compile", "tokens x width")
        _tidy(right, "Time of a reused call, % of an uncached one", "tokens x width")
        for axes in (left, right):
            axes.set_xticks(list(places.values()), [f"{tokens} x {width}" for tokens, width in sweep.SIZES])
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path)


def grid(
    pictures: Mapping[str, Sequence[tuple[Tensor, str]]], path: Path, titles: Sequence[str] = (), heading: str = ""
) -> None:
    """A line of pictures [3, H, W] in [-1, 1] for each label, each with its note below; `titles` are the columns'."""
    columns = max(map(len, pictures.values()))
    with matplotlib.rc_context(TEXT):
        _, high, wide = next(pixels.shape for shown in pictures.values() for pixels, _ in shown)
        each = 0.33 + 1.1 * max(high / wide, 0.3)  # inches: a picture and its note, or the words beside them
        figure = Figure(figsize=(2.6 + 1.1 * columns, 0.4 + each * len(pictures)), dpi=DPI, layout="constrained")
        lines = figure.subplots(len(pictures), columns, squeeze=False)
        if heading:
            figure.suptitle(heading, fontsize=11, weight="bold")
        for axes, title in zip(lines[0], titles, strict=False):
            axes.set_title(title, fontsize=9)
        for (label, shown), line in zip(pictures.items(), lines, strict=True):
            for axes in line[len(shown) :]:
                axes.set_visible(False)
            for axes, (pixels, note) in zip(line, shown, strict=False):
                axes.imshow(((pixels + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.set_xlabel(note, fontsize=8, labelpad=2)
                axes.spines[:].set_visible(False)
            weight = "bold" if label.startswith(OURS) else "normal"
            line[0].set_ylabel(label, rotation="horizontal", ha="right", va="center", labelpad=8, weight=weight)
        figure.savefig(path)


def _styles(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """How each system is drawn, ours first and on top; the same rows give the same styles."""
    systems = {family(row) for row in rows} - {UNCACHED}
    styles: dict[str, dict[str, Any]] = {}
    ours = sorted(system for system in systems if system.startswith(OURS))
    for system, line, marker in zip(ours, LINES, "oh", strict=False):
        look = {"color": BLUE, "marker": marker, "linestyle": line}
        styles[system] = {**look, "linewidth": 2.6, "markersize": 7.5, "zorder": 4}
    for place, system in enumerate(sorted(systems - {*ours, FEWER_STEPS})):
        turn, colour = divmod(place, len(COLOURS))
        look = {
            "color": COLOURS[colour],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": LINES[turn % len(LINES)],
        }
        styles[system] = {**look, "linewidth": 1.3, "markersize": 6.5, "zorder": 3}
    if FEWER_STEPS in systems:
        styles[FEWER_STEPS] = {"color": INK, "marker": "o", "markersize": 5, "linewidth": 1.3, "linestyle": "--"}
    return {system: {"markeredgecolor": "white", "markeredgewidth": 0.5, **look} for system, look in styles.items()}


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points by growing PSNR: those that no other point beats in both PSNR and speed-up."""
    return [(x, y) for place, (x, y) in enumerate(points) if all(y > other for _, other in points[place + 1 :])]


def _by_place(
    rows: Iterable[Row], places: Mapping[str, int], system: str, figure: str, best: Callable[[list[float]], float]
) -> list[tuple[int, float]]:
    """A figure of a system's best setting at each size."""
    values: dict[int, list[float]] = {}
    for row in rows:
        if family(row) == system and figure in row.figures:
            values.setdefault(places[row.workload], []).append(row.figures[figure])
    return [(place, best(values[place])) for place in sorted(values)]


def _tidy(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, weight="bold")
    axes.set_xlabel(across)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2)
