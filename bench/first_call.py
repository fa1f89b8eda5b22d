"""What the first call in a new process costs: with nothing compiled, with what is kept of it, and from a package.

    python -m bench.first_call --rounds 3

The small FLUX, one call of two pictures. `kept folder` finds Inductor's own cache, `loaded` reads what `save` wrote
into an empty one, and `package` has no compiler at all. Each is a process of its own; in each round every way runs
once, in turn. Seconds, medians: `ready` is loading, `first` the first call, `sum` both. Importing and the weights are
not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dicache_compile import enable_cache, load, load_package, save, save_package

from .shapes import model as shapes

MEASURED = Path(__file__).parent / "measured" / "first_call.jsonl"
WAYS = ("cold", "kept folder", "loaded", "package")
ARTIFACTS, PACKAGE = "model.dicache", "model.pt2"


def call() -> dict[str, Any]:
    """One call of the small FLUX, of two pictures."""
    inputs = shapes.conditioning(torch.tensor([0, 1]), torch.tensor([0, 1]))
    tokens = torch.randn(2, (shapes.SIZE // shapes.PATCH) ** 2, shapes.CONFIG["in_channels"])
    return {"hidden_states": tokens, "timestep": torch.ones(2), "return_dict": False, **inputs}


@torch.no_grad()
def prepare(folder: Path) -> None:
    """Compiles, and writes both files."""
    model = shapes.load()
    enable_cache(model, fullgraph=True, streams=1)
    model(**call())
    save(model, folder / ARTIFACTS)
    save_package(model, folder / PACKAGE, **call())


@torch.no_grad()
def measure(way: str, folder: Path) -> tuple[float, float]:
    """(seconds to be ready, seconds of the first call), in this process, which has done nothing yet."""
    model, inputs = shapes.load(), call()
    start = time.perf_counter()
    run: Any = model
    if way == "package":
        run = load_package(folder / PACKAGE)
    else:
        enable_cache(model, fullgraph=True, streams=1)
        if way == "loaded":
            load(folder / ARTIFACTS, model)
    ready = time.perf_counter()
    run(**inputs)
    return ready - start, time.perf_counter() - ready


def in_process(folder: Path, cache: Path | None, *arguments: str) -> str:
    """What a process of this module prints; `cache`: where Inductor keeps what it compiles, None: an empty folder."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache or empty)}
        command = [sys.executable, "-m", "bench.first_call", "--folder", str(folder), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=("prepare", *WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one == "prepare":
        prepare(arguments.folder)
    elif arguments.one:
        print(json.dumps(measure(arguments.one, arguments.folder)))
    else:
        report(arguments.rounds)


def report(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, kept = Path(name), Path(name) / "kept"
        in_process(folder, kept, "--one", "prepare")
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                told = in_process(folder, kept if way == "kept folder" else None, "--one", way)
                found[way].append(tuple(json.loads(told.splitlines()[-1])))
    made = {"device": platform.machine(), "torch": torch.__version__, "rounds": rounds}
    rows = []
    print(f"{'':12} {'ready':>7} {'first':>7} {'sum':>7}")
    for way, seconds in found.items():
        ready, first = (statistics.median(part) for part in zip(*seconds, strict=True))
        rows.append({"way": way, "ready": round(ready, 3), "first": round(first, 3), **made})
        print(f"{way:12} {ready:7.2f} {first:7.2f} {ready + first:7.2f}", flush=True)
    MEASURED.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
