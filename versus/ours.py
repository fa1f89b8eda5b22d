"""This project's cache, as its README says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from dicache_compile import DiCacheConfig, dicache_backend, explain, stream, summary
from dicache_compile.estimators import Reuse
from dicache_compile.fields import REPLACES

from .isolate import compile_alone
from .system import Installed, Schedule
from .workload import STEPS, Workload

# The published rule, with our limits. Every setting but a quality is a change of it.
RULE: dict[str, Any] = {
    "error": "probe",
    "threshold": 0.05,
    "order": 1,
    "gamma_range": (1.0, 1.5),
    "max_consecutive_skips": 3,
    "joint": False,
}
# No block runs on a reused step, and the last residual is taken again: the least that one can cost.
STATIC: dict[str, Any] = {"probe_depth": 0, "estimator": Reuse()}
# No block either, and from three anchors an estimate along the model's input.
UNPROBED: dict[str, Any] = {"probe_depth": 0, "order": 2, "gamma_range": (1, 2)}
# The same from two, on a line however far it reaches, which gives back what it got wrong.
FEEDBACK: dict[str, Any] = {"probe_depth": 0, "feedback": 1.0, "gamma_range": (1, 10)}
# The estimator checked on the probe, both calls of guidance together, from three anchors.
ESTIMATE: dict[str, Any] = {"error": "estimate", "joint": True, "order": 2, "gamma_range": (1, 3)}


@dataclass(frozen=True, slots=True)
class Ours:
    """A config: a quality, or the fields of a preset or the published rule with some changed."""

    name: ClassVar[str] = "dicache_compile"
    source: ClassVar[str] = "this repository"
    recipe: ClassVar[str] = "torch.compile(model, backend=dicache_backend, fullgraph=True)"
    dial: ClassVar[str | None] = "threshold"
    preset: Literal["flux", "hunyuan", "wan"] | None = None
    quality: Literal["high", "balanced", "fast"] | None = None
    threshold: float | None = None  # None: as in the preset or by default
    changed: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule | None = None
    compiled: bool = True

    @property
    def label(self) -> str:
        if self.schedule is not None:
            forms = ((STATIC, "no probe, last residual"), (UNPROBED, "no probe, order 2"))
            return ", ".join(["schedule", *(words for changed, words in forms if self.changed == changed)])
        words = [f"preset {self.preset}"] if self.preset else [f"quality {self.quality}"] if self.quality else []
        words += [f"threshold {self.threshold:.4g}"] if self.threshold is not None else []
        words += [f"{name} {value}" for name, value in self.changed.items()]
        return ", ".join(words) or "published rule, threshold 0.05, at most 3 in a row"

    def why_not(self, workload: Workload) -> None:
        return None

    def config(self) -> DiCacheConfig:
        if self.quality is not None:
            return DiCacheConfig(quality=self.quality, lowering="inductor" if self.compiled else "eager")
        unread = [*REPLACES["estimator"], "error"] if "estimator" in self.changed else []
        rule = {} if self.preset else {name: value for name, value in RULE.items() if name not in unread}
        options = {"num_steps": STEPS, **rule, **self.changed}
        if self.threshold is not None:
            options["threshold"] = self.threshold
        if self.schedule is not None:
            options |= {
                "threshold": math.inf,
                "warmup_steps": self.schedule.warmup,
                "max_consecutive_skips": self.schedule.interval - 1,
            }
        if not self.compiled:
            options["lowering"] = "eager"
        return DiCacheConfig.preset(self.preset, **options) if self.preset else DiCacheConfig(**options)

    def install(self, model: nn.Module, workload: Workload) -> Installed:
        return install(self.config(), model, workload)


def install(config: DiCacheConfig, model: nn.Module, workload: Workload) -> Installed:
    """A model under a config, compiled as `recipe` says."""
    run = compile_alone(model, backend=dicache_backend, fullgraph=True, options=config.options())

    def call(name: str, step: int, inputs: dict[str, Any]) -> Any:
        with stream(name):
            return run(**inputs)

    def deep() -> list[bool]:
        streams = summary(run).generations[-1].streams
        return [record.deep for records in zip(*streams.values(), strict=True) for record in records]

    return Installed(call, deep=deep, state=lambda: explain(run).state_bytes * len(workload.streams))
