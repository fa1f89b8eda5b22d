"""`tuned.json`: by workload and family the best setting for each number of deep steps, and for the same quality."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bars import SAME_QUALITY
from .dbcache import DBCache
from .first_block import FirstBlock
from .mag import Mag
from .ours import Ours
from .published import PublishedDiCache
from .sea import Sea
from .system import System, setting
from .taylorseer import TaylorSeer
from .workload import Workload

FILE = Path(__file__).with_name("tuned.json")
KINDS = {kind.__name__: kind for kind in (DBCache, FirstBlock, Mag, Ours, PublishedDiCache, Sea, TaylorSeer)}
SAME = f"{SAME_QUALITY:.0f} dB"
KEPT = 40  # of the sensitive seeds, first the most sensitive
FOUND = ("deep", "psnr", "seeds")


def deep(target: int) -> str:
    """The role of the settings with so many deep steps."""
    return f"{target} deep"


@dataclass(frozen=True, slots=True)
class Tuned:
    """A setting that was chosen, and what it gave on the seeds that chose it: means of the deep steps and the PSNR."""

    system: System
    deep: float
    psnr: float  # dB
    seeds: int


def ratios(workload: Workload) -> tuple[float, ...]:
    """MagCache's for the workload's model; empty if nothing was tuned on it."""
    return tuple(_read().get(workload.key, {"ratios": ()})["ratios"])


def sensitive(workload: Workload) -> tuple[int, ...]:
    """The seeds that a small error changes most; empty if nothing was tuned on the workload."""
    return tuple(_read().get(workload.key, {}).get("sensitive", ()))


def best(workload: Workload, family: str, role: str) -> Tuned | None:
    """What was chosen; None if no setting that was tried will do. A ValueError says how to tune what was not."""
    roles = _read().get(workload.key, {"settings": {}})["settings"].get(family, {})
    if role not in roles:
        raise ValueError(
            f"{FILE.name} has no setting of {family} for the {workload.name} and {role}: find it with "
            f'`python -m versus --tune --workload {workload.key} --family "{family}"`'
        )
    if (found := roles[role]) is None:
        return None
    return Tuned(_system(found), *(found[what] for what in FOUND))


def store(
    workload: Workload, family: str, role: str, found: Tuned | None, ratios: Sequence[float], sensitive: Sequence[int]
) -> None:
    """Puts a choice in the place of the one that the file has, which others may write to at the same time."""
    fields = None if found is None else {
        "kind": type(found.system).__name__, **setting(found.system), **{what: getattr(found, what) for what in FOUND}
    }  # fmt: skip
    everything = _read()
    here = everything.setdefault(workload.key, {"ratios": [], "settings": {}})
    here["ratios"], here["sensitive"] = list(ratios), list(sensitive[:KEPT])
    here["settings"].setdefault(family, {})[role] = fields
    beside = FILE.with_suffix(".new")
    beside.write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n")
    beside.replace(FILE)


def _read() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def _system(fields: dict[str, Any]) -> System:
    """The inverse of `setting`."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    values = {name: math.inf if value == "inf" else value for name, value in values.items() if name not in FOUND}
    return KINDS[values.pop("kind")](**values)
