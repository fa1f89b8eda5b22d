"""Runs systems side by side: each seed by all of them in turn, so that a machine that slows down slows all alike.

Who begins moves on by one with each seed, so that no system always runs after the same other one.
"""

from __future__ import annotations

import datetime
import gc
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bench.quality import psnr, ssim

from . import guards
from .generation import Generation, generate
from .rows import Row, row
from .system import Installed, System
from .uncached import Uncached
from .workload import HELD_OUT, Workload

WARM_UP = HELD_OUT - 1  # the seed that compiles
EQUAL = 100.0  # dB, for equal pictures: they have infinitely many, which has no mean


@dataclass(frozen=True, slots=True)
class Entrant:
    """A system in a comparison, and why it has this setting."""

    system: System
    role: str  # "own", "15 deep", "schedule"
    family: str = ""  # of a tuned setting: whose best it is
    tuned_on: int = 0  # seeds; 0: not tuned
    why_not: str = ""  # why it cannot take part; "": it can, for all that is known
    guards_once: bool = False  # whether its guards are checked in the first step of a generation only


@dataclass(slots=True)
class _Runs:
    """What one entrant did so far."""

    entrant: Entrant
    installed: Installed | None = None
    why: str = ""
    seconds: list[float] = field(default_factory=list)
    speed_up: list[float] = field(default_factory=list)  # over the baseline on the same seed
    calls: list[tuple[float, bool]] = field(default_factory=list)  # (seconds, whether deep)
    deep: list[float] = field(default_factory=list)  # deep steps of a generation, over its streams' mean
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    shows: list[float] = field(default_factory=list)


def compare(
    experiment: str, workload: Workload, entrants: Sequence[Entrant], seeds: int, quality: bool = True
) -> list[Row]:
    """A row for each entrant, after the baseline's.

    `seeds` held-out seeds are run, each one generation of one prompt. Without `quality` only times are measured.
    """
    baseline = _Runs(Entrant(Uncached(), "baseline"))
    runs = [baseline, *(_Runs(entrant) for entrant in entrants)]
    for run in tqdm(runs, desc=f"{experiment}: {workload.name}: compiling", unit="system"):
        _start(run, workload)
    if baseline.installed is None:
        raise RuntimeError(f"the uncached model does not run, so there is nothing to compare with: {baseline.why}")
    started = datetime.datetime.now().isoformat(timespec="seconds")
    seeds_left = tqdm(range(HELD_OUT, HELD_OUT + seeds), desc=f"{experiment}: {workload.name}", unit="seed")
    for turn, seed in enumerate(seeds_left):
        first = turn % len(runs)
        done = [(run, _generate(run, workload, seed)) for run in (*runs[first:], *runs[:first])]
        reference = next(generation for run, generation in done if run is baseline)
        assert reference is not None
        for run, generation in done:
            if generation is not None:
                _record(run, generation, None if run is baseline else reference, workload, seed, quality)
    rows = [_row(experiment, workload, run, started) for run in runs]
    del runs, run, done, baseline
    torch._dynamo.reset()
    gc.collect()
    return rows


def _start(run: _Runs, workload: Workload) -> None:
    system = run.entrant.system
    run.why = run.entrant.why_not or system.why_not(workload) or ""
    if run.why:
        return
    try:
        installed = system.install(workload.load(), workload)
        generate(installed, workload, WARM_UP)
        checked = generate(installed, workload, WARM_UP)  # what compiles only once a second generation starts
        if run.entrant.guards_once:
            installed = guards.once(installed)
            _same(generate(installed, workload, WARM_UP), checked)
    except Exception as error:
        run.why = _said(error)
    else:
        run.installed = installed


def _same(once: Generation, checked: Generation) -> None:
    """Raises RuntimeError where a system without its guards takes another graph than with them: PyTorch does not tell.

    The same graphs give the same bits.
    """
    if once.deep != checked.deep or not torch.equal(once.pixels, checked.pixels):
        raise RuntimeError("with its guards checked once a generation it gives another result")


def _generate(run: _Runs, workload: Workload, seed: int) -> Generation | None:
    """None of a system that does not run. One that fails only now gets a row that says so, and the others go on."""
    if run.installed is None:
        return None
    try:
        return generate(run.installed, workload, seed)
    except Exception as error:
        if run.entrant.role == "baseline":
            raise
        run.installed, run.why = None, f"{_said(error)} (seed {seed})"
        return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _record(
    run: _Runs, done: Generation, reference: Generation | None, workload: Workload, seed: int, quality: bool
) -> None:
    run.seconds.append(done.seconds)
    run.speed_up.append(1.0 if reference is None else reference.seconds / done.seconds)
    if done.deep is not None:
        run.calls += zip(done.calls, done.deep, strict=True)
        run.deep.append(sum(done.deep) / len(workload.streams))
    else:
        run.calls += [(seconds, True) for seconds in done.calls]
    if quality:
        run.shows.append(float(workload.shows(done.pixels, workload.prompt(seed))))
        if reference is not None:
            near, alike = _quality(workload, done.pixels, reference.pixels)
            run.psnr.append(min(near, EQUAL))
            run.ssim.append(alike)


def _quality(workload: Workload, ours: Tensor, reference: Tensor) -> tuple[float, float]:
    """PSNR in dB over all pixels, of all frames together; SSIM as the mean of the frames'."""
    frames = zip(workload.frames(ours), workload.frames(reference), strict=True)
    return psnr(ours, reference), fmean(itertools.starmap(ssim, frames))


def _row(experiment: str, workload: Workload, run: _Runs, started: str) -> Row:
    entrant = run.entrant
    what: dict[str, Any] = {"run": started, "family": entrant.family, "tuned_on": entrant.tuned_on}
    if run.installed is None:
        return replace(row(experiment, workload, entrant.system, entrant.role, {}, why=run.why), **what)
    figures = {
        "seconds median": median(run.seconds),
        "seconds p95": _percentile(run.seconds, 95),
        "speed-up": median(run.speed_up),
        "speed-up p10": _percentile(run.speed_up, 10),
        "speed-up p90": _percentile(run.speed_up, 90),
        "generations": len(run.seconds),
        "threads": torch.get_num_threads(),
    }
    for name, kind in (("deep", True), ("reused", False)):
        if chosen := [seconds for seconds, deep in run.calls if deep is kind]:
            figures[f"{name} call ms"] = 1000 * median(chosen)
    if run.deep:
        figures["deep steps"] = fmean(run.deep)
    if run.psnr:
        figures |= {f"PSNR {name}": value for name, value in _spread(run.psnr).items()}
        figures |= {f"SSIM {name}": value for name, value in _spread(run.ssim).items()}
    if run.shows:
        figures["shows its prompt"] = fmean(run.shows)
    samples = {"speed-up": run.speed_up, "seconds": run.seconds, "PSNR": run.psnr}
    return replace(row(experiment, workload, entrant.system, entrant.role, figures, samples), **what)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "p5": _percentile(values, 5), "worst": min(values)}


def _percentile(values: Iterable[float], share: float) -> float:
    return float(np.percentile(list(values), share))
