"""The schedule of ToCa (arXiv 2410.05317): the further a generation is, the fewer steps are reused in a row."""

from __future__ import annotations

from ..schedules import Schedule


def tapered(
    num_steps: int, *, interval: float = 3, tilt: float = 0.4, sensitive: tuple[float, float] | None = (0.2, 0.4)
) -> Schedule:
    """Every so manyth step runs deep, counted from the last one back.

    After each deep step the interval is `interval / (1 + tilt - 2 tilt s)` in whole steps, where s is the share of the
    steps that are left: longer than `interval` at first, and shorter towards the end. Where s is in the `sensitive`
    range it is 2, as in the published code. With `tilt=0` and `sensitive=None` it is how that code has FORA.

    Raises ValueError for an interval below 1, or a tilt that is not from 0 to below 1.
    """
    if not interval >= 1 or not 0 <= tilt < 1:
        raise ValueError(f"expected an interval from 1 on and a tilt from 0 to below 1, got {interval!r} and {tilt!r}")
    low, high = (int(share * num_steps) for share in sensitive or (0, 0))
    deep, every = list[int](), 1
    for step in range(num_steps):
        left = num_steps - 1 - step
        if not deep or left % every == 0:
            deep.append(step)
            every = 2 if low <= left < high else max(1, round(interval / (1 + tilt - 2 * tilt * left / num_steps)))
    return Schedule.steps(*deep)
