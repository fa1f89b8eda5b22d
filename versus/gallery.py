"""The grid of pictures: the same prompts and noise by every family, at the same number of deep steps."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from bench.quality import psnr

from . import plots, tuned
from .generation import generate
from .ours import Ours
from .roster import equal
from .system import System, eager
from .uncached import Uncached
from .workload import HELD_OUT, Workload

DEEP = 10  # of 30 steps
SEEDS = range(HELD_OUT, HELD_OUT + 6)


def draw(workload: Workload, path: Path) -> None:
    """Draws it from eager runs: what is on a picture does not depend on how it was compiled, but for rounding."""
    references = _pictures(Uncached(), workload)
    lines = {"uncached": [(workload.strip(pixels), "") for pixels in references]}
    for entrant in equal(workload):
        if entrant.family and entrant.role == tuned.deep(DEEP) and not entrant.why_not:
            pictures = zip(_pictures(entrant.system, workload), references, strict=True)
            lines[_label(entrant.system)] = [
                (workload.strip(p), f"{psnr(p, reference):.1f} dB") for p, reference in pictures
            ]
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.grid(lines, path, titles=[workload.title(workload.prompt(seed)) for seed in SEEDS])


def _pictures(system: System, workload: Workload) -> list[Tensor]:
    installed = eager(system).install(workload.load(), workload)
    return [generate(installed, workload, seed).pixels for seed in SEEDS]


def _label(system: System) -> str:
    forms = [word for word in ("lite", "taylorseer") if getattr(system, word, False)]
    if isinstance(system, Ours) and system.config().probe_depth == 0:
        forms.append("no probe")
    return "\n".join((system.name, *forms))
