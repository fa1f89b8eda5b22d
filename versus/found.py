"""What the package's `tune` finds in one run: what it says to expect, beside what held-out seeds give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import nn

from dicache_compile import DiCacheConfig
from dicache_compile.calibration.tuned import Tuned

from .compare import Entrant, compare
from .ours import Ours, install
from .rows import Row
from .system import Installed
from .workload import STEPS, Workload

EXPERIMENT = "found"
DEEP = (10, 7, 5)
FOLDER = Path(__file__).with_name("learned")  # by workload and deep steps
EXPECTED, EXPECTED_SPEED_UP = "expected PSNR", "expected speed-up"


def path(workload: Workload, deep: int) -> Path:
    """The file of what was found. Raises ValueError where nothing was."""
    found = FOLDER / f"{workload.key}-{deep}.json"
    if not found.exists():
        raise ValueError(f"no {found.name} was tuned: `python -m versus --learn {deep} --workload {workload.key}`")
    return found


def load(workload: Workload, deep: int) -> tuple[DiCacheConfig, Tuned]:
    """The config, for a generation of the usual length, and what was told of it. Raises ValueError as `path` does."""
    tuned = Tuned.load(path(workload, deep), workload.load())
    config = DiCacheConfig(schedule=tuned.config.schedule, estimator=tuned.config.estimator, num_steps=STEPS)
    return config, tuned


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for so many deep steps."""

    name: ClassVar[str] = "tune"
    source: ClassVar[str] = Ours.source
    recipe: ClassVar[str] = Ours.recipe
    dial: ClassVar[str | None] = None
    compiled: ClassVar[bool] = True
    deep: int

    @property
    def label(self) -> str:
        return f"deep {self.deep}"

    def why_not(self, workload: Workload) -> str | None:
        try:
            path(workload, self.deep)
        except ValueError as error:
            return str(error)
        return None

    def install(self, model: nn.Module, workload: Workload) -> Installed:
        return install(load(workload, self.deep)[0], model, workload)


def measure(workload: Workload, seeds: int) -> list[Row]:
    """A row for each number of deep steps, of `DEEP` and of what else was tuned, after the baseline's."""
    more = {int(found.stem.rpartition("-")[2]) for found in FOLDER.glob(f"{workload.key}-*.json")}
    entrants = [Entrant(Found(deep), f"{deep} deep") for deep in sorted(more.union(DEEP), reverse=True)]
    return [_beside(row, workload) for row in compare(EXPERIMENT, workload, entrants, seeds)]


def _beside(row: Row, workload: Workload) -> Row:
    if row.system != Found.name or not row.figures:
        return row
    tuned = load(workload, row.setting["deep"])[1]
    told = {EXPECTED: tuned.psnr, EXPECTED_SPEED_UP: tuned.speedup}
    return replace(row, figures=row.figures | told)
