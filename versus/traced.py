"""A model that Dynamo traces once, and that then runs under one config of ours after another, uncompiled.

Tracing is most of what a setting costs that is tried on a few seeds. What a setting draws does not depend on it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from dicache_compile import DiCacheConfig, Schedule, dicache_backend, explain, stream, summary
from dicache_compile.estimators import Reuse
from dicache_compile.explanation import Explanation

from .generation import generate
from .isolate import compile_alone
from .system import Installed
from .workload import STEPS, Workload


class Traced:
    """`under` gives the model as it is with a config; what it gave before is no longer to be called."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._model = workload.load()
        self._config: DiCacheConfig | None = None
        self._told: Explanation | None = None  # of the config, once it ran
        self._shares: dict[Any, float] = {}
        self._steps: dict[int, Callable[..., Any]] = {}  # by graph
        self._run = compile_alone(self._model, backend=self._backend, fullgraph=True)

    def under(self, config: DiCacheConfig) -> Installed:
        self._config, self._told = config, None
        self._steps.clear()

        def call(name: str, step: int, inputs: dict[str, Any]) -> Any:
            with stream(name):
                return self._run(**inputs)

        return Installed(call, deep=self._deep)

    def left_out(self) -> float:
        """The share of its floating-point operations that the last generation left out, from 0 to 1.

        What an estimate, a gate and the host cost is not in it.
        """
        assert self._config is not None
        if self._config.rules:
            return self._left_out_by_rule(len(self._config.rules))
        if self._config.schedule is not None and self._config.schedule.rows:
            return self._left_out_by_site(self._config)
        deep = self._deep()
        return self._explained().skippable * (1 - sum(deep) / len(deep))

    def share(self, sites: Any) -> float:
        """That of the operations which a step leaves out that reuses these sites, from 0 to 1."""
        if sites not in self._shares:
            before = self._config
            alone = DiCacheConfig(sites=sites, schedule=Schedule.every(2), estimator=Reuse(), lowering="eager")
            generate(self.under(alone), self._workload, 0)
            self._shares[sites] = self._explained().skippable
            if before is not None:
                self.under(before)
        return self._shares[sites]

    def _explained(self) -> Explanation:
        """Counted once a config: it takes longer than a generation does."""
        if self._told is None:
            self._told = explain(self._run)
        return self._told

    def _left_out_by_rule(self, rules: int) -> float:
        """A rule that was not asked had all that it decides on left out with what it is in."""
        shares = [sum(part.by_rule[rule] for part in self._explained().parts) for rule in range(rules)]
        taken = [record.decisions for records in self._records() for record in records]
        reused = [[one is None or not one.deep for one in decisions] for decisions in taken]
        return sum(sum(map(operator.mul, shares, row)) for row in reused) / len(reused)

    def _left_out_by_site(self, config: DiCacheConfig) -> float:
        assert config.schedule is not None
        rows = zip(config.sites, config.schedule.rows, strict=True)
        return sum(self.share(site) * (1 - len(row.deep_steps(STEPS)) / STEPS) for site, row in rows)

    def _records(self) -> list[list[Any]]:
        return list(summary(self._run).generations[-1].streams.values())

    def _deep(self) -> list[bool]:
        return [record.deep for records in zip(*self._records(), strict=True) for record in records]

    def _backend(self, gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        self._step(gm, examples)  # while Dynamo can tell of the call
        return lambda *inputs: self._step(gm, inputs)(*inputs)

    def _step(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        assert self._config is not None
        if id(gm) not in self._steps:
            with torch.no_grad():
                self._steps[id(gm)] = dicache_backend(gm, inputs, options=self._config.options())
        return self._steps[id(gm)]
