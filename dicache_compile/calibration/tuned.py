"""What tuning found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

from ..config import DiCacheConfig
from .drawing import trade_off


@dataclass(frozen=True, slots=True)
class Point:
    """One number of deep steps."""

    deep: int
    speedup: float  # expected, of a whole generation's calls of the model
    psnr: float  # dB, as the search sees it, in the latents; of the chosen one `Tuned.psnr` is of the results


@dataclass(frozen=True, slots=True)
class Tuned:
    """A config for one model, one sampler and one number of steps."""

    config: DiCacheConfig
    deep: int  # steps, of `num_steps`
    num_steps: int
    speedup: float  # expected: of the pieces' times, uncompiled
    psnrs: tuple[float, ...]  # dB, of cached runs on seeds that nothing was fitted to
    points: tuple[Point, ...]  # what other numbers of deep steps would give

    @property
    def psnr(self) -> float:
        """Of `psnrs` the mean: what to expect of other seeds, dB."""
        return fmean(self.psnrs)

    @property
    def spread(self) -> float:
        """Of `psnrs` the standard deviation, dB."""
        return pstdev(self.psnrs)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draws the trade-off into a file of SVG, and returns its path."""
        found = Path(path)
        found.write_text(trade_off([(p.speedup, p.psnr, p.deep) for p in self.points], self.deep), encoding="utf-8")
        return found

    def __str__(self) -> str:
        runs = f"{len(self.psnrs)} runs on seeds of their own"
        return "\n".join(
            (
                f"{self.deep} of {self.num_steps} steps run deep: {', '.join(map(str, self._steps()))}",
                f"speed-up   {self.speedup:.2f}x expected, of the model's calls",
                f"PSNR       {self.psnr:.1f} dB +- {self.spread:.1f}, worst {min(self.psnrs):.1f}, in {runs}",
                "next       enable_cache(pipe, tuned.config)",
            )
        )

    def _steps(self) -> tuple[int, ...]:
        assert self.config.schedule is not None
        return self.config.schedule.deep_steps(self.num_steps)
