"""Finds the schedule and the weights for a user's own model: `tune(pipe, run, speedup=3.0)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from statistics import median
from typing import Any

import torch

from .calibration.progress import progress_bar
from .calibration.recording import fingerprint
from .calibration.rehearsal import Rehearsal, rehearse
from .calibration.search import search
from .calibration.tuned import Point, Tuned
from .checks import whole
from .choosing import FEWEST, Chooser
from .compiled import own_config
from .config import DiCacheConfig
from .enable import denoisers
from .estimators import Reuse
from .schedules import Schedule

_UNCUT = DiCacheConfig(schedule=Schedule.every(2), estimator=Reuse())  # all blocks are deep


def tune(
    pipe_or_model: Any,
    run: Callable[[int], Any],
    *,
    speedup: float | None = None,
    psnr: float | None = None,
    deep: int | None = None,
    samples: int = 6,
    trials: int = 6,
    checks: int = 64,
    width: int = 6,
    progress: bool = True,
) -> Tuned:
    """Searches the deep steps, and fits the weights of the others, for one model, sampler and number of steps.

    `run(seed)` generates with the model, as you do, and returns the result: a tensor, pictures, or what a diffusers
    pipeline returns. It is called with seeds from 0 on. `samples` of them are recorded uncached, and the search goes
    through them again by itself with every schedule it tries. `trials` choose among the best of these by cached runs,
    and move their deep steps about. `checks` tell what to expect of a seed that nothing was chosen by: seeds differ by
    several dB, so the mean of few says little.

    One aim has to be given: `deep`, so many deep steps; `speedup`, the most deep steps that are expected to be so fast;
    `psnr`, the fewest deep steps with so many dB in the mean. `width` is how many ways are kept at once: more takes
    longer and finds better ones. The same arguments give the same result. The model is left as it was.

    Returns what was found, with what to expect of it: `tuned.config` goes into `enable_cache`.

    Raises TypeError as `enable_cache` does; ValueError for no aim or several, an aim that cannot be reached, less than
    one run of a kind, a function that does not call the model, and a sampler whose steps are no sums of results and
    latents, also not of a few steps before and of noise by the seed.
    """
    models = denoisers(pipe_or_model)
    if len(models) > 1:
        raise ValueError(f"{', '.join(models)} are several denoisers: tune each alone, with the model itself")
    (model,) = models.values()
    _check_aim(speedup=speedup, psnr=psnr, deep=deep)
    for name, number in (("samples", samples), ("trials", trials), ("checks", checks), ("width", width)):
        whole(name, number, 1)
    if own_config(model) is not None:
        raise ValueError("this model has a cache already: call disable_cache first, and enable_cache with the result")
    with progress_bar("tuning", progress) as bar, torch.no_grad():
        bar.phase("recording", samples)
        rehearsal = rehearse(model, run, range(samples), _UNCUT, bar.tick)
        steps = rehearsal.num_steps
        of_deep, of_reused = _seconds(rehearsal)

        def faster(count: int) -> float:
            return steps * of_deep / (count * of_deep + (steps - count) * of_reused)

        most = _most(faster, steps, speedup, deep)
        bar.phase("searching", steps)
        found = search(rehearsal, most, width, bar.tick)
        points = tuple(
            Point(n, faster(n), -ways[0].error) for n, ways in sorted(found.items()) if n >= min(FEWEST, most)
        )
        chooser = Chooser(model, run, rehearsal, range(samples, samples + trials), bar)
        with closing(chooser):
            chosen = chooser.fewest(found, psnr) if psnr is not None else chooser.best(found[most])
            psnrs = chooser.psnrs(chosen.config, range(samples + trials, samples + trials + checks))
    count = len(chosen.deep)
    return Tuned(chosen.config, fingerprint(model), count, steps, faster(count), psnrs, points)


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
    of_deep, of_reused = zip(*pairs, strict=True)
    return median(of_deep), median(of_reused)


def _timed(piece: Callable[..., object], inputs: Sequence[Any]) -> float:
    _wait()
    start = time.perf_counter()
    piece(*inputs)
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
