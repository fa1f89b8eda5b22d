"""What the first call of a model costs, cold and in a second process that finds what the first one compiled.

    python -m bench.compile_time                     # FLUX.1-dev's 57 blocks, every way
    python -m bench.compile_time --blocks 12 --ways plain once

The model has FLUX.1-dev's layout and almost no width: what compiling costs depends on the graph. Each way runs in a
process of its own with an empty cache, and then in another one with the cache that is left. One thread compiles, so
that machines of other sizes compare. Seconds: `first` is the whole first call, of which `dynamo` traces and makes
guards, `passes` cut the graph and write the program, and `lowering` is AOTAutograd's and Inductor's. `calls` counts
compilations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.analysis import NARROW, call, flux

MEASURED = Path(__file__).parent / "measured" / "compile_time.jsonl"
WAYS = ("plain", "repeated blocks", "cache-dit", "once", "whole")


@dataclass(frozen=True)
class Row:
    """One way to compile, in one process."""

    way: str
    blocks: int
    cache: str  # "cold" or "warm"
    first: float
    dynamo: float
    passes: float
    lowering: float
    calls: int


class Clock:
    """Adds up the time spent in functions, each of which it puts in the place of another."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self._inside = False  # of a call: what it calls by the same name is its own part

    def wrap(self, owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - start
                self.calls += 1

        setattr(owner, name, timed)


def compiled(way: str, model: Any) -> nn.Module:
    if way in ("once", "whole"):
        from dicache_compile import DiCacheConfig

        options = DiCacheConfig(blocks=way, strict=True).options()  # type: ignore[arg-type]
        model.compile(backend="dicache", fullgraph=True, options=options)
    elif way == "plain":
        model.compile(fullgraph=True)
    else:
        if way == "cache-dit":
            import cache_dit

            adapter = cache_dit.BlockAdapter(
                transformer=model,
                blocks=[model.transformer_blocks, model.single_transformer_blocks],
                forward_pattern=[cache_dit.ForwardPattern.Pattern_1, cache_dit.ForwardPattern.Pattern_1],
            )
            # One block in front, as the package's own runner has it.
            setting = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, num_inference_steps=30)
            cache_dit.enable_cache(adapter, cache_config=setting)
            cache_dit.set_compile_configs()
        model.compile_repeated_blocks(dynamic=False)
    return model


def measure(way: str, blocks: int, cache: str) -> Row:
    """In this process, which has compiled nothing yet."""
    from torch._inductor import compile_fx, config

    from dicache_compile import backend

    config.compile_threads = 1
    torch.set_num_threads(1)
    lowering, passes = Clock(), Clock()
    lowering.wrap(compile_fx, "compile_fx")
    passes.wrap(backend, "cut")
    model, inputs = flux(blocks, NARROW, "cpu"), call(NARROW, "cpu")
    with torch.no_grad():
        call_it = compiled(way, model)
        start = time.perf_counter()
        call_it(**inputs, return_dict=False)
    first = time.perf_counter() - start
    dynamo = first - lowering.seconds - passes.seconds
    return Row(way, blocks, cache, first, dynamo, passes.seconds, lowering.seconds, lowering.calls)


def in_processes(way: str, blocks: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        for cache in ("cold", "warm"):
            command = [sys.executable, "-m", "bench.compile_time", "--one", way, "--blocks", str(blocks)]
            done = subprocess.run([*command, "--cache", cache], env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{way}: {done.stderr.strip().splitlines()[-1]}")
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=57)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="cold", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asdict(measure(arguments.one, arguments.blocks, arguments.cache))))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    made = {"device": platform.machine(), "torch": torch.__version__, "commit": commit.stdout.strip()}
    with suppress(PackageNotFoundError):
        made["cache-dit"] = version("cache-dit")
    print("way               cache   first   dynamo  passes  lowering  compilations")
    rows: list[dict[str, Any]] = []
    for way in arguments.ways:
        for row in in_processes(way, arguments.blocks):
            rows.append({**row, **made})
            spent = "".join(f"{row[part]:8.1f}" for part in ("first", "dynamo", "passes", "lowering"))
            print(f"{way:17} {row['cache']}{spent}  {row['calls']:8}", flush=True)
    MEASURED.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
