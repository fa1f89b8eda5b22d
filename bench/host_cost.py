"""What one step of a compiled model costs on the host, from the call until the engine is entered.

    python -m bench.host_cost                       # FLUX.1-dev's 57 blocks, and every variant
    python -m bench.host_cost --blocks 12 --variants default "dict tags"

The model has FLUX.1-dev's layout and almost no width, the pieces are not compiled, and the engine is one that does
nothing, so that only the overhead is left. A call passes three parts:

    dynamo   torch.compile's wrapper, the guards, and Dynamo's code that collects the weights
    guards   of it, the guards: what a call saves where they are skipped (torch.compiler.set_stance)
    step     the step's own bookkeeping; about 1 us of it is this script's

Microseconds, as medians and as the fastest twentieth, which other work on the machine disturbs less. Calls with and
without guards alternate. The variants other than "default" differ in what they still notice; this script only times.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from bench.analysis import NARROW, call, flux
from dicache_compile import DiCacheConfig
from dicache_compile.backend import dicache_backend

MEASURED = Path(__file__).parent / "measured" / "host_cost.jsonl"
ROUNDS, CALLS, WARM = 12, 40, 5  # of a round's calls the first ones are not counted
STEPS = 50  # of a generation, each with its own timestep


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to ask torch.compile for fewer or faster guards."""

    guard_filter: str | None = None  # one of torch.compiler's
    recursive: bool | None = None  # torch._dynamo.config.use_recursive_dict_tags_for_guards; None: torch's default

    def options(self) -> dict[str, Any]:
        return {} if self.guard_filter is None else {"guard_filter_fn": getattr(torch.compiler, self.guard_filter)}

    def settings(self) -> AbstractContextManager[Any]:
        if self.recursive is None:
            return nullcontext()
        return torch._dynamo.config.patch(use_recursive_dict_tags_for_guards=self.recursive)


VARIANTS = {
    "default": Variant(),
    "plain walk": Variant(recursive=False),
    "dict tags": Variant(recursive=True),
    "no builtin modules": Variant(guard_filter="skip_guard_on_inbuilt_nn_modules_unsafe"),
    "no modules": Variant(guard_filter="skip_guard_on_all_nn_modules_unsafe"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One variant. Microseconds."""

    variant: str
    blocks: int
    inputs: int  # of the graph; all but a few are weights
    dynamo: float
    guards: float
    step: float
    total: float
    fastest: float  # the total's 5th percentile
    unguarded: float


class Idle:
    """An engine that does nothing, and notes when it was entered."""

    name, reason = "idle", None

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        self.outputs, self.entered = tuple(outputs), 0

    def step(self, inputs: Sequence[Any], state: object) -> Sequence[Any]:
        self.entered = time.perf_counter_ns()
        return self.outputs


class Probe:
    """The backend, with the engine taken out and a clock put in."""

    def __init__(self) -> None:
        self.called, self.inputs = 0, 0
        self.engine = Idle(())

    def __call__(self, gm: fx.GraphModule, examples: Sequence[Any], **passed: Any) -> Callable[..., Any]:
        step = dicache_backend(gm, examples, options=DiCacheConfig(lowering="eager", strict=True).options())
        found = gm.graph.find_nodes(op="output")[0].args[0]
        self.engine = step.engine = Idle([torch.zeros(tuple(node.meta["example_value"].shape)) for node in found])
        self.inputs = len(examples)

        def run(*inputs: Any) -> Any:
            self.called = time.perf_counter_ns()
            return step(*inputs)

        return run


def steps() -> Iterator[dict[str, Any]]:
    """The calls of one generation after another."""
    fixed = call(NARROW, "cpu")
    times = [torch.full((1,), 1 - step / STEPS) for step in range(STEPS)]
    while True:
        for now in times:
            yield {**fixed, "timestep": now}


def timed(model: Callable[..., Any], probe: Probe, calls: Iterator[dict[str, Any]]) -> list[tuple[int, int]]:
    """(nanoseconds until the backend's code, from there until the engine) of one round of calls."""
    found = []
    for _ in range(CALLS):
        inputs = next(calls)
        start = time.perf_counter_ns()
        model(**inputs)
        found.append((probe.called - start, probe.engine.entered - probe.called))
    return found[WARM:]


def measure(name: str, blocks: int) -> Row:
    variant, probe, calls = VARIANTS[name], Probe(), steps()
    torch._dynamo.reset()
    model = flux(blocks, NARROW, "cpu")
    options = variant.options() or None
    guarded, skipped = [], []
    with torch.no_grad(), variant.settings():
        compiled = torch.compile(model, backend=probe, fullgraph=True, dynamic=False, options=options)
        compiled(**next(calls))
        gc.collect()
        gc.disable()
        for _ in range(ROUNDS):
            guarded += timed(compiled, probe, calls)
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                skipped += timed(compiled, probe, calls)
        gc.enable()
    dynamo, without = (statistics.median(first for first, _ in part) / 1000 for part in (guarded, skipped))
    totals = sorted(first + second for first, second in guarded)
    return Row(
        variant=name,
        blocks=blocks,
        inputs=probe.inputs,
        dynamo=round(dynamo, 1),
        guards=round(dynamo - without, 1),
        step=round(statistics.median(second for _, second in guarded) / 1000, 1),
        total=round(statistics.median(totals) / 1000, 1),
        fastest=round(totals[len(totals) // 20] / 1000, 1),
        unguarded=round(statistics.median(first + second for first, second in skipped) / 1000, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=57)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    made = {"torch": torch.__version__, "python": platform.python_version(), "device": platform.machine()}
    print("variant             inputs  dynamo  (guards)   step   total  fastest  unguarded")
    rows = []
    for name in arguments.variants:
        row = measure(name, arguments.blocks)
        print(
            f"{row.variant:18}  {row.inputs:6}  {row.dynamo:6.1f}  {row.guards:8.1f}  {row.step:5.1f}  "
            f"{row.total:6.1f}  {row.fastest:7.1f}  {row.unguarded:9.1f}",
            flush=True,
        )
        rows.append(row)
    MEASURED.parent.mkdir(exist_ok=True)
    MEASURED.write_text("".join(json.dumps({**asdict(row), **made}) + "\n" for row in rows))


if __name__ == "__main__":
    main()
