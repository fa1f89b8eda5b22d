"""Finds the settings of each family that have about so many deep steps, and of those the best.

On seeds that nothing is measured on, eagerly, and for every system alike: its threshold is searched for in each of its
variants on a few seeds, of what has the target or up to a step less the best few run on more, and of those that have
it on all of these seeds, or up to half a step less, the best wins; if none has, the nearest. The best is that of the
highest sum of mean and worst PSNR, which the bars ask for both; the mean, and the deep steps, are of ordinary seeds,
and the worst is of these and of sensitive ones. If the best says itself which steps are deep, one of them is moved by
one for as long as that helps. For the same quality, the number of deep steps is searched for too.
`python -m versus --tune` writes what is found to `tuned.json`, which the comparisons read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tqdm import tqdm

from bench.quality import psnr

from . import tuned
from .bars import DEEP_STEPS, SAME_QUALITY
from .compare import EQUAL
from .families import FAMILIES, moved
from .generation import generate
from .mag import calibrate
from .sensitive import sensitive
from .system import System, eager
from .tuned import Tuned
from .uncached import Uncached
from .workload import Workload

SEEDS = range(3)  # of the search
FINAL_SEEDS = range(3, 15)  # besides: on three alone, schedules differ by less than their pictures do
SENSITIVE, FINAL_SENSITIVE = 2, 8  # besides those, of the search and of the choice
FINALISTS = 6
MOVES = 2  # finalists among the schedules that are a move away: most moves help little, and the next ones follow
LOWEST, HIGHEST = 0.003, 3.0  # of a threshold
HALVINGS = 8
FEWEST = 3  # deep steps with which no family can do
MARGIN = 0.5  # dB above the same quality, so that other seeds have it too
NEAR, AT = 0.5, 0.2  # deep steps below the target: good enough to compare, and to stop searching
SEARCHED = 1.0  # deep steps below the target on the seeds of the search, which tell no better what more seeds have


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting on some seeds: the deep steps and the PSNR in dB of each of its generations."""

    system: System
    deep_steps: tuple[float, ...]
    psnrs: tuple[float, ...]
    sensitive: tuple[float, ...]  # the PSNR of sensitive seeds

    @property
    def deep(self) -> float:
        return fmean(self.deep_steps)

    @property
    def psnr(self) -> float:
        return fmean(self.psnrs)

    @property
    def merit(self) -> float:
        """What a setting is chosen by, dB."""
        return self.psnr + min(*self.psnrs, *self.sensitive)

    @property
    def seeds(self) -> int:
        return len(self.psnrs) + len(self.sensitive)


class Tuner:
    """One workload's tuning; it keeps the uncached pictures and every trial.

    `sensitive`: seeds, those that a small error changes most first.
    """

    def __init__(self, workload: Workload, sensitive: Sequence[int]) -> None:
        self.workload = workload
        others = [seed for seed in sensitive if seed not in (*SEEDS, *FINAL_SEEDS)][: SENSITIVE + FINAL_SENSITIVE]
        self._sensitive, self._final_sensitive = others[:SENSITIVE], others[SENSITIVE:]
        installed = Uncached(compiled=False).install(workload.load(), workload)
        seeds = (*SEEDS, *FINAL_SEEDS, *others)
        self._references = {seed: generate(installed, workload, seed).pixels for seed in seeds}
        self._trials: list[Trial] = []

    def best(self, variants: Sequence[System], target: int) -> Trial | None:
        """The best of the variants, whatever their dial, with about `target` deep steps; None if none has."""

        def rank(trial: Trial) -> tuple[bool, float]:
            near = 0 <= target - trial.deep <= NEAR
            return near, trial.merit if near else -abs(target - trial.deep)

        def best_of(systems: Sequence[System], finalists: int) -> Trial | None:
            searched = itertools.chain.from_iterable(self._reach(system, target) for system in systems)
            close = [trial for trial in searched if 0 <= target - trial.deep <= SEARCHED]
            first = sorted(close, key=lambda trial: trial.merit, reverse=True)[:finalists]
            return max(map(self._further, first), key=rank, default=None)

        found = best_of(variants, FINALISTS)
        while found is not None:
            better = best_of(moved(found.system), MOVES)
            if better is None or rank(better) <= rank(found):
                break
            found = better
        return found

    def _reach(self, system: System, target: int) -> list[Trial]:
        """Turns the dial until the target is met; more of it means fewer deep steps."""
        if system.dial is None or _dial(system) == math.inf:  # a schedule, which decides nothing
            return [trial for trial in self._trials if trial.system == system] or [self._try(system)]
        known = [trial for trial in self._trials if _at(trial.system, 0.0) == _at(system, 0.0)]
        for _ in range(HALVINGS):
            if any(0 <= target - trial.deep <= AT for trial in known):
                break
            low = max((_dial(t.system) for t in known if t.deep > target), default=LOWEST)
            high = min((_dial(t.system) for t in known if t.deep < target), default=HIGHEST)
            if high <= low * 1.01:
                break
            known.append(self._try(_at(system, float(f"{math.sqrt(low * high):.3g}"))))
        return known

    def _try(self, system: System) -> Trial:
        self._trials.append(trial := self._run(system, SEEDS, self._sensitive))
        return trial

    def _further(self, trial: Trial) -> Trial:
        """The same setting on all seeds."""
        more = self._run(trial.system, FINAL_SEEDS, self._final_sensitive)
        return Trial(
            trial.system,
            trial.deep_steps + more.deep_steps,
            trial.psnrs + more.psnrs,
            trial.sensitive + more.sensitive,
        )

    def _run(self, system: System, seeds: Sequence[int], sensitive: Sequence[int]) -> Trial:
        installed = eager(system).install(self.workload.load(), self.workload)

        def run(seed: int) -> tuple[float, float]:
            done = generate(installed, self.workload, seed)
            assert done.deep is not None, system.name
            deep = sum(done.deep) / len(self.workload.streams)
            return deep, min(EQUAL, psnr(done.pixels, self._references[seed]))

        deep_steps, psnrs = zip(*map(run, seeds), strict=True)
        return Trial(system, deep_steps, psnrs, tuple(run(seed)[1] for seed in sensitive))


def tune(
    workload: Workload, families: Sequence[str], targets: Sequence[int] = DEEP_STEPS, quality: bool = True
) -> None:
    """Finds settings with as many deep steps as the targets, and with the same quality, and puts them into the file.

    Each is there as soon as it is found. The same quality starts from the numbers of deep steps that are in the file.
    """
    ratios = calibrate(workload, SEEDS)
    easily_moved = tuned.sensitive(workload) or sensitive(workload)
    tuner = Tuner(workload, easily_moved)
    for family in (bar := tqdm(families, desc=f"tuning: {workload.name}", unit="family")):

        def best(target: int, family: str = family) -> Tuned | None:
            bar.set_postfix_str(f"{family}, {target} deep")
            trial = tuner.best(FAMILIES[family](workload, target, ratios), target)
            return None if trial is None else Tuned(trial.system, trial.deep, trial.psnr, trial.seeds)

        for target in targets:
            tuned.store(workload, family, tuned.deep(target), best(target), ratios, easily_moved)
        if quality:
            known = {target: tuned.best(workload, family, tuned.deep(target)) for target in DEEP_STEPS}
            tuned.store(workload, family, tuned.SAME, fewest(best, known), ratios, easily_moved)


def fewest(best: Callable[[int], Tuned | None], known: Mapping[int, Tuned | None]) -> Tuned | None:
    """The setting with the fewest deep steps that has the same quality, by halving; None if no known one has it."""

    def will_do(found: Tuned | None) -> bool:
        return found is not None and found.psnr >= SAME_QUALITY + MARGIN

    enough = min((target for target, found in known.items() if will_do(found)), default=None)
    if enough is None:
        return None
    chosen = known[enough]
    too_few = max((target for target in known if target < enough), default=FEWEST)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if will_do(found := best(middle)):
            enough, chosen = middle, found
        else:
            too_few = middle
    return chosen


def _dial(system: System) -> float:
    assert system.dial is not None
    return getattr(system, system.dial)


def _at(system: System, value: float) -> System:
    return system if system.dial is None else replace(system, **{system.dial: value})  # type: ignore[type-var]
