"""The schedule of SmoothCache (arXiv 2411.10510): from errors of what is left out, by how many steps old it is."""

from __future__ import annotations

from collections.abc import Sequence

from ..schedules import Schedule


def by_lag(errors: Sequence[Sequence[float]], threshold: float) -> Schedule:
    """From each deep step on reuses as many steps as its error allows.

    `errors[lag - 1][step]` is how far what the step `step + lag` gives is from what `step` gave: relative L1, the mean
    of all blocks and samples of a calibration. From each deep step the longest lag whose error is not above the
    threshold counts. There are as many lags as lists. The first and the last step run deep.

    Raises ValueError where a list has not one entry for each pair of steps.
    """
    steps = len(errors[0]) + 1 if errors else 0
    for lag, of_lag in enumerate(errors, start=1):
        if len(of_lag) != steps - lag:
            raise ValueError(f"errors: expected {steps - lag} of lag {lag} for {steps} steps, got {len(of_lag)}")
    if not steps:
        raise ValueError("errors: expected a list for each lag, got none")
    deep, step = [0], 0
    while step < steps - 1:
        longest = (lag for lag in range(len(errors), 0, -1) if step + lag < steps)
        step += 1 + next((lag for lag in longest if errors[lag - 1][step] <= threshold), 0)
        deep.append(min(step, steps - 1))
    return Schedule.steps(*deep)
