"""A result: one JSON line with its baseline, its quality, its machine and its versions."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .system import System, setting
from .workload import Workload

RESULTS = Path(__file__).with_name("results")
WRITTEN = ("versus/results", "versus/learned", "versus/dials.json", "docs/benchmarks.md", "docs/benchmarks")
LIBRARIES = ("torch", "diffusers", "cache-dit")
BASELINE = "uncached, torch.compile"


@dataclass(frozen=True, slots=True)
class Row:
    """What one setting of one system gave in one experiment."""

    experiment: str  # "own", "equal", "schedule", "costs", "sweep"
    workload: str  # "shapes FLUX"
    system: str  # "FirstBlockCache"
    label: str  # the setting in words
    role: str  # why this setting: "own", "baseline", "15 deep", "schedule"
    figures: dict[str, float]  # each name has its unit; empty: it was not run, and `why` says why
    samples: dict[str, list[float]] = field(default_factory=dict)  # one for each generation, to judge noise by
    why: str = ""
    source: str = ""
    recipe: str = ""
    setting: dict[str, Any] = field(default_factory=dict)
    baseline: str = BASELINE  # in the same process, interleaved
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    date: str = ""
    run: str = ""  # when its comparison started: rows of one run are paired, seed by seed
    family: str = ""  # of a tuned setting: whose best it is
    tuned_on: int = 0  # seeds that chose the setting; 0: it is not tuned

    @property
    def key(self) -> tuple[str, ...]:
        """What two files have in common; of a tuned setting not the setting, which may be tuned anew."""
        return self.experiment, self.workload, self.system, self.family or self.label, self.role

    @property
    def comparison(self) -> tuple[str, ...]:
        """What is measured at once of a system: of its roles, all numbers of deep steps are one."""
        return self.experiment, self.workload, self.system, self.role.lstrip("0123456789 ")


def row(
    experiment: str,
    workload: Workload,
    system: System,
    role: str,
    figures: dict[str, float],
    samples: dict[str, list[float]] | None = None,
    why: str = "",
) -> Row:
    return Row(
        experiment,
        workload.name,
        system.name,
        system.label,
        role,
        {name: float(f"{value:.6g}") for name, value in figures.items()},
        {name: [float(f"{value:.5g}") for value in values] for name, values in (samples or {}).items()},
        why,
        system.source,
        system.recipe if system.compiled else "eager",
        json.loads(json.dumps(setting(system), default=repr)),
        machine=machine(),
        versions=versions(),
        commit=commit(),
        date=datetime.date.today().isoformat(),
    )


def replace(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, in the place of all that their systems had there; it is whole at every moment.

    Of a system's settings some are tuned, so an older measurement may have others.
    """
    measured = {row.comparison for row in rows}
    kept = [row for row in read(path) if row.comparison not in measured] if path.exists() else []
    path.parent.mkdir(exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text("".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in (*kept, *rows)))
    beside.replace(path)


def read(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


@functools.cache
def machine() -> str:
    """Such as "x86_64, 2 cores, Linux"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, {platform.system()}, no GPU"


@functools.cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def commit() -> str:
    """The checkout's commit, with a + where files differ from it; "unknown" where there is no git.

    What a run writes itself, as one before it may have done, is no difference.
    """

    def git(*words: str) -> str:
        asked = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", ":/", *(f":/!{path}" for path in WRITTEN))
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
