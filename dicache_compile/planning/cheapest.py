"""The schedule of least cost with a number of deep steps: a dynamic program, as in BAC, DPCache, CEM and ERTACache."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..schedules import Schedule

Cost = Callable[[int, int], float]


def cheapest(cost: Cost, num_steps: int, deep: int, *, most: int | None = None) -> Schedule:
    """The `deep` steps, the first among them, with the least sum of costs.

    `cost(start, end)` is that of running `start` deep and reusing all steps after it, up to `end`, which is the next
    deep one or the number of steps. At most `most` are reused in a row; None: any number. Of equal sums the one with
    the earlier steps counts. Takes time in deep x num_steps^2.

    Published with several costs: similarities of neighbouring steps (BAC, arXiv 2506.13456), an error by gap and step
    (CEM, arXiv 2512.23258), the error of the whole path (DPCache, arXiv 2602.22654).

    Raises ValueError where no such schedule exists.
    """
    longest = num_steps if most is None else most
    if not 1 <= deep <= num_steps or deep * (longest + 1) < num_steps:
        raise ValueError(f"no schedule of {num_steps} steps has {deep} deep ones and at most {longest} between them")
    # `best[step]`: (the least cost of the steps from this deep one on, with so many more deep ones; the next of them).
    best: list[dict[int, tuple[float, int]]] = []
    for more in range(deep):
        found: dict[int, tuple[float, int]] = {}
        for start in range(num_steps):
            ends = range(start + 1, min(start + longest + 1, num_steps) + 1)
            options = [
                (cost(start, end) + (best[-1][end][0] if more else 0.0), end)
                for end in ends
                if (end in best[-1] if more else end == num_steps)
            ]
            options = [option for option in options if math.isfinite(option[0])]
            if options:
                found[start] = min(options)
        best.append(found)
    if 0 not in best[-1]:
        raise ValueError("every schedule has a step whose cost is not finite")
    steps, at = [0], 0
    for of in reversed(best[1:]):
        at = of[at][1]
        steps.append(at)
    return Schedule.steps(*steps)
