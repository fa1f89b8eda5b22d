"""Which steps run deep, where that follows from a step's index alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .write.control import MASKED_STEPS


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of a generation that run deep, counted from 0; all others are reused.

    Made by `every`, `steps` or `mask`. A schedule measures nothing: no error is computed and nothing is kept for it.
    A step without an anchor runs deep whatever the schedule says.
    """

    listed: tuple[int, ...] | tuple[float, ...] = ()  # these steps; or shares of a generation, from 0 to below 1
    period: int | None = None  # after the first `after` steps every so manyth
    after: int = 0  # this many first steps
    last: int = 0  # this many last steps
    rows: tuple[Schedule, ...] = ()  # or one for each site

    def __post_init__(self) -> None:
        for name, value, least in (("after", self.after, 0), ("last", self.last, 0), ("period", self.period, 1)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"schedule: expected {name} to be a whole number from {least} on, got {value!r}")
        if not isinstance(self.listed, tuple):
            raise TypeError(f"schedule: expected a tuple of steps, got {self.listed!r}")
        for step in self.listed:
            share = isinstance(step, float) and 0 <= step < 1 and self._has_shares()
            index = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < MASKED_STEPS
            if not (share or (index and not self._has_shares())):
                expected = f"steps from 0 to {MASKED_STEPS - 1}, or shares of a generation from 0.0 to below 1"
                raise ValueError(f"schedule: expected {expected}, got {step!r}")
        if list(self.listed) != sorted(set(self.listed)):
            raise ValueError(f"schedule: expected each step once and in order, got {self.listed!r}")

    @classmethod
    def every(cls, period: int, *, after: int = 1, last: int = 0) -> Schedule:
        """The first `after` steps, then every `period`-th, and the `last` ones: FORA (arXiv 2407.01425), TaylorSeer.

        `every(6, after=3)` is 0, 1, 2, 8, 14, ... With `last` a generation's number of steps has to be known.
        Raises ValueError for numbers that make no sense.
        """
        return cls(period=period, after=after, last=last)

    @classmethod
    def steps(cls, *steps: int | float) -> Schedule:
        """These steps: `steps(0, 1, 4, 8)`. Or these shares of a generation: 0.5 is step 15 of 30, and the number of
        steps has to be known. Raises ValueError for steps that are not in order, or below 0.
        """
        return cls(listed=tuple(steps))

    @classmethod
    def table(cls, *rows: Schedule | Sequence[bool | int]) -> Schedule:
        """A schedule for each of a rule's `sites`, in their order; a row may be written as a mask.

        With `sites=("attention", "mlp")` and two rows it is SmoothCache's form (arXiv 2411.10510); with a part of one
        block as each site, as in ("mlp", 3, 4), it is Learning-to-Cache's (arXiv 2406.01733).
        """
        if not rows:
            raise ValueError("schedule: expected a row for each site, got none")
        return cls(rows=tuple(row if isinstance(row, Schedule) else cls.mask(row) for row in rows))

    @classmethod
    def mask(cls, mask: Sequence[bool | int]) -> Schedule:
        """The steps at which a mask is true, as other caches write them: `mask([1, 1, 0, 0, 1])` is 0, 1, 4."""
        return cls(listed=tuple(step for step, deep in enumerate(mask) if deep))

    def _has_shares(self) -> bool:
        return any(isinstance(step, float) for step in self.listed)

    def needs_num_steps(self) -> bool:
        """Whether it depends on the number of steps of a generation."""
        return self._has_shares() or self.last > 0 or any(row.needs_num_steps() for row in self.rows)

    def deep_steps(self, num_steps: int | None) -> tuple[int, ...]:
        """The steps that run deep of a generation of that many; of an unknown number those that can be told apart.

        Raises ValueError where the number is needed and None.
        """
        if num_steps is None and self.needs_num_steps():
            raise ValueError(f"{self} depends on the number of steps of a generation")
        count = min(MASKED_STEPS, num_steps if num_steps is not None else MASKED_STEPS)
        found = set(range(min(self.after, count)))
        if self.period is not None:
            found.update(range(self.after - 1 + self.period, count, self.period))
        if num_steps is not None:
            found.update(range(max(num_steps - self.last, 0), count))
            # A product that is whole but for its rounding is that whole number.
            found.update(int(step * num_steps + 1e-9) for step in self.listed if isinstance(step, float))
        found.update(step for step in self.listed if isinstance(step, int))
        return tuple(sorted(step for step in found if step < MASKED_STEPS))

    def __str__(self) -> str:
        if self.rows:
            return f"Schedule.table({', '.join(map(str, self.rows))})"
        if self.period is None:
            return f"Schedule.steps({', '.join(map(str, self.listed))})"
        last = f", last={self.last}" if self.last else ""
        return f"Schedule.every({self.period}, after={self.after}{last})"

    __repr__ = __str__
