"""What pictures lose where the state is kept in fewer bits: docs/configuration.md.

    python -m bench.state_dtypes            # both small models, in float32; writes the rows and prints the table

The rule is DCTA on fixed schedules, so that deep steps are equal. PSNR in dB against the same model without a cache.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dicache_compile import configure, generation
from dicache_compile.calls.session import sessions_of
from dicache_compile.estimators import DCTA

from .low_precision import SCHEDULES, WORKLOADS, Named, likeness
from .systems import STEPS

MEASURED = Path(__file__).parent / "measured" / "state_dtypes.jsonl"
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True, slots=True)
class Row:
    """One dtype of the state of one model."""

    model: str
    dtype: str
    deep: int  # steps, of 30
    psnr_db: float  # against the model uncached, mean of the pictures
    state_kib: float  # of all streams of one generation
    pictures: int


@torch.no_grad()
def measured() -> list[Row]:
    found = []
    for workload in WORKLOADS:
        exact = workload.sample(workload.load())
        for dtype in DTYPES:
            torch._dynamo.reset()
            model = workload.load()
            rule: dict[str, Any] = {"schedule": SCHEDULES[10], "estimator": DCTA((1.0, 2.0)), "state_dtype": dtype}
            call = Named(model, workload.streams, rule)
            for deep, schedule in SCHEDULES.items():
                if deep != 10:  # as compiled
                    configure(model, schedule=schedule)
                with generation(num_steps=STEPS):
                    pixels = workload.sample(call)
                kept = sum(state.bytes() for one in sessions_of(model) for state in one.streams.values()) / 2**10
                name = str(dtype).removeprefix("torch.")
                found.append(Row(workload.key, name, deep, likeness(pixels, exact), round(kept, 1), len(pixels)))
                print(found[-1], flush=True)
    return found


def table(rows: list[Row]) -> str:
    """A line for each model and dtype, PSNR at each number of deep steps."""
    lines = [f"| model | state | KiB | {' | '.join(f'{deep} deep' for deep in SCHEDULES)} |", f"|{'---|' * 5}"]
    for model, dtype in dict.fromkeys((row.model, row.dtype) for row in rows):
        own = {row.deep: row for row in rows if (row.model, row.dtype) == (model, dtype)}
        cells = " | ".join(f"{own[deep].psnr_db:.1f}" for deep in SCHEDULES)
        lines.append(f"| {model} | {dtype} | {next(iter(own.values())).state_kib:.0f} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    rows, made_on = measured(), {"torch": torch.__version__, "device": platform.machine()}
    MEASURED.write_text("".join(json.dumps({**asdict(row), **made_on}) + "\n" for row in rows))
    print(table(rows))


if __name__ == "__main__":
    main()
