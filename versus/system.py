"""What a compared system is: its setting, and what it is once put into a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

from torch import nn

from .workload import Workload

Call = Callable[[str, int, dict[str, Any]], Any]
"""(the stream, the step, what the model is called with) to what the model returns."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Installed:
    """A system that is put into a model. Nothing is compiled before the first call."""

    call: Call
    begin: Callable[[], object] = _nothing  # before each generation: what a pipeline would tell it
    deep: Callable[[], Sequence[bool] | None] = _nothing  # of the last generation's calls; None: no such thing
    steps: int | None = None  # of a generation, where the system takes fewer than it is asked for
    state: Callable[[], int] | None = None  # bytes it keeps between steps, as the system itself says


@dataclass(frozen=True, slots=True)
class Schedule:
    """The first steps deep, then every `interval`-th of those that follow: a pattern that every system can be given."""

    warmup: int
    interval: int

    def deep(self, step: int) -> bool:
        return step < self.warmup or (step - self.warmup + 1) % self.interval == 0


class System(Protocol):
    """A cache with one setting: a frozen dataclass whose fields are the setting."""

    name: ClassVar[str]  # "FirstBlockCache"
    source: ClassVar[str]  # "diffusers 0.42.1"
    dial: ClassVar[str | None]  # the field whose larger values give fewer deep steps; None: there is none
    compiled: bool

    @property
    def recipe(self) -> str:
        """How it is compiled, and who recommends that."""
        ...

    @property
    def label(self) -> str:
        """The setting in a few words, such as "threshold 0.08"."""
        ...

    def why_not(self, workload: Workload) -> str | None:
        """Why this system cannot run the workload's model, or None."""
        ...

    def install(self, model: nn.Module, workload: Workload) -> Installed:
        """Puts the system into a model of its own, which nothing else is in."""
        ...


def others(system: System, *shown: str) -> list[str]:
    """What a label says of some fields: each that is not the default, as "warmup 3"."""
    defaults = {field.name: field.default for field in fields(system)}  # type: ignore[arg-type]
    values = {name: getattr(system, name) for name in shown}
    return [f"{name} {value}" for name, value in values.items() if value != defaults[name]]


def eager(system: System) -> System:
    """The same setting without a compiler; what always runs eagerly stays as it is."""
    return replace(system, compiled=False) if system.compiled else system  # type: ignore[type-var]


def setting(system: System) -> dict[str, Any]:
    """A system's fields, for a result. Infinity is "inf", for which JSON has no number."""
    values = {field.name: getattr(system, field.name) for field in fields(system)}  # type: ignore[arg-type]
    return {name: "inf" if value == math.inf else value for name, value in values.items()}
