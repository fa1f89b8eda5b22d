"""Stands in for a model while it is recorded or tried: each call goes to a function, with the graph in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..calls.streams import current_name
from ..config import DiCacheConfig
from ..cut import cut
from ..errors import UnsupportedGraphError
from ..tracing import own_code
from .taps import Inputs, Taps, taps

Handler = Callable[["Place", Taps, Inputs], Any]


class Place(NamedTuple):
    """Which call of a generation this is."""

    step: int  # from 0
    call: int  # which of the step's, from 0


class Standing:
    """What calls go to. `begin` before each generation."""

    def __init__(self, config: DiCacheConfig) -> None:
        self.handler: Handler = lambda place, pieces, inputs: pieces.whole(*inputs)[0]
        self.refused: str | None = None  # why nothing was cut
        self._config = config
        self.begin()

    def begin(self) -> None:
        """A generation starts."""
        self._last: tuple[str | None, Tensor | None] | None = None
        self._names: list[str | None] = []
        self._step = -1

    def backend(self, gm: fx.GraphModule, examples: Sequence[Any], **_: Any) -> Any:
        try:
            pieces = taps(cut(gm, examples, self._config))
        except UnsupportedGraphError as error:
            self.refused = str(error)
            return gm.forward
        return lambda *inputs: self.handler(self._place(pieces, inputs), pieces, inputs)

    def _place(self, pieces: Taps, inputs: Inputs) -> Place:
        """Calls at one timestep, and of several names, are one step's."""
        time = inputs[pieces.timestep] if pieces.timestep is not None else None
        time = time.clone() if isinstance(time, Tensor) else None
        name = current_name()
        again = self._last is not None and _same(self._last[1], time) and (name is None or name not in self._names)
        if not again:
            self._step += 1
            self._names = []
        self._last = (name, time)
        self._names.append(name)
        return Place(self._step, len(self._names) - 1)


@contextmanager
def standing(model: nn.Module, config: DiCacheConfig) -> Iterator[Standing]:
    """Inside, calls of the model go to a `Standing`; after it the model is called as before."""
    stand, before = Standing(config), model._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    model._compiled_call_impl = torch.compile(own_code(call), backend=stand.backend, dynamic=False)
    try:
        yield stand
    finally:
        model._compiled_call_impl = before


def _same(before: Tensor | None, now: Tensor | None) -> bool:
    return before is not None and now is not None and torch.equal(before, now)
