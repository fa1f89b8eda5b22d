"""The callable that Dynamo gets: one step of the model for the stream that the call belongs to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..config import DiCacheConfig
from ..passes.fragment import Function
from ..plan import Slot
from .clock import Clock
from .engines import Engine
from .fragments import note_run
from .session import Session, SessionFinder
from .sizes import Sizes
from .streams import SINGLE, current_name

_numbers = itertools.count()
ANCHORS_OF_ITS_OWN = 3  # deep steps after which a stream in doubt holds nothing but its own


@dataclass(frozen=True, slots=True)
class Places:
    """Where a graph's inputs are."""

    conditions: tuple[int, ...]
    weight: int | None  # a weight of the deep blocks, by which a call's model is known


@dataclass(slots=True)
class CompiledStep:
    """Runs a cut graph. Called with the graph's inputs, returns its outputs."""

    config: DiCacheConfig
    find_session: SessionFinder
    engine: Engine
    slots: tuple[Slot, ...]
    sizes: Sizes
    places: Places
    clock: Clock
    function: Function | None  # that the graph is of
    work: int  # of the trunk, in multiplications
    number: int = field(default_factory=lambda: next(_numbers))

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        session = self.find_session(None if self.places.weight is None else inputs[self.places.weight])
        settings = session.told.settings(session.pipeline_steps)
        time = self.clock.time(inputs)
        name = current_name()
        if name is None:
            name = self._unnamed(session, inputs, time)
            if session.numbering.doubt:
                settings = session.told.settings(session.pipeline_steps, warmup=ANCHORS_OF_ITS_OWN)
        state = session.state(name, self.number, self.sizes.key(inputs), self.slots, lambda: self.sizes.shapes(inputs))
        state.tell(settings)
        self.clock.write(state, time, session.told.config.num_steps)
        session.begin_call(name, session.told.config)
        note_run(self.function, self.work)
        try:
            return self.engine.step(inputs, state)
        except BaseException:
            # The step may have written half of its state.
            session.drop(name)
            raise

    def _unnamed(self, session: Session, inputs: Sequence[Any], time: Tensor | None) -> str:
        if self.config.streams == 1 or time is None:
            return SINGLE
        prompts = tuple(inputs[place] for place in self.places.conditions)
        return session.numbering.next(time.float().amax().item(), prompts, lambda: _at_start(session))


def _at_start(session: Session) -> bool:
    first = session.streams.get("0")
    return first is not None and first.tensors["index"].item() <= 1
