"""The schedule of Spectrum (arXiv 2603.01623): the further a generation is, the more steps are reused in a row."""

from __future__ import annotations

import math

from ..schedules import Schedule


def growing(num_steps: int, *, first: int = 5, window: float = 2.0, growth: float = 0.75) -> Schedule:
    """The `first` steps run deep, and then one of each `window` steps, which grows by `growth` with each of these.

    A window counts by the whole steps in it. It is rounded to three digits as the published code does, so that 0.1 ten
    times is a whole step.

    Raises ValueError for a window below 1, or a growth that is below 0 or not finite.
    """
    if not 1 <= window < math.inf or not 0 <= growth < math.inf:
        raise ValueError(f"expected a window from 1 on that does not shrink, got window={window!r}, growth={growth!r}")
    deep, reused = list[int](), 0
    for step in range(num_steps):
        if step < first:
            deep.append(step)
        elif (reused + 1) % math.floor(window) == 0:
            deep.append(step)
            window, reused = round(window + growth, 3), 0
        else:
            reused += 1
    return Schedule.steps(*deep)
