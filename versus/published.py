"""DiCache as its authors' FLUX and WAN scripts run it: eager Python around the blocks, one host read a step.

Written from the published description alone, and nothing of `dicache_compile` is used, so that it is a baseline of its
own. Buffers that the scripts fill and never read are left out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from .system import Installed, Schedule
from .workload import STEPS, Workload

_RATIO = 0.2  # of the calls of a generation, forced at its beginning


@dataclass(frozen=True, slots=True)
class _Script:
    """Where the two scripts differ."""

    threshold: float
    gamma: tuple[float, float]
    inclusive: bool  # whether call int(ratio * calls) is forced too
    last: bool  # whether the last call is forced
    window: int | None  # anchors kept, of which two are read; None: all of a generation's


_SCRIPTS = {
    "flux": _Script(0.4, (1.0, 1.5), inclusive=True, last=True, window=None),
    "wan": _Script(0.08, (1.0, 2.0), inclusive=False, last=False, window=3),
}


@dataclass(frozen=True, slots=True)
class PublishedDiCache:
    """One of the two scripts, with its threshold or another."""

    name: ClassVar[str] = "DiCache, published"
    source: ClassVar[str] = "the rules of github.com/Bujiazi/DiCache, commit dd7f0de"
    recipe: ClassVar[str] = "eager, as published"
    dial: ClassVar[str] = "threshold"
    compiled: ClassVar[bool] = False
    variant: Literal["flux", "wan"]
    threshold: float | None = None  # None: the script's own, which then stands here
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if self.threshold is None:
            object.__setattr__(self, "threshold", _SCRIPTS[self.variant].threshold)

    @property
    def label(self) -> str:
        return f"{self.variant} script" + (f", threshold {self.threshold:.4g}" if self.schedule is None else "")

    def why_not(self, workload: Workload) -> str | None:
        return None if self.variant == workload.family else f"the {self.variant} script is for another model"

    def install(self, model: Any, workload: Workload) -> Installed:
        owners = ("transformer_blocks", "single_transformer_blocks") if self.variant == "flux" else ("blocks",)
        trunk = _Trunk(self, [block for owner in owners for block in getattr(model, owner)], workload.streams)
        for owner in owners:
            setattr(model, owner, nn.ModuleList([trunk] if owner == owners[0] else []))

        def call(stream: str, step: int, inputs: dict[str, Any]) -> Any:
            trunk.now = (stream, step)
            return model(**inputs)

        return Installed(call, trunk.begin, lambda: trunk.deep, state=trunk.state_bytes)


class _Trunk(nn.Module):
    """Stands in for all blocks of a model: the first one runs on every step, the others when the rule says so."""

    now: tuple[str, int]  # the stream and the step

    def __init__(self, system: PublishedDiCache, blocks: list[nn.Module], streams: Sequence[str]) -> None:
        super().__init__()
        self.blocks, self.system, self.script, self.streams = blocks, system, _SCRIPTS[system.variant], streams
        self.begin()

    def begin(self) -> None:
        window = self.script.window
        self.residuals = {name: deque[Tensor](maxlen=window) for name in self.streams}  # y - x of deep steps
        self.probes = {name: deque[Tensor](maxlen=window) for name in self.streams}  # h - x of the same
        self.previous: dict[str, Tensor] = {}  # h of the step before
        self.error: dict[str, Any] = {}  # summed since the last deep step
        self.deep: list[bool] = []

    def state_bytes(self) -> int:
        windows = (*self.residuals.values(), *self.probes.values(), self.previous.values())
        return sum(tensor.nbytes for window in windows for tensor in window)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        stream, x = self.now[0], hidden_states
        h, text = _run(self.blocks[:1], x, encoder_hidden_states, args, kwargs)
        self.deep.append(self._must_run(h))
        self.previous[stream] = h
        if self.deep[-1]:
            self.error[stream] = 0.0
            y, text = _run(self.blocks[1:], h, text, args, kwargs)
            self.residuals[stream].append(y - x)
            self.probes[stream].append(h - x)
        else:
            y = x + self._residual(h - x)
        return y if self.system.variant == "wan" else (text, y)

    def _must_run(self, h: Tensor) -> bool:
        stream, step = self.now
        schedule, threshold = self.system.schedule, self.system.threshold
        if schedule is not None:
            forced, threshold = step < schedule.warmup, -math.inf if schedule.deep(step) else math.inf
        else:
            # The scripts count the calls of all streams together.
            call, calls = step * len(self.streams) + self.streams.index(stream), STEPS * len(self.streams)
            forced = call < int(_RATIO * calls) + self.script.inclusive or (self.script.last and call == calls - 1)
        previous = self.previous.get(stream)
        if forced or previous is None:
            return True
        self.error[stream] = self.error[stream] + (h - previous).abs().mean() / previous.abs().mean()
        return not self.error[stream] < threshold  # read by the host

    def _residual(self, probe: Tensor) -> Tensor:
        residuals, probes = self.residuals[self.now[0]], self.probes[self.now[0]]
        if len(residuals) < 2:
            return residuals[-1]
        gamma = (probe - probes[-2]).abs().mean() / (probes[-1] - probes[-2]).abs().mean()
        return residuals[-2] + gamma.clip(*self.script.gamma) * (residuals[-1] - residuals[-2])


def _run(blocks: list[nn.Module], image: Tensor, text: Tensor, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """The image and the text after some blocks; a FLUX block gives (text, image), a Wan block the image."""
    for block in blocks:
        result = block(image, text, *args, **kwargs)
        text, image = result if isinstance(result, tuple) else (text, result)
    return image, text
