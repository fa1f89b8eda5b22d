"""Who has which place of a pool: requests that come, go and move between the places of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import StepError
from .runs import Run
from .settings import Settings

_NAMED = 4  # requests that an error names


@dataclass(eq=False)
class Progress:
    """Where one request stands in one lane, which is what its calls of one kind are."""

    calls: int = 0  # steps of its generation that are done
    begins: bool = True  # whether the next step finds nothing of earlier ones
    steps: int | None = None  # of its generation; None: not known
    run: Run | None = None  # that somebody announced, and that it is of
    settings: Settings | None = None  # that its slots hold
    arguments: frozenset[str] = frozenset()  # the names of the tensors that its last call was given

    @property
    def is_done(self) -> bool:
        if self.run is not None and self.run.ended:
            return True
        return self.steps is not None and self.calls >= self.steps


@dataclass(eq=False)
class Request:
    """One row of batches."""

    name: str
    lanes: dict[str, Progress] = field(default_factory=dict)
    last: int = 0  # the number of its last call, among those of all requests

    @property
    def is_done(self) -> bool:
        """Whether it has made all of its steps. Of guidance that ends half-way one lane has fewer."""
        return any(one.is_done for one in self.lanes.values())

    @property
    def is_over(self) -> bool:
        """Whether nothing of it can be left, as the other call of its last step."""
        return all(one.is_done for one in self.lanes.values())

    def lane(self, name: str) -> Progress:
        return self.lanes.setdefault(name, Progress())


@dataclass(frozen=True, slots=True)
class Seating:
    """What becomes of a pool when a batch takes its first places."""

    places: tuple[Request | None, ...]  # who has which
    moves: tuple[tuple[int, int], ...]  # (to, from) of those that have another one than before
    new: tuple[int, ...]  # the places of those that had none


def seated(places: Sequence[Request | None], names: Sequence[str]) -> Seating:
    """The places after requests of these names got the first ones, in this order.

    A new request takes a place that is free, or that of one which has made all of its steps: first of those that are
    over, and of those the one that is so for longest. Raises StepError where there is none; `places` stays as it is.
    """
    before = {one.name: (one, place) for place, one in enumerate(places) if one is not None}
    after: list[Request | None] = list(places)
    new = [name for name in names if name not in before]
    done = [one for one in places if one is not None and one.is_done and one.name not in names]
    done.sort(key=lambda one: (not one.is_over, one.last))
    free = [place for place, one in enumerate(places) if one is None] + [before[one.name][1] for one in done]
    if len(new) > len(free):
        raise StepError(_full([one.name for one in places if one is not None], len(places), len(free), new))
    for name, place in zip(new, free, strict=False):
        after[place] = Request(name)
    where = {one.name: place for place, one in enumerate(after) if one is not None}
    for place, name in enumerate(names):
        other, own = after[place], where[name]
        after[place], after[own] = after[own], other
        where[name] = place
        if other is not None and own != place:
            where[other.name] = own
    moves, fresh = [], []
    for place, one in enumerate(after):
        if one is None:
            continue
        known, old = before.get(one.name, (None, place))
        if known is not one:
            fresh.append(place)
        elif old != place:
            moves.append((place, old))
    return Seating(tuple(after), tuple(moves), tuple(fresh))


def _full(known: Sequence[str], capacity: int, free: int, new: Sequence[str]) -> str:
    return (
        f"{len(new)} new requests ({_some(new)}) for {free} free places: {len(known)} requests ({_some(known)}) have "
        f"state, of max_streams={capacity} at a time. End those that are given up by reset(model, name), say how many "
        "steps each makes by stream([...], num_steps=...), or set max_streams to as many as run at a time"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
