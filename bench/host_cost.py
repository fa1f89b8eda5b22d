"""What one step of a compiled model costs on the host, from the call until the engine is entered.

    python -m bench.host_cost                       # FLUX.1-dev's 57 blocks, and every variant
    python -m bench.host_cost --blocks 12 --variants default "dict tags"

The model has FLUX.1-dev's layout and almost no width, the pieces are not compiled, and the engine is one that does
nothing, so that only the overhead is left. A call passes three parts:

    dynamo   torch.compile's wrapper, the guards, and Dynamo's code that collects the weights; of "armed" what takes
             their place in an announced generation, after its first step
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
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.analysis import NARROW, call, flux
from dicache_compile import DiCacheConfig, backend, dicache_backend, enable_cache, generation
from dicache_compile.calls.step import CompiledStep

MEASURED = Path(__file__).parent / "measured" / "host_cost.jsonl"
ROUNDS, CALLS, WARM = 12, 40, 5  # of a round's calls the first ones are not counted
STEPS = 50  # of a generation, each with its own timestep


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to ask torch.compile for fewer or faster guards."""

    guard_filter: str | None = None  # one of torch.compiler's
    recursive: bool | None = None  # torch._dynamo.config.use_recursive_dict_tags_for_guards; None: torch's default

    hooks: bool = False  # whether the hooks of each module are guarded, as `enable_cache` has it
    armed: bool = False  # `enable_cache`, in an announced generation

    def options(self) -> dict[str, Any]:
        return {} if self.guard_filter is None else {"guard_filter_fn": getattr(torch.compiler, self.guard_filter)}

    def settings(self) -> dict[str, Any]:
        recursive = {} if self.recursive is None else {"use_recursive_dict_tags_for_guards": self.recursive}
        return {"skip_nnmodule_hook_guards": not self.hooks, **recursive}


VARIANTS = {
    "default": Variant(),
    "plain walk": Variant(recursive=False),
    "dict tags": Variant(recursive=True),
    "no builtin modules": Variant(guard_filter="skip_guard_on_inbuilt_nn_modules_unsafe"),
    "hooks": Variant(hooks=True),
    "armed": Variant(armed=True),
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

    def step(self, inputs: Sequence[Any], state: object, *_: object) -> Sequence[Any]:
        self.entered = time.perf_counter_ns()
        return self.outputs


class Probe:
    """Takes the engine out of what is compiled meanwhile, and puts a clock in."""

    def __init__(self) -> None:
        self.called, self.inputs = 0, 0
        self.engine = Idle(())

    def __enter__(self) -> Probe:
        self._before = backend.choose_engine, CompiledStep.run
        backend.choose_engine, CompiledStep.run = self._idle, self._clocked()
        return self

    def __exit__(self, *_: object) -> None:
        backend.choose_engine, CompiledStep.run = self._before

    def _idle(self, found: Any, *_: Any) -> Any:
        outputs = found.plan.graph_module.graph.find_nodes(op="output")[0].args[0]
        self.engine = Idle([torch.zeros(tuple(node.meta["example_value"].shape)) for node in outputs])
        self.inputs = len(found.placeholders)
        return self.engine

    def _clocked(self) -> Any:
        run = CompiledStep.run

        def clocked(step: CompiledStep, inputs: Sequence[Any], held: object = None) -> Any:
            self.called = time.perf_counter_ns()
            return run(step, inputs, held)

        return clocked


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
    variant, calls = VARIANTS[name], steps()
    torch._dynamo.reset()
    model: Any = flux(blocks, NARROW, "cpu")
    config = DiCacheConfig(lowering="eager", strict=True, streams=1)
    guarded, skipped = [], []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch._dynamo.config.patch(variant.settings()))
        stack.enter_context(generation(num_steps=ROUNDS * CALLS * 3))
        probe = stack.enter_context(Probe())
        if variant.armed:
            enable_cache(model, config, fullgraph=True, dynamic=False)
        else:
            options = {**config.options(), **variant.options()}
            model = torch.compile(model, backend=dicache_backend, fullgraph=True, dynamic=False, options=options)
        model(**next(calls))
        gc.collect()
        gc.disable()
        for _ in range(ROUNDS):
            guarded += timed(model, probe, calls)
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                skipped += timed(model, probe, calls)
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
