"""cache-dit's DBCache: compares the residual of the first blocks with that of the last deep step, on the host.

Two ways to compile are published. The guide's page on torch.compile shows `torch.compile(transformer)` after
`enable_cache`; the package's own runner (`python -m cache_dit.generate --compile`, 1.5.3) and its Wan examples call
`transformer.compile_repeated_blocks()` by default, and turn to the whole model only for CUDA graphs. Both call
`set_compile_configs()` first. The runner's way is the default here, `regional=False` is the guide's; what
`set_compile_configs()` sets for the whole process is given to this system's own compilation alone. The limits of
recompilation that it raises too are for whoever runs many systems in one process to raise for all of them.

The defaults are the runner's too: F1B0, 8 steps of warm-up, at most 3 reused steps in a row, threshold 0.12. Those of
`DBCacheConfig` (F8B0, 8, no limit, 0.08) are made for models of dozens of blocks: of the 12 or 10 here, eight would run
on every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.inductor_settings import what_it_sets

from .system import Installed, Schedule, others
from .workload import STEPS, Workload

_ALWAYS = math.nextafter(1.0, 0.0)  # from 1 on, DBCache reuses without comparing


@dataclass(frozen=True, slots=True)
class DBCache:
    """A setting of DBCache, with or without its TaylorSeer calibrator."""

    name: ClassVar[str] = "DBCache"
    source: ClassVar[str] = "cache-dit 1.5.3"
    dial: ClassVar[str] = "threshold"
    threshold: float = 0.12
    taylorseer: bool = False
    order: int = 1  # the calibrator's; cache-dit recommends 1 or 2
    fn: int = 1  # blocks in front that run on every step
    bn: int = 0  # blocks behind that run on every step
    warmup: int = 8
    max_continuous: int = 3  # reused steps in a row; -1: no limit
    deep_steps: tuple[int, ...] = ()  # a step mask: all others reuse, whatever the threshold; (): no mask
    schedule: Schedule | None = None
    regional: bool = True
    compiled: bool = True

    @property
    def recipe(self) -> str:
        how = "compile_repeated_blocks(dynamic=False), as cache_dit.generate does"
        return f"set_compile_configs(), {how if self.regional else 'torch.compile(model)'}"

    @property
    def label(self) -> str:
        words = [f"F{self.fn}B{self.bn}"]
        if self.schedule is None:
            deciding = [f"threshold {self.threshold:.4g}", *others(self, "warmup", "max_continuous")]
            words += [f"deep_steps {self.deep_steps}"] if self.deep_steps else deciding
        words += [f"TaylorSeer order {self.order}" if self.order > 1 else "TaylorSeer"] * self.taylorseer
        words += ["whole model"] * (self.compiled and not self.regional)
        return ", ".join(words)

    def why_not(self, workload: Workload) -> str | None:
        return None

    def config(self, workload: Workload) -> Any:
        from cache_dit import DBCacheConfig

        # The calls of a step alternate, conditional first, which is the order that cache-dit counts in.
        options: dict[str, Any] = {
            "Fn_compute_blocks": self.fn,
            "Bn_compute_blocks": self.bn,
            "residual_diff_threshold": self.threshold,
            "max_warmup_steps": self.warmup,
            "max_continuous_cached_steps": self.max_continuous,
            "num_inference_steps": STEPS,
            "enable_separate_cfg": len(workload.streams) == 2,
        }
        if self.schedule is not None:
            options |= {
                "residual_diff_threshold": _ALWAYS,
                "max_warmup_steps": self.schedule.warmup,
                "max_continuous_cached_steps": -1,
                "steps_computation_mask": [int(self.schedule.deep(step)) for step in range(STEPS)],
                "steps_computation_policy": "dynamic",
            }
        elif self.deep_steps:
            options |= {
                "steps_computation_mask": [int(step in self.deep_steps) for step in range(STEPS)],
                "steps_computation_policy": "static",
            }
        return DBCacheConfig(**options)

    def install(self, model: Any, workload: Workload) -> Installed:
        import cache_dit

        config = self.config(workload)
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=self.order) if self.taylorseer else None
        cache_dit.enable_cache(model, cache_config=config, calibrator_config=calibrator)
        run = self._compile(model) if self.compiled else model

        def context() -> Any:
            (name,) = model._context_names
            return model._context_manager.get_context(name)

        def deep() -> list[bool]:
            reused = [context().get_cached_steps(), context().get_cfg_cached_steps()][: len(workload.streams)]
            return [step not in steps for step in range(context().executed_steps) for steps in reused]

        return Installed(
            lambda stream, step, inputs: run(**inputs),
            # As its guide says for a transformer without a pipeline.
            begin=lambda: cache_dit.refresh_context(model, cache_config=config),
            deep=deep,
            state=lambda: _bytes(_held(context())),
        )

    def _compile(self, model: Any) -> nn.Module:
        import cache_dit

        options = what_it_sets(cache_dit.set_compile_configs)
        if not self.regional:
            return torch.compile(model, options=options)  # type: ignore[return-value]
        model.compile_repeated_blocks(dynamic=False, options=options)
        return model


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of some tensors, each counted once."""
    return sum({(storage := t.untyped_storage()).data_ptr(): storage.nbytes() for t in tensors}.values())


def _held(context: Any) -> Iterator[Tensor]:
    """The tensors that a context keeps between steps."""
    yield from (value for value in context.buffers.values() if isinstance(value, Tensor))
    for calibrator in (*context.get_calibrators(), *context.get_cfg_calibrators()):
        for state in calibrator.states.values() if calibrator is not None else ():
            for derivatives in state.state.values():
                yield from (value for value in derivatives if value is not None)
