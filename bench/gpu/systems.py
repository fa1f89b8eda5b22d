"""What is compared: the plain ways to run a model, ours, and the floor of a reused step. `peers.py` has the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dicache_compile import DiCacheConfig, dicache_backend, summary

from .cases import FINAL, STEPS, WARMUP, Case, share, truncate
from .device import Device

EAGER, PLAIN, GRAPHED = "eager", "torch.compile", "reduce-overhead"
TRUNCATED, TRUNCATED_GRAPHED = "truncated", "truncated reduce-overhead"
FIRST_BLOCK, CACHE_DIT = "FirstBlockCache", "cache-dit"
PEERS = (FIRST_BLOCK, CACHE_DIT)
OURS = ("conditional", "graphs", "calls")
# What the bars need comes first: a stage that runs out of time leaves out the end.
ORDER = (PLAIN, OURS[0], TRUNCATED_GRAPHED, GRAPHED, *PEERS, TRUNCATED, *OURS[1:], EAGER)
# Each compiles the whole model as one graph, which takes a minute: worth compiling beforehand, side by side.
LONG_TO_COMPILE = (PLAIN, OURS[0], GRAPHED)


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class System:
    """A way to run the model."""

    name: str
    kind: Literal["full", "cached", "truncated"]  # which blocks its steps run: all, all on some steps, the first
    call: Callable[[dict[str, Any]], Tensor]
    model: nn.Module
    begin: Callable[[], None] = _nothing  # before each generation
    before: Callable[[int], None] = _nothing  # before each step, by its index
    deep: Callable[[], int | None] = _nothing  # how many steps of the last generation ran all blocks


def make(name: str, model: nn.Module, case: Case, device: Device) -> System:
    """The system of this name on the weights of `model`. Nothing is compiled before the first call."""
    from . import peers

    if name in PEERS:
        return peers.make(name, share(model))
    if name in OURS:
        return ours(name, share(model))
    mode = "reduce-overhead" if name in (GRAPHED, TRUNCATED_GRAPHED) else None
    cut = name in (TRUNCATED, TRUNCATED_GRAPHED)
    module = truncate(model, case, device) if cut else share(model)
    run = module if name == EAGER else torch.compile(module, mode=mode)
    # Inductor's CUDA graphs reuse their outputs' memory, and want to be told that the last step's are done with.
    before = torch.compiler.cudagraph_mark_step_begin if mode is not None else _nothing
    return System(
        name,
        "truncated" if cut else "full",
        lambda arguments: run(**arguments)[0],
        module,
        before=lambda _: before(),
    )


def our_options(name: str) -> dict[str, Any]:
    """Ours, so that exactly the forced steps run deep."""
    return DiCacheConfig(
        engine=name,  # type: ignore[arg-type]
        error="probe",
        order=1,
        threshold=math.inf,
        warmup_steps=WARMUP,
        final_steps=FINAL,
        num_steps=STEPS,
        max_consecutive_skips=None,
        streams=1,
    ).options()


def ours(name: str, module: nn.Module) -> System:
    compiled = torch.compile(module, backend=dicache_backend, fullgraph=True, options=our_options(name))

    def deep() -> int:
        (steps,) = summary(compiled).generations[-1].streams.values()
        return sum(step.deep for step in steps)

    return System(name, "cached", lambda arguments: compiled(**arguments)[0], compiled, deep=deep)
