"""The other caches, compiled as their documentation says, and made to run the same steps deep as ours.

Neither offers a schedule with which it still decides by its data, so both are left to measure, compare and read their
own difference on every step, and only what they compare it with is set:

- diffusers' FirstBlockCache reuses while the difference is at most its threshold. The threshold is set before each
  step, to -1 (run all blocks) or infinity (reuse). Each step is called inside `cache_context`, as pipelines do.
- cache-dit's DBCache with one block in front and none behind (F1B0) takes the steps that must be computed as a mask,
  and with the policy "dynamic" compares on the others, here with the highest threshold with which it still compares.
  Its context is renewed before each generation, as its documentation says for a transformer without a pipeline.

Both are compiled by `torch.compile(transformer)` after the cache is put in, which is what cache-dit's guide shows; both
break the graph at their decision, so what comes of it is one graph for each kind of block. cache-dit's guide also calls
`set_compile_configs()`, which turns on Inductor's search for better kernels. What it sets for the whole process is read
off and given to cache-dit's own compilation alone.
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ..inductor_settings import what_it_sets
from .cases import DEEP, STEPS, WARMUP
from .systems import CACHE_DIT, FIRST_BLOCK, System

ALMOST_ONE = math.nextafter(1.0, 0.0)  # from 1 on DBCache reuses without comparing


def make(name: str, module: nn.Module) -> System:
    return _first_block(module) if name == FIRST_BLOCK else _cache_dit(module)


def _first_block(module: Any) -> System:
    module.enable_cache(diffusers.FirstBlockCacheConfig())
    (head,) = (hook for block in module.modules() if (hook := _leader(block)) is not None)
    compiled = torch.compile(module)
    asked: list[bool] = []
    decide = head._should_compute_remaining_blocks

    @torch.compiler.disable  # as the method is
    def watched(residual: Tensor) -> bool:
        asked.append(decide(residual))
        return asked[-1]

    head._should_compute_remaining_blocks = watched

    def call(arguments: dict[str, Any]) -> Tensor:
        with module.cache_context("main"):
            return compiled(**arguments)[0]

    def begin() -> None:
        asked.clear()
        module._reset_stateful_cache()

    def before(step: int) -> None:
        head.threshold = -1.0 if DEEP[step] else math.inf

    return System(FIRST_BLOCK, "cached", call, module, begin, before, lambda: sum(asked))


def _leader(block: nn.Module) -> Any:
    registry = getattr(block, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook("fbc_leader_block_hook")


def _cache_dit(module: Any) -> System:
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=WARMUP,
        residual_diff_threshold=ALMOST_ONE,
        num_inference_steps=STEPS,
        steps_computation_mask=[int(deep) for deep in DEEP],
        steps_computation_policy="dynamic",
        enable_separate_cfg=False,
    )
    cache_dit.enable_cache(module, cache_config=config)
    compiled = torch.compile(module, options=what_it_sets(cache_dit.set_compile_configs))

    def begin() -> None:
        cache_dit.refresh_context(module, cache_config=config)

    def deep() -> int:
        return STEPS - _cached_steps(module)

    return System(CACHE_DIT, "cached", lambda arguments: compiled(**arguments)[0], module, begin, deep=deep)


def _cached_steps(module: Any) -> int:
    manager = module._context_manager
    (context,) = (manager.get_context(name) for name in module._context_names)
    return len(context.get_cached_steps())
