"""The pools of one model, one for each size of its requests; a request that comes in another size goes on there."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from ..errors import StepError
from .layout import Form, Layout
from .pool import Pool
from .seats import Progress, Request

MAX_POOLS = 4  # each for requests of another size


class Pools:
    """Those of one model. Not safe for calls from several threads at once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[frozenset[Form], Pool] = OrderedDict()
        self._clock = itertools.count(1)

    def pool(self, layout: Layout) -> Pool:
        """That of requests of one size. Raises StepError where too many sizes are in use."""
        form = frozenset(layout.row_form(slot) for slot in layout.slots if slot.like is not None and not slot.of_rows)
        if form not in self._known:
            if len(self._known) >= MAX_POOLS and not self.give_way():
                raise StepError(
                    f"requests of {MAX_POOLS} sizes have state, and one of another size is new: end those that are "
                    "given up by reset(model, name), or run fewer sizes at a time"
                )
            self._known[form] = Pool(self._capacity)
        self._known.move_to_end(form)
        return self._known[form]

    def give_way(self, to: Pool | None = None) -> bool:
        """Frees the pool that is unused for longest, but the one that it gives way `to`; whether there was one."""
        unused = next((form for form, pool in self._known.items() if pool.is_unused and pool is not to), None)
        if unused is not None:
            del self._known[unused]
        return unused is not None

    def bring(self, pool: Pool, lane: str, requests: Sequence[Request]) -> None:
        """Has requests, which have the first places of a pool for their next call, find there what they did in others.

        That is how many steps are done in calls of this kind, of which no anchor serves here, and what the calls of one
        request have together, as those of guidance.
        """
        others = [other for other in self._known.values() if other is not pool]
        elsewhere: dict[Pool, list[tuple[int, int]]] = {}
        for place, request in enumerate(requests):
            known = [(one, other) for other in others if (one := other.find(request.name)) is not None]
            last, where = max(known, key=lambda pair: pair[0].last, default=(request, pool))
            if last.last > request.last:
                elsewhere.setdefault(where, []).append((place, where.place_of(last)))
        for other, places in elsewhere.items():
            pool.take_shared(other, places)
        for request in requests:
            for other in others if lane not in request.lanes else ():
                if (found := other.give(request.name, lane)) is not None:
                    request.lanes[lane] = Progress(found.calls, steps=found.steps, run=found.run)
            request.last = next(self._clock)

    def end(self, name: str) -> None:
        """A request is given up: its place is free."""
        for pool in self._known.values():
            pool.end(name)

    def end_all(self) -> None:
        for pool in self._known.values():
            pool.end_all()

    def clear(self) -> None:
        """Forgets all requests, and frees what was kept and captured for them."""
        self._known.clear()

    def tensors(self) -> list[Tensor]:
        """All that is kept."""
        return [tensor for pool in self._known.values() for tensor in pool.tensors()]

    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())
