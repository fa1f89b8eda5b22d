"""What the demo reports of each system: its time against the plain one's, and its pictures against the plain one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from .quality import Quality, compare
from .systems import CACHED, PLAIN, PROBE_ONLY, STEPS, Run


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table."""

    name: str
    seconds: float  # a generation; median
    deep: float  # steps of a generation on which the deep blocks ran; mean
    speed_up: float  # over the plain system in the same round; median
    ideal: float  # the speed-up if deciding and estimating were free; median
    quality: tuple[Quality, ...]  # one for each picture


def results(runs: Mapping[str, Sequence[Run]]) -> list[Result]:
    """The plain system first; `runs[name][i]` is the system's generation in round i."""
    plain = runs[PLAIN]
    return [
        Result(PLAIN, median(run.seconds for run in plain), STEPS, 1.0, 1.0, ()),
        *(_result(name, runs[name], plain, runs[PROBE_ONLY]) for name in CACHED),
    ]


def qualities(run: Run, reference: Run) -> list[Quality]:
    return [compare(ours, theirs) for ours, theirs in zip(run.pixels, reference.pixels, strict=True)]


def _result(name: str, runs: Sequence[Run], plain: Sequence[Run], probe_only: Sequence[Run]) -> Result:
    deep = [sum(step.deep for step in run.steps) for run in runs]
    # A deep step costs what a plain one costs, a reused one what the model cut to its probe costs.
    share = median(run.seconds for run in probe_only) / median(run.seconds for run in plain)
    return Result(
        name=name,
        seconds=median(run.seconds for run in runs),
        deep=mean(deep),
        # Of pairs in the same round: a machine that slows down for a while slows both.
        speed_up=median(reference.seconds / run.seconds for run, reference in zip(runs, plain, strict=True)),
        ideal=median(STEPS / (count + (STEPS - count) * share) for count in deep),
        quality=tuple(q for run, reference in zip(runs, plain, strict=True) for q in qualities(run, reference)),
    )
