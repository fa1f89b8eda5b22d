"""What a user announces: one denoising run."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from ..checks import whole
from ..config import DiCacheConfig
from ..errors import StepError
from ..fields import RUN_TIME
from .runs import Run, begin_run, current_run
from .streams import checked, current_request, enter, leave


class generation:  # noqa: N801
    """Announces one denoising run: every call of a compiled model made inside it is of that run.

    `with generation(num_steps=30): ...` around a sampling loop. The first call of each stream starts a generation, and
    nothing else does until the run ends, whatever the timesteps do: they may be equal, rise or go back and forth. A
    prompt that changes, or a size, begins with new anchors, and the count of steps goes on.

    `name` is that of the request: unnamed calls inside it are the streams "name/0", "name/1", and those of
    `stream("cond")` or of a pipeline "name/cond". Runs that last at the same time, in several threads or tasks, keep
    their streams apart with and without a name.
    `num_steps` is for the rules that need it. `fields` are those that `configure` changes, for this run alone, as in
    `generation(threshold=0.1)`; nothing is compiled for them. A pipeline called inside begins a run of its own, with
    the same fields and as many steps as it has.

    Raises TypeError or ValueError for a bad name, number of steps or field; a bad value of a field is told by the
    first call. Raises StepError where it is left in another order than it was entered.
    """

    __slots__ = ("_runs", "fields", "name", "num_steps")

    def __init__(self, name: str | None = None, *, num_steps: int | None = None, **fields: Any) -> None:
        if unknown := {field: value for field, value in fields.items() if field not in RUN_TIME}:
            DiCacheConfig().adjusted(**unknown)  # which says what may change
        self.fields = fields
        self.name = None if name is None else checked("generation", name)
        if num_steps is not None:
            whole("num_steps", num_steps, 1)
        self.num_steps = num_steps
        self._runs: list[Run] = []

    def __repr__(self) -> str:
        return f"generation({'' if self.name is None else repr(self.name)})"

    def __enter__(self) -> generation:
        if self.name is not None:
            enter(self, self.name, is_request=True)
        self._runs.append(begin_run(self.num_steps, current_request(), self.fields, by=self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run = current_run()
        while run is not None and run.by is not self and not isinstance(run.by, generation):
            run.end()  # a pipeline's that was not told to end
            run = current_run()
        in_order = run is not None and run.by is self
        ending = run if run is not None and in_order else self._runs[-1]
        self._runs.remove(ending)
        ending.end()
        if self.name is not None:
            leave(self, quiet=kind is not None)
        elif not in_order and kind is None:
            raise StepError(
                f"{self!r} is left in another order than it was entered, as happens around a `yield`: calls made "
                "meanwhile may have been taken for another run's. Enter it in a thread or task of its own"
            )
