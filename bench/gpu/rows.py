"""What is written down: one JSON line for each figure, on disk as soon as it is known."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROWS, SAMPLES, TEXTS = "rows.jsonl", "samples.jsonl", "profiles.txt"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, or one check."""

    case: str  # "flux1024", "checks"
    system: str  # "conditional", "torch.compile"
    figure: str  # "seconds a generation"
    value: float | None  # None: not measured; `detail` says why
    unit: str  # "s", "us", "" for ratios
    baseline: str = ""  # the system that the value is against
    bar: str = ""  # ">= 0.98"
    passed: bool | None = None  # None: there is no bar
    detail: str = ""
    device: str = ""
    torch: str = torch.__version__
    commit: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach."""

    sign: str  # "<=", ">=", ">"
    value: float

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"

    def holds(self, value: float) -> bool:
        return {"<=": value <= self.value, ">=": value >= self.value, ">": value > self.value}[self.sign]


class Writer:
    """Appends to a folder's files; several processes may do so at a time, a line each."""

    def __init__(self, folder: Path, device: str) -> None:
        self._folder, self._device = folder, device
        folder.mkdir(parents=True, exist_ok=True)

    def row(
        self,
        case: str,
        system: str,
        figure: str,
        value: float | None,
        unit: str = "",
        *,
        baseline: str = "",
        bar: Bar | None = None,
        passed: bool | None = None,
        detail: str = "",
    ) -> None:
        """Writes a row; against a bar it passes or fails by its value, without one as told."""
        if bar is not None:
            passed = value is not None and bar.holds(value)
        text = "" if bar is None else str(bar)
        made = Row(case, system, figure, value, unit, baseline, text, passed, detail, self._device, commit=commit())
        self._append(ROWS, asdict(made))

    def sample(self, **values: Any) -> None:
        """Writes what one generation gave, from which rows are made."""
        self._append(SAMPLES, values)

    def text(self, title: str, text: str) -> None:
        """Writes a table that is only to be read."""
        with (self._folder / TEXTS).open("a") as file:
            file.write(f"{title}\n{text}\n")

    def _append(self, name: str, values: dict[str, Any]) -> None:
        with (self._folder / name).open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_rows(folder: Path) -> list[Row]:
    return [Row(**values) for values in _read(folder / ROWS)]


def read_samples(folder: Path, case: str) -> list[dict[str, Any]]:
    return [values for values in _read(folder / SAMPLES) if values["case"] == case]


def _read(path: Path) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@cache
def commit() -> str:
    """The checkout's commit, "unknown" where there is no git."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
