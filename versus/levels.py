"""Runs every method with about the same numbers of deep steps, one after the other, uncompiled: quality alone.

A threshold is searched for on seeds that nothing is measured on; `dials.json` keeps what was found. A row is written as
soon as its method is done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from dicache_compile import DiCacheConfig

from .calibrated import SAMPLES, Calibrated
from .compare import EQUAL, _quality, _said, _spread
from .generation import generate
from .methods import METHODS, Method, Preset
from .peers import pairs
from .rows import Row, row
from .system import Installed, System
from .traced import Traced
from .uncached import Uncached
from .workload import HELD_OUT, STEPS, Workload

FILE = Path(__file__).with_name("dials.json")
EXPERIMENT = "methods"
OWN, SAME = "own setting", "same schedule"
BASELINE = "uncached, eager"
TUNING = range(SAMPLES, SAMPLES + 2)  # seeds of the search: none that a method is calibrated with
TRIALS = 9
NEAR = 0.12  # deep steps off: good enough to stop searching


def role(level: int | None) -> str:
    return OWN if level is None else f"{level} deep"


@dataclass(frozen=True, slots=True)
class Dial:
    value: float
    reached: float  # deep steps, on the seeds of the search


class Levels:
    """One workload's model, traced once, with what is known of it and the uncached pictures of the held-out seeds."""

    def __init__(self, workload: Workload, seeds: int) -> None:
        self.workload = workload
        self.traced = Traced(workload)
        self.known = Calibrated(workload)
        plain = Uncached(compiled=False).install(workload.load(), workload)
        wanted = tqdm(range(HELD_OUT, HELD_OUT + seeds), desc=f"uncached: {workload.name}", unit="seed")
        self.references = {seed: generate(plain, workload, seed).pixels for seed in wanted}

    def rows(self, name: str) -> list[Row]:
        """A method's, one for each of its numbers of deep steps."""
        return [self._row(name, METHODS[name], level) for level in METHODS[name].levels]

    def same(self) -> list[Row]:
        """Ours beside each peer that has its method, on the same schedule; `family` says which two belong together."""
        found = []
        for ours, theirs in pairs(self.known):
            installed = theirs.install(self.workload.load(), self.workload)
            both = [
                self.measured(ours, self.traced.under(ours.config), SAME, self.traced.left_out),
                self.measured(theirs, installed, SAME, None),
            ]
            found += [replace(one, family=ours.method) for one in both]
        return found

    def measured(self, system: System, installed: Installed, role: str, left_out: Callable[[], float] | None) -> Row:
        """A system's row. `left_out`: of the last generation, the share of the operations; None: it is not known."""
        psnrs, ssims, deep, shares, shown = [], [], [], [], []
        for seed, reference in self.references.items():
            done = generate(installed, self.workload, seed)
            near, alike = _quality(self.workload, done.pixels, reference)
            psnrs.append(min(near, EQUAL))
            ssims.append(alike)
            shown.append(float(self.workload.shows(done.pixels, self.workload.prompt(seed))))
            if done.deep is not None:
                deep.append(sum(done.deep) / len(self.workload.streams))
            if left_out is not None:
                shares.append(left_out())
        figures = {"generations": float(len(psnrs)), "shows its prompt": fmean(shown)}
        figures |= {f"PSNR {of}": value for of, value in _spread(psnrs).items()}
        figures |= {f"SSIM {of}": value for of, value in _spread(ssims).items()}
        if deep:
            figures["deep steps"] = fmean(deep)
        if shares:
            figures["expected speed-up"] = 1 / (1 - fmean(shares))
            figures["work of deep steps"] = self._worth(fmean(shares))
        made = row(EXPERIMENT, self.workload, system, role, figures, {"PSNR": psnrs})
        return replace(made, baseline=BASELINE)

    def _row(self, name: str, method: Method, level: int | None) -> Row:
        try:
            given: tuple[Any, ...] = (self.known, level)
            if method.dial is not None:
                assert level is not None
                given = (*given, self.dial(name, level).value)
            system = method.make(*given)
            installed = self.traced.under(system.config)
            return self.measured(system, installed, role(level), self.traced.left_out)
        except Exception as error:  # the other methods can be compared all the same
            failed = Preset(name, "", DiCacheConfig())
            return row(EXPERIMENT, self.workload, failed, role(level), {}, why=_said(error))

    def dial(self, name: str, level: int) -> Dial:
        """What `dials.json` has; else what is found, which it then has."""
        key = str(level)
        found = _read().get(self.workload.key, {}).get(name, {}).get(key)
        if found is None:
            dial = self.searched(METHODS[name], level)
            everything = _read()
            here = everything.setdefault(self.workload.key, {}).setdefault(name, {})
            here[key] = {"value": dial.value, "reached": dial.reached}
            beside = FILE.with_suffix(".new")
            beside.write_text(json.dumps(everything, indent=1) + "\n")
            beside.replace(FILE)
            return dial
        return Dial(**found)

    def searched(self, method: Method, level: int) -> Dial:
        """The dial that comes nearest to a number of deep steps, which it makes fewer the larger it is."""
        assert method.dial is not None
        low, high = (Dial(value, deep) for value, deep in zip(method.dial, (STEPS, 2.0), strict=True))
        trials: list[Dial] = []
        for _ in range(TRIALS if method.by == "runs" else 4 * TRIALS):
            # Nearer to the end that is nearer to what is asked, but never close to either.
            share = min(max((low.reached - level) / max(low.reached - high.reached, 1e-9), 0.2), 0.8)
            value = float(f"{math.exp(math.log(low.value) * (1 - share) + math.log(high.value) * share):.4g}")
            if value in (low.value, high.value):
                break
            trial = Dial(value, self._reached(method, level, value))
            trials.append(trial)
            if abs(trial.reached - level) <= (NEAR if method.by != "plan" else 0):
                break
            low, high = (trial, high) if trial.reached > level else (low, trial)
        return min(trials, key=lambda trial: abs(trial.reached - level))

    def _reached(self, method: Method, level: int, value: float) -> float:
        config = method.make(self.known, level, value).config
        if method.by == "plan":
            assert config.schedule is not None
            return len(config.schedule.deep_steps(STEPS))
        installed = self.traced.under(config)
        found = []
        for seed in TUNING if config.schedule is None else TUNING[:1]:
            done = generate(installed, self.workload, seed)
            assert done.deep is not None
            deep = sum(done.deep) / len(self.workload.streams)
            found.append(self._worth(self.traced.left_out()) if method.by == "work" else deep)
        return fmean(found)

    def _worth(self, left_out: float) -> float:
        """As many deep steps as run what was run, if the others left out all blocks."""
        return STEPS * (1 - left_out / self.traced.share("trunk"))


def _read() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}
