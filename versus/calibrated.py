"""What the methods have to know of a model: sizes, the sampler's sigmas, and recordings of uncached runs."""

from __future__ import annotations

import functools
from typing import Any, Literal

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from bench.clips import model as clips
from dicache_compile import record
from dicache_compile.calibration.calibrate import lags
from dicache_compile.calibration.recording import Recording

from .workload import STEPS, Workload

SAMPLES = 2  # uncached runs of a recording, with the first of the seeds that tune


class Calibrated:
    """One workload's; recorded when first asked for."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        flux = workload.family == "flux"
        self.model = workload.load()
        self.kinds = ("attention", "mlp") if flux else ("attention", "cross_attention", "mlp")
        self.pure_noise = 1.0 if flux else 1000.0  # what the model is given as its timestep for sigma = 1
        lists = [part for part in self.model.children() if isinstance(part, nn.ModuleList)]
        self.blocks = sum(map(len, lists))
        self.doubles = len(lists[0]) if len(lists) > 1 else self.blocks // 3  # as FLUX has: a third of them
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0 if flux else clips.SHIFT)
        scheduler.set_timesteps(STEPS)
        self.sigmas = tuple(scheduler.sigmas.tolist())  # one for each step, and 0
        self._recordings: dict[tuple[str, str], Recording] = {}

    @functools.cached_property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens."""
        shape = self._latents()
        if self.workload.family == "flux":
            side = round(shape[1] ** 0.5)
            return 1, side, side
        frames, rows, columns = (size // of for size, of in zip(shape[2:], clips.CONFIG["patch_size"], strict=True))
        return frames, rows, columns

    def _latents(self) -> tuple[int, ...]:
        """The shape of what the sampler gives to the model."""

        class SeenError(Exception):
            pass

        def model(**inputs: Any) -> Any:
            raise SeenError(*inputs["hidden_states"].shape)

        try:
            self.workload.sample(model, [self.workload.prompt(0)], 0, STEPS)
        except SeenError as seen:
            return seen.args
        raise AssertionError("the sampler calls no model")

    def recording(self, looks_at: Literal["probe", "modulated"] = "probe", sites: str = "trunk") -> Recording:
        key = (looks_at, sites)
        if key not in self._recordings:
            made = record(self.model, self.run, SAMPLES, looks_at=looks_at, sites=sites, progress=False)
            self._recordings[key] = made
        return self._recordings[key]

    def lags(self, kind: str, most: int) -> list[list[float]]:
        return lags(self.recording(sites=kind), most)

    def window(self, low: float, high: float) -> tuple[float, float]:
        """The steps whose timestep, of 1000, lies between both, as shares of a generation that `pab` takes."""
        inside = [step for step in range(STEPS) if low < 1000 * self.sigmas[step] < high]
        return (inside[0] - 1) / STEPS, (inside[-1] + 1) / STEPS

    def run(self, seed: int) -> Any:
        """The picture of a seed and its prompt."""
        return self.workload.sample(self.model, [self.workload.prompt(seed)], seed, STEPS)
