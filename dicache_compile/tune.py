"""Finds the schedule and the weights for a user's own model: `tune(pipe, run, speedup=3.0)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

from .calibration.progress import Progress, progress_bar
from .calibration.quality import psnr as psnr_of
from .calibration.quality import values
from .calibration.rehearsal import Rehearsal, rehearse
from .calibration.search import Way, search
from .calibration.tuned import Point, Tuned
from .compiled import own_config
from .config import DiCacheConfig
from .enable import denoisers, disable_cache, enable_cache
from .estimators import LearnedTable, Reuse
from .schedules import Schedule

FEWEST = 3  # deep steps that are searched for
TRIED = 3  # ways of the chosen number that are tried
_UNCUT = DiCacheConfig(schedule=Schedule.every(2), estimator=Reuse())  # all blocks are deep


def tune(
    pipe_or_model: Any,
    run: Callable[[int], Any],
    *,
    speedup: float | None = None,
    psnr: float | None = None,
    deep: int | None = None,
    samples: int = 6,
    checks: int = 8,
    width: int = 6,
    progress: bool = True,
) -> Tuned:
    """Searches the deep steps, and fits the weights of the others, for one model, sampler and number of steps.

    `run(seed)` generates with the model, as you do, and returns the result: a tensor, pictures, or what a diffusers
    pipeline returns. It is called uncached with seeds 0 to samples + checks - 1, and cached with the last `checks` of
    them. Between them the search goes through the first `samples` again by itself, with every schedule it tries.

    One aim has to be given: `deep`, so many deep steps; `speedup`, the most deep steps that are expected to be so fast;
    `psnr`, the fewest deep steps with so many dB in the mean. `width` is how many ways are kept at once: more takes
    longer and finds better ones. The same arguments give the same result. The model is left as it was.

    Returns what was found, with what to expect of it: `tuned.config` goes into `enable_cache`.

    Raises TypeError as `enable_cache` does; ValueError for no aim or several, an aim that cannot be reached, a function
    that does not call the model, and a sampler whose steps are no sums.
    """
    models = denoisers(pipe_or_model)
    if len(models) > 1:
        raise ValueError(f"{', '.join(models)} are several denoisers: tune each alone, with the model itself")
    (model,) = models.values()
    _check_aim(speedup=speedup, psnr=psnr, deep=deep)
    before = own_config(model)
    if before is not None:
        raise ValueError("this model has a cache already: call disable_cache first, and enable_cache with the result")
    with progress_bar("tuning", progress) as bar, torch.no_grad():
        bar.phase("recording", samples)
        rehearsal = rehearse(model, run, range(samples), _UNCUT, bar.tick)
        steps = rehearsal.num_steps
        whole, reused = _seconds(rehearsal)

        def faster(count: int) -> float:
            return steps * whole / (count * whole + (steps - count) * reused)

        most = _most(faster, steps, speedup, deep)
        bar.phase("searching", steps)
        found = search(rehearsal, most, width, bar.tick)
        points = tuple(Point(n, faster(n), -ways[0].error) for n, ways in sorted(found.items()) if n >= FEWEST)
        bar.phase("checking", checks)
        seeds = range(samples, samples + checks)
        plain = {seed: _kept(run(seed), bar) for seed in seeds}
        tried = _Tried(model, run, plain, bar, steps)
        count, config, psnrs = tried.best_of_aim(found, psnr) if psnr is not None else tried.best(most, found[most])
    return Tuned(config, count, steps, faster(count), psnrs, points)


class _Tried:
    """Cached runs on seeds that nothing was fitted to."""

    def __init__(
        self, model: nn.Module, run: Callable[[int], Any], plain: Mapping[int, torch.Tensor], bar: Progress, steps: int
    ) -> None:
        self._model, self._run, self._plain, self._bar, self._steps = model, run, plain, bar, steps

    def best(self, count: int, ways: Sequence[Way]) -> tuple[int, DiCacheConfig, tuple[float, ...]]:
        """Of the ways of one number of deep steps the one that does best."""
        self._bar.phase(f"checking {count} deep steps", TRIED * len(self._plain))
        done = [(config, self._psnrs(config)) for config in (config_of(way, self._steps) for way in ways[:TRIED])]
        config, psnrs = max(done, key=lambda one: sum(one[1]))
        return count, config, psnrs

    def best_of_aim(
        self, found: Mapping[int, Sequence[Way]], aim: float
    ) -> tuple[int, DiCacheConfig, tuple[float, ...]]:
        """The fewest deep steps that reach an aim, dB; halves what is left."""
        counts = [count for count in sorted(found) if count >= FEWEST]
        low, high, known = 0, len(counts) - 1, dict[int, tuple[int, DiCacheConfig, tuple[float, ...]]]()
        while low < high:
            middle = (low + high) // 2
            known[middle] = self.best(counts[middle], found[counts[middle]])
            psnrs = known[middle][2]
            low, high = (low, middle) if sum(psnrs) >= aim * len(psnrs) else (middle + 1, high)
        chosen = known.get(low) or self.best(counts[low], found[counts[low]])
        if sum(chosen[2]) < aim * len(chosen[2]):
            mean = sum(chosen[2]) / len(chosen[2])
            raise ValueError(f"psnr={aim}: {counts[low]} deep steps give {mean:.1f} dB, and no more were searched for")
        return chosen

    def _psnrs(self, config: DiCacheConfig) -> tuple[float, ...]:
        enable_cache(self._model, config, compile=False)
        try:
            return tuple(psnr_of(_kept(self._run(seed), self._bar), plain) for seed, plain in self._plain.items())
        finally:
            disable_cache(self._model)


def config_of(way: Way, num_steps: int) -> DiCacheConfig:
    """What a way is as a config."""
    rows = [row for row in way.rows if row is not None]
    width, back = (len(rows[0].residuals), len(rows[0].inputs)) if rows else (1, 1)
    table = LearnedTable(
        way.deep,
        tuple((0.0,) * width if row is None else row.residuals for row in way.rows),
        tuple((0.0,) * back if row is None else row.inputs for row in way.rows),
    )
    return DiCacheConfig(schedule=Schedule.steps(*way.deep), estimator=table, num_steps=num_steps)


def _kept(given: Any, bar: Progress) -> torch.Tensor:
    bar.tick()
    return values(given)


def _check_aim(**aims: float | None) -> None:
    given = [name for name, aim in aims.items() if aim is not None]
    if len(given) != 1:
        found = f"got {' and '.join(given)}" if given else "got none"
        raise ValueError(f"expected one aim, speedup, psnr or deep, {found}")


def _most(faster: Callable[[int], float], steps: int, speedup: float | None, deep: int | None) -> int:
    """How many deep steps are searched for at most."""
    if deep is not None:
        if not 1 <= deep < steps:
            raise ValueError(f"deep: expected 1 to {steps - 1} of {steps} steps, got {deep}")
        return deep
    if speedup is None:
        return max(steps // 2, FEWEST)
    enough = [count for count in range(1, steps) if faster(count) >= speedup]
    if not enough or speedup <= 1:
        raise ValueError(f"speedup={speedup}: expected above 1 and up to {faster(1):.1f}, that of one deep step")
    return max(enough)


def _seconds(rehearsal: Rehearsal, times: int = 5) -> tuple[float, float]:
    """(what a deep step takes, what a reused one does), uncompiled: medians, in turn."""
    pieces, take = rehearsal.pieces, rehearsal.takes[0]
    inputs = take.steps[0][0].inputs
    x = pieces.above(*inputs)[: len(pieces.carried)]
    pairs = [(_timed(pieces.whole, inputs), _timed(pieces.below, (*inputs, *x))) for _ in range(times)]
    whole, reused = zip(*pairs, strict=True)
    return median(whole), median(reused)


def _timed(piece: Callable[..., object], inputs: Sequence[Any]) -> float:
    _wait()
    start = time.perf_counter()
    piece(*inputs)
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
