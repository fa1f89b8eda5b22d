"""Steps at which a sum of changes is full: TeaCache where its indicator is the timestep alone, ERTACache's policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..schedules import Schedule


def by_sum(changes: Sequence[float], threshold: float, *, first: int = 1, last: int = 1) -> Schedule:
    """Adds up `changes`, each step's from the one before, and runs deep where the sum reaches the threshold.

    The sum starts again at 0 on each deep step. The `first` and the `last` steps always run deep. So do TeaCache
    (arXiv 2411.19108) on Wan, where the polynomial of the time embedding's change is known beforehand, and ERTACache's
    offline policy (arXiv 2508.21091), with changes of the recorded outputs.

    Raises ValueError for a change that is not finite.
    """
    if not all(map(math.isfinite, changes)):
        raise ValueError("changes: expected finite numbers, one for each step")
    deep, total = list[int](), 0.0
    for step, change in enumerate(changes):
        total += change
        if step < max(first, 1) or step >= len(changes) - last or not total < threshold:
            deep.append(step)
            total = 0.0
    return Schedule.steps(*deep)
