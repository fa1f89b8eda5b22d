"""Finds the settings of each system that have about so many deep steps, and of those the best.

On seeds that nothing is measured on, eagerly, and for every system alike: its threshold is searched for in each of its
variants on a few seeds, of what comes within half a step of the target the best few by mean PSNR run on more, and of
those the best on all of these seeds wins. `python -m bench.versus --tune` writes what is found to `tuned.json`, which
the comparisons read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ..quality import psnr
from .compare import EQUAL
from .generation import generate
from .system import System, eager
from .uncached import Uncached
from .workload import Workload

SEEDS = range(3)  # of the search
FINAL_SEEDS = range(3, 15)  # besides: on three alone, schedules differ by less than their pictures do
FINALISTS = 6
LOWEST, HIGHEST = 0.003, 3.0  # of a threshold
HALVINGS = 8
NEAR, AT = 0.5, 0.2  # deep steps from the target: good enough to compare, and to stop searching


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting on some seeds: the deep steps and the PSNR in dB of each of its generations."""

    system: System
    deep_steps: tuple[float, ...]
    psnrs: tuple[float, ...]

    @property
    def deep(self) -> float:
        return fmean(self.deep_steps)

    @property
    def psnr(self) -> float:
        return fmean(self.psnrs)


class Tuner:
    """One workload's tuning; it keeps the uncached pictures and every trial."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        installed = Uncached(compiled=False).install(workload.load(), workload)
        self._references = {seed: generate(installed, workload, seed).pixels for seed in (*SEEDS, *FINAL_SEEDS)}
        self._trials: list[Trial] = []

    def best(self, variants: Sequence[System], target: int) -> Trial | None:
        """The best of the variants, whatever their dial, with about `target` deep steps; None if none has."""

        def near(trial: Trial) -> bool:
            return abs(trial.deep - target) <= NEAR

        searched = filter(near, itertools.chain.from_iterable(self._reach(system, target) for system in variants))
        first = sorted(searched, key=lambda trial: trial.psnr, reverse=True)[:FINALISTS]
        return max(map(self._further, first), key=lambda trial: (near(trial), trial.psnr), default=None)

    def _reach(self, system: System, target: int) -> list[Trial]:
        """Turns the dial until the target is met; more of it means fewer deep steps."""
        if system.dial is None or _dial(system) == math.inf:  # a schedule, which decides nothing
            return [self._try(system)]
        known = [trial for trial in self._trials if _at(trial.system, 0.0) == _at(system, 0.0)]
        for _ in range(HALVINGS):
            if any(abs(trial.deep - target) <= AT for trial in known):
                break
            low = max((_dial(t.system) for t in known if t.deep > target), default=LOWEST)
            high = min((_dial(t.system) for t in known if t.deep < target), default=HIGHEST)
            if high <= low * 1.01:
                break
            known.append(self._try(_at(system, float(f"{math.sqrt(low * high):.3g}"))))
        return known

    def _try(self, system: System) -> Trial:
        self._trials.append(trial := self._run(system, SEEDS))
        return trial

    def _further(self, trial: Trial) -> Trial:
        """The same setting on all seeds."""
        more = self._run(trial.system, FINAL_SEEDS)
        return Trial(trial.system, trial.deep_steps + more.deep_steps, trial.psnrs + more.psnrs)

    def _run(self, system: System, seeds: Sequence[int]) -> Trial:
        installed = eager(system).install(self.workload.load(), self.workload)
        deep, quality = [], []
        for seed in seeds:
            done = generate(installed, self.workload, seed)
            assert done.deep is not None, system.name
            deep.append(sum(done.deep) / len(self.workload.streams))
            quality.append(min(EQUAL, psnr(done.pixels, self._references[seed])))
        return Trial(system, tuple(deep), tuple(quality))


def _dial(system: System) -> float:
    assert system.dial is not None
    return getattr(system, system.dial)


def _at(system: System, value: float) -> System:
    return system if system.dial is None else replace(system, **{system.dial: value})  # type: ignore[type-var]
