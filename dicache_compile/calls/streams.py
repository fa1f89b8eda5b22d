"""The names of streams: those that the user gives, and those that a pipeline gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from ..errors import StepError
from .runs import current_run, resume, suspend

SINGLE = "main"  # the stream of unnamed calls where all are of one

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RowNames:
    """Which request each row of a batch is."""

    names: tuple[str, ...]
    steps: tuple[int | None, ...]  # of each one's generation; None: nobody said


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A name that is in force, inside of another."""

    owner: object  # the stream or generation that was entered
    path: str  # "request" or, inside of a generation of that name, "request/cond"
    base: str  # what a stream entered inside of it stands below
    outer: _Entry | None
    resumed: bool = False  # whether it brought its run along
    rows: RowNames | None = None  # whose the rows of a batch are


_entered: ContextVar[_Entry | None] = ContextVar("dicache_stream", default=None)
_pipeline: ContextVar[str | None] = ContextVar("dicache_pipeline_stream", default=None)


class stream:  # noqa: N801
    """Names the stream of the calls made inside it.

    Used as `with stream("cond"): model(...)`. A stream is one independent sequence of calls with its own state, such
    as the conditional calls of one request. The object may be kept, passed on and entered many times, from other
    threads too; `stream("a").call(model, x)` makes one call inside it, in whatever thread that runs. Made inside of a
    `generation`, its calls are of that one as long as it lasts, in threads that know of none.

    `stream(["req-1", "req-7"])` names the rows of a batch, each of which is a request of its own, for a config with
    `rows="independent"`. Requests may come, go and change places from call to call. `num_steps` says how many steps
    each makes: one number, or one for each row. A request that has made them gives its place to a new one; one that is
    given up is ended by `reset(model, "req-1")`. A stream that is entered inside, as "cond", is one of each request.

    Raises TypeError or ValueError for a name that is no text, empty or there twice, or a number of steps that is none,
    and StepError where it is left in another order than it was entered.
    """

    __slots__ = ("_rows", "_run", "name")

    def __init__(self, name: str | Sequence[str], *, num_steps: int | Sequence[int | None] | None = None) -> None:
        self._rows = None if isinstance(name, str) else _row_names(name, num_steps)
        if self._rows is None and num_steps is not None:
            raise TypeError("num_steps is of requests that are rows, as in stream([...], num_steps=30): got one name")
        self.name = checked("stream", name) if self._rows is None else list(self._rows.names)
        self._run = current_run()

    def __repr__(self) -> str:
        return f"stream({self.name!r})"

    def __enter__(self) -> stream:
        name = self.name if isinstance(self.name, str) else ""
        enter(self, name, resumed=resume(self._run), rows=self._rows)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leave(self, quiet=kind is not None)

    def call(self, model: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`model(*args, **kwargs)`, as a call of this stream."""
        with self:
            return model(*args, **kwargs)


def _row_names(names: object, num_steps: object) -> RowNames:
    """Raises TypeError or ValueError where rows cannot be called so, or have no such numbers of steps."""
    if not isinstance(names, Sequence):
        raise TypeError(f"stream: expected a name, or a list with one for each row, got {names!r}")
    found = tuple(checked("stream", name) for name in names)
    if not found:
        raise ValueError("stream: expected a name for each row, got an empty list")
    for name in found:
        if found.count(name) > 1:
            raise ValueError(
                f"stream: a request is one row of a batch, and {name!r} is there {found.count(name)} times"
            )
    steps: tuple[Any, ...] = tuple(num_steps) if isinstance(num_steps, Sequence) else (num_steps,) * len(found)
    if len(steps) != len(found):
        raise ValueError(f"stream: expected num_steps for each of {len(found)} rows, got {len(steps)} of them")
    for number in steps:
        if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
            raise TypeError(f"stream: num_steps: expected a whole number, got {number!r}")
        if number is not None and number < 1:
            raise ValueError(f"stream: num_steps: expected at least 1, got {number}")
    return RowNames(found, steps)


def checked(what: str, name: object) -> str:
    """A name; raises TypeError or ValueError if it is none."""
    if not isinstance(name, str):
        raise TypeError(f"{what}: expected a name, got {name!r}")
    if not name:
        raise ValueError(f"{what}: expected a name, got an empty one")
    return name


def enter(
    owner: object, name: str, is_request: bool = False, resumed: bool = False, rows: RowNames | None = None
) -> None:
    """Puts a name in force. Those entered inside a request stand below its name, others take its place.

    `rows` are requests themselves: what is entered inside of them is a stream of each.
    """
    outer = _entered.get()
    base = outer.base if outer is not None else ""
    path = _joined(outer.path if outer is not None and is_request else base, name)
    if rows is None and outer is not None:
        rows = outer.rows
    _entered.set(_Entry(owner, path, path if is_request else base, outer, resumed, rows))


def leave(owner: object, quiet: bool = False) -> None:
    """Takes it back. Raises StepError, unless `quiet`, if `owner` is not what was entered last here."""
    top = _entered.get()
    if top is not None and top.owner is owner:
        _entered.set(top.outer)
        if top.resumed:
            suspend()
        return
    inside = _without(top, owner)
    if inside is not top:
        _entered.set(inside)
    if quiet:
        return
    where = f"{top.owner!r} was entered last here" if top is not None else "nothing is entered in this thread or task"
    raise StepError(
        f"{owner!r} is left in another order than it was entered ({where}), as happens around a `yield`: calls made "
        "meanwhile may have been taken for another stream's. Enter it around each call alone, or call the model by "
        "stream(name).call(model, ...)"
    )


def _without(entry: _Entry | None, owner: object) -> _Entry | None:
    """The names in force without the innermost one of `owner`; the same object if there is none."""
    if entry is None:
        return None
    if entry.owner is owner:
        return entry.outer
    outer = _without(entry.outer, owner)
    return entry if outer is entry.outer else replace(entry, outer=outer)


@contextmanager
def pipeline_stream(name: str) -> Iterator[None]:
    """Names the stream of a pipeline's calls; inside a name that the user gave it is "request/cond"."""
    outer = _pipeline.get()
    _pipeline.set(checked("cache_context", name))
    try:
        yield
    finally:
        _pipeline.set(outer)


def current_request() -> str:
    """The name that the user gave, if one is in force here; "" otherwise."""
    entry = _entered.get()
    return entry.path if entry is not None else ""


def current_name() -> str | None:
    """The name in force here, if there is one that is a stream's: a request alone is not."""
    entry, inner = _entered.get(), _pipeline.get()
    if inner is not None:
        return _joined(current_request(), inner)
    return entry.path if entry is not None and entry.path != entry.base else None


def current_rows() -> RowNames | None:
    """Which requests the rows of a batch are, if somebody has said so here."""
    entry = _entered.get()
    return entry.rows if entry is not None else None


def in_request(name: str) -> str:
    """The full name of an unnamed call's stream."""
    return _joined(current_request(), name)


def request_of(name: str) -> str:
    """The request that a stream is of: "a" of "a/cond"; "" of a name without one."""
    return name.rpartition("/")[0]


def _joined(*parts: str) -> str:
    return "/".join(filter(None, parts))
