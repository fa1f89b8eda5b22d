"""No cache: eager, compiled, and compiled with fewer steps, which is what every cache must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from .isolate import compile_alone
from .system import Installed
from .workload import Workload


@dataclass(frozen=True, slots=True)
class Uncached:
    """The model as it is."""

    name: ClassVar[str] = "uncached"
    source: ClassVar[str] = "PyTorch"
    recipe: ClassVar[str] = "torch.compile(model, fullgraph=True)"
    dial: ClassVar[str | None] = None
    compiled: bool = True

    @property
    def label(self) -> str:
        return "torch.compile" if self.compiled else "eager"

    def why_not(self, workload: Workload) -> None:
        return None

    def install(self, model: nn.Module, workload: Workload) -> Installed:
        run = compile_alone(model, fullgraph=True) if self.compiled else model

        def call(stream: str, step: int, inputs: dict[str, Any]) -> Any:
            return run(**inputs)

        return Installed(call)


@dataclass(frozen=True, slots=True)
class FewerSteps:
    """The compiled model with a shorter schedule."""

    name: ClassVar[str] = "fewer steps"
    source: ClassVar[str] = "PyTorch"
    recipe: ClassVar[str] = Uncached.recipe
    dial: ClassVar[str | None] = None
    steps: int
    compiled: bool = True

    @property
    def label(self) -> str:
        return f"{self.steps} steps"

    def why_not(self, workload: Workload) -> None:
        return None

    def install(self, model: nn.Module, workload: Workload) -> Installed:
        installed = Uncached(self.compiled).install(model, workload)
        return Installed(installed.call, steps=self.steps)
