"""What a compiled model is called by: straight to its compiled step where that is known to be the same."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..calls.overheard import overheard
from ..calls.runs import Run, current_run
from .doors import Watch, watch
from .straight import MISS, NoWayError, Straight, straight

_MOST = 8  # forms of calls in one generation, as of guidance's two prompts; with more, each call is probably another


class Armed:
    """Stands in for `model._compiled_call_impl`. Without an announced run every call goes the long way."""

    def __init__(self, model: nn.Module) -> None:
        """`model` is compiled in place."""
        assert model._compiled_call_impl is not None
        self.inner: Callable[..., Any] = model._compiled_call_impl
        self.calls = 0  # that went straight
        # Threads that call at once would each compile the same: Dynamo looks before it waits for its turn, not after.
        self._turn = threading.RLock()
        self.reason: str | None = None  # why the last generation that could not, or not to its end, could not
        self._model = weakref.ref(model)
        self._generations: weakref.WeakKeyDictionary[Run, _Generation] = weakref.WeakKeyDictionary()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = current_run()
        if torch.compiler.is_compiling():
            return self.inner(*args, **kwargs)
        with self._turn:
            return self.inner(*args, **kwargs) if run is None else self._call(run, args, kwargs)

    def _call(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        generation = self._generations.get(run)
        if generation is None:
            generation = self._generations[run] = _Generation()
        if (change := generation.change()) is not None:
            self.reason = f"the model was changed in mid-generation: {change}"
            generation.close()
        if generation.is_closed:
            return self.inner(*args, **kwargs)
        for way in generation.ways:
            result = way(args, kwargs)
            if result is not MISS:
                self.calls += 1
                return result
        with overheard() as graphs:
            result = self.inner(*args, **kwargs)
        try:
            self._learn(generation, run, straight(graphs, args, kwargs, result))
        except NoWayError as error:
            self.reason = str(error)
            generation.close()
        return result

    def _learn(self, generation: _Generation, run: Run, way: Straight) -> None:
        if len(generation.ways) >= _MOST:
            raise NoWayError(f"more than {_MOST} calls of a generation were each of another form")
        model = self._model()
        if generation.watch is None and model is not None:
            generation.watch = watch(model)
            run.at_end.append(generation.close)
            weakref.finalize(run, generation.watch.close).atexit = False  # of one that nobody ends
        generation.ways.append(way)
        self.reason = None


def reason_of(model: nn.Module) -> str | None:
    """Why steps of the last announced generation could not go straight; None where all could, or none was announced."""
    armed = getattr(model, "_compiled_call_impl", None)
    if not isinstance(armed, Armed):  # of one that takes a batch of guidance apart
        armed = getattr(armed, "inner", None)
    return armed.reason if isinstance(armed, Armed) else None


@dataclass(slots=True)
class _Generation:
    """What is known of a model for as long as a run lasts, or until the model is changed."""

    watch: Watch | None = None  # once there is a way
    ways: list[Straight] = field(default_factory=list)
    is_closed: bool = False

    def change(self) -> str | None:
        """What has changed of the model since there is a way, in words; None: nothing, or it was told."""
        return self.watch.change() if self.watch is not None else None

    def close(self) -> None:
        self.is_closed = True
        self.ways.clear()
        if self.watch is not None:
            self.watch.close()
            self.watch = None
