"""What caches keep of a picture where the model itself is quantised: docs/low-precision.md.

    python -m bench.low_precision           # both small models; writes the rows
    python -m bench.low_precision flux      # one of them
    python -m bench.low_precision --table   # prints the page's tables from the rows

Layers of the blocks round as those of a quantised model do, in float32 (`fake_quantised`). The truth is the same
quantised model without a cache, from the same noise. Schedules are fixed, so that all rules have equal deep steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from dicache_compile import DiCacheConfig, Schedule, configure, dicache_backend, generation, stream, summary
from dicache_compile.estimators import DCTA, Reuse, Taylor

from .clips import model as clips
from .clips.clips import MOTIONS
from .fake_quantised import Rounding, floats, integers, quantise
from .noise_aware import NoiseAwareDCTA
from .quality import psnr
from .shapes import model as shapes
from .shapes.pictures import COLOURS, SHAPES
from .systems import STEPS

MEASURED = Path(__file__).parent / "measured" / "low_precision.jsonl"
SCHEDULES = {10: Schedule.steps(0, 1, 2, 6, 9, 12, 15, 19, 23, 27), 7: Schedule.steps(0, 1, 2, 8, 13, 19, 25)}
RULES: Mapping[str, Mapping[str, Any]] = {
    "Reuse": {"estimator": Reuse(), "probe_depth": 0},
    "DCTA": {"estimator": DCTA((1.0, 2.0))},
    "noise-aware": {"estimator": NoiseAwareDCTA((1.0, 2.0))},
    "Taylor": {"estimator": Taylor(1), "probe_depth": 0},
}
DEFAULT = "balanced"  # the default rule, which decides itself how many steps are deep
E4M3 = floats(torch.float8_e4m3fn)
FORMATS: Mapping[str, tuple[Rounding, Rounding] | None] = {  # of weights and of activations
    "float32": None,
    "int8": (integers(8), integers(8)),
    "fp8": (E4M3, E4M3),
    "int4 activations": (integers(8), integers(4)),
    "int3 activations": (integers(8), integers(3)),
}
SEED = 1000  # of the noise; no model was trained on it


@dataclass(frozen=True, slots=True)
class Workload:
    """One of the small models, and what is sampled with it."""

    key: str
    streams: tuple[str, ...]  # the calls of a step, in order
    load: Callable[[], nn.Module]
    generate: Callable[..., Tensor]  # (model, prompts, seed, steps) to pictures [B, 3, (frames,) H, W] in [-1, 1]
    prompts: Sequence[Any]
    pictures: int  # how many

    def sample(self, model: Any) -> Tensor:
        prompts = [self.prompts[(SEED + place) * 7 % len(self.prompts)] for place in range(self.pictures)]
        return self.generate(model, prompts, SEED, STEPS)


FLUX = Workload("flux", ("cond",), shapes.load, shapes.generate, list(itertools.product(SHAPES, COLOURS)), 4)
_CLIPS = list(itertools.starmap(clips.Prompt, itertools.product(SHAPES, COLOURS, MOTIONS)))
WAN = Workload("wan", ("cond", "uncond"), clips.load, clips.generate, _CLIPS, 2)
WORKLOADS = (FLUX, WAN)


@dataclass(frozen=True, slots=True)
class Row:
    """One rule on one quantised model."""

    model: str
    format: str
    deep: int  # steps, of 30; where the rule decides, the most of any stream
    rule: str
    psnr_db: float | None  # against the same quantised model uncached, mean of the pictures; None: equal
    against_float32_db: float  # against the model in float32, uncached
    uncached_db: float | None  # of the quantised model uncached, against that in float32
    pictures: int


def made(workload: Workload, rounding: tuple[Rounding, Rounding] | None) -> nn.Module:
    model = workload.load()
    return quantise(model, *rounding) if rounding else model


def likeness(pixels: Tensor, reference: Tensor) -> float:
    """PSNR in dB, the mean of the pictures; infinite where one is equal to its reference."""
    return round(mean(psnr(one, other) for one, other in zip(pixels, reference, strict=True)), 2)


class Named:
    """Calls a compiled model under the names that a pipeline would give its calls."""

    def __init__(self, model: nn.Module, streams: Sequence[str], rule: Mapping[str, Any]) -> None:
        config = DiCacheConfig(num_steps=STEPS, lowering="eager", strict=True, **rule)
        self.run: Any = torch.compile(model, backend=dicache_backend, fullgraph=True, options=config.options())
        self.streams, self.calls = streams, 0

    def __call__(self, **inputs: Any) -> Any:
        name = self.streams[self.calls % len(self.streams)]
        self.calls += 1
        with stream(name):
            return self.run(**inputs)


def measure(workload: Workload, exact: Tensor, name: str) -> list[Row]:
    reference = workload.sample(made(workload, FORMATS[name])) if FORMATS[name] else exact
    uncached = likeness(reference, exact) if FORMATS[name] else None
    rows: list[Row] = []
    for rule, fields in RULES.items():
        torch._dynamo.reset()
        model = made(workload, FORMATS[name])
        call = Named(model, workload.streams, {**fields, "schedule": SCHEDULES[10]})
        for deep, schedule in SCHEDULES.items():
            if deep != 10:
                configure(model, schedule=schedule)
            with generation(num_steps=STEPS):
                pixels = workload.sample(call)
            near, full = likeness(pixels, reference), likeness(pixels, exact)
            rows.append(Row(workload.key, name, deep, rule, near, full, uncached, len(pixels)))
            print(rows[-1], flush=True)
    return rows


def measure_default(workload: Workload, exact: Tensor, name: str) -> Row:
    """The default rule, which has no schedule."""
    reference = workload.sample(made(workload, FORMATS[name])) if FORMATS[name] else exact
    torch._dynamo.reset()
    model = made(workload, FORMATS[name])
    with generation(num_steps=STEPS):
        pixels = workload.sample(Named(model, workload.streams, {}))
    steps = summary(model).generations[-1].streams.values()
    deep = max(sum(step.deep for step in one) for one in steps)
    near = likeness(pixels, reference) if deep < STEPS else None  # equal
    uncached = likeness(reference, exact) if FORMATS[name] else None
    row = Row(workload.key, name, deep, DEFAULT, near, likeness(pixels, exact), uncached, len(pixels))
    print(row, flush=True)
    return row


def read() -> list[Row]:
    """The rows of the last measurement."""
    rows = map(json.loads, MEASURED.read_text().splitlines())
    return [Row(**{name: row[name] for name in Row.__dataclass_fields__}) for row in rows]


def table(rows: Sequence[Row], model: str) -> str:
    """A model's rows as a table of a page: PSNR in dB."""
    lines = [f"| format | deep steps | {' | '.join(RULES)} |", f"|{'---|' * (2 + len(RULES))}"]
    found = {(row.format, row.deep, row.rule): row.psnr_db for row in rows if row.model == model}
    for name in FORMATS:
        for deep in SCHEDULES:
            cells = " | ".join(f"{found[name, deep, rule]:.1f}" for rule in RULES)
            lines.append(f"| {name} | {deep} | {cells} |")
    return "\n".join(lines)


def default_table(rows: Sequence[Row]) -> str:
    """What the default rule does, as a table of a page."""
    lines = ["| format | FLUX: deep of 30 | PSNR | Wan: deep of 30 | PSNR |", "|---|---|---|---|---|"]
    found = {(row.format, row.model): row for row in rows if row.rule == DEFAULT}
    for name in FORMATS:
        cells = [(row.deep, row.psnr_db) for row in (found[name, workload.key] for workload in WORKLOADS)]
        shown = [f"{deep} | {'equal' if near is None else f'{near:.1f}'}" for deep, near in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = [workload.key for workload in WORKLOADS]
    parser.add_argument("models", nargs="*", default=keys, metavar="MODEL", help=f"of {', '.join(keys)}")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=MEASURED)
    given = parser.parse_args()
    if given.table:
        print("\n\n".join([*(table(read(), key) for key in given.models), default_table(read())]))
        return
    torch.set_num_threads(1)
    made_on = {"torch": torch.__version__, "device": platform.machine()}
    found: list[Row] = []
    for workload in WORKLOADS:
        if workload.key in given.models:
            exact = workload.sample(workload.load())
            for name in FORMATS:
                found += [*measure(workload, exact, name), measure_default(workload, exact, name)]
    lines = ({**asdict(row), **made_on} for row in found)
    given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
