"""What a step costs with each estimator: a schedule's reused step, its deep step, and compiling.

    python -m bench.estimators                  # every estimator
    python -m bench.estimators --rounds 3 Reuse "Newton 1"

The small FLUX, compiled, every fourth step deep. No block runs on the others, so that little but the estimate is left.
In each round every estimator generates once, one after the other: ratios are of one round, to the estimator with plain
numbers as weights and as many anchors, and medians of all rounds. Compiling is cold, with a new cache folder for each.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

from dicache_compile import DiCacheConfig, Schedule, enable_cache, generation
from dicache_compile.estimators import (
    AdamsBashforth,
    BandSplit,
    FoCa,
    Hermite,
    HyCa,
    Newton,
    Reuse,
    Spectrum,
    Taylor,
)
from dicache_compile.rules import Estimator

from .shapes.model import generate, load
from .systems import STEPS, prompts

MEASURED = Path(__file__).parent / "measured" / "estimators.jsonl"
SCHEDULE = Schedule.every(4, after=4)
TOKENS = 16  # of a picture, a side
WIDTH = 128  # channels


@dataclass(frozen=True, slots=True)
class Case:
    """An estimator, and the one with plain numbers as weights that has as many anchors."""

    estimator: Estimator
    beside: str


CASES: Mapping[str, Case] = {
    "Reuse": Case(Reuse(), "Reuse"),
    "Newton 1": Case(Newton(1), "Newton 1"),
    "Newton 2": Case(Newton(2), "Newton 2"),
    "Newton 3": Case(Newton(3), "Newton 3"),
    "Taylor 1": Case(Taylor(1), "Newton 1"),
    "Taylor 2": Case(Taylor(2), "Newton 2"),
    "Hermite 2": Case(Hermite(2), "Newton 2"),
    "AdamsBashforth 3": Case(AdamsBashforth(3), "Newton 2"),
    "FoCa": Case(FoCa(), "Newton 1"),
    "HyCa": Case(HyCa(("taylor", "ab2"), tuple(channel % 2 for channel in range(WIDTH))), "Newton 2"),
    "BandSplit": Case(BandSplit(grid=(TOKENS, TOKENS)), "Newton 2"),
    "Spectrum": Case(Spectrum(), "Newton 3"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One estimator. Ratios are to the one beside it; `compiling` to Reuse."""

    estimator: str
    beside: str
    reused_ms: float  # a reused call, median
    reused: float
    deep: float
    compile_s: float  # cold
    compiling: float


class Clock:
    """Calls a model and notes how long each call takes."""

    def __init__(self, model: Any) -> None:
        self.model, self.seconds = model, list[float]()

    def __call__(self, **inputs: Any) -> Any:
        start = time.perf_counter()
        result = self.model(**inputs)
        self.seconds.append(time.perf_counter() - start)
        return result


def compiled(estimator: Estimator, schedule: Schedule = SCHEDULE) -> tuple[Clock, float]:
    """(a model of its own, the seconds of its first generation, which compiles)."""
    model = load()
    config = DiCacheConfig(schedule=schedule, probe_depth=0, estimator=estimator, streams=1, num_steps=STEPS)
    enable_cache(model, config, fullgraph=True)
    clock = Clock(model)
    with fresh_cache():
        start = time.perf_counter()
        run(clock, seed=0)
        return clock, time.perf_counter() - start


def run(clock: Clock, seed: int) -> tuple[float, float]:
    """Seconds of a reused and of a deep call, the medians of one generation."""
    clock.seconds.clear()
    with generation(num_steps=STEPS):
        generate(clock, prompts(seed), seed, STEPS)  # type: ignore[arg-type]
    deep = SCHEDULE.deep_steps(STEPS)
    # The first ones of a generation check the guards.
    by_kind: dict[bool, list[float]] = {True: [], False: []}
    for step, seconds in list(enumerate(clock.seconds))[2:]:
        by_kind[step in deep].append(seconds)
    return statistics.median(by_kind[False]), statistics.median(by_kind[True])


def measure(names: Sequence[str], rounds: int) -> list[Row]:
    needed = dict.fromkeys(("Reuse", *names, *(CASES[name].beside for name in names)))
    # What the first compilation of a process does besides; with a config that no other has, or it would be theirs.
    compiled(Reuse(), Schedule.every(5, after=4))
    models = {}
    for name in needed:
        models[name] = compiled(CASES[name].estimator)
        print(f"{name}: compiled in {models[name][1]:.1f} s", flush=True)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in needed}
    for seed in range(rounds):
        for name, (clock, _) in models.items():
            found[name].append(run(clock, seed))
    return [_row(name, models, found) for name in names]


def _row(
    name: str, models: Mapping[str, tuple[Clock, float]], found: Mapping[str, Sequence[tuple[float, float]]]
) -> Row:
    beside = CASES[name].beside
    pairs = list(zip(found[name], found[beside], strict=True))
    reused, deep = (statistics.median(one[kind] / other[kind] for one, other in pairs) for kind in (0, 1))
    return Row(
        name,
        beside,
        reused_ms=round(1000 * statistics.median(one for one, _ in found[name]), 3),
        reused=round(reused, 3),
        deep=round(deep, 3),
        compile_s=round(models[name][1], 1),
        compiling=round(models[name][1] / models["Reuse"][1], 3),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("estimators", nargs="*", metavar="ESTIMATOR", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.estimators if name not in CASES]:
        parser.error(f"no estimator {unknown[0]!r} among {', '.join(CASES)}")
    rows = measure(arguments.estimators or list(CASES), arguments.rounds)
    print(f"{'':17} {'beside':12} {'reused ms':>9} {'reused':>7} {'deep':>6} {'compile s':>9} {'compile':>8}")
    for row in rows:
        print(
            f"{row.estimator:17} {row.beside:12} {row.reused_ms:9.3f} {row.reused:7.3f} {row.deep:6.3f} "
            f"{row.compile_s:9.1f} {row.compiling:8.3f}"
        )
    made = {"torch": torch.__version__, "device": platform.machine(), "threads": torch.get_num_threads()}
    MEASURED.write_text("".join(json.dumps({**asdict(row), **made}) + "\n" for row in rows))


if __name__ == "__main__":
    main()
