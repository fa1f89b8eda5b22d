"""What tuning found."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev

from torch import nn

from ..config import DiCacheConfig
from ..estimators import LearnedTable
from ..schedules import Schedule
from .drawing import trade_off
from .recording import fingerprint
from .sealed import read, refusing, write

VERSION = 2


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
    model: str  # that it was found for: class and parameters
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

    @property
    def uncertainty(self) -> float:
        """The standard error of `psnr`, dB: how far the mean of all seeds may well be from it; infinite for one run."""
        runs = len(self.psnrs)
        return self.spread / (runs - 1) ** 0.5 if runs > 1 else float("inf")

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draws the trade-off into a file of SVG, and returns its path."""
        found = Path(path)
        found.write_text(trade_off([(p.speedup, p.psnr, p.deep) for p in self.points], self.deep), encoding="utf-8")
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a file of JSON, and returns its path."""
        table = self.config.estimator
        assert isinstance(table, LearnedTable)
        rest = {name: value for name, value in asdict(self).items() if name != "config"}
        found = Path(path)
        about = {"version": VERSION, **rest, "deep_steps": self._steps()}
        write(found, {**about, "residuals": table.residuals, "inputs": table.inputs, "of_channel": table.of_channel})
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> Tuned:
        """What `save` wrote; no code runs that is in the file.

        Raises ValueError for a file of another version, that is not whole or was changed, and where `model` is another
        one.
        """
        expected = f"expected what Tuned.save wrote, of version {VERSION}: tune again"
        told = read(Path(path), VERSION, expected)
        with refusing(Path(path), expected):
            if model is not None and (found := fingerprint(model)) != told["model"]:
                raise ValueError(f"{path} was tuned for {told['model']}, and this is {found}: tune this one")
            deep = tuple(told.pop("deep_steps"))
            residuals, inputs = (tuple(map(tuple, told.pop(name))) for name in ("residuals", "inputs"))
            table = LearnedTable(deep, residuals, inputs, tuple(told.pop("of_channel", ())))
            config = DiCacheConfig(schedule=Schedule.steps(*deep), estimator=table, num_steps=told["num_steps"])
            points = tuple(Point(**point) for point in told.pop("points"))
            return cls(config, psnrs=tuple(told.pop("psnrs")), points=points, **told)

    def __str__(self) -> str:
        runs = f"{len(self.psnrs)} runs on seeds of their own"
        mean = f"{self.psnr:.1f} dB in the mean (+- {self.uncertainty:.1f})"
        return "\n".join(
            (
                f"{self.deep} of {self.num_steps} steps run deep: {', '.join(map(str, self._steps()))}",
                f"speed-up   {self.speedup:.2f}x expected, of the model's calls",
                f"PSNR       {mean}, one by one +- {self.spread:.1f}, worst {min(self.psnrs):.1f}: {runs}",
                "next       enable_cache(pipe, tuned.config)",
            )
        )

    def _steps(self) -> tuple[int, ...]:
        assert self.config.schedule is not None
        return self.config.schedule.deep_steps(self.num_steps)
