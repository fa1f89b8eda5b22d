"""The schedule of MagCache (arXiv 2506.09045): from how much the residual's size changes from step to step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..schedules import Schedule


def by_magnitude(
    ratios: Sequence[float],
    num_steps: int,
    *,
    threshold: float,
    most: int,
    retention: float,
    always: Sequence[int] = (),
) -> Schedule:
    """Reuses while the product of ratios since the last deep step, less 1, adds up to no more than the threshold.

    `ratios` has each step's mean size of the residual over that of the step before, from a calibration. Of another
    number of steps the nearest ones are taken, as the published code does. At most `most` steps in a row are reused,
    and none of the first int(retention * num_steps + 0.5), nor of `always`.

    Raises ValueError for ratios that are not finite, or none.
    """
    if not ratios or not all(map(math.isfinite, ratios)):
        raise ValueError("ratios: expected finite numbers, one for each step of the calibration")
    nearest = _nearest(ratios, num_steps)
    deep, product, reused, error = list[int](), 1.0, 0, 0.0
    for step in range(num_steps):
        if step >= max(int(retention * num_steps + 0.5), 1):
            product, reused = product * nearest[step], reused + 1
            error += abs(1 - product)
            if error <= threshold and reused <= most and step not in always:
                continue
            product, reused, error = 1.0, 0, 0.0
        deep.append(step)
    return Schedule.steps(*deep)


def _nearest(ratios: Sequence[float], count: int) -> list[float]:
    """As many of these, at equal distances."""
    if count == 1:
        return [ratios[-1]]
    scale = (len(ratios) - 1) / (count - 1)
    return [ratios[round(step * scale)] for step in range(count)]
